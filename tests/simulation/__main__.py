"""Long runs: `python -m tests.simulation SEEDS [--from N] [--jobs J] [--style S] [--groups] [--mutation WORD]`."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

from tests.simulation.group_mutations import GROUP_MUTATIONS
from tests.simulation.group_plan import make_any_plan
from tests.simulation.mutation import mutated
from tests.simulation.mutations import MUTATIONS
from tests.simulation.plan import SECOND, STYLE_NAMES
from tests.simulation.shrink import shrink, story
from tests.simulation.world import World

CHUNK = 50
SHOWN = 20


class Part(NamedTuple):
    """What some seeds came to."""

    failures: list[tuple[int, str, str]]  # seed, style, what
    counts: Counter[str]
    healed_us: int


def run_some(first: int, count: int, style: str, word: str, groups: bool) -> Part:
    """Runs seeds one by one; `word` names a mutation."""
    mutation = next((m for m in (*MUTATIONS, *GROUP_MUTATIONS) if word and word in m.name), None)
    failures, counts, healed = [], Counter[str](), 0
    with mutated(mutation) if mutation else nullcontext():
        for seed in range(first, first + count):
            plan = make_any_plan(seed, style, groups=groups)
            world = World(plan)
            result = world.run()
            if result.failure:
                failures.append((seed, plan.style, result.failure))
            counts.update(seeds=1, commits=result.commits, elections=result.elections, events=result.events)
            if world.oracle.groups is not None:
                counts.update(world.oracle.groups.counts())
            healed = max(healed, result.healed_us)
    return Part(failures, counts, healed)


def parts(args: argparse.Namespace) -> Iterator[Part]:
    """All of it, as it gets done."""
    chunks = [
        (first, min(CHUNK, args.first + args.seeds - first), args.style, args.mutation, args.groups)
        for first in range(args.first, args.first + args.seeds, CHUNK)
    ]
    if args.jobs == 1:
        for chunk in chunks:
            yield run_some(*chunk)
        return
    with ProcessPoolExecutor(args.jobs) as pool:
        yield from pool.map(run_some, *zip(*chunks, strict=True))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m tests.simulation", description="Simulates the replication of shards.")
    parser.add_argument("seeds", type=int, help="how many worlds")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--style", default="", choices=("", *STYLE_NAMES), help="the kind of trouble")
    parser.add_argument("--mutation", default="", help="a word of the name of a guard that is taken out")
    parser.add_argument("--groups", action="store_true", help="groups in every world, not only in each fourth")
    parser.add_argument("--trace", action="store_true", help="show the first seed as it is, whatever it comes to")
    return parser.parse_args()


def main() -> int:
    """1 when a seed fails; the first of those is made small and told."""
    args = arguments()
    if args.trace:
        print(story(make_any_plan(args.first, args.style, groups=args.groups)))
        return 0
    began = time.monotonic()
    failures: list[tuple[int, str, str]] = []
    counts, healed = Counter[str](), 0
    for part in parts(args):
        failures += part.failures
        counts += part.counts
        healed = max(healed, part.healed_us)
        if sys.stderr.isatty():
            print(f"\r{counts['seeds']} seeds, {len(failures)} fail", end="", file=sys.stderr, flush=True)
    for seed, style, failure in failures[:SHOWN]:
        print(f"seed {seed} ({style}): {failure}")
    if failures and not args.mutation:
        seed, _, failure = failures[0]
        print(story(shrink(make_any_plan(seed, args.style, groups=args.groups), failure)))
    took = time.monotonic() - began
    print(
        f"with groups {counts['with groups']}: {counts['deliveries']} deliveries, {counts['confirmed']} confirmed, "
        f"{counts['dead letters']} dead letters, {counts['redriven']} redriven, {counts['seeks']} seeks"
    )
    print(
        f"{counts['seeds']} seeds, {len(failures)} fail; {counts['commits']} commits, {counts['elections']} epochs, "
        f"{counts['events']} events in {took:.0f} s; well again within {healed / SECOND:.1f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
