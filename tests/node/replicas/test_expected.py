"""Expected offsets in a cluster: what is decided stays decided when the leader is lost."""

from pathlib import Path

import pytest

from ringpost.node.errors import Precondition
from tests.node.replicas.rig import Cluster


async def test_the_place_is_taken_and_the_repeat_is_known_after_a_failover(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        first = cluster.leader_of("orders")
        assert first is not None
        assert (await first.publish("orders", "a", producer=7, expected_offset=0)).first_offset == 0
        await first.stop()
        await cluster.until(lambda: cluster.leader_of("orders") is not None, "another leader")
        second = cluster.leader_of("orders")
        assert second is not None
        with pytest.raises(Precondition) as caught:
            await second.publish("orders", "b", producer=8, expected_offset=0)
        assert (caught.value.reason, caught.value.metadata) == ("OFFSET_MISMATCH", {"next_offset": "1"})
        assert (await second.publish("orders", "a", producer=7, expected_offset=0)).duplicate
        assert (await second.publish("orders", "b", producer=8, expected_offset=1)).first_offset == 1
        assert await second.texts("orders") == ["a", "b"]
