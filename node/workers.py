"""`--workers N`: what the processes of one host are set to, and when one that ended is started again. Pure."""

from pathlib import Path
from typing import NamedTuple

from ringpost.node.config import Config, ConfigError
from ringpost.node.options import split_address

PORT_STEP = 10
RESTART_S = (0.5, 30.0)  # the first pause, the longest
# Their names may have {node} in them, for what each worker has of its own.
_FILES = ("tls_cert_file", "tls_key_file", "peer_tls_cert_file", "peer_tls_key_file")
STEADY_S = 60.0  # who has served for so long did not end because it was started


class Worker(NamedTuple):
    """One of them: its node id, and the settings in which it differs, as flags behind all others."""

    node: str
    flags: tuple[str, ...]


def workers_of(config: Config, shared_port: int) -> list[Worker]:
    """All workers. `shared_port` is the one that `listen` really got. Raises ConfigError."""
    if config.coordination == "embedded":
        raise ConfigError(
            f"workers: {config.workers} processes need a store that all of them see, to agree on who owns what: set "
            "coordination to etcd"
        )
    return [_worker(config, number, shared_port) for number in range(1, config.workers + 1)]


def _worker(config: Config, number: int, shared_port: int) -> Worker:
    node = f"{config.node}-{number}"
    shared_host, _ = split_address(config.listen)
    settings: dict[str, str | Path] = {
        "workers": "1",
        "node": node,
        "data-dir": config.data_dir / node,
        "host": config.host or config.node,
        "shared-listen": _joined(shared_host, shared_port),
        "listen": _own(config.listen, number, "listen"),
        "peer-listen": _own(config.peer_listen, number, "peer_listen"),
        "http-listen": _own(config.http_listen, number, "http_listen"),
    }
    for name, listen in (("advertise", config.listen), ("peer_advertise", config.peer_listen)):
        given = getattr(config, name)
        if given and split_address(listen)[1] == 0:
            raise ConfigError(f"{name}: workers are told apart by their ports, so {name} needs listen ports above 0")
        settings[name.replace("_", "-")] = _own(given, number, name)
    for name in _FILES:
        if "{node}" in (file := getattr(config, name)):
            settings[name.replace("_", "-")] = file.replace("{node}", node)
    return Worker(node, tuple(part for name, value in settings.items() for part in (f"--{name}", str(value))))


def _own(address: str, number: int, name: str) -> str:
    """The address of the worker of that number: a port of its own. "" and port 0 (a free one) stay as they are."""
    if not address:
        return ""
    host, port = split_address(address)
    if port + PORT_STEP * number > 65_535:
        raise ConfigError(f"{name}: {address} leaves no port for worker {number}, {PORT_STEP * number} above it")
    return _joined(host, port + PORT_STEP * number if port else 0)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Restarts:
    """How long to wait before one worker is started again: twice as long each time, until it has served for a while."""

    def __init__(self) -> None:
        self._pause_s = 0.0

    def pause_s(self, served_s: float) -> float:
        """To be asked at each end. `served_s`: how long it served; 0: it never did."""
        least, most = RESTART_S
        self._pause_s = least if served_s >= STEADY_S or not self._pause_s else min(2 * self._pause_s, most)
        return self._pause_s
