"""What a client knows of the cluster: who owns which shard, where nodes are, and which of them answer. Pure.

With fewer than two known nodes there is nothing to choose: then only the addresses that were given count.
Time is seconds of one monotone clock and an argument, like randomness.
"""

import random
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from ringpost.v1 import cluster_pb2

_FIRST_S: Final = 0.05
_LAST_S: Final = 2.0
# Channels whose shard is remembered; a name's hash costs a microsecond.
_MAX_NAMES: Final = 100_000


def shard_of(channel: str, shard_count: int) -> int:
    """The shard of a channel, as the comment of `GetRoutesResponse` says it."""
    return int.from_bytes(sha256(channel.encode()).digest()[:8], "big") % shard_count


class _Owner(NamedTuple):
    node: str
    epoch: int


class _Down(NamedTuple):
    until: float
    bound: float


class Routes:
    """`version` grows whenever `target` may answer otherwise than before."""

    def __init__(self, seeds: Sequence[str], rng: random.Random | None = None) -> None:
        self.seeds = list(seeds)
        self.version = 0
        # 0: not known.
        self.shard_count = 0
        self._random = rng or random.Random()
        self._view = 0
        self._owners: dict[int, _Owner] = {}
        self._addresses: dict[str, str] = {}
        self._candidates = list(seeds)
        self._down: dict[str, _Down] = {}
        self._up = list(seeds)
        self._shards: dict[str, int] = {}

    # -- what is known --------------------------------------------------------------------------------------------

    @property
    def several(self) -> bool:
        """Whether there are two addresses or more to choose from."""
        return len(self._candidates) > 1

    @property
    def up(self) -> list[str]:
        """The addresses that answer, as far as is known."""
        return self._up

    def shard(self, channel: str) -> int:
        """The channel's shard; 0 while the number of shards is not known."""
        if not self.shard_count:
            return 0
        found = self._shards.get(channel)
        if found is None:
            if len(self._shards) >= _MAX_NAMES:
                self._shards.clear()
            found = self._shards[channel] = shard_of(channel, self.shard_count)
        return found

    def target(self, channel: str) -> str:
        """Where a request about the channel goes: its owner; when that is unknown or down, another that answers."""
        shard = self.shard(channel)
        owner = self._owners.get(shard)
        if owner is not None:
            address = self._addresses.get(owner.node)
            if address is not None and address not in self._down:
                return address
        return self.fallback(shard if self._addresses else 0)

    def fallback(self, spread: int = 0) -> str:
        """An address that answers, chosen by `spread`; when none does, the one that is to be tried again first."""
        if self._up:
            return self._up[spread % len(self._up)]
        return min(self._candidates, key=lambda address: self._down[address].until)

    def delay(self, address: str, now: float) -> float:
        """Seconds until the address is to be tried again; 0 when it may be tried now."""
        down = self._down.get(address)
        return 0.0 if down is None else max(0.0, down.until - now)

    def due(self, now: float) -> list[str]:
        """Addresses that are down and may be tried again."""
        return [address for address, down in self._down.items() if down.until <= now]

    def next_due(self) -> float | None:
        """When the first of those that are down may be tried again; None when none is down."""
        return min((down.until for down in self._down.values()), default=None)

    # -- events ---------------------------------------------------------------------------------------------------

    def learn(self, answer: cluster_pb2.GetRoutesResponse) -> None:
        """Event: a node's picture of the cluster. An older one changes no owner of a newer epoch."""
        if len(answer.nodes) < 2 and not self._addresses:
            return
        if answer.shard_count != self.shard_count:
            self.shard_count = answer.shard_count
            self._shards.clear()
            self._owners.clear()
            self.version += 1
        for route in answer.shards:
            self._own(route.shard, route.owner, route.epoch, newer=answer.view >= self._view)
        if answer.view >= self._view:
            self._view = answer.view
            self._place(answer)

    def _place(self, answer: cluster_pb2.GetRoutesResponse) -> None:
        addresses = {node.node: node.address for node in answer.nodes if node.address}
        # Nodes that do not live by the cluster's own word are no place to fall back to.
        lively = [node.address for node in answer.nodes if node.alive and node.address]
        candidates = list(dict.fromkeys((*lively, *self.seeds)))
        if addresses == self._addresses and candidates == self._candidates:
            return
        self._addresses, self._candidates = addresses, candidates
        known = {*candidates, *addresses.values()}
        self._down = {address: down for address, down in self._down.items() if address in known}
        self._changed()

    def _own(self, shard: int, owner: str, epoch: int, *, newer: bool) -> None:
        known = self._owners.get(shard)
        if known is not None and (epoch < known.epoch or (epoch == known.epoch and not newer)):
            return
        if known is None or known != (owner, epoch):
            self._owners[shard] = _Owner(owner, epoch)
            self.version += 1

    def note(self, channel: str, owner: str, epoch: int) -> bool:
        """Event: an answer names the channel's owner. True when it is news, so that other routes may be old too."""
        if not self._addresses or not owner:
            return False
        shard = self.shard(channel)
        known = self._owners.get(shard)
        if known is not None and (known.epoch > epoch or known == (owner, epoch)):
            return False
        self._own(shard, owner, epoch, newer=True)
        return True

    def failed(self, address: str, now: float) -> None:
        """Event: the address does not answer, or wants no more work. Each time in a row it is left alone longer.

        Many streams break when a node dies: what fails before the address is due again counts as the same time.
        """
        before = self._down.get(address)
        if before is not None and now < before.until:
            self._changed()
            return
        bound = _FIRST_S if before is None else min(_LAST_S, before.bound * 2)
        self._down[address] = _Down(now + self._random.uniform(bound / 2, bound), bound)
        self._changed()

    def worked(self, address: str) -> None:
        """Event: the address answers."""
        if self._down.pop(address, None) is not None:
            self._changed()

    def _changed(self) -> None:
        self._up = [address for address in self._candidates if address not in self._down]
        self.version += 1
