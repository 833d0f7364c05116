"""A settlement while a group works it out: what becomes of each range, and the change that stores it. Pure."""

from ringpost.node.groups.changes import Ack, Action, Dying, Nack, Outcome, Reject, SettleChange
from ringpost.node.groups.policy import RetryPolicy, spread
from ringpost.node.groups.ranges import append_range


class Request:
    """One settlement while it is worked out, in ascending order of offsets; `results` and `change` come of it."""

    def __init__(
        self, consumer: int, action: Action, now_us: int, ticket: int, policy: RetryPolicy, chance: float = 0.0
    ) -> None:
        self.policy = policy
        self.chance = chance
        self.consumer = consumer
        self.action = action
        self.now_us = now_us
        self.results: list[tuple[int, int, Outcome]] = []
        reason = action.reason if isinstance(action, Reject) else ""
        self.change = SettleChange(reject_reason=reason, tickets=(ticket,))

    def answer(self, first: int, last: int, outcome: Outcome) -> None:
        """What is told of a range; neighbours of one outcome are told as one."""
        if self.results and self.results[-1][1] + 1 == first and self.results[-1][2] == outcome:
            first = self.results.pop()[0]
        self.results.append((first, last, outcome))

    def close(self, first: int, last: int) -> None:
        """To be settled whoever has it."""
        self.include(first, last, 0)
        self.answer(first, last, Outcome.DONE)

    def include(self, first: int, last: int, attempt: int) -> None:
        """Puts into the change what the action makes of a range whose last delivery was `attempt`; 0: of none."""
        if isinstance(self.action, Ack):
            append_range(self.change.acked, first, last)
        elif isinstance(self.action, Reject):
            self.policy.give_up(self.change, Dying(first, last, attempt, self.now_us, self.action.reason))
        elif isinstance(self.action, Nack):
            chance = spread(self.chance, len(self.change.retries))
            self.policy.fail(self.change, first, last, attempt, self.now_us, self.action, chance)
