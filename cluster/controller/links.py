"""Which members reach each other, by what they say of it themselves. Pure.

A link is bad when either end says so. A node without a good link still lives, as far as its lease tells: the shards it
leads stand still, and as the controller it could not hold an election.
"""

from collections.abc import Iterator, Mapping

from ringpost.cluster.view import NodeRef


def linked(nodes: Mapping[str, NodeRef], one: str, other: str) -> bool:
    """Whether nothing is said against the link between two nodes."""
    ends = ((one, other), (other, one))
    return not any(here in nodes and there in nodes[here].unreachable for here, there in ends)


def isolated(nodes: Mapping[str, NodeRef], node: str) -> bool:
    """Whether more than half of the links to the other members that live are bad."""
    others = [name for name, ref in nodes.items() if ref.alive and name != node]
    return 2 * sum(not linked(nodes, node, other) for other in others) > len(others)


def fit_to_control(nodes: Mapping[str, NodeRef], node: str) -> bool:
    """Whether a node may be the controller. Where all are isolated another one would do no better."""
    return not isolated(nodes, node) or all(isolated(nodes, name) for name, ref in nodes.items() if ref.alive)


class Links:
    """The links of the newest view, and which were bad lately: a link that comes and goes is not relied upon."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._nodes: Mapping[str, NodeRef] = {}
        self._now = 0.0
        self._bad: frozenset[frozenset[str]] = frozenset()
        # Until when a link was bad, at least.
        self._bad_until: dict[frozenset[str], float] = {}

    def observe(self, nodes: Mapping[str, NodeRef], now: float) -> None:
        """Takes the newest picture."""
        bad = frozenset(frozenset((name, other)) for name, ref in nodes.items() for other in ref.unreachable)
        until = {pair: at for pair, at in self._bad_until.items() if at + self._settle_s > now}
        until |= dict.fromkeys(bad | self._bad, now)
        self._nodes, self._now, self._bad, self._bad_until = nodes, now, bad, until

    @property
    def all_good(self) -> bool:
        """Whether nobody says anything against any link, as is usual."""
        return not self._bad

    def good(self, one: str, other: str) -> bool:
        """Whether two nodes reach each other, as far as is known."""
        return self.all_good or linked(self._nodes, one, other)

    def settled(self, one: str, other: str) -> bool:
        """Whether they do, and have for a while."""
        return frozenset((one, other)) not in self._bad_until

    def deadlines(self) -> Iterator[float]:
        """When something that this knows changes by time alone."""
        if not self.all_good or self._bad_until:
            yield from (at + self._settle_s for pair, at in self._bad_until.items() if pair not in self._bad)
