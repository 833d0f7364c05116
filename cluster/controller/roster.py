"""Who is there, and for how long: the controller's only memory of time. Pure."""

from collections.abc import Iterator, Mapping

from ringpost.cluster.controller.decisions import Reach, Settings
from ringpost.cluster.controller.links import Links
from ringpost.cluster.placement import Site
from ringpost.cluster.view import Desired, NodeRef, Replica, Role, ShardRecord, View


class Roster:
    """What the newest view and the connections say about every node.

    A new controller knows nothing about the past: it takes everybody for come or gone at its first look.
    """

    def __init__(self, settings: Settings) -> None:
        self.links = Links(settings.link_settle_s)
        self._settings = settings
        self._nodes: Mapping[str, NodeRef] = {}
        self._refused: frozenset[str] = frozenset()
        self._now = 0.0
        # Since when a node is in the session (0: away) that it is in.
        self._since: dict[str, tuple[int, float]] = {}

    def observe(self, view: View, reach: Mapping[str, Reach], now: float) -> None:
        """Takes the newest picture. `now` is any clock's that never goes back, in seconds."""
        self._nodes, self._now = view.nodes, now
        self.links.observe(view.nodes, now)
        self._refused = frozenset(node for node, how in reach.items() if how == "refused")
        since: dict[str, tuple[int, float]] = {}
        for name in view.nodes:
            session = self.session(name)
            before = self._since.get(name)
            since[name] = before if before is not None and before[0] == session else (session, now)
        self._since = since

    def session(self, node: str) -> int:
        """The session in which a node is there; 0: it is not, or its connections are refused."""
        member = self._nodes.get(node)
        return 0 if member is None or node in self._refused else member.session

    def alive(self, node: str) -> bool:
        """Whether a node can be counted on now."""
        return self.session(node) > 0

    def alive_for(self, node: str, seconds: float) -> bool:
        """Whether it has been there that long, without a restart."""
        return self.alive(node) and self._now >= self._since[node][1] + seconds

    def active(self, node: str) -> bool:
        """Whether it is there and shall take its share."""
        return self.alive(node) and self._nodes[node].desired is Desired.ACTIVE

    def shall_yield(self, node: str) -> bool:
        """Whether it shall lead nothing."""
        return node in self._nodes and self._nodes[node].desired is not Desired.ACTIVE

    def gone(self, node: str) -> bool:
        """Whether it is no member, or has been away for too long to wait for it."""
        if node not in self._nodes:
            return True
        return not self.alive(node) and self._now >= self._since[node][1] + self._settings.replace_after_s

    def directory(self, node: str) -> str:
        """The node's data directory; "" for who is no member."""
        member = self._nodes.get(node)
        return "" if member is None else member.directory

    def intact(self, record: ShardRecord, replica: Replica) -> bool:
        """Whether the copy still is where it was, undamaged, as far as is known.

        One that was found damaged is in no directory by its record, whatever its node says by now. A shard that was
        never led has nothing that could be damaged: the node makes its copy when it is asked for the first election.
        """
        member = self._nodes.get(replica.node)
        if member is None or not replica.directory or replica.directory != member.directory:
            return False
        return record.epoch == 0 or record.shard not in member.lost_shards

    def usable(self, record: ShardRecord, replica: Replica) -> bool:
        """Whether the copy is intact and its node is there."""
        return self.alive(replica.node) and self.intact(record, replica)

    def well_led(self, record: ShardRecord) -> bool:
        """Whether the shard has a leader, and not one that it should exchange for another."""
        return self.led(record) and not self.cut_off(record)

    def led(self, record: ShardRecord) -> bool:
        """Whether the shard has a leader that is there, in the session in which it became leader, with its copy."""
        leader = record.leader
        if leader is None or self.session(leader.node) != leader.session:
            return False
        replica = record.replica(leader.replica_id)
        return replica is not None and self.usable(record, replica)

    def cut_off(self, record: ShardRecord) -> bool:
        """Whether the leader reaches too few copies to commit anything, and another one that counts would not."""
        if self.links.all_good or record.leader is None:
            return False
        leader = record.replica(record.leader.replica_id)
        if leader is None or self.can_commit(record, leader):
            return False
        return any(self.can_commit(record, r) for r in self.in_sync(record) if r != leader)

    def can_commit(self, record: ShardRecord, replica: Replica) -> bool:
        """Whether a copy, if it leads, has links to as many as a commit needs, itself among them.

        One that does not count yet is as good: a leader that reaches it puts it in the place of one that it does not.
        """
        near = {r.node for r in self._taking_part(record) if self.links.good(r.node, replica.node)}
        return len(near) >= record.min_isr

    def well_linked(self, record: ShardRecord, replica: Replica) -> bool:
        """Whether its links to all other copies are good, and have been for a while."""
        return all(self.links.settled(r.node, replica.node) for r in self._taking_part(record))

    def _taking_part(self, record: ShardRecord) -> Iterator[Replica]:
        for replica in record.replicas:
            stays = replica.role is not Role.LEAVING or replica.replica_id in record.in_sync
            if stays and self.usable(record, replica):
                yield replica

    def in_sync(self, record: ShardRecord) -> list[Replica]:
        """The usable copies that count, in the order of the record's replicas."""
        return [r for r in record.replicas if r.replica_id in record.in_sync and self.usable(record, r)]

    def newcomers(self) -> list[str]:
        """Nodes that can be given shards now, those first that have been there longest."""
        return sorted((name for name in self._nodes if self.active(name)), key=lambda n: (self._since[n][1], n))

    def sites(self, replicas: int) -> frozenset[Site]:
        """The nodes that shall have shards: who drains or is gone is left out.

        But as long as fewer than `replicas` are left, the gone are kept: nobody else could take their place.
        """
        wanted = [name for name in sorted(self._nodes) if self._nodes[name].desired is not Desired.DRAIN]
        here = [name for name in wanted if not self.gone(name)]
        gone = [name for name in wanted if self.gone(name)]
        here += gone[: max(0, replicas - len(here))]
        refs = (self._nodes[name] for name in here)
        return frozenset(Site(ref.node, ref.zone, max(1, ref.weight), ref.host) for ref in refs)

    def leading(self, sites: frozenset[Site]) -> frozenset[str]:
        """Those of the sites that shall lead."""
        return frozenset(site.node for site in sites if not self.shall_yield(site.node))

    def deadlines(self) -> Iterator[float]:
        """When something that this knows changes by time alone."""
        come = (self._settings.settle_s, self._settings.bootstrap_wait_s)
        for session, since in self._since.values():
            waits = come if session else (self._settings.replace_after_s,)
            yield from (since + wait for wait in waits if since + wait > self._now)
        yield from self.links.deadlines()
