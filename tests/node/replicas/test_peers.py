"""Links between members: cut without a word, given up, and whole again."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from ringpost.cluster.view import Desired, NodeRef
from ringpost.internal.v1.peer_pb2 import FenceReplicasRequest, ReplicateResponse
from ringpost.node.replicas.peer import Peer
from tests.node.replicas.rig import Cluster, Node

WITHOUT_ETCD = {"lease_ttl_s": 30}  # what happens does not happen because a session ends


def whole(cluster: Cluster) -> bool:
    """Every copy is in sync, all sessions are the leaders', and nobody says anything against a link."""
    view = next(iter(cluster.nodes.values())).member.coordination.view
    good = all(len(record.in_sync) == 3 and view.leader_alive(record) for record in view.shards)
    return good and not any(ref.unreachable for ref in view.nodes.values())


def peer(node: Node, other: str) -> Peer:
    return node.member.peers._peers[other]


@pytest.mark.parametrize("way", [{}, {"to": False}, {"back": False}], ids=["both", "from", "to"])
async def test_a_leader_whom_no_follower_reaches_is_replaced(tmp_path: Path, way: dict[str, bool]) -> None:
    async with Cluster(tmp_path, **WITHOUT_ETCD) as cluster:
        first = cluster.leader_of("orders")
        assert first is not None
        await first.publish("orders", "a", producer=7)
        loop = asyncio.get_running_loop()
        session, begin = first.member.coordination.session, loop.time()
        first.relay.cut(**way)

        def replaced() -> bool:
            leader = cluster.leader_of("orders")
            return leader not in (None, first)

        await cluster.until(replaced, "another leader, while the link is cut", 9.0)
        second = cluster.leader_of("orders")
        assert second is not None
        assert (await second.publish("orders", "a", producer=7)).duplicate
        assert (await second.publish("orders", "b", producer=7, first_sequence=1)).first_offset == 1
        assert loop.time() - begin < 9.0
        first.relay.join()
        await cluster.until(lambda: whole(cluster), "everything is whole again", 15.0)
        assert first.member.coordination.session == session
        assert await first.texts("orders") == ["a", "b"]


async def test_a_loop_that_is_blocked_for_a_second_is_reported_by_nobody(tmp_path: Path) -> None:
    """All three have the same loop here, so this is both ends at once."""
    async with Cluster(tmp_path, **WITHOUT_ETCD) as cluster:
        seen: list[frozenset[str]] = []
        coordination = cluster.nodes["n1"].member.coordination
        coordination.watch(lambda view: seen.extend(ref.unreachable for ref in view.nodes.values() if ref.unreachable))
        for _ in range(3):
            await asyncio.sleep(0.3)
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)
            end = asyncio.get_running_loop().time() + 1.0
            while asyncio.get_running_loop().time() < end:
                pass
        await asyncio.sleep(1.0)
        assert seen == []


async def test_a_link_that_flaps_stays_reported_and_leadership_stays(tmp_path: Path) -> None:
    async with Cluster(tmp_path, **WITHOUT_ETCD) as cluster:
        first = cluster.leader_of("orders")
        assert first is not None
        view = first.member.coordination.view
        before = view.of_channel("orders").epoch
        for _ in range(4):
            first.relay.cut()
            await asyncio.sleep(3.5)
            first.relay.join()
            await asyncio.sleep(0.7)
        view = first.member.coordination.view
        assert view.of_channel("orders").epoch == before + 1
        await cluster.until(lambda: whole(cluster), "everything is whole again", 15.0)


async def test_a_fault_while_a_message_is_taken_costs_the_stream_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Cluster(tmp_path) as cluster:
        taken, faults = Peer._take, 1

        def take(self: Peer, message: ReplicateResponse) -> None:
            nonlocal faults
            if message.data and faults:
                faults -= 1
                raise ZeroDivisionError
            taken(self, message)

        monkeypatch.setattr(Peer, "_take", take)
        leader = cluster.leader_of("orders")
        assert leader is not None
        stored = await asyncio.wait_for(leader.publish("orders", "a"), 4.0)
        assert (faults, len(stored.replicas)) == (0, 3)
        assert "peer.read_failed" in caplog.text


