"""Real containers: a cluster of compose comes up, and loses nothing whatever is done to it."""

import pytest

from deploy.compose_demo import play


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("images")
def test_a_cluster_of_containers_is_killed_paused_cut_off_and_made_anew_and_loses_nothing() -> None:
    report = play(print)
    assert report["ok"], report
    assert report["acked"] == report["tried"] > 10_000, "no publish failed that the client did not cure"
    assert report["refused"] == report["unanswered"] == report["lost"] == report["lost_in_group"] == 0
    assert max(report["channel_pauses"].values()) < 30
