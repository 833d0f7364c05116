"""What a group's core knows of one message. Pure; nothing here changes anything."""

from typing import NamedTuple

from ringpost.node.groups.leases import Held, Settling
from ringpost.node.groups.retries import Failed


class Standing(NamedTuple):
    """At most one of `settled`, `held` and `settling` is there; `failed` may be beside the last two."""

    settled: bool
    held: Held | None = None  # leased, also when the lease has ended and is not yet taken back
    settling: Settling | None = None
    failed: Failed | None = None
    # The offset that goes first: of its key (lower, or out since before this one came back), or the lowest whose key is
    # not known; in a group without order a lower one of those never delivered.
    before: int | None = None
    key_known: bool = True  # where the group keeps order per key: its own, and of all that came back
    out_of_reach: bool = False  # the group turns to its gaps first, see `GroupCore.scattered`
