"""A client in each language passes the conformance script, against one cluster of three nodes with etcd."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringpost.client.testing.conformance.run import CHECKS, results
from ringpost.client.testing.conformance.targets import OwnCluster, own_cluster

# The first build of Rust compiles the gRPC library.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

HERE = Path(__file__).resolve().parent
BUILD_SECONDS = 600
CARGO = "cd rust && cargo build --quiet --target-dir target"


@dataclass(frozen=True)
class Language:
    """How its client is built and called, from this folder. `needs`: a command that tells, by what it tells of."""

    build: str
    command: tuple[str, ...]
    needs: dict[str, str]


PROTOC = {"protobuf-compiler": "protoc --version"}
LANGUAGES = {
    "python": Language("true", (sys.executable, "python_client.py"), {}),
    "go": Language(
        "make -s -C go",
        ("go/target/client",),
        PROTOC
        | {
            "golang-go": "go version",
            "golang-google-grpc-dev": "test -d /usr/share/gocode/src/google.golang.org/grpc",
            "protoc-gen-go": "command -v protoc-gen-go",
            "protoc-gen-go-grpc": "command -v protoc-gen-go-grpc",
        },
    ),
    "rust": Language(CARGO, ("rust/target/debug/client",), {"Rust 1.88 or newer": "cargo --version"}),
    "cpp": Language(
        "make -s -j2 -C cpp",
        ("cpp/target/client",),
        PROTOC
        | {
            "g++": "g++ --version",
            "libgrpc++-dev": "pkg-config --exists grpc++ protobuf",
            "protobuf-compiler-grpc": "command -v grpc_cpp_plugin",
        },
    ),
    "ruby": Language(
        "make -s -C ruby",
        ("ruby/client.rb",),
        PROTOC
        | {
            "ruby": "ruby --version",
            "ruby-grpc": "ruby -e 'require %q(grpc)'",
            "protobuf-compiler-grpc": "command -v grpc_ruby_plugin",
        },
    ),
}


def run(command: str) -> "subprocess.CompletedProcess[str]":
    """A shell command in this folder."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=HERE,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_SECONDS,
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnCluster]:
    with own_cluster() as cluster:
        yield cluster


@pytest.mark.parametrize("name", LANGUAGES)
async def test_a_client_passes(cluster: OwnCluster, name: str) -> None:
    language = LANGUAGES[name]
    missing = [what for what, tells in language.needs.items() if run(tells).returncode != 0]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    built = await asyncio.to_thread(run, language.build)
    assert built.returncode == 0, built.stdout
    program = [str(HERE / part) if (HERE / part).exists() else part for part in language.command]
    found = [result async for result in results(program, cluster)]
    assert [str(result) for result in found if result.outcome != "ok"] == []
    assert len(found) == len(CHECKS)
