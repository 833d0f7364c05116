"""Lease tokens and the group that they speak of: made when a batch leaves, understood when they come back."""

from collections.abc import Sequence

from ringpost.node.errors import InvalidRequest
from ringpost.node.groups.changes import Claim
from ringpost.node.groups.lease_token import LeaseToken, decode_lease_token, group_identity
from ringpost.node.groups.ranges import Range, RangeSet
from ringpost.node.shard.group import Group


class Mint:
    """Makes the tokens of one member's deliveries."""

    __slots__ = ("_group", "_identity", "_member")

    def __init__(self, group: Group, member: int) -> None:
        self._group = group
        self._member = member
        self._identity = group_identity(group.name, group.created_time_us)

    def token(self, first: int, last: int, attempt: int) -> bytes:
        """For offsets first..last, delivered as delivery `attempt`."""
        group, channel = self._group, self._group.channel
        count = last - first + 1
        return LeaseToken(
            channel.shard.number, channel.number, self._identity, self._member, group.era, first, count, attempt
        ).encode()


def read_token(token: bytes, field: str) -> LeaseToken:
    """What a client's token says. Raises InvalidRequest naming the field."""
    try:
        return decode_lease_token(token)
    except ValueError as error:
        problem = f"{error}; give back what DeliveredBatch.lease_token said, byte for byte"
        raise InvalidRequest.of(field, problem) from None


def claim_of(group: Group, token: LeaseToken, wanted: RangeSet | None, field: str) -> Claim:
    """What a token claims of the group: all its messages, or those that are wanted.

    Raises InvalidRequest when it is about something else.
    """
    channel = group.channel
    if (token.shard, token.channel) != (channel.shard.number, channel.number):
        raise InvalidRequest.of(
            field, f"is of another channel than {channel.name!r}, or of one of this name that was deleted"
        )
    if token.group != group_identity(group.name, group.created_time_us):
        raise InvalidRequest.of(
            field, f"is of another group than {group.name!r}, or of one of this name that was deleted"
        )
    whole = [(token.first, token.last)]
    ranges = whole if wanted is None else wanted.intersect(token.first, token.last)
    return Claim(token.member, token.attempt, ranges, token.era == group.era)


def unclaimed(wanted: RangeSet | None, tokens: Sequence[LeaseToken]) -> list[Range]:
    """What of the wanted offsets is in no token."""
    if wanted is None:
        return []
    left = RangeSet(wanted)
    for token in tokens:
        left.remove(token.first, token.last)
    return list(left)
