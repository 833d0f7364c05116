"""Time that passes on command, so that no test depends on how fast a machine is."""

from time import monotonic


class Clock:
    """Stands in for `monotonic`: as that, but `ahead` seconds later."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return monotonic() + self.ahead
