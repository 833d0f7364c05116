"""How much is measured: the quick suite, the full one, and one that only shows that everything runs. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """`repeat` interleaved repetitions; `seconds` of steady load a case; `scale` of counts of messages and rests."""

    name: str
    repeat: int
    seconds: float
    warm_up: float
    scale: float
    full: bool = False

    @property
    def long_repeat(self) -> int:
        """Repetitions of what needs a cluster or many seconds each."""
        return 3 if self.full else 1


QUICK = Plan("quick", repeat=3, seconds=0.35, warm_up=0.1, scale=1.0)
FULL = Plan("full", repeat=5, seconds=1.0, warm_up=0.25, scale=2.0, full=True)
SMOKE = Plan("smoke", repeat=1, seconds=0.15, warm_up=0.05, scale=0.1)
PLANS = {plan.name: plan for plan in (QUICK, FULL, SMOKE)}
