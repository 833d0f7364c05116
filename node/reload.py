"""Settings that a running node takes up: what SIGHUP does."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from ringpost.node import log
from ringpost.node.config import Config, ConfigError
from ringpost.node.delivery.hub import Hub
from ringpost.node.journal.disk import DiskPolicy
from ringpost.node.maintenance import Maintenance
from ringpost.node.options import LIVE
from ringpost.node.services.publish_session import PublishLimits
from ringpost.node.services.publisher import Publisher
from ringpost.node.services.stream import StreamGate
from ringpost.node.storage import Storage, store_limits

if TYPE_CHECKING:
    from ringpost.node.server import Server


def publish_limits(config: Config) -> PublishLimits:
    """What a publish stream may have unanswered."""
    return PublishLimits(config.stream_unanswered_batches, config.stream_unanswered_bytes, config.node_unanswered_bytes)


def worker_of(config: Config) -> str:
    """The node's id if several write their logs to one stream, else ""."""
    return config.node if config.shared_listen else ""


def reload(server: "Server", read: Callable[[], Config]) -> None:
    """Reads the settings again and takes up those of `LIVE` that have changed; names the others in the log.

    Settings that cannot be used change nothing.
    """
    try:
        new = read()
    except ConfigError as error:
        log.error("config.not_reloaded", problem=str(error))
        return
    old = server.config
    changed = [field.name for field in fields(Config) if getattr(new, field.name) != getattr(old, field.name)]
    live = [name for name in changed if name in LIVE]
    later = [name for name in changed if name not in LIVE]
    told = log.enabled("info")
    if told:  # which the new level may not be
        log.info("config.reloaded", changed=live, need_a_restart=later)
    server.take_up(replace(old, **{name: getattr(new, name) for name in live}))
    if not told:
        log.info("config.reloaded", changed=live, need_a_restart=later)


def take_up(
    config: Config, *, storage: Storage, publisher: Publisher, hub: Hub, maintenance: Maintenance, gate: StreamGate
) -> None:
    """Hands the settings of `LIVE` to who uses them. What is open, or on its way, goes on as it began."""
    log.configure(config.log_level, config.log_format, worker=worker_of(config))
    storage.store.limits = store_limits(config)
    storage.disk_policy = DiskPolicy(config.disk_warn_fraction, config.disk_refuse_fraction, config.disk_fail_fraction)
    publisher.limits = publish_limits(config)
    hub.limits = replace(hub.limits, heartbeat_ms=config.heartbeat_interval_ms)
    maintenance.config = config
    gate.streams_max = config.streams_max
