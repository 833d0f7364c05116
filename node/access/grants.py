"""What somebody may do. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce

from ringpost.cluster.patterns import Patterns

_NONE = Patterns(())


class Verb(StrEnum):
    """What can be permitted: the first three on patterns of channels, the others on the cluster.

    PUBLISH    publish to it
    CONSUME    read it, subscribe, add a group, settle its messages
    MANAGE     add, change, purge and delete it; move and delete its groups
    VIEW       look at nodes, shards and connections (`cluster = "view"`)
    ADMIN      drain and remove nodes, accept losses (`cluster = "admin"`, which includes VIEW)

    Where channels are made by their first use, publishing, subscribing and adding a group make them.
    """

    PUBLISH = "publish"
    CONSUME = "consume"
    MANAGE = "manage"
    VIEW = "cluster-view"
    ADMIN = "cluster-admin"


CHANNEL_VERBS = (Verb.PUBLISH, Verb.CONSUME, Verb.MANAGE)


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds for one principal on one node; 0: none. Batches above a rate wait, a call is refused."""

    streams: int = 0
    messages_per_s: int = 0
    bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class Grants:
    """By verb: the patterns of channels; and what is permitted on the cluster."""

    channels: dict[Verb, Patterns] = field(default_factory=dict)
    cluster: frozenset[Verb] = frozenset()
    on_any: Patterns = field(init=False, compare=False)  # of channels that anything is permitted on

    def __post_init__(self) -> None:
        object.__setattr__(self, "on_any", Patterns(text for one in self.channels.values() for text in one.texts))

    def on_channel(self, verb: Verb, channel: str) -> bool:
        """Whether the verb is permitted on the channel."""
        return self.channels.get(verb, _NONE).match(channel)

    def on_cluster(self, verb: Verb) -> bool:
        """Whether the verb is permitted on the cluster."""
        return verb in self.cluster

    def __or__(self, other: "Grants") -> "Grants":
        channels = {verb: self.channels.get(verb, _NONE) | other.channels.get(verb, _NONE) for verb in CHANNEL_VERBS}
        return Grants(channels, self.cluster | other.cluster)


def joined(grants: Iterable[Grants]) -> Grants:
    """All of them together."""
    return reduce(lambda one, other: one | other, grants, Grants())
