"""ExplainMessage: where a message is, and why each group does not deliver it now."""

from itertools import islice

from ringpost.node.errors import DataLoss
from ringpost.node.filters.filter import checked
from ringpost.node.groups.explain import Around, Consumer, Explanation, Place, explain
from ringpost.node.groups.sentences import place_sentence, sentence
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group import Group
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.store import Store
from ringpost.v1 import message_pb2 as api
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.dead_letter_pb2 import FailedDelivery
from ringpost.v1.publish_pb2 import Batch, Message

GROUPS_MAX = 1_000


async def explained(store: Store, reading: Reading, name: str, offset: int, group: str) -> api.ExplainMessageResponse:
    """The answer: one message of a channel, and what its groups, or one of them, have to say.

    Raises NotFound, and what `Store.find` raises.
    """
    while True:
        channel = store.find(name)
        if group:
            store.find_group(channel, group)
        answer = api.ExplainMessageResponse(channel=name, offset=offset)
        place, message = await _look(reading, channel, offset, answer)
        # Nothing is awaited from here on: all that is said is of one moment, after the message was read.
        if store.find(name) is channel:
            break
    shard, groups = channel.shard, channel.groups or {}
    names = [group] if group else islice(sorted(groups), GROUPS_MAX)
    found = [store.find_group(channel, one) for one in names]
    answer.MergeFrom(
        api.ExplainMessageResponse(
            state=api.MessageState.ValueType(place),
            sentence=place_sentence(place, channel.first_offset, channel.next_offset),
            shard=shard.number,
            owner=shard.node,
            epoch=shard.epoch,
            in_sync=shard.holders,
            first_offset=channel.first_offset,
            end_offset=channel.end_offset,
            groups=[_group(one, offset, place, message) for one in found],
        )
    )
    return answer


def place_of(channel: Channel, offset: int) -> Place:
    """Where a message is, without reading it."""
    if offset >= channel.next_offset:
        return Place.NOT_PUBLISHED
    if offset >= channel.end_offset:
        return Place.NOT_COMMITTED
    if offset < channel.first_offset:
        return Place.REMOVED
    return Place.LOST if channel.lost_at(offset) is not None else Place.STORED


async def _look(
    reading: Reading, channel: Channel, offset: int, answer: api.ExplainMessageResponse
) -> tuple[Place, Message | None]:
    """Where it is, and of a stored one the message; the answer says what that is like."""
    place = place_of(channel, offset)
    if place is not Place.STORED:
        return place, None
    try:
        frame = await reading.frame(channel, channel.index.row(channel.index.find(offset)))
    except DataLoss:
        place = place_of(channel, offset)
        return (Place.UNREADABLE if place is Place.STORED else place), None
    except LookupError:
        return place_of(channel, offset), None  # trimmed meanwhile
    place = place_of(channel, offset)
    if place is not Place.STORED:
        return place, None
    message = Batch.FromString(frame.body).messages[offset - frame.base_offset]
    answer.append_time_us, answer.size_bytes, answer.key = frame.time_us, message.ByteSize(), message.key
    return place, message


def _group(group: Group, offset: int, place: Place, message: Message | None) -> api.GroupExplanation:
    wanted = checked(group.settings.filter, "config.filter")
    around = Around(
        group.channel.shard.log.clock(),
        group.settings.max_in_flight,
        place,
        paused=group.paused,
        moving=group.seeks > 0,
        filtered=wanted is not None and message is not None and not wanted.matches(message),
        failover=group.settings.mode == GroupMode.GROUP_MODE_FAILOVER,
        consumers=[
            Consumer(number, member.consumer, group.is_active(number), member.has_credit)
            for number, member in group.members.items()
        ],
    )
    found = explain(group.core, offset, around)
    answer = _message(found)
    answer.group, answer.mode = group.name, group.settings.mode
    answer.sentence = sentence(group.core, offset, around, found)
    answer.consumers = len(around.consumers)
    if around.failover and around.active:
        answer.active_consumer = around.active[0].name
    return answer


def _message(found: Explanation) -> api.GroupExplanation:
    first, *also = (api.Cause.ValueType(cause) for cause in found.causes)
    return api.GroupExplanation(
        cause=first,
        also=also,
        consumer=found.consumer or "",
        attempt=found.attempt,
        until_time_us=found.until_us,
        behind_offset=found.before,
        failures=[
            FailedDelivery(attempt=failure.attempt, time_us=failure.time_us, reason=failure.reason)
            for failure in found.failures
        ],
    )
