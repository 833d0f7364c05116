"""The settings lead to the right kind of coordination."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringpost.cluster.coordination import CoordinationError
from ringpost.cluster.embedded import EmbeddedCoordination
from ringpost.cluster.kv_coordination import KvCoordination
from ringpost.cluster.memory_kv import MemoryKv, MemoryStore
from ringpost.cluster.view import NodeRef
from ringpost.node.config import Config, ConfigError
from ringpost.node.coordination import IdentityFacts, coordination_over, etcd_options, key_prefix, open_coordination

ME = NodeRef("node-1", "127.0.0.1:7400")


def facts(**changes: Any) -> IdentityFacts:
    fields = {"directory": "d1", "replica_id": "r1", "cluster_id": "c1", "boot": 3, "shard_count": 8}
    return IdentityFacts(**{**fields, **changes})


async def test_without_a_setting_the_node_is_alone() -> None:
    coordination = open_coordination(Config(), facts())
    assert isinstance(coordination, EmbeddedCoordination)
    view = await coordination.start(ME)
    assert (view.cluster_id, view.shard_count, coordination.session) == ("c1", 8, 3)


async def test_a_cluster_in_etcd(tmp_path: Path) -> None:
    config = Config(coordination="etcd", etcd_endpoints="127.0.0.1:1,[::1]:2", cluster_name="east", etcd_prefix="/x/y")
    coordination = open_coordination(config, facts())
    assert isinstance(coordination, KvCoordination)
    assert coordination.keys.prefix == key_prefix(config) == "/x/y/east/"
    await coordination.close()
    assert etcd_options(config).endpoints == ("127.0.0.1:1", "[::1]:2")


async def test_a_cluster_is_made_as_the_settings_say() -> None:
    store, remembered = MemoryStore(), []
    config = Config(shard_count=16, replication_factor=5, min_isr=3)
    coordination = coordination_over(MemoryKv(store), config, facts(), version="1.2", remember=remembered.append)
    view = await coordination.start(ME)
    assert (view.cluster_id, view.shard_count, view.replication_factor, view.min_isr) == ("c1", 16, 5, 3)
    assert view.nodes["node-1"].directory == "d1"
    await coordination.close()
    stranger = coordination_over(MemoryKv(store), config, facts(cluster_id="c2", boot=4, joined=True))
    with pytest.raises(CoordinationError, match="belongs to cluster c2"):
        await stranger.start(ME)
    newcomer = coordination_over(MemoryKv(store), config, facts(cluster_id="c2", boot=4))
    assert (await newcomer.start(ME)).cluster_id == "c1"
    await newcomer.close()


async def test_one_copy_needs_no_second_one() -> None:
    coordination = coordination_over(MemoryKv(MemoryStore()), Config(replication_factor=1), facts())
    view = await coordination.start(ME)
    assert (view.replication_factor, view.min_isr) == (1, 1)
    await coordination.close()


def test_files_of_secrets_are_read(tmp_path: Path) -> None:
    files: Callable[[str], Path] = tmp_path.joinpath
    for name in ("password", "ca", "cert", "key"):
        files(name).write_text(f"{name}\n")
    options = etcd_options(
        Config(
            etcd_user="ringpost",
            etcd_password_file=str(files("password")),
            etcd_ca_file=str(files("ca")),
            etcd_cert_file=str(files("cert")),
            etcd_key_file=str(files("key")),
        )
    )
    assert (options.user, options.password) == ("ringpost", "password")
    assert (options.ca, options.cert, options.key) == (b"ca\n", b"cert\n", b"key\n")
    assert options.tls


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"etcd_user": "u"}, "etcd_user and etcd_password_file belong together"),
        ({"etcd_password_file": "p"}, "etcd_user and etcd_password_file belong together"),
        ({"etcd_key_file": "k"}, "etcd_cert_file and etcd_key_file belong together"),
        ({"etcd_ca_file": "/no/such/file"}, "etcd_ca_file: /no/such/file: cannot be read: No such file"),
    ],
)
def test_what_is_missing_is_named(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        etcd_options(Config(**settings))


def test_a_password_goes_to_another_machine_over_tls_only(tmp_path: Path) -> None:
    (file := tmp_path / "password").write_text("secret")
    user: dict[str, Any] = {"etcd_user": "u", "etcd_password_file": str(file)}
    far = {"etcd_endpoints": "127.0.0.1:2379,etcd.example:2379"}
    with pytest.raises(ConfigError, match=r"etcd_user: its password would go to etcd\.example:2379 in plain text"):
        etcd_options(Config(**user, **far))
    assert etcd_options(Config(**user)).password == "secret"
    assert etcd_options(Config(**user, **far, insecure=True)).password == "secret"
    assert etcd_options(Config(**user, **far, etcd_ca_file=str(file))).tls
    assert not etcd_options(Config(**far)).password
