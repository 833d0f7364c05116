"""ExplainMessage: where a message is, and why each group does not deliver it now."""

from itertools import islice

from ringpost.node.delivery.expiry import is_over
from ringpost.node.errors import DataLoss
from ringpost.node.filters.filter import checked
from ringpost.node.groups.explain import Around, Consumer, Explanation, Place, explain
from ringpost.node.groups.sentences import place_sentence, sentence, show_clock
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.services.letter_search import LetterSearch
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.consumers import cursors_of
from ringpost.node.shard.group import Group
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.store import Store
from ringpost.v1 import message_pb2 as api
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.dead_letter_pb2 import FailedDelivery
from ringpost.v1.publish_pb2 import Batch

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
        place, frame = await _look(reading, channel, offset, answer)
        search = LetterSearch(reading)
        for one in _groups_of(store, channel, group):
            await search.look(one, offset)
        # Nothing is awaited from here on: all that is said is of one moment, after the message was read.
        if store.find(name) is channel:
            break
    shard = channel.shard
    expired = frame is not None and is_over(frame, shard.log.clock())
    found = _groups_of(store, channel, group)
    answer.MergeFrom(
        api.ExplainMessageResponse(
            state=api.MessageState.ValueType(place),
            sentence=place_sentence(place, channel.first_offset, channel.next_offset)
            + _more(channel, place, frame, expired),
            shard=shard.number,
            owner=shard.node,
            epoch=shard.epoch,
            in_sync=shard.holders,
            first_offset=channel.first_offset,
            end_offset=channel.end_offset,
            groups=[_group(one, offset, place, search, frame) for one in found],
        )
    )
    return answer


def _groups_of(store: Store, channel: Channel, only: str) -> list[Group]:
    """The one of that name, or all, by name; of a broadcast group its consumers. Raises NotFound."""
    if not only:
        groups = (group for _, group in sorted((channel.groups or {}).items()))
        return list(islice((group for group in groups if not cursors_of(group)), GROUPS_MAX))
    found = store.find_group(channel, only)
    return cursors_of(found)[:GROUPS_MAX] or [found]


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
) -> tuple[Place, CachedFrame | None]:
    """Where it is; says of a stored one what it is like."""
    place = place_of(channel, offset)
    if place is not Place.STORED:
        return place, None
    try:
        frame = await reading.frame(channel, channel.index.row(channel.index.find(offset)))
    except DataLoss:
        place = place_of(channel, offset)
        return Place.UNREADABLE if place is Place.STORED else place, None
    except LookupError:
        return place_of(channel, offset), None  # trimmed meanwhile
    place = place_of(channel, offset)
    if place is Place.STORED:
        message = Batch.FromString(frame.body).messages[offset - frame.base_offset]
        answer.append_time_us, answer.size_bytes, answer.key = frame.time_us, message.ByteSize(), message.key
    return place, frame


def _more(channel: Channel, place: Place, frame: CachedFrame | None, expired: bool) -> str:
    """What there is to say besides: of a time to live, of what is still to come."""
    if frame is not None and frame.ttl_ms:
        ends = show_clock(frame.time_us + frame.ttl_ms * 1000)
        return f" Its time to live {'was over' if expired else 'is over'} at {ends}."
    if place is Place.NOT_PUBLISHED and (due_us := _next_due_us(channel)):
        count = channel.shard.schedules[channel.number].table.messages
        return f" Delayed messages that are not due yet: {count:,}, the first at {show_clock(due_us)}."
    return ""


def _next_due_us(channel: Channel) -> int:
    """When the first delayed message is due; 0: there is none."""
    schedule = channel.shard.schedules.get(channel.number)
    return 0 if schedule is None else schedule.table.next_due_us or 0


def _is_filtered(group: Group, offset: int, frame: CachedFrame | None) -> bool:
    """Whether the group's filter, as it is now, does not let the message through."""
    wanted = checked(group.settings.filter, "config.filter")
    if wanted is None or frame is None:
        return False
    return not wanted.matches(Batch.FromString(frame.body).messages[offset - frame.base_offset])


def _group(
    group: Group, offset: int, place: Place, search: LetterSearch, frame: CachedFrame | None
) -> api.GroupExplanation:
    around = Around(
        group.channel.shard.log.clock(),
        group.settings.max_in_flight,
        place,
        paused=group.paused,
        moving=group.seeks > 0,
        expired=frame is not None and is_over(frame, group.channel.shard.log.clock()),
        filtered=_is_filtered(group, offset, frame),
        next_due_us=_next_due_us(group.channel),
        failover=group.settings.mode == GroupMode.GROUP_MODE_FAILOVER,
        consumers=[
            Consumer(number, member.consumer, group.is_active(number), member.has_credit)
            for number, member in group.members.items()
        ],
        letter=search.letter(group),
        letters_unseen=search.unfinished(group),
        settler=group.recent.find(offset),
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
        since_time_us=found.since_us,
        dead_letter=found.letter,
        failures=[
            FailedDelivery(attempt=failure.attempt, time_us=failure.time_us, reason=failure.reason)
            for failure in found.failures
        ],
    )
