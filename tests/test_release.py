"""What a release is made of, and what of the API it may not break."""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BUF = str(Path(sys.executable).with_name("buf"))


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A repository with the .proto files, and a release of them."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def compared(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([folder / "proto/breaking.sh", BUF], check=False, capture_output=True, text=True)


def test_what_a_client_of_the_last_release_could_not_read_is_an_error(released: Path) -> None:
    publish = released / "proto/ringpost/v1/publish.proto"
    text = publish.read_text()
    publish.write_text(text.replace("message Message {", "message Message {\n  string data_too = 99;", 1))
    assert compared(released).returncode == 0, "there is no release yet"
    git(released, "tag", "v0.1.0")
    added = compared(released)
    assert added.returncode == 0, added.stdout
    publish.write_text(text.replace("bytes data = 2;", "uint64 data = 2;", 1))
    changed = compared(released)
    assert changed.returncode != 0
    assert "publish.proto" in changed.stdout


@pytest.mark.long
def test_a_release_has_everything_and_says_what_is_in_it(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "dist", "build", "target", ".*_cache", "__pycache__", "*.egg-info"
    )
    shutil.copytree(ROOT, tree, ignore=ignored, symlinks=True)
    (tree / "deploy/secure").mkdir(exist_ok=True)
    (tree / "deploy/secure/ca.key").write_text("somebody's")
    made = subprocess.run(
        [tree / "deploy/release.sh"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "HOME": str(tmp_path)},
    )
    assert made.returncode == 0, made.stderr
    dist = tree / "dist"
    names = {f"ringpost-{VERSION}-py3-none-any.whl", f"ringpost-{VERSION}.cdx.json"}
    names |= {f"ringpost-{VERSION}-{what}.tar.gz" for what in ("proto", "deploy")}
    assert {path.name for path in dist.iterdir()} == names | {"SHA256SUMS"}
    for line in (dist / "SHA256SUMS").read_text().splitlines():
        told, name = line.split()
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == told
    parts = {
        part["name"]: part for part in json.loads((dist / f"ringpost-{VERSION}.cdx.json").read_text())["components"]
    }
    assert {"grpcio", "protobuf", "crc32c", "click"} <= parts.keys()
    assert not {"pytest", "mypy", "pip"} & parts.keys(), "only what the wheel installs"
    assert parts["ringpost"]["version"] == VERSION
    with tarfile.open(dist / f"ringpost-{VERSION}-deploy.tar.gz") as archive:
        packed = set(archive.getnames())
    assert {"deploy/compose.yaml", "deploy/Dockerfile", "deploy/kubernetes/secure/kustomization.yaml"} <= packed
    assert "LICENSE" in packed
    assert not [name for name in packed if name.startswith("deploy/secure")], "keys of whoever made the release"
