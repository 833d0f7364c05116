"""What the commit of a publish's frame does on its leader: visible ends, numbers and ids that count, the answer."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ringpost.node.errors import RingpostError
from ringpost.node.shard.channel import Channel

if TYPE_CHECKING:
    from ringpost.node.shard.shard import Publish, PublishReply, Stored


def tell(error: RingpostError | None, reply: "PublishReply", stored: "Stored") -> None:
    """The answer, or why there is none."""
    reply(stored if error is None else error)


def batch_replicated(
    error: RingpostError | None,
    channel: Channel,
    end: int,
    reply: "PublishReply | None",
    stored: "Stored",
    publish: "Publish",
) -> None:
    """`batch_committed` in a cluster: the producer's numbers count from now on, and the answer names the copies."""
    if error is None:
        if publish.producer:
            numbers_committed(channel, publish, stored.first_offset, stored.time_us)
        stored = stored._replace(replicas=channel.shard.holders)
    batch_committed(error, channel, end, reply, stored)


def numbers_committed(channel: Channel, publish: "Publish", offset: int, time_us: int) -> None:
    """In a cluster: the producer's batch at that offset counts also for who leads next."""
    if channel.producers is not None:
        channel.producers.committed(
            publish.producer, publish.producer_epoch, publish.first_sequence, publish.count, offset, time_us
        )


def repeat_committed(
    error: RingpostError | None,
    channel: Channel,
    publish: "Publish",
    reply: "PublishReply | None",
    stored: "Stored",
    offset: int,
    time_us: int,
) -> None:
    """A batch that was stored before by its message ids has used up its producer's numbers.

    `offset` may stand for when it is due.
    """
    if error is None and channel.shard.replicated is not None:
        numbers_committed(channel, publish, offset, time_us)
        stored = stored._replace(replicas=channel.shard.holders)
    if reply is not None:
        reply(stored if error is None else error)


def ids_committed(
    at_end: Callable[..., None],
    error: RingpostError | None,
    channel: Channel,
    end: int,
    reply: "PublishReply | None",
    stored: "Stored",
    *more: "Publish",
) -> None:
    """`at_end` of a batch with message ids."""
    at_end(error, channel, end, reply, stored, *more)
    if error is None:
        channel.let_ids_go(stored.time_us)


def batch_committed(
    error: RingpostError | None, channel: Channel, end: int, reply: "PublishReply | None", stored: "Stored"
) -> None:
    """The messages are there for everybody."""
    if error is None:
        channel.end_offset = end
        if channel.watchers is not None:
            for watcher in channel.watchers:
                watcher.advanced()
    if reply is not None:
        reply(stored if error is None else error)
