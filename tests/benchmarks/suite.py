"""Runs groups of cases, interleaved and repeated: A B C A B C. What a case is, is said in `loads`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks import lean, servers
from tests.benchmarks.job import Job, Row
from tests.benchmarks.measure import scratch
from tests.benchmarks.plan import Plan
from tests.benchmarks.servers import Server

Start = Callable[[Path], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Group:
    """Cases of one system at one durability, run against one server: `jobs` by column."""

    tier: str
    system: str
    start: Start
    python: Sequence[Job] = ()
    lean: Sequence[Job] = ()

    @property
    def columns(self) -> tuple[tuple[str, Sequence[Job]], ...]:
        return ((lean.PYTHON, self.python), (lean.LEAN, self.lean))


@dataclass
class Suite:
    """What a run has: its plan, what can be measured here, and what was found. `figures`: all that is not a row."""

    plan: Plan
    peers: dict[str, bool]
    has_lean: bool
    rabbit: Server | None = None
    rows: list[Row] = field(default_factory=list)
    ceilings: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    _runs: int = 0

    def name_target(self, name: str, values: Sequence[float]) -> None:
        """The median of repetitions, as the figure of a target; see `report.targets`."""
        self.figures.setdefault("targets", {})[name] = median(values)

    def rabbitmq(self, _: Path) -> AbstractContextManager[Server]:
        """RabbitMQ takes seconds to start: one serves the whole run, frozen while others are measured."""
        assert self.rabbit is not None
        return servers.awake(self.rabbit)

    @contextmanager
    def everything(self) -> Iterator[None]:
        """The servers that stand for the whole run."""
        with ExitStack() as stack:
            if self.peers["rabbitmq"]:
                self.rabbit = stack.enter_context(servers.rabbitmq(stack.enter_context(scratch())))
                stack.enter_context(servers.frozen(self.rabbit))
            yield

    def measure(self, bench: str, groups: Iterable[Group], repeat: int | None = None) -> list[Row]:
        """Every group in turn, as often as the plan says; its rows, which are kept."""
        able = list(groups)
        made: dict[tuple[int, str, int], Row] = {}
        try:
            self._turns(bench, able, repeat or self.plan.repeat, made)
        finally:
            rows = list(made.values())
            self.rows += rows
            self.faults += [fault for row in rows for fault in row.faults]
        return rows

    def _turns(self, bench: str, able: Sequence[Group], repeat: int, made: dict[tuple[int, str, int], Row]) -> None:
        for turn in range(repeat):
            for number, group in enumerate(able):
                print(f"{bench} {turn + 1}: {group.tier} {group.system}", flush=True)
                with scratch() as folder, group.start(folder) as server:
                    for column, jobs in group.columns:
                        if not jobs or (column == lean.LEAN and not self.has_lean):
                            continue
                        self._runs += 1
                        jobs = [replace(job, seconds=self.plan.seconds, warm_up=self.plan.warm_up) for job in jobs]
                        found = lean.run(column, jobs, server, f"{bench.lower()}-{self._runs}")
                        for at, (job, run) in enumerate(zip(jobs, found, strict=True)):
                            row = Row(bench, group.tier, group.system, column, job.parameters())
                            made.setdefault((number, column, at), row).runs.append(run)
