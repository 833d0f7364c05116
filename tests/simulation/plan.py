"""What a world is like and what befalls it: made from a seed, before anything runs, so that parts can be left out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ringpost.node.replication.ports import Limits

if TYPE_CHECKING:
    from tests.simulation.group_plan import GroupsPlan

SECOND = 1_000_000


class Fault(NamedTuple):
    """Something that happens at a time, by the name of a method of `Faults`."""

    at_us: int
    kind: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.at_us / SECOND:9.3f} s  {self.kind}{self.args}"


class Plan(NamedTuple):
    """A world with `copies` of each shard; clients pause for `think_us` at most; all faults end at `heal_us`."""

    seed: int
    nodes: int
    shards: int
    copies: int
    min_isr: int
    limits: Limits
    ttl_us: int
    publishers: int  # of each shard
    window: int
    think_us: int
    led: bool  # whether the shards were led before
    style: str
    faults: tuple[Fault, ...]
    heal_us: int
    groups: GroupsPlan | None = None  # see `group_plan`


def make_plan(seed: int, style: str = "") -> Plan:
    """The plan of a seed. `style` picks the kind of trouble; "" takes what the seed says."""
    rng = random.Random(seed)
    nodes = rng.choice((3, 3, 3, 4, 4, 5))
    copies = min(nodes, rng.choice((3, 3, 3, 3, 2, 4)))
    min_isr = min(copies, rng.choice((2, 2, 2, 2, 2, 1, 3)))
    style = style or rng.choice(STYLE_NAMES)
    limits = Limits(
        lag_us_max=rng.choice((1, 2, 5)) * SECOND,
        window_bytes=rng.choice((100, 2_000)),
        data_bytes=rng.choice((40, 200)),
    )
    heal_us = rng.choice((5, 8, 12)) * SECOND
    ttl_us = rng.choice((2, 3, 6)) * SECOND
    if style == "joins":  # leases outlive what the store does to them, and one copy may be missing
        nodes, copies, min_isr, ttl_us, heal_us = 3, 3, rng.choice((1, 2, 2)), 8 * SECOND, 12 * SECOND
    faults = STYLES[style](rng, [f"n{number}" for number in range(nodes)], heal_us)
    shards = rng.choice((1, 1, 2, 2, 3))
    return Plan(
        seed, nodes, shards, copies, min_isr, limits,
        ttl_us=ttl_us,
        publishers=rng.choice((1, 2, 3)),
        window=rng.choice((1, 2, 4)),
        think_us=rng.choice((200_000, 500_000, 1_000_000)) * shards,
        led=rng.random() < 0.7,
        style=style,
        faults=tuple(sorted(faults)),
        heal_us=max([heal_us, *(fault.at_us for fault in faults)]) + SECOND,
    )  # fmt: skip


Nodes = list[str]
Maker = Callable[[random.Random, Nodes, int], Fault]


def _span(rng: random.Random) -> int:
    """How long something lasts, µs: mostly moments, sometimes longer than leases."""
    return int(rng.choice((0.05, 0.3, 1, 3, 8)) * SECOND * (0.5 + rng.random()))


def _when(rng: random.Random, heal_us: int) -> int:
    return SECOND // 2 + int(rng.random() * (heal_us - SECOND))


def _pair(rng: random.Random, nodes: Nodes) -> tuple[str, str]:
    one, other = rng.sample(nodes, 2)
    return one, other


def _some(rng: random.Random, nodes: Nodes) -> tuple[str, ...]:
    return tuple(rng.sample(nodes, rng.randint(2, len(nodes))))


MAKERS: dict[str, Callable[[random.Random, Nodes], tuple[Any, ...]]] = {
    "kill": lambda rng, nodes: (rng.choice(nodes), rng.choice(("all", "some", "none")), _span(rng)),
    "power": lambda rng, nodes: (_some(rng, nodes), _span(rng)),
    "freeze": lambda rng, nodes: (rng.choice(nodes), rng.choice((1, 1, 2)) * _span(rng)),
    "wipe": lambda rng, nodes: (rng.choice(nodes), _span(rng)),
    "slow_disk": lambda rng, nodes: (rng.choice(nodes), int(rng.choice((0.05, 0.5, 3, 10)) * SECOND), _span(rng)),
    "damage": lambda rng, nodes: (rng.choice(nodes), _span(rng)),
    "cut": lambda rng, nodes: (*_pair(rng, nodes), rng.random() < 0.5, _span(rng)),
    "isolate": lambda rng, nodes: (rng.choice(nodes), rng.choice(("in", "out", "both")), _span(rng)),
    "split": lambda rng, nodes: (_some(rng, nodes)[:2], _span(rng)),
    "reset": lambda rng, nodes: (*_pair(rng, nodes), rng.choice((10_000, 500_000, 8 * SECOND))),
    "slow_net": lambda rng, nodes: (rng.choice((20_000, 200_000)), rng.choice((0.0, 0.1)), _span(rng)),
    "etcd_cut": lambda rng, nodes: (rng.choice(nodes), _span(rng)),
    "etcd_down": lambda rng, nodes: (_span(rng),),
    "etcd_flaky": lambda rng, nodes: (rng.choice((0.0, 0.3, 0.6)), rng.choice((0.0, 0.3, 0.6)), _span(rng)),
    "etcd_stall": lambda rng, nodes: (rng.choice(nodes), _span(rng)),
    "slow_watch": lambda rng, nodes: (rng.choice(nodes), rng.choice((1, 5, 10)) * SECOND, _span(rng)),
    "lease_lost": lambda rng, nodes: (rng.choice(nodes),),
    "suspect": lambda rng, nodes: (rng.randrange(3),),
    "hand_over": lambda rng, nodes: (rng.randrange(3), rng.choice(nodes)),
    "move": lambda rng, nodes: (rng.randrange(3), rng.randrange(1 << 16)),
    "trim": lambda rng, nodes: (rng.choice(nodes), rng.random()),
    "fuse": lambda rng, nodes: (
        rng.choice(nodes),
        rng.choice(("append", "fsync", "fsynced", "ack", "data", "propose", "proposed")),
        rng.randrange(20),
        _span(rng),
    ),
}


def _mixed(*kinds: str, least: int = 4, most: int = 14) -> Callable[[random.Random, Nodes, int], list[Fault]]:
    def make(rng: random.Random, nodes: Nodes, heal_us: int) -> list[Fault]:
        chosen = kinds or tuple(MAKERS)
        faults = []
        for _ in range(rng.randint(least, most)):
            kind = rng.choice(chosen)
            faults.append(Fault(_when(rng, heal_us), kind, MAKERS[kind](rng, nodes)))
        return faults

    return make


def _killer(rng: random.Random, nodes: Nodes, heal_us: int) -> list[Fault]:
    """Pause a minority; write; a third loses its unsynced tail; pause the rest, resume and restart those two."""
    faults: list[Fault] = []
    at = SECOND
    while at < heal_us:
        one, third, *rest = rng.sample(nodes, len(nodes))
        pause = int(rng.choice((0.3, 2, 7)) * SECOND)
        faults.append(Fault(at, "freeze", (one, pause + SECOND)))
        faults.append(Fault(at + int(pause * 0.3), "slow_disk", (third, SECOND, pause)))
        faults.append(Fault(at + int(pause * 0.8), "kill", (third, "none", int(pause * 0.3))))
        faults.extend(Fault(at + int(pause * (0.8 + rng.random() * 0.4)), "freeze", (node, 2 * pause)) for node in rest)
        faults.append(Fault(at + int(pause * 1.3), "kill", (one, rng.choice(("none", "some")), pause // 5)))
        at += 3 * pause + _span(rng)
    return faults


def _handovers(rng: random.Random, nodes: Nodes, heal_us: int) -> list[Fault]:
    """Leaderships go round, and etcd answers badly."""
    faults = _mixed("etcd_flaky", "etcd_cut", "slow_watch", "freeze", "reset", "cut", "lease_lost", least=3, most=6)(
        rng, nodes, heal_us
    )
    at = SECOND
    while at < heal_us:
        kind = rng.choice(("hand_over", "hand_over", "suspect", "move"))
        faults.append(Fault(at, kind, MAKERS[kind](rng, nodes)))
        at += _span(rng) // 2
    return faults


def _churn(rng: random.Random, nodes: Nodes, heal_us: int) -> list[Fault]:
    """In-sync sets change all the time, with answers that do not come."""
    faults = [Fault(SECOND // 2, "etcd_flaky", (rng.choice((0.2, 0.5)), rng.choice((0.0, 0.4, 0.7)), heal_us))]
    at = SECOND
    while at < heal_us:
        kind = rng.choice(("kill", "kill", "freeze", "slow_disk", "wipe", "reset", "cut", "power", "suspect"))
        faults.append(Fault(at, kind, MAKERS[kind](rng, nodes)))
        at += _span(rng) // 2 + 100_000
    return faults


def _joins(rng: random.Random, nodes: Nodes, heal_us: int) -> list[Fault]:
    """A replica falls out and comes back while the leader hears nothing of the store; then it is in trouble again."""
    faults: list[Fault] = []
    at = SECOND
    while at < heal_us:
        node, *others = rng.sample(nodes, len(nodes))
        down = int(rng.choice((0.3, 1, 1.5)) * SECOND)
        back = at + down
        faults.append(Fault(at, "kill", (node, rng.choice(("none", "some")), down)))
        span = int(rng.choice((1, 2, 3)) * SECOND)
        how = rng.choice(("stall", "stall", "flaky"))
        # The leader must hear of the node's new session, and not of much else.
        deaf = back + rng.randint(4_000, 40_000)
        if how == "flaky":
            faults.append(Fault(deaf, "etcd_flaky", (rng.choice((0.0, 0.3)), rng.choice((0.5, 0.8)), span)))
        for other in others:
            if how == "stall":
                faults.append(Fault(deaf, "etcd_stall", (other, span)))
            if how == "flaky" or rng.random() < 0.5:
                faults.append(Fault(deaf, "slow_watch", (other, 10 * SECOND, span)))
        again = deaf + int(rng.choice((0.03, 0.1, 0.3, 1)) * rng.random() * SECOND)
        kind = rng.choice(("freeze", "freeze", "slow_disk", "wipe", "kill", "isolate"))
        trouble: dict[str, tuple[Any, ...]] = {
            "freeze": (node, 2 * span),
            "slow_disk": (node, 5 * SECOND, 2 * span),
            "wipe": (node, 200_000),
            "kill": (node, "none", rng.choice((100_000, span))),
            "isolate": (node, "both", 2 * span),
        }
        faults.append(Fault(again, kind, trouble[kind]))
        at += 2 * span + SECOND
    return faults


def _restarts(rng: random.Random, nodes: Nodes, heal_us: int) -> list[Fault]:
    """Leaders come and go at once, and lose what they had not fsynced."""
    faults: list[Fault] = []
    at = SECOND
    while at < heal_us:
        node = rng.choice(nodes)
        if rng.random() < 0.6:
            shard = rng.randrange(3)
            faults.append(Fault(at, *rng.choice((("hand_over", (shard, node)), ("suspect", (shard,))))))
        faults.append(Fault(at, "slow_disk", (node, 300_000, 400_000)))
        faults.append(Fault(at + rng.randint(0, 400_000), "kill", (node, rng.choice(("none", "some")), 30_000)))
        at += _span(rng) // 2 + 300_000
    return faults


def _snapshots(rng: random.Random, nodes: Nodes, heal_us: int) -> list[Fault]:
    """A replica comes back behind everybody's beginning, and what it gets comes late."""
    faults: list[Fault] = [Fault(SECOND // 2, "slow_net", (rng.choice((20_000, 200_000)), 0.1, heal_us))]
    at = SECOND
    while at < heal_us:
        node, *others = rng.sample(nodes, len(nodes))
        down = int(rng.choice((0.5, 1)) * SECOND)
        back = at + down
        faults.append(Fault(at, "kill", (node, rng.choice(("all", "some")), down)))
        faults.extend(Fault(back - 1, "trim", (other, rng.choice((0.9, 1.0)))) for other in others)
        for _ in range(rng.randint(1, 3)):
            kind = rng.choice(("reset", "reset", "suspect", "hand_over", "cut", "slow_disk", "freeze"))
            soon = back + int(rng.random() * SECOND)
            faults.append(Fault(soon, kind, MAKERS[kind](rng, [node, rng.choice(others)])))
        at = back + _span(rng) // 2 + 500_000
    return faults


STYLES: dict[str, Callable[[random.Random, Nodes, int], list[Fault]]] = {
    "anything": _mixed(),
    "processes": _mixed("kill", "freeze", "power", "slow_disk", "fuse", "wipe", "suspect"),
    "network": _mixed("cut", "isolate", "split", "reset", "slow_net", "freeze", "kill", "etcd_cut"),
    "store": _mixed(
        "etcd_cut", "etcd_down", "etcd_flaky", "etcd_stall", "slow_watch", "lease_lost", "kill", "suspect", "hand_over"
    ),
    "disks": _mixed("wipe", "slow_disk", "damage", "trim", "power", "kill", "move", "fuse"),
    "killer": _killer,
    "handovers": _handovers,
    "churn": _churn,
    "joins": _joins,
    "restarts": _restarts,
    "snapshots": _snapshots,
}
STYLE_NAMES = tuple(STYLES)
