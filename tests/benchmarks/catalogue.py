"""The set: every benchmark by its name, in the order of the page."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.benchmarks import (
    catch_up,
    idle,
    latency,
    loads,
    programs,
    scaling,
    simulated,
    slow_subscriber,
    small_nodes,
    soak,
    tiers,
)
from tests.benchmarks.suite import Group, Suite


class Bench(NamedTuple):
    """`run` adds rows and figures. `only_full`: why the quick suite leaves it out, unless it is asked for."""

    name: str
    title: str
    run: Callable[[Suite], object]
    only_full: str = ""
    needs_lean: bool = False

    def skipped(self, suite: Suite, asked: bool) -> str:
        """Why it does not run now; empty when it does."""
        if self.needs_lean and not suite.has_lean:
            return "it needs the lean load generator"
        return "" if asked or suite.plan.full else self.only_full


def _rows(name: str, groups: Callable[[Suite], Iterable[Group]]) -> Callable[[Suite], object]:
    return lambda suite: suite.measure(name, groups(suite))


SLOW = "minutes long; `--full` or `--only` runs it"

BENCHES: tuple[Bench, ...] = (
    Bench("B1", "publish", _rows("B1", loads.b1)),
    Bench("B4", "work queue with explicit acks, filled before", _rows("B4", loads.b4)),
    Bench("B3", "fan-out", _rows("B3", loads.b3), needs_lean=True),
    Bench("B2", "latency against load", latency.run),
    Bench("B9", "what each durability costs", tiers.run),
    Bench("unbatched", "single publishes of many clients", _rows("unbatched", loads.unbatched), needs_lean=True),
    Bench("S1", "cost a message by number of nodes", scaling.run),
    Bench("roles", "cost a message by role (measured with S1)", lambda _: None),
    Bench("S2", "speed-up of small equal nodes", small_nodes.run, SLOW),
    Bench("S3", "idle nodes", idle.run, SLOW),
    Bench("S4", "many nodes, simulated", simulated.run, SLOW),
    Bench("B7", "cold catch-up beside tail traffic", catch_up.run),
    Bench("B8", "one of ten subscribers stops reading", slow_subscriber.run),
    Bench("B10", "failover under load", programs.failover, SLOW),
    Bench("B11", "a fourth node joins under load, and leaves", programs.moves, SLOW),
    Bench("B12", "streams opened and cancelled", soak.run, SLOW),
    Bench("B5", "many channels", programs.channels, SLOW),
    Bench("B6", "many connections", programs.connections, SLOW),
)
