"""What the tests of deliveries share."""

from collections.abc import Iterator

import pytest

from ringpost.node.shard import sieve


@pytest.fixture(autouse=True, scope="module")
def endless_slices() -> Iterator[None]:
    """However slow the machine is: a slice ends only where a test has a clock of its own."""
    before, sieve.SLICE_NS = sieve.SLICE_NS, 10**15
    yield
    sieve.SLICE_NS = before
