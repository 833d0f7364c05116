"""From memory to a checkpoint: each shard as its committed frames left it.

A snapshot is taken between two events of the loop, shard by shard; frames that commit later are read again at the next
start. On a node of its own producers and groups are an exception: they change at append, so a snapshot may know batches
whose frames come after it. Reading those again changes nothing, and a checkpoint is written only after everything that
it knows is durable. In a cluster what is not committed may be lost, and no snapshot knows of it.
"""

import struct
from collections.abc import Iterator

from google.protobuf.message import DecodeError

from ringpost.internal.v1.record_pb2 import ChannelSnapshot, GroupSnapshot, ShardSnapshot
from ringpost.node.groups.ranges import flatten
from ringpost.node.journal.checkpoint import CheckpointDamaged
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.channel_state import pack as pack_row
from ringpost.node.shard.group import Group
from ringpost.node.shard.replicated import ReplicatedLog
from ringpost.node.shard.schedule_rows import encode_schedules
from ringpost.node.shard.settle_codec import retry_record
from ringpost.node.shard.shard import Shard

_LENGTH = struct.Struct("<I")


def pack(snapshot: ShardSnapshot) -> bytes:
    """A snapshot as it stands in a checkpoint's body."""
    encoded = snapshot.SerializeToString()
    return _LENGTH.pack(len(encoded)) + encoded


def pack_shard(shard: Shard) -> bytes:
    """`pack(snapshot_shard(shard))`, without making messages of packed channels."""
    parts = _parts(shard)
    return b"".join((_LENGTH.pack(sum(map(len, parts))), *parts))


def unpack(body: bytes) -> Iterator[ShardSnapshot]:
    """The snapshots in a checkpoint's body. Raises CheckpointDamaged when there is anything else in it."""
    at = 0
    try:
        while at < len(body):
            (length,) = _LENGTH.unpack_from(body, at)
            at += _LENGTH.size + length
            if at > len(body):
                raise CheckpointDamaged("the checkpoint's last snapshot is cut short")
            yield ShardSnapshot.FromString(body[at - length : at])
    except (struct.error, DecodeError) as error:
        raise CheckpointDamaged(f"the checkpoint's checksum is right, but its content is not: {error}") from error


def encode_shard(shard: Shard) -> bytes:
    """The shard at its committed position, an encoded ShardSnapshot: packed channels are taken as they are."""
    return b"".join(_parts(shard))


def _parts(shard: Shard) -> list[bytes]:
    committed = shard.committed
    rows = [
        channel.packed or pack_row(_channel(channel))
        for channel in shard.channels.values()
        if channel.packed or channel.number <= committed
    ]
    return [_head(shard).SerializeToString(), *rows, *encode_schedules(shard)]


def snapshot_shard(shard: Shard) -> ShardSnapshot:
    """The same as a message."""
    return ShardSnapshot.FromString(encode_shard(shard))


def _head(shard: Shard) -> ShardSnapshot:
    """What it says of itself, without channels and schedules."""
    replicated = shard.replicated
    return ShardSnapshot(
        shard=shard.number,
        position=shard.committed,
        last_crc=shard.committed_crc,
        epoch=shard.started_epoch if replicated is None else _epoch_at(replicated, shard.committed),
        last_time_us=shard.last_time_us,
        replica_id=replicated.replica_id if replicated is not None else "",
        epochs=_epochs(replicated, shard.committed) if replicated is not None else (),
    )


def _channel(channel: Channel) -> ChannelSnapshot:
    row = channel.row()
    row.groups.extend(_group(group) for group in _committed_groups(channel))
    return row


def _committed_groups(channel: Channel) -> list[Group]:
    """In a cluster a change that is not committed may be lost; alone, what is appended is going to be committed."""
    groups = list((channel.groups or {}).values())
    if channel.shard.replicated is None:
        return groups
    committed = channel.shard.committed
    leaving = [group for group in channel.shard.leaving_groups if group.channel is channel]
    return [group for group in (*leaving, *groups) if group.made_at <= committed]


def _epochs(replicated: ReplicatedLog, committed: int) -> list[int]:
    return [number for epoch, start in replicated.epochs if start <= committed for number in (epoch, start)]


def _epoch_at(replicated: ReplicatedLog, committed: int) -> int:
    return max((epoch for epoch, start in replicated.epochs if start <= committed), default=0)


def _group(group: Group) -> GroupSnapshot:
    state = group.core.snapshot()
    return GroupSnapshot(
        name=group.name,
        config=group.settings.message(),
        created_time_us=group.created_time_us,
        settled_below=state.settled_below,
        settled=flatten(state.settled),
        retries=[retry_record(retry) for retry in state.retries],
        rejected=state.rejected,
        filtered=group.core.filtered,
        letters_gone=flatten(group.letters_gone),
        seeks=flatten(group.voids.seeks),
        paused=group.paused,
        era=group.era,
    )
