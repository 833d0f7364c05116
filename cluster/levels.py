"""Which dialect the nodes of a cluster speak: of the records in the store, between peers, and of frames. Pure.

A program speaks levels from `least` to `most`. A cluster is at one level, which its record tells: the greatest that
all members speak. So a newer version joins nodes of this one, at their level; when the last of them has been
replaced the controller raises it, and what only knows the level before is refused from then on.
"""

from collections.abc import Iterable
from typing import NamedTuple

# Raised by whoever changes what nodes say to each other or store so that a version before would not understand it.
LEVEL_MIN, LEVEL = 1, 1


class Levels(NamedTuple):
    """Both included, from 1."""

    least: int = LEVEL_MIN
    most: int = LEVEL


OWN = Levels()


def problem(cluster: int, own: Levels) -> str:
    """Why a program cannot take part at the cluster's level; "" if it can."""
    if own.most < cluster:
        return (
            f"the cluster is at level {cluster}, and this version knows none above {own.most}: it is older than what "
            "the other nodes run, or ran last. Start the version that they run; a cluster does not go back"
        )
    if own.least > cluster:
        return (
            f"the cluster is at level {cluster}, and this version knows none below {own.least}: it is too new. Start "
            "every node once with a version in between"
        )
    return ""


def raised(cluster: int, members: Iterable[Levels | None]) -> int:
    """The level that the cluster should be at; None stands for a member that is away, which may come back as it was."""
    known = list(members)
    if not known or None in known:
        return cluster
    return max(cluster, min(one.most for one in known if one is not None))
