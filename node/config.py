"""The node's settings: one frozen `Config` from defaults < TOML file < environment < flags.

The fields of `Config` are the one table behind the file's keys (`max_message_bytes`), the environment
(`RINGPOST_MAX_MESSAGE_BYTES`), the flags (`--max-message-bytes`), `--help` and `--print-config`.
"""

import argparse
import dataclasses
import socket
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ringpost.cluster.names import node_problem
from ringpost.node import options
from ringpost.node.options import ConfigError, option, option_of, optional_address_problem

__all__ = ["Config", "ConfigError", "FOREIGN_VARIABLES", "load_config", "render_toml"]

MIB = 1 << 20
PREFIX = "RINGPOST_"
CONFIG_VARIABLE = "RINGPOST_CONFIG"

# RINGPOST_ variables that are not the node's: default address, context, TLS, token and state directory of clients,
# shell completion, the image that tests run, and the mark of a CI run. RINGPOST_TEST_… is for test runs.
FOREIGN_VARIABLES = frozenset(
    {
        "RINGPOST_ADDR",
        "RINGPOST_CONTEXT",
        "RINGPOST_CA",
        "RINGPOST_CERT",
        "RINGPOST_KEY",
        "RINGPOST_TOKEN_FILE",
        "RINGPOST_TOKEN",
        "RINGPOST_HOME",
        "RINGPOST_COMPLETE",
        "RINGPOST_IMAGE",
        "RINGPOST_CI",
    }
)
FOREIGN_PREFIX = "RINGPOST_TEST_"

