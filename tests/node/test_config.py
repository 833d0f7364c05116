"""Where settings come from, which are refused, and that no field is forgotten anywhere."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ringpost.node.config import Config, ConfigError, load_config, render_toml
from ringpost.node.options import is_loopback, option_of, split_address

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"

# For each field something allowed that is not the default.
OTHER: dict[str, Any] = {
    "node": "node-7",
    "data_dir": Path("elsewhere"),
    "listen": "127.0.0.1:9000",
    "http_listen": "",
    "advertise": "broker.example:7400",
    "coordination": "etcd",
    "cluster_name": "other",
    "etcd_endpoints": "10.0.0.1:2379,[::1]:2380",
    "etcd_prefix": "/a/b",
    "zone": "eu-1/a",
    "min_isr": 3,
    "log_level": "debug",
    "log_format": "text",
    "max_batch_messages": 100,
    "disk_warn_fraction": 0.5,
    "disk_refuse_fraction": 0.95,
    "disk_fail_fraction": 0.99,
    "max_message_bytes": 1000,
    "peer_listen": "127.0.0.1:9001",
    "shared_listen": "127.0.0.1:9002",
    "peer_advertise": "broker.example:7401",
}


def other(name: str) -> Any:
    default = FIELDS[name].default
    if name in OTHER:
        return OTHER[name]
    if isinstance(default, str):
        return "something"
    return not default if isinstance(default, bool) else default + 1


def as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}={value}"]


def as_toml(value: Any) -> str:
    return as_text(value) if isinstance(value, bool | int | float) else f"'{value}'"


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_set_by_flag_environment_and_file(name: str, tmp_path: Path) -> None:
    value = other(name)
    assert value != FIELDS[name].default
    file = tmp_path / "node.toml"
    file.write_text(f"{name} = {as_toml(value)}\n")
    for argv, environ in (
        (as_flag(name, value), {}),
        ([], {f"RINGPOST_{name.upper()}": as_text(value)}),
        (["--config", str(file)], {}),
        ([], {"RINGPOST_CONFIG": str(file)}),
    ):
        config = load_config(argv, environ)
        assert getattr(config, name) == value
        assert config == dataclasses.replace(Config(), **{name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_flags_win_over_the_environment_over_the_file(name: str, tmp_path: Path) -> None:
    default, value = FIELDS[name].default, other(name)
    file = tmp_path / "node.toml"
    file.write_text(f"{name} = {as_toml(value)}\n")
    environ = {f"RINGPOST_{name.upper()}": as_text(default)}
    assert getattr(load_config([f"--config={file}"], environ), name) == default
    assert getattr(load_config([f"--config={file}", *as_flag(name, value)], environ), name) == value


def test_help_names_every_field_with_its_meaning_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_config(["--help"], {})
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in FIELDS.items():
        known = option_of(field)
        assert f"--{name.replace('_', '-')}" in shown
        assert known.help in shown
        assert f" {known.group}: " in shown


def test_print_config_is_a_file_that_gives_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [flag for name in FIELDS if name != "max_message_bytes" for flag in as_flag(name, other(name))]
    wanted = load_config(argv, {})
    with pytest.raises(SystemExit) as ended:
        load_config([*argv, "--print-config"], {})
    assert ended.value.code == 0
    file = tmp_path / "printed.toml"
    file.write_text(capsys.readouterr().out)
    assert load_config(["--config", str(file)], {}) == wanted


def test_odd_text_survives_printing() -> None:
    config = Config(data_dir=Path('a "quoted"\\path\x7f\t ü'))
    assert tomllib.loads(render_toml(config))["data_dir"] == str(config.data_dir)


def test_the_example_file_is_the_defaults() -> None:
    example = DEPLOY / "ringpost.toml"
    assert load_config(["--config", str(example)], {}) == Config()
    assert set(tomllib.loads(example.read_text())) == set(FIELDS)
    assert example.read_text() == render_toml(Config())


@pytest.mark.parametrize(
    ("argv", "environ", "file", "says"),
    [
        (["--max-message-bytes=0"], {}, "", ["--max-message-bytes: max_message_bytes", "from 1 to 16777216 (16 MiB)"]),
        ([], {"RINGPOST_SHARD_COUNT": "many"}, "", ["RINGPOST_SHARD_COUNT: shard_count", "1 to 65536", "'many'"]),
        ([], {}, "shard_count = 65537", ["node.toml: shard_count", "1 to 65536", "65537"]),
        ([], {}, "shard_count = true", ["node.toml: shard_count", "True"]),
        ([], {}, "shard_count = 1.5", ["shard_count", "a whole number"]),
        ([], {}, "shard_count = inf", ["shard_count", "a whole number"]),
        ([], {}, "disk_warn_fraction = nan", ["disk_warn_fraction", "from 0 to 1"]),
        ([], {}, "node = 1", ["node.toml: node: must be text"]),
        ([], {}, "insecure = 'maybe'", ["node.toml: insecure: must be true or false"]),
        ([], {}, "[node]\nname = 'x'", ["node.toml: node: must be text"]),
        ([], {}, "colour = 'red'", ["node.toml: colour is not a setting"]),
        ([], {}, "node = ", ["node.toml: is not TOML"]),
        ([], {"RINGPOST_COLOUR": "red"}, "", ["environment: RINGPOST_COLOUR is not a setting"]),
        ([], {"RINGPOST_Node": "x"}, "", ["environment: RINGPOST_Node is not a setting"]),
        (["--colour=red"], {}, "", ["flags: unrecognized arguments: --colour=red"]),
        (["--max-message=5"], {}, "", ["flags: unrecognized arguments"]),
        (["--node"], {}, "", ["flags: argument --node: expected one argument"]),
        (["--node=a b"], {}, "", ["--node: node: must be 1 to 63"]),
        (["--listen=7400"], {}, "", ["--listen: listen: must be host:port", "'7400'"]),
        (["--listen=127.0.0.1:70000"], {}, "", ["must be host:port"]),
        (["--listen="], {}, "", ["must be host:port"]),
        (["--advertise=::1:5"], {}, "", ["advertise: must be host:port"]),
        (["--log-level=loud"], {}, "", ["log_level: must be one of debug, info, warning, error", "'loud'"]),
        (["--data-dir=a\0b"], {}, "", ["data_dir: must not contain a zero byte"]),
        (["--scrub-bytes-per-s=-1"], {}, "", ["scrub_bytes_per_s", "at least 0"]),
        (["--segment-bytes=1 GB"], {}, "", ["segment_bytes", "'1 GB'"]),
        (["--coordination=zookeeper"], {}, "", ["coordination: must be one of embedded, etcd", "'zookeeper'"]),
        (["--etcd-endpoints=a:1,b"], {}, "", ["etcd_endpoints: must be host:port", "'b'"]),
        (["--etcd-prefix=ringpost/"], {}, "", ["etcd_prefix: must be parts", "'ringpost/'"]),
        (["--zone=a b"], {}, "", ["zone: must be at most 127", "'a b'"]),
        (["--cluster-name=a/b"], {}, "", ["cluster_name: must be 1 to 63"]),
    ],
)
def test_a_wrong_setting_names_source_field_and_bound(
    argv: list[str], environ: dict[str, str], file: str, says: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "node.toml"
    path.write_text(file)
    with pytest.raises(ConfigError) as raised:
        load_config([f"--config={path}", *argv], environ)
    for part in says:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (
            ["--max-batch-bytes=1MiB", "--max-message-bytes=2MiB"],
            "max_batch_bytes: must be at least --max-message-bytes",
        ),
        (["--segment-bytes=4MiB"], "segment_bytes: must be 65536 more than default: max_batch_bytes = 4194304"),
        (["--node-unanswered-bytes=1MiB"], "node_unanswered_bytes: must be at least default: max_batch_bytes"),
        (["--subscriber-queue-bytes=1KiB"], "subscriber_queue_bytes: must be at least default: delivery_bytes_max"),
        (["--disk-warn-fraction=0.95"], "disk_refuse_fraction: must be at least --disk-warn-fraction"),
        (["--disk-refuse-fraction=0.98"], "disk_fail_fraction: must be at least --disk-refuse-fraction"),
    ],
)
def test_settings_that_contradict_each_other(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(argv, {})
    assert says in str(raised.value)


@pytest.mark.parametrize("address", ["0.0.0.0:7400", "[::]:7400", "192.0.2.1:7400", "broker:7400"])
def test_plain_text_for_other_machines_needs_insecure(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--listen: listen: .* --insecure"):
        load_config([f"--listen={address}"], {})
    assert load_config([f"--listen={address}", "--insecure"], {}).listen == address


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:7402", "192.0.2.1:7402", "broker:7402"])
def test_metrics_and_health_for_other_machines_need_a_word_too(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--http-listen: http_listen: .* http_insecure"):
        load_config([f"--http-listen={address}"], {})
    for word in ("--insecure", "--http-insecure"):
        assert load_config([f"--http-listen={address}", word], {}).http_listen == address
    with pytest.raises(ConfigError, match="--listen"):
        load_config(["--listen=0.0.0.0:0", f"--http-listen={address}", "--http-insecure"], {})


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.8.9.10:7400", "[::1]:7400", "localhost:7400"])
def test_loopback_needs_nothing(address: str) -> None:
    assert is_loopback(load_config([f"--listen={address}"], {}).listen)


def test_sizes_and_booleans_in_words() -> None:
    config = load_config(["--tail-cache-bytes=64 MiB", "--max-channels=1_000"], {"RINGPOST_AUTO_CREATE_CHANNELS": "no"})
    assert (config.tail_cache_bytes, config.max_channels, config.auto_create_channels) == (64 << 20, 1000, False)


def test_variables_of_others_are_let_alone() -> None:
    environ = {
        "PATH": "/bin",
        "RINGPOST_ADDR": "localhost:7400",
        "RINGPOST_TEST_SEED": "1",
        # What Kubernetes injects for Services "ringpost" and "ringpost-headless".
        "RINGPOST_SERVICE_HOST": "10.0.0.1",
        "RINGPOST_SERVICE_PORT_GRPC": "7400",
        "RINGPOST_PORT_7400_TCP_ADDR": "10.0.0.1",
        "RINGPOST_HEADLESS_SERVICE_HOST": "10.0.0.2",
        "RINGPOST_HEADLESS_PORT": "tcp://10.0.0.2:7400",
    }
    assert load_config([], environ) == Config()


def test_a_port_without_a_kubernetes_service_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="RINGPOST_PORT is not a setting"):
        load_config([], {"RINGPOST_PORT": "7400"})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load_config(["--config", str(tmp_path / "absent.toml")], {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: is not TOML"):
        load_config(["--config", str(binary)], {})


def test_a_config_made_in_code_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="shard_count: must be"):
        Config(shard_count=0)
    with pytest.raises(ConfigError, match="shard_count: must be of type int"):
        Config(shard_count="8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_batch_bytes"):
        Config(max_batch_bytes=10)


def test_what_clients_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "machine")
    assert Config(listen="127.0.0.1:0").advertised(4711) == "127.0.0.1:4711"
    assert Config(listen="[::1]:0").advertised(4711) == "[::1]:4711"
    assert Config(listen="0.0.0.0:7400", insecure=True).advertised(7400) == "machine:7400"
    assert Config(listen="[::]:7400", insecure=True).advertised(7400) == "machine:7400"
    assert Config(advertise="broker:1").advertised(7400) == "broker:1"


@pytest.mark.parametrize(
    ("address", "parts"), [("h:1", ("h", 1)), ("[::1]:0", ("::1", 0)), ("127.0.0.1:65535", ("127.0.0.1", 65535))]
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", ":1", "h", "h:", "h:-1", "h:65536", "h:1x", "::1:1", "[h]:1", "a b:1", "[]:1"])
def test_what_is_not_an_address(address: str) -> None:
    with pytest.raises(ValueError):
        split_address(address)
