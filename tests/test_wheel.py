"""The wheel holds every file of the mapped packages and works in an empty environment."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
SHIPPED = {".py", ".pyi", ".proto"}


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: an old `build` folder of a developer must not get in, nor be left behind."""
    copy = tmp_path_factory.mktemp("source")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, copy, cwd=copy)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    expected = {
        "/".join((*package.split("."), *path.relative_to(ROOT / folder).parts))
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if (path.suffix in SHIPPED or path.name == "py.typed") and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        files = {f for f in archive.namelist() if ".dist-info/" not in f}
    assert sorted(files ^ expected) == []


def test_wheel_carries_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = (f for f in archive.namelist() if f.endswith("/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that holds the wheel and what it asks for."""
    home = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", home / "venv", cwd=home)
    pip = (home / "venv/bin/python", "-m", "pip", "--retries", "5", "--timeout", "60", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel, cwd=home)
    return home / "venv/bin"


def test_only_ringpost_gets_into_site_packages(installed: Path) -> None:
    code = (
        "from importlib.metadata import files;"
        "print(*{f.parts[0] for f in files('ringpost') if f.parts[0] != '..'}, sep='\\n')"
    )
    names = run(installed / "python", "-c", code, cwd=installed).split()
    assert sorted(names) == ["ringpost", f"ringpost-{PROJECT['project']['version']}.dist-info"]


def test_every_module_imports_without_the_development_extra(installed: Path) -> None:
    """All but the pytest plugin, which only pytest loads, and the brokers in containers, which are an extra."""
    optional = (".__main__", ".testing.plugin", ".testing.containers")
    code = (
        "import importlib, pkgutil, ringpost\n"
        "for m in pkgutil.walk_packages(ringpost.__path__, 'ringpost.'):\n"
        f"    if not m.name.endswith({optional}): importlib.import_module(m.name)\n"
        "    print(m.name)\n"
    )
    names = run(installed / "python", "-W", "error", "-c", code, cwd=installed).split()
    assert {"ringpost.v1.publish_pb2_grpc", "ringpost.node.errors", "ringpost.client.cli"} <= set(names)


def test_version(installed: Path) -> None:
    assert PROJECT["project"]["version"] in run(installed / "ringpost", "--version", cwd=installed)


@pytest.fixture
def node(installed: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A node of `ringpost up`, as the environment that leads the CLI to it."""
    home = {"RINGPOST_HOME": str(tmp_path / "home")}
    up = json.loads(run(installed / "ringpost", "up", "--port", "0", "-o", "json", cwd=tmp_path, **home))
    yield {**home, "RINGPOST_ADDR": up["address"]}
    run(installed / "ringpost", "down", cwd=tmp_path, **home)


def test_the_first_minute(installed: Path, node: dict[str, str], tmp_path: Path) -> None:
    ringpost = installed / "ringpost"
    run(ringpost, "pub", "orders.eu", "hello", "--key", "42", cwd=tmp_path, **node)
    read = ("sub", "orders.eu", "--from", "earliest", "--count", "1")
    assert run(ringpost, *read, "--text", cwd=tmp_path, **node) == "hello\n"
    message = json.loads(run(ringpost, "sub", "orders.eu", "--group", "billing", "--count", "1", cwd=tmp_path, **node))
    assert (message["channel"], message["offset"], message["data"]) == ("orders.eu", 0, "hello")
