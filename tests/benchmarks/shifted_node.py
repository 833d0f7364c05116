"""A node whose clock is wrong by as many microseconds as the environment says: the program of `delayed`."""

import os
import sys

from ringpost.node import __main__ as program
from ringpost.node import storage

SHIFT = "CLOCK_SHIFT_US"
_true_us = storage.now_us


def shifted_us() -> int:
    """The system's clock and the shift."""
    return _true_us() + int(os.environ.get(SHIFT, "0"))


if __name__ == "__main__":
    storage.now_us = shifted_us
    code = program.main()
    sys.stdout.flush()
    os._exit(code)
