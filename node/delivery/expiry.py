"""Messages whose time to live is over: who would get them next passes over them. Pure."""

from typing import Final

from ringpost.node.journal.cache import CachedFrame
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.reading import Reading

TURN_FRAMES: Final = 256  # passed over in one turn of the loop


def is_over(frame: CachedFrame, now_us: int) -> bool:
    """Whether the frame's messages are not given out any more."""
    return frame.ttl_ms > 0 and frame.time_us + frame.ttl_ms * 1000 <= now_us


def run_end(channel: Channel, reading: Reading, frame: CachedFrame, now_us: int) -> int:
    """The last offset of a frame that is over, and of those that follow it, as far as they are in memory."""
    end, frames = frame.base_offset + frame.count, 1
    while end < channel.end_offset and frames < TURN_FRAMES:
        following = reading.cached(channel.index.row(channel.index.find(end)).address)
        if following is None or not is_over(following, now_us):
            break
        end, frames = following.base_offset + following.count, frames + 1
    return end - 1