async def test_a_connection_that_is_given_up_does_not_end_who_asked(tmp_path: Path) -> None:
    """The controller asks for an election while the peer comes back in another session."""
    async with Cluster(tmp_path) as cluster:
        one, other = cluster.nodes["n1"], cluster.nodes["n2"]
        view = one.member.coordination.view
        other.relay.cut()
        request = FenceReplicasRequest(cluster_id=view.cluster_id, term=view.controller_term)
        asking = asyncio.create_task(one.member.peers.fence("n2", request, 5.0))
        await asyncio.sleep(0.2)
        await peer(one, "n2").close()
        assert await asyncio.wait_for(asking, 1.0) is None
        one.member.peers._peers.pop("n2")
        other.relay.join()


async def test_a_peer_is_closed_even_where_grpc_keeps_the_cancellation_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a read does whose call is cancelled in the same moment; the tasks went on for ever, and so did a stop."""
    lost = asyncio.Event()

    async def stream(self: Peer) -> bool:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            lost.set()
        return False

    async with Cluster(tmp_path) as cluster:
        one = cluster.nodes["n1"].member
        monkeypatch.setattr(Peer, "_stream", stream)
        ref = NodeRef("n9", "127.0.0.1:1", session=99, peer_address="127.0.0.1:1")
        made = Peer(one.peers, one.coordination.view.cluster_id, ref)
        await asyncio.sleep(0.05)
        monkeypatch.undo()
        await asyncio.wait_for(made.close(), 5.0)
        assert lost.is_set()


async def test_only_members_may_ask_for_an_election_and_others_leave_no_term(tmp_path: Path) -> None:
    """A removed node keeps a certificate of the peers' authority."""

    class Context:
        def __init__(self, name: str) -> None:
            self.facts = {"transport_security_type": [b"ssl"], "x509_subject_alternative_name": [name.encode()]}

        def auth_context(self) -> dict[str, list[bytes]]:
            return self.facts

        def peer(self) -> str:
            return "ipv4:10.0.0.9:1"

        async def abort(self, code: grpc.StatusCode, text: str) -> None:
            raise PermissionError(code, text)

    async with Cluster(tmp_path) as cluster:
        member = cluster.nodes["n2"].member
        view = member.coordination.view
        forged = FenceReplicasRequest(cluster_id=view.cluster_id, term=1 << 62)
        with pytest.raises(PermissionError, match="no member's"):
            await member.server.fence(forged, Context("n9"))
        honest = FenceReplicasRequest(cluster_id=view.cluster_id, term=view.controller_term)
        assert not (await member.server.fence(honest, Context("n1"))).replicas


async def test_a_member_that_was_removed_is_asked_no_more(tmp_path: Path) -> None:
    async with Cluster(tmp_path, 4) as cluster:
        one, spare = cluster.nodes["n1"], cluster.nodes["n4"]
        gone = peer(one, "n4")
        await one.member.coordination.set_desired("n4", Desired.DRAIN)
        await cluster.until(
            lambda: not any(record.replica_on("n4") for record in one.member.coordination.view.shards), "it is empty"
        )
        await spare.stop()
        await one.member.coordination.remove_node("n4")
        await cluster.until(lambda: gone._running.done() and gone._asking.done(), "nobody calls it")


async def test_a_follower_that_is_told_to_ask_again_does(tmp_path: Path) -> None:
    """Also one that has been quiet for long, and that nothing else happens to."""
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader_of("orders")
        assert leader is not None
        shard = cluster.nodes["n1"].member.coordination.view.of_channel("orders").shard
        core: Any = leader.member.replicator.cores[shard]
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        await asyncio.sleep(0.3)
        assert not follower.member.replicator.cores[shard].restless
        leader.member.replicator.follower_link_lost(follower.name)

        def flows() -> bool:
            return all(progress.flowing for progress in core.leading.followers.values())

        await cluster.until(flows, "it has asked again", 3.0)
        assert {len(record.in_sync) for record in leader.member.coordination.view.shards} == {3}
