"""`python -m ringpost.client.testing.conformance [--nodes HOST:PORT,…] [--only NAME] -- COMMAND [ARGUMENT …]`"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from ringpost.client.cli.local import LocalNodeError
from ringpost.client.errors import RingpostError
from ringpost.client.testing import conformance
from ringpost.client.testing.conformance.run import RUN_SECONDS, results
from ringpost.client.testing.conformance.targets import Given, Target, own_cluster


def main(arguments: Sequence[str]) -> int:
    """Exit code 0: it passed. 1: it did not. 2: nothing could be judged."""
    parser = argparse.ArgumentParser(
        prog="python -m ringpost.client.testing.conformance",
        description=conformance.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", metavar="HOST:PORT,…", help="a cluster that runs; default: one of its own")
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help="checks that begin so; repeatable")
    parser.add_argument("--seconds", type=float, default=RUN_SECONDS, help="most that one run may take")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the program under test, after --")
    given = parser.parse_args(arguments)
    try:
        if given.nodes:
            return asyncio.run(_tell(given, Given(given.nodes.split(","))))
        with own_cluster() as cluster:
            return asyncio.run(_tell(given, cluster))
    except (LocalNodeError, RingpostError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


async def _tell(given: argparse.Namespace, target: Target) -> int:
    counts = {"ok": 0, "FAIL": 0, "left out": 0}
    async for result in results(given.command, target, given.only, given.seconds):
        counts[result.outcome] += 1
        print(result, flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) or "no such check")
    return 0 if counts["ok"] and not counts["FAIL"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