_IDENTITY = "Identity and addresses"
_TLS = "TLS: files are taken up anew when they change"
_ACCESS = "Access: the file is taken up anew when it changes"
_CLUSTER = "Cluster"
_CHANNELS = "Channels and messages"
_JOURNAL = "Journal"
_DISK = "Disk space"
_MEMORY = "Memory and streams"
_TIMES = "Times"
_LOGS = "Logs and traces"
_DATA_DIR = Path("ringpost-data")
COORDINATIONS = ("embedded", "etcd")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one node. Units are in the names; what each means is its second text. Raises ConfigError."""

    node: str = option("node-1", _IDENTITY, "Stable id of this node in its cluster.", problem=node_problem)
    data_dir: Path = option(  # noqa: RUF009 - it makes a dataclasses.field
        _DATA_DIR, _IDENTITY, "Directory of the journal; made when it is missing."
    )
    listen: str = option(
        "127.0.0.1:7400", _IDENTITY, "Address for clients (gRPC); port 0: a free one.", problem=options.address_problem
    )
    http_listen: str = option(
        "127.0.0.1:7402", _IDENTITY, "Address of metrics and health; empty: none.", problem=optional_address_problem
    )
    advertise: str = option(
        "",
        _IDENTITY,
        "host:port that clients are told; empty: listen's, with the machine's name in place of 0.0.0.0.",
        problem=optional_address_problem,
    )
    peer_listen: str = option(
        "127.0.0.1:7401",
        _IDENTITY,
        "Address for other nodes (gRPC), in a cluster of several; port 0: a free one.",
        problem=options.address_problem,
    )
    peer_advertise: str = option(
        "",
        _IDENTITY,
        "host:port that other nodes are told; empty: peer_listen's, with the machine's name in place of 0.0.0.0.",
        problem=optional_address_problem,
    )
    shared_listen: str = option(
        "",
        _IDENTITY,
        "One more address for clients (gRPC), which other processes of this machine may serve, too; empty: none.",
        problem=optional_address_problem,
    )
    workers: int = option(
        1,
        _IDENTITY,
        "Processes to run, each a node NODE-1, NODE-2, … of the cluster with a directory of its own in data_dir. They "
        "share `listen`; their own ports are 10, 20, … above those named here. Needs etcd.",
        low=1,
        high=64,
    )
    insecure: bool = option(False, _IDENTITY, "Serve plain text also to other machines.")
    http_insecure: bool = option(
        False, _IDENTITY, "Serve metrics and health, which ask nobody who they are, also to other machines."
    )

    tls_cert_file: str = option(
        "", _TLS, "PEM file of the certificate that clients meet, with its chain; empty: plain text."
    )
    tls_key_file: str = option("", _TLS, "PEM file of its key.")
    tls_client_ca_file: str = option(
        "", _TLS, "PEM file of the authority whose certificates clients must show; empty: they need none."
    )
    peer_tls_cert_file: str = option(
        "", _TLS, "PEM file of this node's certificate for other nodes; it names the node's id. Empty: plain text."
    )
    peer_tls_key_file: str = option("", _TLS, "PEM file of its key.")
    peer_tls_ca_file: str = option("", _TLS, "PEM file of the authority of all nodes' certificates.")

    access_file: str = option(
        "", _ACCESS, "TOML file of principals, roles, issuers and quotas; empty: everybody may do everything."
    )

    coordination: str = option(
        "embedded", _CLUSTER, "Who decides ownership: this node alone, or etcd for a cluster.", choices=COORDINATIONS
    )
    cluster_name: str = option("ringpost", _CLUSTER, "Which cluster of those in one etcd.", problem=node_problem)
    etcd_endpoints: str = option(
        "127.0.0.1:2379", _CLUSTER, "etcd's members, host:port with commas between.", problem=options.addresses_problem
    )
    etcd_prefix: str = option(
        "/ringpost", _CLUSTER, "Where in etcd the clusters are; keys are PREFIX/NAME/….", problem=options.prefix_problem
    )
    etcd_user: str = option("", _CLUSTER, "User in etcd; empty: none.")
    etcd_password_file: str = option("", _CLUSTER, "File with the user's password.")
    etcd_ca_file: str = option("", _CLUSTER, "PEM file of etcd's authority; empty: plain text, if there is no cert.")
    etcd_cert_file: str = option("", _CLUSTER, "PEM file of this node's certificate for etcd.")
    etcd_key_file: str = option("", _CLUSTER, "PEM file of its key.")
    accept_store: bool = option(
        False, _CLUSTER, "Join although etcd is another one than before; it must hold the newest records."
    )
    lease_ttl_s: int = option(6, _CLUSTER, "A node that etcd has not heard of for so long is dead.", low=2, high=300)
    replication_factor: int = option(
        3, _CLUSTER, "New cluster: copies of each shard; fewer nodes, fewer copies.", low=1, high=9
    )
    min_isr: int = option(
        2, _CLUSTER, "New cluster: copies that a publish waits for, or all if there are fewer.", low=1, high=9
    )
    zone: str = option("", _CLUSTER, "Failure domain of this node; empty: its own.", problem=options.zone_problem)
    host: str = option(
        "",
        _CLUSTER,
        "Machine that this node shares with others, within the zone: no two of them have a copy of one shard where "
        "there are other hosts. Empty: its own.",
        problem=options.zone_problem,
    )
    weight: int = option(1000, _CLUSTER, "Share of shards relative to other nodes, in per mille.", low=1, high=100_000)

    shard_count: int = option(256, _CHANNELS, "Shards of a new cluster; fixed afterwards.", low=1, high=65_536)
    auto_create_channels: bool = option(True, _CHANNELS, "Make a channel by its first use.")
    max_channels: int = option(1_000_000, _CHANNELS, "Most channels on this node.", low=1)
    max_groups: int = option(100_000, _CHANNELS, "Most groups on this node.", low=1)
    max_scheduled_batches: int = option(
        5_000_000, _CHANNELS, "Most delayed batches that are not due yet, copies included; each takes 34 bytes.", low=1
    )
    max_message_bytes: int = option(MIB, _CHANNELS, "Greatest encoded message.", low=1, high=16 * MIB)
    max_batch_bytes: int = option(
        4 * MIB, _CHANNELS, "Greatest encoded batch; at least max_message_bytes.", low=1, high=32 * MIB
    )
    max_batch_messages: int = option(65_535, _CHANNELS, "Most messages in a batch.", low=1, high=65_535)
    retention_age_ms: int = option(0, _CHANNELS, "New channels: age of messages that may go; 0: none does.")
    retention_bytes: int = option(0, _CHANNELS, "New channels: size above which the oldest go; 0: no limit.")
    retention_messages: int = option(0, _CHANNELS, "New channels: number above which the oldest go; 0: no limit.")

    segment_bytes: int = option(
        128 * MIB, _JOURNAL, "Size of a segment; at least max_batch_bytes + 65536.", low=MIB, high=2048 * MIB
    )
    journal_linger_us: int = option(0, _JOURNAL, "Wait for more frames before an fsync.", high=100_000)
    journal_busy_linger_us: int = option(
        1_000, _JOURNAL, "The same while frames come fast (64 MiB/s and more).", high=100_000
    )
    checkpoint_interval_s: int = option(60, _JOURNAL, "Longest time between checkpoints.", low=1, high=86_400)
    checkpoint_bytes: int = option(256 * MIB, _JOURNAL, "Journal written between checkpoints.", low=MIB)
    reclaim_interval_s: int = option(30, _JOURNAL, "Time between retention and reclaim runs.", low=1, high=86_400)
    scrub_bytes_per_s: int = option(4 * MIB, _JOURNAL, "Rate of reading stored frames to find damage; 0: off.")
    cold_read_threads: int = option(2, _JOURNAL, "Threads that read what is not cached.", low=1, high=64)
    accept_loss: bool = option(
        False, _JOURNAL, "Start with what is left of damaged shards. What is damaged is lost, and logged."
    )

    disk_warn_fraction: float = option(0.85, _DISK, "Used part of the disk at which to warn.", high=1)
    disk_refuse_fraction: float = option(0.92, _DISK, "Used part at which publishes are refused.", high=1)
    disk_fail_fraction: float = option(0.97, _DISK, "Used part at which storage is unhealthy.", high=1)
    reserve_bytes: int = option(16 * MIB, _DISK, "Reserve file, given up for acks and trims when the disk is full.")

    tail_cache_bytes: int = option(128 * MIB, _MEMORY, "Cache of the newest frames.")
    stream_unanswered_batches: int = option(
        256, _MEMORY, "Batches of one publish stream not yet answered; above it is not read.", low=1, high=65_536
    )
    stream_unanswered_bytes: int = option(16 * MIB, _MEMORY, "The same in bytes.", low=1)
    peer_unanswered_bytes: int = option(
        64 * MIB, _MEMORY, "Publishes on their way to one other node, or waiting for a leader.", low=1
    )
    node_unanswered_bytes: int = option(
        256 * MIB, _MEMORY, "Bytes not yet durable over all streams; at least max_batch_bytes.", low=1
    )
    subscriber_queue_bytes: int = option(MIB, _MEMORY, "Waiting to be sent on one subscribe stream.", low=1)
    delivery_bytes_max: int = option(
        256 << 10, _MEMORY, "Size of one delivery (one message may pass it); at most subscriber_queue_bytes.", low=1
    )
    metadata_bytes_max: int = option(16 << 10, _MEMORY, "Metadata of a call.", low=1024, high=MIB)
    streams_max: int = option(10_000, _MEMORY, "Open streams over all connections.", low=1)
    connections_max: int = option(
        0, _MEMORY, "Connections of clients; more are not taken. 0: as many as the process's descriptors allow.", low=0
    )
    connection_streams_max: int = option(
        128, _MEMORY, "Calls at a time on one connection; each may hold one max_batch_bytes.", low=1, high=1_000_000
    )

    heartbeat_interval_ms: int = option(
        10_000, _TIMES, "Longest silence on a subscribe stream whose client names none.", low=1_000, high=300_000
    )
    forward_patience_ms: int = option(
        10_000, _TIMES, "How long a request waits for a leader before it fails.", high=600_000
    )
    settle_linger_ms: int = option(2, _TIMES, "Wait for more settlements of a group before storing.", high=1_000)
    connection_age_max_s: int = option(0, _TIMES, "Connections end at this age, so that clients spread; 0: never.")
    connection_idle_max_s: int = option(
        300, _TIMES, "A client's connection without a call ends after this; clients make another. 0: never."
    )
    connection_age_grace_s: int = option(60, _TIMES, "What streams get beyond connection_age_max_s.", low=1)
    drain_grace_ms: int = option(5_000, _TIMES, "Stop: how long open streams still work.", high=600_000)
    stop_grace_ms: int = option(5_000, _TIMES, "Stop: how long calls may take after the drain.", high=600_000)

    tracing: bool = option(
        False, _LOGS, "Send OpenTelemetry spans of traced batches, to OTEL_EXPORTER_OTLP_ENDPOINT (ringpost[tracing])."
    )
    log_level: str = option("info", _LOGS, "Least level.", choices=("debug", "info", "warning", "error"))
    log_format: str = option("json", _LOGS, "One line an event, on standard error.", choices=("json", "text"))

    def __post_init__(self) -> None:
        _check({field: getattr(self, field) for field in _FIELDS}, lambda field: field)

    def advertised(self, bound_port: int) -> str:
        """The `host:port` that clients are told; `bound_port` is the one that `listen` really got."""
        return self.advertise or _advertised(self.listen, bound_port)

    def peer_advertised(self, bound_port: int) -> str:
        """The same for other nodes."""
        return self.peer_advertise or _advertised(self.peer_listen, bound_port)


def _advertised(listen: str, bound_port: int) -> str:
    host, _ = options.split_address(listen)
    host = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"[{host}]:{bound_port}" if ":" in host else f"{host}:{bound_port}"


_FIELDS = {field.name: field for field in dataclasses.fields(Config)}


class _Rule(NamedTuple):
    """What must hold between settings; `text` follows the name of the first."""

    names: tuple[str, ...]
    holds: Callable[..., bool]
    text: str


_RULES = (
    _Rule(("max_batch_bytes", "max_message_bytes"), lambda batch, one: batch >= one, "must be at least"),
    _Rule(("segment_bytes", "max_batch_bytes"), lambda all_, one: all_ >= one + 65_536, "must be 65536 more than"),
    _Rule(("node_unanswered_bytes", "max_batch_bytes"), lambda all_, one: all_ >= one, "must be at least"),
    _Rule(("subscriber_queue_bytes", "delivery_bytes_max"), lambda queue, one: queue >= one, "must be at least"),
    _Rule(("disk_refuse_fraction", "disk_warn_fraction"), lambda upper, lower: upper >= lower, "must be at least"),
    _Rule(("disk_fail_fraction", "disk_refuse_fraction"), lambda upper, lower: upper >= lower, "must be at least"),
)


def _check(values: Mapping[str, Any], described: Callable[[str], str]) -> None:
    """Raises ConfigError for the first wrong value. `described(name)` names a field and its source."""
    for name, field in _FIELDS.items():
        if problem := options.problem_of(field, values[name]):
            raise ConfigError(f"{described(name)}: {problem}")
    for rule in _RULES:
        first, second = rule.names
        if not rule.holds(values[first], values[second]):
            limit = f"{described(second)} = {values[second]}"
            raise ConfigError(f"{described(first)}: {rule.text} {limit}; got {values[first]}")
    excuses = {
        "listen": "tls_cert_file",
        "shared_listen": "tls_cert_file",
        "peer_listen": "peer_tls_cert_file",
        "http_listen": "http_insecure",
    }
    for name, excuse in excuses.items():
        unused = not values[name] or (name == "peer_listen" and values["coordination"] == "embedded")
        if unused or values["insecure"] or values[excuse] or options.is_loopback(values[name]):
            continue
        raise ConfigError(
            f"{described(name)}: {values[name]} is open to other machines, in plain text and without a check "
            f"of who calls; set {excuse}, or use a loopback address such as 127.0.0.1:7400, or --insecure where "
            "the network is trusted"
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"flags: {message}")


def load_config(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """The effective settings. `argv` without the program's name.

    Raises ConfigError, and SystemExit(0) after printing for `--help` and `--print-config`.
    """
    flags = _make_parser().parse_args(argv)
    variables = _read_environment(environ)
    # Value and source of each field; a later source replaces an earlier one.
    raw: dict[str, tuple[object, str]] = {}
    if path := flags.config or environ.get(CONFIG_VARIABLE):
        raw |= _read_file(Path(path))
    raw |= {_field_name(name): (text, name) for name, text in variables.items()}
    for name in _FIELDS:
        if (given := getattr(flags, name)) is not None:
            raw[name] = (given, f"--{name.replace('_', '-')}")
    config = _build(raw)
    if flags.print_config:
        sys.stdout.write(render_toml(config))
        raise SystemExit(0)
    return config


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ringpost serve",
        usage="ringpost serve [--config FILE] [--print-config] [SETTINGS]",
        description="Runs a node. Settings come from defaults, a TOML file, the environment and flags; the last wins.",
        epilog="In the file a setting is called max_message_bytes, in the environment RINGPOST_MAX_MESSAGE_BYTES.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help=f"TOML file with settings (environment: {CONFIG_VARIABLE})")
    parser.add_argument("--print-config", action="store_true", help="print the effective settings as TOML and end")
    groups: dict[str, Any] = {}
    for name, field in _FIELDS.items():
        known = option_of(field)
        group = groups.setdefault(known.group, None) or parser.add_argument_group(known.group)
        groups[known.group] = group
        text = f"{known.help} {_allowed(field)}".replace("%", "%%")
        flag = f"--{name.replace('_', '-')}"
        if isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(flag, metavar=name.rpartition("_")[2].upper(), default=None, help=text)
    return parser


def _allowed(field: dataclasses.Field[Any]) -> str:
    """Default and bounds in brackets."""
    default = options.describe_value(field, field.default) or "empty"
    if choices := option_of(field).choices:
        return f"[{', '.join(choices)}; default {default}]"
    if isinstance(field.default, bool) or not isinstance(field.default, int | float):
        return f"[default {default}]"
    return f"[{options.describe_bounds(field)}; default {default}]"


def _field_name(variable: str) -> str:
    return variable.removeprefix(PREFIX).lower()


def _read_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Our settings among the variables. Raises ConfigError for an unknown RINGPOST_ one."""
    ours = {name: text for name, text in environ.items() if name.startswith(PREFIX)}
    # Kubernetes gives every container RINGPOST_SERVICE_HOST, RINGPOST_PORT_7400_TCP and such for a Service "ringpost".
    services = [name.removesuffix("_SERVICE_HOST") for name in environ if name.endswith("_SERVICE_HOST")]
    injected = tuple(f"{service}{infix}" for service in services for infix in ("_SERVICE_", "_PORT"))
    settings = {}
    for name, text in ours.items():
        if name == f"{PREFIX}{_field_name(name).upper()}" and _field_name(name) in _FIELDS:
            settings[name] = text
        elif not (
            name in FOREIGN_VARIABLES | {CONFIG_VARIABLE}
            or name.startswith(FOREIGN_PREFIX)
            or (injected and name.startswith(injected))
        ):
            raise ConfigError(f"environment: {name} is not a setting; see --help")
    return settings


