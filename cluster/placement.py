"""Which nodes should have a shard: consistent hashing with a limit on every node's load. Pure.

Weighted rendezvous hashing: each node has a score for each shard, a function of the two and of the node's weight
only; a shard prefers the nodes with its greatest scores. A node keeps at most 1.05 times its fair share: when more
shards want it, it keeps those for which its score is greatest, and the others go on to their next preference (deferred
acceptance: the outcome depends on no order, and a node more or less disturbs few shards). Leaders are then chosen in
the same way among each shard's replicas. `tests/cluster/test_placement.py` holds bounds of balance and movement.
"""

import struct
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from hashlib import shake_128
from heapq import heappush, heappushpop
from math import log
from typing import NamedTuple

LOAD_MAX = 1.05

_WORDS = 1 << 64


class Site(NamedTuple):
    """A node as placement sees it. `weight` above 0, in per mille of the usual one.

    `zone` and `host` are what it shares with others that fail with it, the host within the zone; "" is a host of its
    own, and a zone that no other host is in.
    """

    node: str
    zone: str = ""
    weight: int = 1000
    host: str = ""


Placement = tuple[tuple[str, ...], ...]
"""For each shard the nodes that should have it, the one that should lead it first."""


@lru_cache(maxsize=16)
def place(sites: frozenset[Site], leading: frozenset[str], shard_count: int, replicas: int) -> Placement:
    """The placement of all shards.

    Each shard gets `replicas` nodes (all, where there are fewer), in as many zones and on as many hosts as possible.
    Only nodes of `leading` come first, unless a shard has none of them. Without sites: all shards are empty.
    """
    nodes = sorted(sites)
    slots = min(replicas, len(nodes))
    if not slots:
        return ((),) * shard_count
    scores = [_scores(site.node, site.weight, shard_count) for site in nodes]
    numbers = range(len(nodes))
    wanted = [sorted(numbers, key=row.__getitem__, reverse=True) for row in zip(*scores, strict=True)]
    domains = [_domains(site) for site in nodes]
    shares = _replica_shares([site.weight for site in nodes], domains, slots, shard_count)
    limits = [_limit(share, shard_count, _dither(site.node)) for site, share in zip(nodes, shares, strict=True)]
    rules = _Rules(slots, limits, [_level(domains, depth, slots) for depth in (1, 2)])
    chosen = _Matching(wanted, scores, rules).solve()
    leaders = _choose_leaders(nodes, leading, scores, chosen)
    return tuple(
        tuple(nodes[n].node for n in sorted(own, key=lambda n: (n != first, -scores[n][shard])))
        for shard, (own, first) in enumerate(zip(chosen, leaders, strict=True))
    )


@lru_cache(maxsize=256)
def _scores(node: str, weight: int, shard_count: int) -> tuple[float, ...]:
    """One number below 0 a shard; the chance that a node's is the greatest is proportional to its weight."""
    # One long digest is eight bytes a shard at the price of a hundredth of a hash each; a prefix stays the same.
    words = struct.unpack(f"<{shard_count}Q", shake_128(b"ringpost/" + node.encode()).digest(8 * shard_count))
    return tuple([log((word + 0.5) / _WORDS) / weight for word in words])


_Domains = tuple[tuple[str, str], ...]
"""What a node is in, the widest first: zone, host, itself. Who shares one of them shares all before it."""


def _domains(site: Site) -> _Domains:
    itself = ("node", site.node)
    host = ("host", site.host) if site.host else itself
    return (("zone", site.zone) if site.zone else host, host, itself)


def _level(domains: Sequence[_Domains], depth: int, slots: int) -> "_Level":
    """The rule for zones (depth 1) or hosts (2): where there are enough of them no two replicas share one."""
    names = [own[:depth] for own in domains]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return _Level([numbers[name] for name in names], max(0, slots - len(numbers)))


