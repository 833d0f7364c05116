"""A group as the API shows it; one in mode BROADCAST with its consumers."""

from ringpost.node.errors import InvalidRequest
from ringpost.node.shard.boxes import box_of
from ringpost.node.shard.boxes import count as count_letters
from ringpost.node.shard.consumers import consumer_of, cursors_of
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_settings import CONSUMER_EXPIRY_MS_MAX, CONSUMER_EXPIRY_MS_MIN, MAX_CONSUMERS_MAX
from ringpost.node.shard.lag import lag_bytes
from ringpost.v1 import group_pb2 as api
from ringpost.v1.common_pb2 import GroupMode


def slowest_of(group: Group) -> Group:
    """The consumer that has most before it; the group itself in all modes but BROADCAST, and without consumers."""
    end = group.channel.end_offset
    return max(cursors_of(group), key=lambda cursor: cursor.core.pending(end), default=group)


def info(group: Group, age_us: int | None = None, *, consumers: bool = False) -> api.GroupInfo:
    """A group now; `age_us` of its oldest unsettled message, None when that is not known."""
    parts = cursors_of(group) or [group]
    cores, end, box = [part.core for part in parts], group.channel.end_offset, box_of(group)
    shown = api.GroupInfo(
        channel=group.channel.name,
        name=group.name,
        config=group.settings.message(),
        settled_below=min(core.settled_below for core in cores),
        end_offset=end,
        pending=max(core.pending(end) for core in cores),
        in_flight=sum(core.in_flight for core in cores),
        to_redeliver=sum(core.to_redeliver for core in cores),
        rejected=sum(core.rejected for core in cores),
        filtered=sum(core.filtered for core in cores),
        members=[
            api.GroupMember(
                consumer=member.consumer, in_flight=part.core.in_flight_of(number), active=part.is_active(number)
            )
            for part in parts
            for number, member in part.members.items()
        ],
        created_time_us=group.created_time_us,
        dead_letters=count_letters(group),
        dead_letter_bytes=box.stored_bytes if box is not None else 0,
        next_dead_letter=box.end_offset if box is not None else 0,
        paused=group.paused,
        lag_bytes=lag_bytes(slowest_of(group)),
        lag_ms=None if age_us is None else age_us // 1000,
    )
    if consumers:
        shown.consumers.extend(_consumer(cursor, end) for cursor in cursors_of(group))
    return shown


def _consumer(cursor: Group, end: int) -> api.GroupConsumer:
    core = cursor.core
    return api.GroupConsumer(
        consumer=consumer_of(cursor),
        settled_below=core.settled_below,
        pending=core.pending(end),
        in_flight=core.in_flight,
        to_redeliver=core.to_redeliver,
        rejected=core.rejected,
        subscriptions=len(cursor.members),
    )


def check_consumers(config: api.GroupConfig, mode: int) -> None:
    """Raises InvalidRequest for what only BROADCAST has, or has not, and for numbers out of bounds."""
    if mode != GroupMode.GROUP_MODE_BROADCAST:
        for field in ("max_consumers", "consumer_expiry_ms"):
            if config.HasField(field):
                raise InvalidRequest.of(f"config.{field}", "is set, and the group is not in mode BROADCAST")
        return
    if config.dead_letters:
        raise InvalidRequest.of(
            "config.dead_letters", "is true; a BROADCAST group keeps none: what is given up is settled and counted"
        )
    if config.HasField("max_consumers") and not 1 <= config.max_consumers <= MAX_CONSUMERS_MAX:
        raise InvalidRequest.of(
            "config.max_consumers", f"is {config.max_consumers}, allowed are 1 to {MAX_CONSUMERS_MAX}"
        )
    expiry_ms = config.consumer_expiry_ms
    if expiry_ms and not CONSUMER_EXPIRY_MS_MIN <= expiry_ms <= CONSUMER_EXPIRY_MS_MAX:
        raise InvalidRequest.of(
            "config.consumer_expiry_ms",
            f"is {expiry_ms}, allowed are {CONSUMER_EXPIRY_MS_MIN} to {CONSUMER_EXPIRY_MS_MAX}, or 0 for never",
        )
