"""The checks by name, in the order in which they are told."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from ringpost.client.testing.conformance.bench import Bench

Judge: TypeAlias = Callable[[Bench], Awaitable[str]]


class LeftOut(Exception):  # noqa: N818
    """A check cannot be made here; the text says why."""


@dataclass(frozen=True)
class Check:
    """One thing that a client has to do, in a sentence. `alone`: it disturbs the cluster."""

    name: str
    sentence: str
    judge: Judge
    alone: bool


CHECKS: list[Check] = []


def check(name: str, *, alone: bool = False) -> Callable[[Judge], Judge]:
    """Registers a judge: it returns what it saw, or raises `Broken` or `LeftOut`. Its docstring is the sentence."""

    def register(judge: Judge) -> Judge:
        CHECKS.append(Check(name, (judge.__doc__ or "").strip(), judge, alone))
        return judge

    return register