def _replica_shares(
    weights: Sequence[int], domains: Sequence[_Domains], slots: int, shard_count: int
) -> Sequence[float]:
    """The fair number of replicas of each node: by weight, as far as its zone and its host must and may take them."""
    shares = [0.0] * len(weights)
    spares = [max(0, slots - len({own[:depth] for own in domains})) for depth in (1, 2, 3)]

    def bounds(inside: Sequence[int], depth: int) -> tuple[int, int]:
        """The least and the most replicas of one shard that a zone (depth 1), a host (2) or a node (3) has."""
        if depth == 3:
            return 0, 1
        parts = [bounds(part, depth + 1) for part in _parts(domains, inside, depth + 1)]
        # Where there are few, each has a replica of every shard, and those left over may be in any.
        spare = spares[depth - 1]
        return max(min(spare, 1), sum(least for least, _ in parts)), min(1 + spare, sum(most for _, most in parts))

    def divide(inside: Sequence[int], depth: int, share: float) -> None:
        if depth > 3:
            shares[inside[0]] = share
            return
        parts = _parts(domains, inside, depth)
        theirs = [share]
        if len(parts) > 1:
            least, most = zip(*(bounds(part, depth) for part in parts), strict=True)
            together = [sum(weights[n] for n in part) for part in parts]
            theirs = _fill(together, share, [shard_count * n for n in least], [shard_count * n for n in most])
        for part, its in zip(parts, theirs, strict=True):
            divide(part, depth + 1, its)

    divide(range(len(weights)), 1, float(slots * shard_count))
    return shares


def _parts(domains: Sequence[_Domains], inside: Sequence[int], depth: int) -> list[list[int]]:
    """The nodes of `inside` by what they share at a depth."""
    members: dict[_Domains, list[int]] = defaultdict(list)
    for n in inside:
        members[domains[n][:depth]].append(n)
    return list(members.values())


def _fill(weights: Sequence[int], total: float, least: Sequence[int], most: Sequence[int]) -> list[float]:
    """Divides `total` by weight, but gives nobody less or more than these."""
    low, high = 0.0, max(limit / weight for limit, weight in zip(most, weights, strict=True))
    shares = list(map(float, most))
    for _ in range(64):
        level = (low + high) / 2
        shares = [
            min(max(level * w, at_least), at_most) for w, at_least, at_most in zip(weights, least, most, strict=True)
        ]
        low, high = (level, high) if sum(shares) < total else (low, level)
    return shares


def _limit(share: float, most: int, dither: float = 1 - 1e-6) -> int:
    """1.05 times the share as a whole number: rounded up, or with another `dither` than almost 1 sometimes down."""
    return min(most, int(LOAD_MAX * share + dither))


def _dither(node: str) -> float:
    """Makes few limits change at a time when membership does: all at once would move a tenth of all replicas."""
    word: int = struct.unpack("<Q", shake_128(b"ringpost limit/" + node.encode()).digest(8))[0]
    return word / _WORDS


def _choose_leaders(
    nodes: Sequence[Site],
    leading: Collection[str],
    scores: Sequence[Sequence[float]],
    chosen: Sequence[Collection[int]],
) -> list[int]:
    """One of each shard's own replicas; -1 where none may lead."""
    may_lead = [site.node in leading for site in nodes]
    wanted = [
        sorted((n for n in own if may_lead[n]), key=lambda n: -scores[n][shard]) for shard, own in enumerate(chosen)
    ]
    able = Counter(n for own in wanted for n in own)
    leaders = sorted(able)
    led = sum(1 for own in wanted if own)
    limits = [0] * len(nodes)
    if led:
        most = [able[n] for n in leaders]
        shares = _fill([nodes[n].weight for n in leaders], led, [0] * len(leaders), most)
        for n, share in zip(leaders, shares, strict=True):
            limits[n] = _limit(share, able[n])
    result = _Matching(wanted, scores, _Rules(1, limits, ())).solve()
    return [next(iter(own), -1) for own in result]


class _Level(NamedTuple):
    """`of` numbers the domain that each node is in; at most `extras` replicas of a shard are in one with another."""

    of: Sequence[int]
    extras: int


