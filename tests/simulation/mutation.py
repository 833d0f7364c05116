"""A guard is a piece of a function's source; without it something must go wrong in some world."""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch


class Cut(NamedTuple):
    """In the source of a method, or of a function that a module has (perhaps from another), `old` becomes `new`."""

    owner: type | ModuleType
    method: str
    old: str
    new: str


class Mutation(NamedTuple):
    """Without a guard: seeds of a style of plans, from 0, show it after about `seeds` of them."""

    name: str
    seeds: int
    style: str
    cuts: tuple[Cut, ...]

    @property
    def most(self) -> int:
        """How many are tried: every change of the core deals the cards anew."""
        return 3 * self.seeds + 30


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """The core is that way meanwhile."""
    with ExitStack() as stack:
        for owner, method in dict.fromkeys((cut.owner, cut.method) for cut in mutation.cuts):
            cuts = [cut for cut in mutation.cuts if (cut.owner, cut.method) == (owner, method)]
            stack.enter_context(patch.object(owner, method, _rewritten(owner, method, cuts)))
        yield


def _rewritten(owner: type | ModuleType, method: str, cuts: list[Cut]) -> Any:
    written = inspect.getattr_static(owner, method)
    function = written.fget if isinstance(written, property) else written
    source = textwrap.dedent(inspect.getsource(function))
    for cut in cuts:
        assert source.count(cut.old) == 1, f"{owner.__name__}.{method} has not exactly one {cut.old!r}"
        source = source.replace(cut.old, cut.new)
    source = source.replace("super()", f"super({owner.__name__}, self)")
    scope: dict[str, Any] = {}
    exec(compile(source, inspect.getfile(function), "exec"), function.__globals__, scope)
    return scope[method]