def _read_file(path: Path) -> dict[str, tuple[object, str]]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    for name in values:
        if name not in _FIELDS:
            raise ConfigError(f"{path}: {name} is not a setting; see --help")
    return {name: (value, str(path)) for name, value in values.items()}


def _build(raw: Mapping[str, tuple[object, str]]) -> Config:
    def described(name: str) -> str:
        source = raw[name][1] if name in raw else "default"
        return f"{source}: {name}"

    values: dict[str, Any] = {name: field.default for name, field in _FIELDS.items()}
    for name, (value, _) in raw.items():
        try:
            values[name] = options.parse(_FIELDS[name], value)
        except ValueError as error:
            raise ConfigError(f"{described(name)}: {error}") from error
    _check(values, described)
    return Config(**values)


def render_toml(config: Config) -> str:
    """All settings with their meaning, in TOML: what `--print-config` prints and `load_config` reads."""
    lines = ["# Settings of a Ringpost node. Environment and flags win over this file."]
    heading = ""
    for name, field in _FIELDS.items():
        known = option_of(field)
        if known.group != heading:
            heading = known.group
            lines += ["", f"## {heading}"]
        live = " SIGHUP takes it up." if name in options.LIVE else ""
        lines += ["", f"# {known.help}{live} {_allowed(field)}", f"{name} = {options.to_toml(getattr(config, name))}"]
    return "\n".join(lines) + "\n"
