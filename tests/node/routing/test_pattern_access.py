"""What of a pattern may be consumed, and what becomes of that when the rules change."""

from pathlib import Path

from ringpost.v1.publish_pb2 import PublishRequest
from tests.integration.broker import batch_of
from tests.node.routing.access_rig import bearer, principal, rigged
from tests.node.routing.pattern_reader import EARLIEST, PatternReader, owners

CHANNELS = [f"orders.c{number}" for number in range(12)]


async def test_only_channels_that_the_client_may_consume_come_and_a_change_of_that_counts_at_once(
    tmp_path: Path,
) -> None:
    async with rigged(tmp_path) as rig:
        rig.permit(principal("writer", publish=">"), principal("narrow", consume="orders.c1"))
        await rig.renew()
        client = rig.nodes.clients["n2"]
        for channel in CHANNELS:
            request = PublishRequest(channel=channel, batch=batch_of(b"0 "))
            await client.publisher.Publish(request, metadata=bearer("writer"))
        reader = PatternReader(client, "orders.*", token="narrow", start=EARLIEST)
        await reader.open()
        await reader.take(1)
        assert set(reader.places) == {"orders.c1"}
        rig.permit(principal("writer", publish=">"), principal("narrow", consume="orders.*"))
        await rig.renew()
        for server in rig.nodes.servers.values():
            server.hub.check_access()
        await reader.take(len(CHANNELS) - 1)
        assert set(reader.got) == set(CHANNELS)
        rig.permit(principal("writer", publish=">"), principal("narrow", consume="orders.c2"))
        await rig.renew()
        for server in rig.nodes.servers.values():
            server.hub.check_access()
        await reader.until(lambda it: len(it.gone) == len(CHANNELS) - 1)
        assert "orders.c2" not in reader.gone
        assert reader.closed is None


async def test_what_may_be_read_again_goes_on_where_it_was(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        client = rig.nodes.clients["n2"]

        async def put(text: bytes) -> None:
            for channel in CHANNELS:
                request = PublishRequest(channel=channel, batch=batch_of(text))
                await client.publisher.Publish(request, metadata=bearer("writer"))

        async def permit(consume: str) -> None:
            rig.permit(principal("writer", publish=">"), principal("ann", consume=consume))
            await rig.renew()
            for server in rig.nodes.servers.values():
                server.hub.check_access()

        await permit("orders.*")
        reader = PatternReader(client, "orders.*", token="ann")
        await reader.open()
        await put(b"0 ")
        await reader.take(len(CHANNELS))
        await permit("orders.c0")
        await reader.until(lambda it: len(it.gone) == len(CHANNELS) - 1)
        await put(b"1 ")
        await reader.take(1)
        await permit("orders.*")
        await reader.take(len(CHANNELS) - 1)
        await put(b"2 ")
        await reader.take(len(CHANNELS))
        assert reader.got == {channel: [0, 1, 2] for channel in CHANNELS}


async def test_a_channel_that_its_leader_forbids_by_older_rules_comes_when_it_has_the_newer(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        nodes = rig.nodes
        for channel in CHANNELS:
            await nodes.clients["n1"].publisher.Publish(
                PublishRequest(channel=channel, batch=batch_of(b"0 ")), metadata=bearer("writer")
            )
        rig.permit(principal("ann", consume="bills.*"))
        await rig.renew()
        late = [nodes.servers[name].access for name in ("n2", "n3")]
        renews = [access.renew for access in late]

        async def not_yet() -> bool:
            return False

        for access in late:
            access.renew = not_yet  # type: ignore[method-assign]
        rig.permit(principal("ann", consume="orders.*"))
        await nodes.servers["n1"].access.renew()
        reader = PatternReader(nodes.clients["n1"], "orders.*", token="ann", start=EARLIEST)
        assert (await reader.open()).WhichOneof("event") == "opened"
        mine = [channel for channel in CHANNELS if owners(nodes, [channel]) == {"n1"}]
        await reader.take(len(mine))
        assert sorted(reader.got) == sorted(mine)
        for access, renew in zip(late, renews, strict=True):
            access.renew = renew  # type: ignore[method-assign]
            await access.renew()
        await reader.take(len(CHANNELS) - len(mine))
        assert reader.got == {channel: [0] for channel in CHANNELS}
        assert (reader.gone, reader.closed) == ([], None)
