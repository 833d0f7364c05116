"""B2: latency against load, open loop, at shares of the highest rate that the system sustains end to end."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median

from tests.benchmarks import lean, servers
from tests.benchmarks.job import Found, Job
from tests.benchmarks.loads import T0, T1, T2
from tests.benchmarks.measure import scratch
from tests.benchmarks.report.charts import point
from tests.benchmarks.suite import Start, Suite

QUICK_SHARES, FULL_SHARES = (0.25, 0.5, 0.9), (0.1, 0.25, 0.5, 0.75, 0.9)
SUSTAINED_P99_MS = 50.0
FIRST_RATE = 300_000.0  # of Python clients
TRIES = 12
COLUMNS = ("messages/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "late sends %", "broker CPU µs/msg")
NOTE = (
    "Open loop: every message has a moment at which it is due, and its latency runs from there to its delivery to one "
    "subscriber. What is due within a millisecond leaves together (linger 1 ms, which counts); *late sends* began more "
    "than 2 ms after their moment, which counts, too. 100 % is the highest rate, in steps of a quarter down from more "
    f"than it can, at which the p99 stays below {SUSTAINED_P99_MS:g} ms and nothing queues up at the end."
)


@dataclass
class Case:
    """One system; `found` by share, a list of repetitions each."""

    tier: str
    system: str
    column: str
    start: Start
    job: Job
    highest: float = 0.0
    found: dict[float, list[Found]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.system} {self.tier}, {self.column}"


def cases(suite: Suite) -> list[Case]:
    ours = Job(system="ringpost", load="latency", batch=1_000, window=64)
    made = [Case(T2, "ringpost", column, servers.ringpost, ours) for column in (lean.PYTHON, lean.LEAN)]
    if suite.plan.full:
        made.append(Case(T0, "ringpost", lean.LEAN, servers.ringpost, replace(ours, durability="memory")))
    if suite.peers["nats"]:
        made.append(Case(T1, "nats JetStream", lean.LEAN, servers.nats, replace(ours, system="jetstream")))
        if suite.plan.full:
            made.append(Case(T0, "nats core", lean.LEAN, servers.nats, replace(ours, system="nats")))
    if suite.peers["redis"]:
        start = partial(servers.redis, fsync="everysec")
        made.append(Case(T1, "redis streams", lean.LEAN, start, replace(ours, system="streams")))
    return [case for case in made if suite.has_lean or case.column == lean.PYTHON]


def run(suite: Suite) -> None:
    """Finds each system's highest rate, then measures at its shares, interleaved and repeated."""
    timed = {"seconds": 2 * suite.plan.seconds, "warm_up": suite.plan.warm_up}
    able = cases(suite)
    shares = FULL_SHARES if suite.plan.full else QUICK_SHARES
    for case in able:
        case.job = replace(case.job, seconds=timed["seconds"], warm_up=timed["warm_up"])
        with scratch() as folder, case.start(folder) as server:
            case.highest = _highest(case, server)
        print(f"B2: {case.name} sustains {case.highest:,.0f}/s", flush=True)
    for turn in range(suite.plan.repeat):
        for case in able:
            jobs = [replace(case.job, rate=share * case.highest) for share in shares]
            with scratch() as folder, case.start(folder) as server:
                for share, found in zip(shares, lean.run(case.column, jobs, server, f"b2-{turn}"), strict=True):
                    case.found.setdefault(share, []).append(found)
                    if found.missing:
                        suite.faults.append(f"B2 {case.name}: {found.missing} of {found.acknowledged} are missing")
    _report(suite, able)


def _highest(case: Case, server: servers.Server) -> float:
    """Messages a second."""
    rate = FIRST_RATE
    if case.column == lean.LEAN:
        closed = replace(case.job, load="fanout", batch=100, window=16, seconds=0.3)
        rate = 3 * lean.run(case.column, [closed], server, "b2-closed")[0].per_s
    for number in range(TRIES):
        (found,) = lean.run(case.column, [replace(case.job, rate=rate)], server, f"b2-try-{number}")
        if sustained(found, case.job):
            return rate
        rate *= 0.75
    raise RuntimeError(f"{case.name} sustains no rate down to {rate:,.0f} messages/s")


def sustained(found: Found, job: Job) -> bool:
    """Whether deliveries kept up with the schedule."""
    planned = job.warm_up + job.seconds
    return bool(found.wait_ms) and found.wait_ms[1] < SUSTAINED_P99_MS and found.seconds < 1.1 * planned + 0.05


def _report(suite: Suite, able: Sequence[Case]) -> None:
    rows = []
    for case in able:
        for share, found in case.found.items():
            waits = [[one.wait_ms[at] for one in found] for at in range(4)]
            late = [100 * one.late / max(one.acknowledged, 1) for one in found]
            rate = f"{share * case.highest:,.0f}"
            values = [rate, *waits, late, [one.broker_us for one in found]]
            rows.append({"what": f"{case.name}, {share:.0%}", "values": values})
    suite.figures["B2"] = {"columns": COLUMNS, "rows": rows, "note": NOTE}
    drawn = suite.figures.setdefault("charts", {})
    for at, what in ((0, "p50"), (1, "p99")):
        curves = {case.name: _curve(case, at) for case in able}
        titles = {"title": f"Delivery {what} against load, 128 B, open loop", "x": "messages/s", "y": "ms"}
        drawn[f"b2-{what}"] = {**titles, "curves": curves}
    _targets(suite, able)


def _curve(case: Case, at: int) -> list[tuple[float, float, float, float]]:
    return [point(share * case.highest, [one.wait_ms[at] for one in found]) for share, found in case.found.items()]


def _targets(suite: Suite, able: Sequence[Case]) -> None:
    """Half load of the lean generator, less one fdatasync: what the broker adds."""
    half = next((case.found[0.5] for case in able if case.name == f"ringpost {T2}, {lean.LEAN}"), [])
    if half and suite.ceilings:
        sync = median(one["fdatasync_p50_us"] for one in suite.ceilings) / 1e3
        suite.name_target("half load p50 ms", [one.wait_ms[0] - sync for one in half])
        suite.name_target("half load p99 ms", [one.wait_ms[1] - sync for one in half])
