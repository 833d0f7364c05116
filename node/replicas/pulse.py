"""Whether a peer answers. Pure; times are of the loop's clock, in seconds.

A peer is asked all the time, one question after another. It is unreachable when it owes an answer for too long, as this
node has lived through it: of a time in which this node's own loop stood still only a moment counts, so that a node that
was frozen gives the others a chance to answer before it says anything about them.
"""

BEAT_S = 1.0  # between an answer and the next question
QUESTION_S = 1.0  # a question without an answer is asked again
LOOK_S = 0.25  # how often to look
SILENCE_S_MAX = 2.5  # above what a busy loop owes
_RETRY_S = 0.25
_SLOW_S = 0.5
_MOMENT_S = 0.5  # so much counts of the time between two looks
_ANSWERS_TO_HEAL = 4  # without a failure between them: a link that flaps stays bad


class Pulse:
    """One peer's. Invariant: `reachable` changes only in `look` and `answered`."""

    def __init__(self, now: float) -> None:
        self.reachable = True
        self._looked = now
        self._owes = False
        self._silence = 0.0
        self._answers = 0

    def asked(self) -> None:
        """A question goes out."""
        self._owes = True

    def answered(self) -> None:
        """The answer came."""
        self._owes = False
        self._silence = 0.0
        self._answers += 1
        if self._answers >= _ANSWERS_TO_HEAL:
            self.reachable = True

    def failed(self) -> None:
        """No answer came to the question; the peer still owes one."""
        self._answers = 0

    def look(self, now: float) -> None:
        """Time has passed."""
        passed, self._looked = min(now - self._looked, _MOMENT_S), now
        if self._owes:
            self._silence += passed
        if self._silence >= SILENCE_S_MAX:
            self.reachable = False
            self._answers = 0

    @property
    def pause_s(self) -> float:
        """Seconds until the next question."""
        if not self.reachable:
            return _SLOW_S
        return _RETRY_S if self._owes else BEAT_S
