"""`bundle`: everything that helps, and nothing that must not leave."""

import json
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ringpost.client import errors
from ringpost.client.cli.bundle import Archive, collect

from .conftest import Cli


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        files = {name: archive.extractfile(name) for name in archive.getnames()}
        return {name.partition("/")[2]: file.read() for name, file in files.items() if file is not None}


def test_it_holds_how_the_cluster_is_and_no_message(cli: Cli, tmp_path: Path) -> None:
    secret = "a-very-secret-payload"
    assert cli("pub", "bundled", secret, "--key", "secret-key").code == 0
    assert cli("group", "add", "bundled", "billing").code == 0
    path = tmp_path / "it.tar.gz"
    ran = cli("bundle", "--to", str(path), "-o", "json")
    assert ran.code == 0, ran
    assert ran.json["problems"] == {}
    found = contents(path)
    assert {"client.json", "status.json", "nodes.json", "routes.json", "channels.json", "groups.json"} <= found.keys()
    assert any(one["name"] == "bundled" for one in json.loads(found["channels.json"]))
    assert json.loads(found["client.json"])["libraries"]["grpcio"]
    everything = b"".join(found.values())
    assert secret.encode() not in everything
    assert b"secret-key" not in everything
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "only who made it can read it"


async def test_what_cannot_be_had_is_named_and_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        def __getattr__(self, name: str) -> "Silent":
            return self

        async def __call__(self, *_: object, **__: object) -> object:
            raise errors.Unavailable("nobody is there")

    silent = Silent()

    async def listed() -> object:
        raise errors.Unavailable("nobody is there")
        yield

    class Mq:
        cluster = node = silent
        channels = groups = type("Lists", (), {"list": staticmethod(listed)})

    log = tmp_path / "node.log"
    log.write_text("x" * 10)
    monkeypatch.setattr("ringpost.client.cli.bundle._logs", lambda _: [log])
    archive = await collect(Mq(), tmp_path)  # type: ignore[arg-type]
    assert set(archive.files) == {"client.json", "logs/node.log"}
    assert set(archive.problems) >= {"status.json", "nodes.json", "routes.json", "channels.json", "node-this.json"}
    path = tmp_path / "b.tar.gz"
    archive.write(path)
    assert "nobody is there" in contents(path)["problems.json"].decode()


def test_nobody_else_can_read_it_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "b.tar.gz", []
    path.write_text("an older one")
    path.chmod(0o644)
    add = tarfile.TarFile.addfile

    def addfile(*arguments: Any) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        add(*arguments)

    monkeypatch.setattr(tarfile.TarFile, "addfile", addfile)
    archive = Archive()
    archive.files = {"logs/node.log": b"x" * 100}
    before = os.umask(0)
    try:
        assert archive.write(path) == path.stat().st_size
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert contents(path) == {"logs/node.log": b"x" * 100}


def test_an_archive_that_cannot_be_written_is_an_error_that_names_it(cli: Cli, tmp_path: Path) -> None:
    ran = cli("bundle", "--to", str(tmp_path / "no" / "such" / "folder.tar.gz"))
    assert (ran.code, "folder.tar.gz" in ran.err) == (1, True)
