"""Real containers: the image is built, a cluster of compose comes up, and loses nothing whatever is done to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.compose_demo import missing, play

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_cluster_of_containers_is_killed_paused_cut_off_and_made_anew_and_loses_nothing() -> None:
    if lacking := missing():
        pytest.skip(lacking)
    build = [str(ROOT / "deploy/image/build.sh"), "etcd"]
    built = subprocess.run(
        build, check=False, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable}
    )
    assert built.returncode == 0, built.stderr
    report = play(print)
    assert report["ok"], report
    assert report["acked"] == report["tried"] > 10_000, "no publish failed that the client did not cure"
    assert report["refused"] == report["unanswered"] == report["lost"] == report["lost_in_group"] == 0
    assert max(report["channel_pauses"].values()) < 30
