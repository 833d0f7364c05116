"""GroupService.Settle: settlements without a stream, of offsets or of the deliveries that lease tokens name."""

import asyncio

from ringpost.node.delivery.commands import check_action, check_ranges, settle_action
from ringpost.node.errors import InvalidRequest, RingpostError
from ringpost.node.groups.changes import Ack, Outcome, Reject
from ringpost.node.groups.lease_token import LeaseToken
from ringpost.node.groups.ranges import RangeSet
from ringpost.node.shard.burial import Results, SettleReply
from ringpost.node.shard.claims import claim_of, read_token, unclaimed
from ringpost.node.shard.group import Group
from ringpost.v1 import group_pb2 as api
from ringpost.v1.common_pb2 import OffsetRange
from ringpost.v1.subscribe_pb2 import Outcome as OutcomeMessage
from ringpost.v1.subscribe_pb2 import SettledRange

TOKENS_MAX = 1_000


def check_settlement(request: api.SettleMessagesRequest) -> list[LeaseToken]:
    """What the lease tokens of a request say. Raises InvalidRequest naming the field."""
    if len(request.lease_tokens) > TOKENS_MAX:
        raise InvalidRequest.of(
            "lease_tokens", f"has {len(request.lease_tokens)} tokens, allowed are 0 to {TOKENS_MAX}"
        )
    tokens = [read_token(token, f"lease_tokens[{number}]") for number, token in enumerate(request.lease_tokens)]
    check_ranges(request.ranges, "ranges", ranges_min=0 if tokens else 1)
    check_action(request)
    action = request.WhichOneof("action")
    if action in {"nack", "extend"} and not tokens:
        raise InvalidRequest.of(
            "lease_tokens",
            f"is empty; {action} ends or changes a lease and needs the tokens of the deliveries, ack and reject do not",
        )
    return tokens


async def settled(
    group: Group, request: api.SettleMessagesRequest, tokens: list[LeaseToken]
) -> api.SettleMessagesResponse:
    """Carries out a checked request. Raises RingpostError."""
    done: asyncio.Future[Results] = asyncio.get_running_loop().create_future()

    def reply(outcome: Results | RingpostError) -> None:
        if done.done():
            return
        if isinstance(outcome, RingpostError):
            done.set_exception(outcome)
        else:
            done.set_result(outcome)

    _begin(group, request, tokens, reply)
    results = [
        SettledRange(range=OffsetRange(first=first, last=last), outcome=OutcomeMessage.ValueType(outcome))
        for first, last, outcome in await done
    ]
    return api.SettleMessagesResponse(results=results)


def _begin(group: Group, request: api.SettleMessagesRequest, tokens: list[LeaseToken], reply: SettleReply) -> None:
    action = settle_action(request)
    ranges = [(pair.first, pair.last) for pair in request.ranges]
    if not tokens:
        assert isinstance(action, Ack | Reject), "checked"
        group.settle_any(action, ranges, reply)
        return
    wanted = RangeSet(ranges) if ranges else None
    claims = [claim_of(group, token, wanted, f"lease_tokens[{number}]") for number, token in enumerate(tokens)]
    left = [(first, last, Outcome.UNKNOWN) for first, last in unclaimed(wanted, tokens)]
    group.settle_claims(action, claims, left, reply)
