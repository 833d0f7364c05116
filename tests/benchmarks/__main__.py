"""The benchmark suite; `make bench`, `make bench ARGS=--full`, `make bench ARGS="--only B1 B4"`.

Writes `.benchmarks/suite.json` (every single figure), `.benchmarks/suite.md` and the plots, and prints the page. Exits
0 only when everything ran and no message was missing.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks import catalogue, lean, servers
from tests.benchmarks.measure import SCRATCH, machine
from tests.benchmarks.plan import PLANS, QUICK
from tests.benchmarks.report.charts import charts
from tests.benchmarks.report.page import page
from tests.benchmarks.suite import Suite

PACKAGES = ("ringpost", "grpcio", "uvloop", "nats-py", "redis", "hiredis", "aio-pika")


def calibrate(suite: Suite) -> None:
    """Raw gRPC by a Python client, and the disk; a repetition as for everything else."""
    scale = str(min(1.0, 0.3 * suite.plan.scale))
    command = (sys.executable, "-m", "tests.benchmarks.ceiling", "--scale", scale)
    for turn in range(suite.plan.repeat):
        print(f"calibration {turn + 1}", flush=True)
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=lean.ROOT)
        suite.ceilings.append(json.loads(done.stdout))


def measure(suite: Suite, only: list[str]) -> None:
    """Everything that is asked for, in the order of the catalogue; what fails is a fault and the rest goes on."""
    with suite.everything():
        calibrate(suite)
        for bench in catalogue.BENCHES:
            if only and bench.name not in only:
                continue
            if reason := bench.skipped(suite, bool(only)):
                suite.skipped[bench.name] = reason
                continue
            begin = time.monotonic()
            try:
                bench.run(suite)
            except (lean.JobFailed, RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
                suite.faults.append(f"{bench.name} did not run to its end: {error}"[:2_000])
            print(f"{bench.name}: {time.monotonic() - begin:.0f} s", flush=True)


def result_of(suite: Suite, begin: float) -> dict[str, Any]:
    return {
        "command": " ".join(["make bench", *([f"ARGS='{' '.join(sys.argv[1:])}'"] if sys.argv[1:] else [])]),
        "date": time.strftime("%d %B %Y"),
        "seconds": time.monotonic() - begin,
        "machine": machine(PACKAGES),
        "versions": servers.versions(),
        "plan": asdict(suite.plan),
        "ceilings": suite.ceilings,
        "rows": [row.as_json() for row in suite.rows],
        "figures": suite.figures,
        "skipped": suite.skipped,
        "faults": suite.faults,
    }


def write(suite: Suite, result: dict[str, Any], docs: Path | None) -> str:
    """The files; the page. `docs`: a folder that gets the page and the plots, too."""
    from tests.benchmarks.report.plots import draw

    SCRATCH.mkdir(exist_ok=True)
    for old in SCRATCH.glob("*.svg"):
        old.unlink()
    drawn = list(charts(suite.rows, suite.figures))
    result["plots"] = draw(drawn, SCRATCH)
    titles = {bench.name: bench.title for bench in catalogue.BENCHES}
    text = page(result, titles)
    (SCRATCH / "suite.json").write_text(json.dumps(result, indent=1) + "\n")
    (SCRATCH / "suite.md").write_text(text)
    if docs is not None:
        (docs / "benchmarks").mkdir(parents=True, exist_ok=True)
        draw(drawn, docs / "benchmarks")
        (docs / "benchmarks.md").write_text(page(result, titles, "benchmarks/"))
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_const", const="full", dest="plan", help="everything, five repetitions")
    parser.add_argument(
        "--smoke", action="store_const", const="smoke", dest="plan", help="only shows that all of it runs"
    )
    parser.add_argument("--only", nargs="+", default=[], help=", ".join(bench.name for bench in catalogue.BENCHES))
    parser.add_argument("--docs", type=Path, help="write benchmarks.md and its plots to this folder, too")
    given = parser.parse_args()
    begin = time.monotonic()
    suite = Suite(PLANS[given.plan or QUICK.name], servers.present(), lean.build() is not None)
    measure(suite, given.only)
    print(write(suite, result_of(suite, begin), given.docs))
    for fault in suite.faults:
        print(f"fault: {fault}", file=sys.stderr)
    return int(bool(suite.faults))


if __name__ == "__main__":
    raise SystemExit(main())
