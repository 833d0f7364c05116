"""Several processes of one host: each with its own id, directory, ports; all with one address."""

from pathlib import Path
from typing import Any

import pytest

from ringpost.node.config import Config, ConfigError, load_config
from ringpost.node.workers import Restarts, Worker, workers_of

ALONE = {"RINGPOST_COORDINATION": "etcd"}


def config_of(**settings: Any) -> Config:
    given = {"node": "alpha", "data_dir": Path("/data"), "coordination": "etcd", "workers": 3}
    return Config(**(given | settings))


def settings_of(worker: Worker, *arguments: str) -> Config:
    """What the worker's process makes of its command line."""
    return load_config([*arguments, *worker.flags], {})


def test_each_worker_is_a_node_with_a_directory_and_ports_of_its_own() -> None:
    arguments = ("--coordination", "etcd", "--workers", "3", "--node", "alpha", "--data-dir", "/data", "--weight", "7")
    found = [settings_of(worker, *arguments) for worker in workers_of(load_config(arguments, {}), 7400)]
    assert [one.node for one in found] == ["alpha-1", "alpha-2", "alpha-3"]
    assert [str(one.data_dir) for one in found] == ["/data/alpha-1", "/data/alpha-2", "/data/alpha-3"]
    assert [one.listen for one in found] == ["127.0.0.1:7410", "127.0.0.1:7420", "127.0.0.1:7430"]
    assert [one.peer_listen for one in found] == ["127.0.0.1:7411", "127.0.0.1:7421", "127.0.0.1:7431"]
    assert [one.http_listen for one in found] == ["127.0.0.1:7412", "127.0.0.1:7422", "127.0.0.1:7432"]
    assert {(one.shared_listen, one.host, one.workers, one.weight) for one in found} == {
        ("127.0.0.1:7400", "alpha", 1, 7)
    }


def test_free_ports_are_free_ports_and_the_shared_one_is_the_one_that_was_got() -> None:
    config = config_of(listen="127.0.0.1:0", peer_listen="127.0.0.1:0", http_listen="")
    first = settings_of(workers_of(config, 40_001)[0])
    assert (first.listen, first.peer_listen, first.http_listen) == ("127.0.0.1:0", "127.0.0.1:0", "")
    assert first.shared_listen == "127.0.0.1:40001"


def test_clients_are_told_each_workers_own_port() -> None:
    config = config_of(listen="0.0.0.0:7400", advertise="mq.example:7400", insecure=True, http_listen="")
    second = settings_of(workers_of(config, 7400)[1], "--insecure", "--coordination", "etcd")
    assert second.advertised(7420) == "mq.example:7420"
    assert second.shared_listen == "0.0.0.0:7400"


def test_each_has_the_certificate_of_its_own_name() -> None:
    config = config_of(peer_tls_cert_file="/tls/{node}.peer.pem", peer_tls_key_file="/tls/{node}.peer.key")
    third = settings_of(workers_of(config, 7400)[2])
    assert (third.peer_tls_cert_file, third.peer_tls_key_file) == ("/tls/alpha-3.peer.pem", "/tls/alpha-3.peer.key")
    assert third.tls_cert_file == ""


def test_an_ipv6_address_keeps_its_brackets() -> None:
    assert settings_of(workers_of(config_of(listen="[::1]:7400"), 7400)[0]).listen == "[::1]:7410"


def test_a_host_that_has_a_name_keeps_it() -> None:
    assert settings_of(workers_of(config_of(host="rack-7"), 7400)[0]).host == "rack-7"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"coordination": "embedded"}, "workers: 3 processes need a store"),
        ({"listen": "127.0.0.1:65510"}, "listen: 127.0.0.1:65510 leaves no port for worker 3"),
        ({"listen": "127.0.0.1:0", "advertise": "mq.example:7400"}, "advertise needs listen ports above 0"),
        ({"peer_listen": "127.0.0.1:0", "peer_advertise": "mq.example:7401"}, "peer_advertise needs"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        workers_of(config_of(**settings), 7400)


def test_a_worker_that_ends_again_and_again_is_started_less_and_less_often() -> None:
    restarts = Restarts()
    assert [restarts.pause_s(served_s) for served_s in (5, 1, 0, 0, 0, 0, 0, 0)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert restarts.pause_s(60) == 0.5, "it had served well"
    assert restarts.pause_s(1) == 1
