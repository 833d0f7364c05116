"""The coordination store as the cluster uses it: a small key-value store with revisions, transactions, leases, watches.

etcd is one (`cluster.etcd`), an object in this process another (`cluster.memory_kv`), the simulator's a third. All
calls come from one event loop.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol


class KvError(Exception):
    """The store could not be asked; nothing is known to have changed."""


class OutcomeUnknown(KvError):
    """A write was sent and not answered: it may have been applied, or be applied later."""


class StoreChanged(KvError):
    """The store is another one, or older than it was: its revision fell, or it has another id."""


class Item(NamedTuple):
    """A key with its value. `lease` 0: none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


class Field(Enum):
    """What a comparison looks at."""

    MOD = "mod"
    CREATE = "create"


class Compare(NamedTuple):
    """The key's revision is exactly this; 0: there is no such key."""

    key: str
    field: Field
    revision: int


class Put(NamedTuple):
    """Sets a key. `lease` 0: it stays until it is deleted."""

    key: str
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """Removes a key; fine when there is none."""

    key: str


class TxnResult(NamedTuple):
    """`revision` is the store's after the transaction; with `succeeded` it is the mod revision of what was put."""

    succeeded: bool
    revision: int


class Picture(NamedTuple):
    """All keys below a prefix as of one revision."""

    revision: int
    items: tuple[Item, ...]


class Change(NamedTuple):
    """What changed in one revision; None: deleted. Revisions come in order, each whole."""

    revision: int
    items: tuple[tuple[str, Item | None], ...]


class Watch(Protocol):
    """A watch that goes on until it is closed, over lost connections and compactions."""

    async def close(self) -> None:
        """No callback after it."""


class Kv(Protocol):
    """A linearizable store. Keys are text, values bytes."""

    @property
    def name(self) -> str:
        """For people, such as "etcd 3.5.1"."""

    @property
    def store_id(self) -> str:
        """Which store it is, "" where that cannot be told: another one after a restore from a backup."""
        return ""

    async def range(self, prefix: str) -> Picture:
        """A linearizable read. Raises KvError."""

    async def txn(self, compares: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult:
        """If all comparisons hold does all of `then`, else nothing. At most 100 operations.

        Raises OutcomeUnknown when it is not known whether it was done, KvError when it was surely not done.
        """

    async def grant(self, ttl_s: int) -> int:
        """A new lease; keys put under it vanish when it is not kept alive for `ttl_s`. Raises KvError."""

    async def keep_alive(self, lease: int) -> float:
        """Renews a lease once; seconds that it now lives, 0.0 when it is gone. Raises KvError when nobody answered."""

    async def revoke(self, lease: int) -> None:
        """Ends a lease and deletes its keys. Raises KvError."""

    async def watch(self, prefix: str, picture: Callable[[Picture], None], change: Callable[[Change], None]) -> Watch:
        """Calls `picture` once before it returns, then `change` for every later revision, in order.

        When what was missed cannot be had any more, which is so where the store has forgotten it, `picture` is called
        again: with all that is there now, so that what is not in it is gone. Whoever also reads the keys in other ways
        may know more than the watch has told; only a whole picture can be compared with that.
        Raises KvError when the first picture cannot be had.
        """

    async def close(self) -> None:
        """Frees connections. Idempotent."""
