import pytest

from ringpost.client.cli.nodes import as_json, verdict
from ringpost.v1 import cluster_pb2

SERVING, DRAINING = cluster_pb2.NODE_STATE_SERVING, cluster_pb2.NODE_STATE_DRAINING


@pytest.mark.parametrize(
    ("facts", "unhealthy", "code", "reasons"),
    [
        ({"state": SERVING, "disk": "ok"}, [], 0, []),
        ({"state": SERVING, "disk": "warn"}, [], 1, ["disk: warn"]),
        ({"state": SERVING, "disk": "refusing publishes"}, [], 1, ["disk: refusing publishes"]),
        ({"state": SERVING, "disk": "failed"}, [], 2, ["the disk has failed"]),
        ({"state": SERVING, "quarantined_shards": [3, 4]}, [], 1, ["2 shards are damaged, all work is refused there"]),
        ({"state": SERVING}, ["storage"], 1, ["health of storage is not SERVING"]),
        ({"state": SERVING}, [""], 2, ["the node's health is not SERVING"]),
        ({"state": DRAINING, "disk": "warn"}, [], 2, ["the node is draining", "disk: warn"]),
    ],
)
def test_a_node_is_fine_or_faulty_or_broken_with_its_reasons(
    facts: dict[str, object], unhealthy: list[str], code: int, reasons: list[str]
) -> None:
    assert verdict(cluster_pb2.NodeInfo(**facts), unhealthy) == (code, reasons)


def test_json_has_every_field_of_the_api() -> None:
    info = cluster_pb2.NodeInfo(node="n", state=SERVING, limits=cluster_pb2.NodeLimits(max_batch_messages=5))
    data = as_json(info)
    assert set(data) == {field.name for field in info.DESCRIPTOR.fields}
    assert data["state"] == "serving"
    assert data["limits"]["max_batch_messages"] == 5
