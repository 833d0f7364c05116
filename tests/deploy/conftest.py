"""What tests with containers share: an engine, or a skip with the reason, and the images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.compose_demo import etcd_image, missing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def images() -> None:
    """Ringpost's image of this tree, and one of etcd. RINGPOST_IMAGE and ETCD_IMAGE are not asked."""
    if lacking := missing():
        pytest.skip(lacking)
    build = [str(ROOT / "deploy/image/build.sh"), "etcd"]
    done = subprocess.run(
        build, check=False, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable}
    )
    assert done.returncode == 0, done.stderr
    # No helper image can be pulled where this runs; each test removes what it has started.
    os.environ.update(TESTCONTAINERS_RYUK_DISABLED="true", ETCD_IMAGE=etcd_image())
