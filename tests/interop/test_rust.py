"""A client written only from the .proto files, in another language, finds everything as the .proto files promise."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ringpost.client.testing.broker import BrokerProcess

# The first build compiles the gRPC library.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

CRATE = Path(__file__).resolve().parent / "rust"


def run(*command: str | Path, cwd: Path) -> str:
    """What a command that must succeed printed to both outputs."""
    done = subprocess.run(
        command,
        cwd=cwd,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def client() -> Path:
    """The program, built."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    target = CRATE / "target"
    run("cargo", "build", "--quiet", "--target-dir", target, cwd=CRATE)
    return target / "debug" / "ringpost-interop"


def test_publish_subscribe_settle_and_errors_from_rust(client: Path, tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        printed = run(client, broker.address, "orders.rust", cwd=tmp_path)
    assert printed.count("ok  ") == 9, printed
