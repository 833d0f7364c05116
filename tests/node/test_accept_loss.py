"""`accept_loss` after damage: what is whole is served, no offset comes twice, a later start finds nothing wrong."""

import random
from typing import Any

import pytest

from ringpost.node.journal.frame import FRAME_OVERHEAD, HEADER_SIZE
from ringpost.node.journal.segment import offset_of, segment_of, segment_path
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.shard import Stored
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.shard.fakes import publish_of, texts_of
from tests.node.storage_rig import DIRECTORY, Node, config_of

NAMES = tuple("abcdefgh")
Kept = dict[str, dict[int, str]]


async def publish(node: Node, name: str, *texts: str) -> int:
    """The first offset, when it is durable."""
    answers: list[Any] = []
    channel = node.storage.store.find_or_add(name)
    channel.shard.publish(channel, publish_of(*texts), answers.append)
    await node.committed()
    (answer,) = answers
    assert isinstance(answer, Stored)
    return answer.first_offset


async def lived(rng: random.Random, *, checkpoint_at: int) -> tuple[FaultyFiles, Kept, list[tuple[str, int, int, int]]]:
    """A directory, its messages, and of each frame behind the checkpoint (channel, offset, address, length)."""
    files = FaultyFiles()
    node = await Node.open(files)
    kept: Kept = {name: {} for name in NAMES}
    for number in range(40):
        name = rng.choice(NAMES) if number >= len(NAMES) else NAMES[number]
        texts = [f"{name}{number}.{n}" for n in range(rng.randint(1, 3))]
        first = await publish(node, name, *texts)
        kept[name] |= dict(enumerate(texts, first))
        if number == checkpoint_at:
            await node.maintenance.checkpoint()
            behind = node.storage.journal.end
    frames = [
        (channel.name, row.base, row.address, row.length)
        for channel in node.storage.store
        for row in channel.index.rows(0, len(channel.index))
        if row.address >= behind
    ]
    await node.close()
    return files, kept, frames


async def messages(node: Node, channel: Channel) -> dict[int, str]:
    """What can be read, by offset."""
    found: dict[int, str] = {}
    for row, frame in zip(channel.index.rows(0, 1 << 20), await node.frames(channel), strict=True):
        if frame is not None:
            found |= dict(enumerate(texts_of(frame.body), row.base))
    return found


async def accepted(files: FaultyFiles) -> Node:
    """A start with `accept_loss`, as the server does it."""
    node = await Node.open(files, config_of(accept_loss=True))
    assert node.storage.quarantined == []
    if node.storage.losses:
        await node.maintenance.checkpoint()
        await node.maintenance.checkpoint()
    return node


async def check_left(node: Node, kept: Kept, lost: set[tuple[str, int]]) -> None:
    """All but the lost messages are there, and every channel goes on behind all its offsets."""
    for name in NAMES:
        channel = node.storage.store.find(name)
        expected = {offset: text for offset, text in kept[name].items() if (name, offset) not in lost}
        assert await messages(node, channel) == expected, name
        first = await publish(node, name, "later")
        assert first > max(kept[name])
        kept[name][first] = "later"


def flipped(files: FaultyFiles, address: int, byte: int, bit: int) -> FaultyFiles:
    rotten = files.snapshot()
    rotten.flip(segment_path(DIRECTORY, segment_of(address)), offset_of(address) + byte, bit)
    return rotten


@pytest.mark.parametrize("part", ["body", "header"])
@pytest.mark.parametrize("seed", range(8))
async def test_a_flipped_bit_costs_one_frame(part: str, seed: int) -> None:
    rng = random.Random(seed)
    files, kept, frames = await lived(rng, checkpoint_at=15)
    name, offset, address, length = rng.choice(frames)
    byte = rng.randrange(HEADER_SIZE) if part == "header" else rng.randrange(HEADER_SIZE, length)
    rotten = flipped(files, address, byte, rng.randrange(8))
    strict = await Node.open(rotten.snapshot())
    assert strict.storage.quarantined
    await strict.close()

    node = await accepted(rotten)
    end = min([o for n, o, _, _ in frames if n == name and o > offset], default=max(kept[name]) + 1)
    lost = {(name, at) for at in range(offset, end)}
    assert any(loss.channel == name and loss.first is not None for loss in node.storage.losses)
    await check_left(node, kept, lost)
    told = node.storage.store.lost_messages
    assert told >= len(lost)
    await node.close()

    again = await Node.open(rotten)  # without accept_loss
    assert again.storage.quarantined == []
    assert again.storage.store.lost_messages == told
    await check_left(again, kept, lost)
    await again.close()


@pytest.mark.parametrize("seed", range(12))
async def test_several_bits_and_no_checkpoint_leave_what_is_whole(seed: int) -> None:
    """Also the frames that make the channels may be hit: then a channel is lost with its messages, and that is said."""
    rng = random.Random(seed)
    files, kept, _ = await lived(rng, checkpoint_at=39)
    for path in files.paths():
        if "checkpoint-" in path:
            files.unlink(DIRECTORY / path.rsplit("/", 1)[-1])
    path = next(path for path in files.paths() if path.endswith(".journal"))
    used = len(files.content(path).rstrip(b"\0"))
    for _ in range(3):
        files.flip(path, rng.randrange(64, used - FRAME_OVERHEAD), rng.randrange(8))
    node = await accepted(files)
    there: Kept = {}
    for name in NAMES:
        channel = node.storage.store.get(name)
        if channel is None:
            assert any("name unknown" in loss.channel or loss.first is None for loss in node.storage.losses)
            continue
        there[name] = await messages(node, channel)
        assert there[name].items() <= kept[name].items()
        missing = set(kept[name]) - set(there[name])
        lost = {offset for first, last in channel.lost_ranges() for offset in range(first, min(last, 99) + 1)}
        assert missing <= lost
        assert channel.next_offset > max(kept[name])
        there[name][await publish(node, name, "later")] = "later"
    assert sum(map(len, there.values())) > 40
    await node.close()
    again = await Node.open(files)
    assert again.storage.quarantined == []
    for name, texts in there.items():
        assert await messages(again, again.storage.store.find(name)) == texts
    await again.close()


async def test_a_missing_segment_is_given_up_and_readers_are_told() -> None:
    rng = random.Random(1)
    files, kept, _ = await lived(rng, checkpoint_at=39)
    node = await Node.open(files)
    for number in range(60):  # into a second segment
        first = await publish(node, "a", f"more {number}" + "x" * 300)
        kept["a"][first] = f"more {number}" + "x" * 300
    await node.maintenance.checkpoint()
    await node.maintenance.checkpoint()
    await node.close()
    files.unlink(segment_path(DIRECTORY, 1))
    node = await accepted(files)
    assert node.storage.missing_segments == [1]
    channel = node.storage.store.find("a")
    lost = {offset for first, last in channel.lost_ranges() for offset in range(first, last + 1)}
    found = await messages(node, channel)
    assert found == {offset: text for offset, text in kept["a"].items() if offset not in lost}
    assert len(found) > 20
    assert lost
    await node.close()
    again = await Node.open(files)
    assert again.storage.missing_segments == []
    assert again.storage.store.lost_messages > 0
    await again.close()


async def test_without_damage_accept_loss_changes_nothing() -> None:
    files, kept, _ = await lived(random.Random(3), checkpoint_at=15)
    node = await accepted(files)
    assert node.storage.losses == []
    await check_left(node, kept, set())
    await node.close()
