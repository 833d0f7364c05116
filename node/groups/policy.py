"""When a failed message is delivered again, and when it is given up. Pure: randomness is an argument."""

from dataclasses import dataclass
from enum import IntEnum

from ringpost.node.groups.changes import Dying, Failure, Nack, Retry, SettleChange
from ringpost.node.groups.ranges import append_range

DELAY_US_MAX = 604_800_000_000  # seven days
ENDED = "the ack deadline passed"
REASON_BYTES_KEPT = 256

_GOLDEN = 0.6180339887498949


class Backoff(IntEnum):
    """How the delay grows; numbers of `ringpost.v1.Backoff`."""

    NONE = 0
    CONSTANT = 1
    LINEAR = 2
    EXPONENTIAL = 3


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Delays in microseconds, 0 to seven days; `jitter` is the greatest part of a delay that chance takes off, 0 to 1.

    `max_attempts` 0: failed messages are delivered again for ever. `dead_letters`: what is given up is kept.
    """

    backoff: Backoff = Backoff.NONE
    delay_us: int = 0
    max_delay_us: int = DELAY_US_MAX
    jitter: float = 0.0
    max_attempts: int = 0
    dead_letters: bool = False

    def delay(self, attempt: int, chance: float) -> int:
        """Microseconds to wait after the failure of delivery `attempt` >= 1; `chance` is uniform in [0, 1)."""
        grown = self.delay_us
        if self.backoff == Backoff.LINEAR:
            grown *= attempt
        elif self.backoff == Backoff.EXPONENTIAL:
            grown <<= min(attempt - 1, DELAY_US_MAX.bit_length())
        capped = min(grown, self.max_delay_us)
        return capped - int(capped * self.jitter * chance)

    def exhausted(self, attempt: int) -> bool:
        """Whether the failure of delivery `attempt` is the last one."""
        return 0 < self.max_attempts <= attempt

    def delay_after(self, attempt: int, nack: Nack | None, chance: float) -> int:
        """The same for a nack, which may have a delay of its own, or for a lease that has ended."""
        if nack is not None and nack.delay_us:
            return nack.delay_us
        if self.backoff == Backoff.NONE:
            return nack.fallback_us if nack is not None else 0
        return self.delay(attempt, chance)

    def fail(
        self, change: SettleChange, first: int, last: int, attempt: int, now_us: int, nack: Nack | None, chance: float
    ) -> None:
        """Adds to a change that delivery `attempt` of these messages has failed: by a nack, or its lease has ended."""
        reason = ENDED if nack is None else nack.reason
        if self.exhausted(attempt):
            self.give_up(change, Dying(first, last, attempt, now_us, reason))
            return
        not_before_us = now_us + self.delay_after(attempt, nack, chance)
        failures = (Failure(attempt, now_us, cut(reason)),)
        change.retries.append(Retry(first, last, attempt, not_before_us, failures))

    def give_up(self, change: SettleChange, dying: Dying) -> None:
        """Adds to a change that these messages will not be delivered any more."""
        if self.dead_letters:
            change.dying.append(dying)
            return
        append_range(change.rejected, dying.first, dying.last)
        change.reject_reason = dying.reason


def spread(chance: float, number: int) -> float:
    """From one uniform number the `number`th of a row of them, far apart from its neighbours; in [0, 1)."""
    return (chance + number * _GOLDEN) % 1.0


def cut(reason: str) -> str:
    """What of a failure's reason is remembered."""
    if len(reason) * 4 <= REASON_BYTES_KEPT:
        return reason
    return reason.encode()[:REASON_BYTES_KEPT].decode(errors="ignore")