class _Rules(NamedTuple):
    """`slots` nodes a shard, at most `limits[n]` shards a node, and what replicas may share."""

    slots: int
    limits: Sequence[int]
    levels: Sequence[_Level]


class _Matching:
    """Shards and nodes, matched by score.

    Invariants: `taken[s]` holds n exactly when `held[n]` holds s; no shard has more than its slots or its
    extras.
    """

    def __init__(self, wanted: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], rules: _Rules) -> None:
        self._wanted = wanted
        self._scores = scores
        self._rules = rules
        self._taken: list[set[int]] = [set() for _ in wanted]
        self._held: list[set[int]] = [set() for _ in scores]

    def solve(self) -> list[set[int]]:
        """The nodes of each shard. Only where the limits leave no other way a node gets more than its limit."""
        self._propose()
        for shard, own in enumerate(self._taken):
            while len(own) < min(self._rules.slots, len(self._wanted[shard])):
                if not self._make_room(shard):
                    self._squeeze(shard)
        return self._taken

    def _propose(self) -> None:
        rules, scores = self._rules, self._scores
        heaps: list[list[tuple[float, int]]] = [[] for _ in scores]
        refused: list[set[int]] = [set() for _ in self._wanted]
        waiting = list(range(len(self._wanted)))
        while waiting:
            shard = waiting.pop()
            for n in self._next(shard, refused[shard]):
                offer = (scores[n][shard], shard)
                if len(heaps[n]) < rules.limits[n]:
                    heappush(heaps[n], offer)
                    loser = None
                else:
                    loser = heappushpop(heaps[n], offer)[1] if heaps[n] else shard
                if loser != shard:
                    self._take(shard, n)
                if loser is not None:
                    refused[loser].add(n)
                    waiting.append(loser)
                    if loser == shard:
                        break  # what was passed over for its zone may now come first
                    self._drop(loser, n)

    def _next(self, shard: int, refused: Collection[int]) -> Iterable[int]:
        """What the shard asks next, best first, until it is served."""
        own = self._taken[shard]
        for n in self._wanted[shard]:
            if len(own) >= self._rules.slots:
                return
            if n not in own and n not in refused and self._fits(shard, n):
                yield n

    def _fits(self, shard: int, node: int, without: int = -1) -> bool:
        """Whether the node's zone and host have room for the shard, once it has left the node `without`."""
        for of, extras in self._rules.levels:
            own = [of[n] for n in self._taken[shard] if n != without]
            if of[node] in own and len(own) - len(set(own)) >= extras:
                return False
        return True

    def _take(self, shard: int, node: int) -> None:
        self._taken[shard].add(node)
        self._held[node].add(shard)

    def _drop(self, shard: int, node: int) -> None:
        self._taken[shard].remove(node)
        self._held[node].remove(shard)

    def _make_room(self, shard: int) -> bool:
        """Gives the shard one more node by moving others along the shortest chain that ends at a node with room."""
        came: dict[int, tuple[int, int]] = {}  # node -> who goes there, and from which node (-1: from none)
        moved = {shard}
        queue = []
        for n in self._wanted[shard]:
            if n not in self._taken[shard] and self._fits(shard, n):
                came[n] = (shard, -1)
                queue.append(n)
        for n in queue:
            if len(self._held[n]) < self._rules.limits[n]:
                self._move_along(came, n)
                return True
            for other in sorted(self._held[n] - moved, key=self._scores[n].__getitem__):
                for m in self._wanted[other]:
                    if m not in came and m not in self._taken[other] and self._fits(other, m, without=n):
                        came[m] = (other, n)
                        moved.add(other)
                        queue.append(m)
                        break
        return False

    def _move_along(self, came: dict[int, tuple[int, int]], end: int) -> None:
        while end >= 0:
            shard, start = came[end]
            if start >= 0:
                self._drop(shard, start)
            self._take(shard, end)
            end = start

    def _squeeze(self, shard: int) -> None:
        free = [n for n in self._wanted[shard] if n not in self._taken[shard] and self._fits(shard, n)]
        self._take(shard, min(free, key=lambda n: len(self._held[n]) / max(1, self._rules.limits[n])))
