"""One load against one broker, and what it found; the same objects, as JSON, for every load generator. Pure."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Job:
    """`batch` messages are handed over together, `window` batches of one producer are unanswered at a time.

    `size` in bytes, at least 8; `seconds` is the length of the steady part, after `warm_up`. `messages` is how many are
    stored before they are consumed, for loads that do. `rate` in messages a second, open loop only.
    `returned_percent`: so many of 100 are given back once before they are acknowledged.
    """

    system: str
    load: str
    size: int = 128
    batch: int = 1
    window: int = 1
    producers: int = 1
    subscribers: int = 1
    seconds: float = 0.5
    warm_up: float = 0.15
    messages: int = 0
    rate: float = 0.0
    durability: str = "quorum"
    single_acks: bool = False
    returned_percent: int = 0
    replicas: int = 1
    # Filled in when it runs: HOST:PORT, the broker's processes, a name that nobody else uses.
    address: str = ""
    pids: tuple[int, ...] = ()
    channel: str = ""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        return cls(**{**data, "pids": tuple(data["pids"])})

    def parameters(self) -> dict[str, Any]:
        """What a row is known by: all that says what load it was."""
        where = ("address", "pids", "channel", "seconds", "warm_up", "rate")
        return {name: value for name, value in asdict(self).items() if name not in where}


@dataclass(kw_only=True)
class Found:
    """What a job counted. `messages` in `seconds`, the measured span; the rest over the whole job.

    `missing`: acknowledged and not there, or published and not delivered. `wait_ms`: p50, p99, p99.9 and greatest, of
    the answers or of the deliveries; empty where none was taken.
    """

    messages: int
    seconds: float
    broker_cpu_s: float
    client_cpu_s: float
    acknowledged: int = 0
    missing: int = 0
    wait_ms: list[float] = field(default_factory=list)
    late: int = 0
    redelivered: int = 0

    @property
    def per_s(self) -> float:
        return self.messages / self.seconds

    @property
    def broker_us(self) -> float:
        """CPU µs of the broker a message."""
        return self.broker_cpu_s * 1e6 / max(self.messages, 1)

    @property
    def client_us(self) -> float:
        return self.client_cpu_s * 1e6 / max(self.messages, 1)


@dataclass
class Row:
    """One case with the findings of its repetitions. `column`: `python` or `lean`; `figure`: extra figures by name."""

    bench: str
    tier: str
    system: str
    column: str
    parameters: dict[str, Any]
    runs: list[Found] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """One line for each repetition in which messages are missing."""
        what = f"{self.bench} {self.system} {self.column} {self.parameters['load']} batch {self.parameters['batch']}"
        return [
            f"{what}: {run.missing} of {run.acknowledged} messages are missing, or there are too many"
            for run in self.runs
            if run.missing
        ]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def rows_of(data: Iterable[dict[str, Any]]) -> list[Row]:
    """The rows of a result that was read from JSON."""
    return [Row(**{**row, "runs": [Found(**run) for run in row["runs"]]}) for row in data]
