"""The `Coordination` that the settings ask for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ringpost.cluster.coordination import Coordination
from ringpost.cluster.embedded import EmbeddedCoordination
from ringpost.cluster.etcd.client import EtcdKv
from ringpost.cluster.etcd.endpoints import EtcdOptions
from ringpost.cluster.joining import DirectoryFacts, Founding
from ringpost.cluster.kv import Kv
from ringpost.cluster.kv_coordination import KvCoordination
from ringpost.cluster.levels import OWN, Levels
from ringpost.node.config import Config, ConfigError
from ringpost.node.options import is_loopback
from ringpost.node.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityFacts:
    """What the data directory's identity says.

    `cluster_id` and `replica_id` are what an embedded node uses, `cluster_id` also what a new cluster is called.
    `joined` says whether the directory belongs to a cluster, which then must be the one of `cluster_id`.
    """

    directory: str
    replica_id: str
    cluster_id: str
    boot: int
    shard_count: int
    joined: bool = False
    revision_seen: int = 0
    store_id: str = ""


def identity_facts(storage: Storage) -> IdentityFacts:
    """What an open data directory says."""
    identity = storage.identity
    return IdentityFacts(
        directory=identity.directory_id.hex(),
        replica_id=identity.replica_id,
        cluster_id=identity.cluster_id,
        boot=identity.boot,
        shard_count=identity.shard_count,
        joined=identity.view_revision > 0,
        revision_seen=identity.view_revision,
        store_id=identity.store_id,
    )


def open_coordination(
    config: Config,
    identity: IdentityFacts,
    *,
    version: str = "",
    healthy: Callable[[], bool] = lambda: True,
    remember: Callable[[int], None] = lambda _: None,
) -> Coordination:
    """Nothing is connected before `start`. Needs a running loop. `healthy` and `remember`: see KvCoordination.

    Raises ConfigError when a file that is named cannot be read.
    """
    if config.coordination == "embedded":
        return EmbeddedCoordination(
            cluster_id=identity.cluster_id,
            replica_id=identity.replica_id,
            shard_count=identity.shard_count,
            boot=identity.boot,
        )
    kv = EtcdKv(etcd_options(config))
    return coordination_over(kv, config, identity, version=version, healthy=healthy, remember=remember)


def coordination_over(
    kv: Kv,
    config: Config,
    identity: IdentityFacts,
    *,
    version: str = "",
    healthy: Callable[[], bool] = lambda: True,
    remember: Callable[[int], None] = lambda _: None,
    levels: Levels = OWN,
) -> KvCoordination:
    """The node's membership in the cluster of the settings, kept in any store."""
    return KvCoordination(
        kv,
        key_prefix(config),
        facts=DirectoryFacts(
            directory=identity.directory,
            boot=identity.boot,
            cluster_id=identity.cluster_id if identity.joined else "",
            revision_seen=identity.revision_seen,
            store_id=identity.store_id,
            accept_store=config.accept_store,
        ),
        founding=Founding(
            cluster_id=identity.cluster_id,
            shard_count=config.shard_count,
            replication_factor=config.replication_factor,
            min_isr=min(config.min_isr, config.replication_factor),
            level=levels.most,
        ),
        levels=levels,
        version=version,
        ttl_s=config.lease_ttl_s,
        healthy=healthy,
        remember=remember,
    )


def key_prefix(config: Config) -> str:
    """What all keys of the cluster begin with."""
    return f"{config.etcd_prefix}/{config.cluster_name}/"


def etcd_options(config: Config) -> EtcdOptions:
    """Raises ConfigError when a file that is named cannot be read, or another setting belongs to it."""
    for first, second in (("etcd_user", "etcd_password_file"), ("etcd_cert_file", "etcd_key_file")):
        if bool(getattr(config, first)) != bool(getattr(config, second)):
            raise ConfigError(f"{first} and {second} belong together: give both or none")
    remote = next((one for one in config.etcd_endpoints.split(",") if not is_loopback(one)), "")
    if config.etcd_user and remote and not (config.etcd_ca_file or config.etcd_cert_file or config.insecure):
        raise ConfigError(
            f"etcd_user: its password would go to {remote} in plain text; set etcd_ca_file, or --insecure where the "
            "network is trusted"
        )
    return EtcdOptions(
        endpoints=tuple(config.etcd_endpoints.split(",")),
        user=config.etcd_user,
        password=_read("etcd_password_file", config.etcd_password_file).decode().rstrip("\r\n"),
        ca=_read("etcd_ca_file", config.etcd_ca_file),
        cert=_read("etcd_cert_file", config.etcd_cert_file),
        key=_read("etcd_key_file", config.etcd_key_file),
    )


def _read(name: str, path: str) -> bytes:
    """A file's content; nothing when none is named."""
    if not path:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {path}: cannot be read: {error.strerror}") from error
