"""Lease tokens are read back as they were written, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.groups.lease_token import SIZE, LeaseToken, decode_lease_token, group_identity

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
tokens = st.builds(
    LeaseToken, u32, u64, u64, u64, u64, st.integers(0, 2**63), st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1)
)
ONE = LeaseToken(3, 70, 5, 9, 0, 100, 20, 2)


@given(tokens)
def test_what_was_written_is_read(token: LeaseToken) -> None:
    encoded = token.encode()
    assert len(encoded) == SIZE <= 128
    assert decode_lease_token(encoded) == token


@given(tokens, st.integers(0, SIZE - 1), st.integers(1, 255))
def test_any_byte_that_is_changed_is_noticed(token: LeaseToken, at: int, change: int) -> None:
    encoded = bytearray(token.encode())
    encoded[at] ^= change
    with pytest.raises(ValueError, match=r"version|damaged"):
        decode_lease_token(bytes(encoded))


@given(st.binary(max_size=200))
def test_other_bytes_are_none(junk: bytes) -> None:
    with pytest.raises(ValueError, match=r"empty|version|bytes|damaged"):
        decode_lease_token(junk)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (b"", "is empty"),
        (b"\x02" + ONE.encode()[1:], "its version is 2, 1 is known"),
        (ONE.encode()[:-1], "has 56 bytes, a lease token has 57"),
        (ONE.encode() + b"\x00", "has 58 bytes"),
        (ONE._replace(messages=0).encode(), "names no delivery"),
        (ONE._replace(attempt=0).encode(), "names no delivery"),
        (ONE._replace(first=2**64 - 1).encode(), "names no delivery"),
    ],
)
def test_what_is_wrong_is_said(wrong: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode_lease_token(wrong)


def test_a_group_is_told_from_others_and_from_one_of_its_name() -> None:
    assert len({group_identity("g", 1), group_identity("g", 2), group_identity("h", 1), group_identity("g\n1", 1)}) == 4
