"""Addresses, back-off, options, streams to nobody: what needs no broker."""

import asyncio
import contextlib
import random

import pytest

from ringpost.client import InvalidRequest, Options, Unavailable, wire
from ringpost.client.connection import Backoff, Connections, Stream, is_local, parse_targets


@pytest.mark.parametrize(
    ("target", "addresses"),
    [
        (None, ["there:1"]),
        ("host", ["host:7400"]),
        ("host:1, other", ["host:1", "other:7400"]),
        (["a:1", "b"], ["a:1", "b:7400"]),
        ("[::1]", ["[::1]:7400"]),
        ("[::1]:5", ["[::1]:5"]),
        ("unix:relative.socket", ["unix:relative.socket"]),
        ("dns:///host:1", ["dns:///host:1"]),
    ],
)
def test_addresses(target, addresses: list[str]) -> None:
    assert parse_targets(target, "there:1") == addresses


@pytest.mark.parametrize("target", [",", [], [""]])
def test_no_address_is_an_error(target) -> None:
    with pytest.raises(InvalidRequest):
        parse_targets(target, "there:1")


@pytest.mark.parametrize(
    ("address", "local"),
    [
        *(
            ("localhost:1", True),
            ("127.0.0.1:1", True),
            ("127.8.0.1", True),
            ("[::1]:5", True),
            ("unix:a.socket", True),
        ),
        *(("dns:///localhost:1", True), ("ipv4:127.0.0.1:1", True), ("ipv6:[::1]:1", True)),
        *(("host:1", False), ("10.0.0.1:1", False), ("[fe80::1]:5", False), ("dns:///host:1", False)),
        *(("localhost.evil:1", False), ("dns://127.0.0.1/host:1", False), ("", False)),
    ],
)
def test_what_stays_on_this_machine(address: str, local: bool) -> None:
    assert is_local(address) == local


def test_back_off_doubles_with_jitter_to_its_bound() -> None:
    backoff = Backoff(random.Random(1))
    delays = [backoff.next_delay() for _ in range(10)]
    bounds = [min(2.0, 0.05 * 2**n) for n in range(10)]
    assert all(bound / 2 <= delay <= bound for delay, bound in zip(delays, bounds, strict=True))
    backoff.reset()
    assert backoff.next_delay() <= 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch_messages": 0},
        {"max_batch_messages": 65_536},
        {"linger_ms": -1},
        {"publish_timeout": 0},
        {"routing": "no"},
    ],
)
def test_options_outside_their_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Options(**wrong)


# gRPC's own first write waits for ever when the call ends before it has begun: a subscription stood still so.
@pytest.mark.parametrize("turns", range(6))
async def test_a_first_write_ends_with_its_stream_however_soon_that_is_cut(turns: int) -> None:
    stream, connections = open_stream_to_nobody()
    write = asyncio.create_task(stream.write(b"x"))
    for _ in range(turns):
        await asyncio.sleep(0)
    stream.cancel()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(write, 5)
    await connections.close()


@pytest.mark.parametrize("turns", range(6))
async def test_a_half_close_of_a_stream_that_is_cut_raises_no_error_of_grpc_s(turns: int) -> None:
    stream, connections = open_stream_to_nobody()
    half_close = asyncio.create_task(stream.half_close())
    for _ in range(turns):
        await asyncio.sleep(0)
    stream.cancel()
    with contextlib.suppress(Unavailable):
        await asyncio.wait_for(half_close, 5)
    await connections.close()


def open_stream_to_nobody() -> tuple[Stream, Connections]:
    address = "nobody.invalid:1"
    connections = Connections([address], None, None)
    return connections.open_stream("subscribe", wire.SUBSCRIBE_PATH, address), connections
