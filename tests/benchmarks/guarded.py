"""The operations of the hot path, each a story of a few lines; `guard.py` counts their instructions.

Run by itself it does each of them `ROUNDS` times and marks where one begins and ends with a call of `getpgrp`, which
nothing else here calls. The state that an operation needs is made before the first mark.
"""

import gc
import os
from collections.abc import Callable, Iterator

from crc32c import crc32c

from ringpost.client.batch import encode_run
from ringpost.client.message import MessageBatch
from ringpost.internal.v1 import envelope_pb2 as envelope
from ringpost.node.delivery import encode
from ringpost.node.groups.changes import Ack
from ringpost.node.shard import batch as batches
from ringpost.node.shard.shard import Publish
from ringpost.v1.common_pb2 import Durability
from tests.node.groups.actors import ANN, commit, new_group, settle
from tests.node.replication.rig import Rig as Replica
from tests.node.shard.fakes import Rig

ROUNDS = 40
MESSAGES, SIZE = 1_000, 128

Operation = Callable[[int], object]
_PAYLOADS = [bytes([n % 251]) * SIZE for n in range(MESSAGES)]
_BATCH = encode_run(_PAYLOADS)
_CRC = crc32c(_BATCH)


def check_a_batch() -> Operation:
    return lambda _: batches.check(_BATCH, MESSAGES, _CRC, message_bytes_max=1 << 20, messages_max=65_535)


def append_and_commit_a_batch() -> Operation:
    rig = Rig(cache_bytes=1 << 24)
    channel = rig.channel()
    answers: list[object] = []

    def publish(n: int) -> None:
        request = Publish(_BATCH, MESSAGES, _CRC, Durability.DURABILITY_QUORUM, 7, 0, n * MESSAGES)
        channel.shard.publish(channel, request, answers.append)
        rig.journal.durable = rig.journal.end
        rig.log.commits.durable(rig.journal.durable)

    return publish


def parse_an_envelope() -> Operation:
    request = envelope.PublishStreamRequest(correlation=1)
    request.publish.channel, request.publish.batch, request.publish.count = "orders.eu", _BATCH, MESSAGES
    encoded = request.SerializeToString()
    return lambda _: envelope.PublishStreamRequest.FromString(encoded).publish.batch


def encode_a_delivery() -> Operation:
    def deliver(n: int) -> bytes:
        piece = encode.piece(_BATCH, first_offset=n * MESSAGES, count=MESSAGES, time_us=1, crc=_CRC)
        return encode.deliver(1, [piece])

    return deliver


def encode_a_batch_in_the_client() -> Operation:
    return lambda _: crc32c(encode_run(_PAYLOADS))


def open_a_batch_in_the_client() -> Operation:
    def unpack(n: int) -> list[bytes]:
        return MessageBatch(
            "a", _BATCH, first_offset=n, count=MESSAGES, append_time_us=1, attempt=0, leases=None
        ).payloads()

    return unpack


def lease_and_ack_a_batch_in_a_group() -> Operation:
    group = new_group(max_in_flight=MESSAGES)

    def work(n: int) -> None:
        end = (n + 1) * MESSAGES
        (lease,) = group.take(ANN, MESSAGES, end, n)
        commit(group, settle(group, ANN, Ack(), (lease.first, lease.last)).change)

    return work


def commit_a_frame_with_two_followers() -> Operation:
    rig = Replica().lead()
    for node in "bc":
        rig.follows(node)

    def replicate(_: int) -> None:
        end = rig.append()
        for node in "bc":
            rig.core.next_data(node)
            rig.acked(node, 1, end)

    return replicate


OPERATIONS = (
    check_a_batch,
    append_and_commit_a_batch,
    parse_an_envelope,
    encode_a_delivery,
    encode_a_batch_in_the_client,
    open_a_batch_in_the_client,
    lease_and_ack_a_batch_in_a_group,
    commit_a_frame_with_two_followers,
)


def run() -> Iterator[str]:
    """Does all of them; the name of each when it is over."""
    for make in OPERATIONS:
        operation = make()
        for n in range(3):  # what is made once
            operation(n)
        os.getpgrp()
        for n in range(3, 3 + ROUNDS):
            operation(n)
        os.getpgrp()
        yield make.__name__


if __name__ == "__main__":
    gc.disable()
    for name in run():
        print(name, flush=True)
