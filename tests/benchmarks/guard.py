"""`make guard`: whether an operation of the hot path has become dearer than the last time somebody looked.

Counts instructions (valgrind's callgrind), which are the same on a busy machine as on a quiet one, to the last digit.
What they should be is in `guard.json`: whoever makes something dearer on purpose says `--accept` and commits the file,
so that the price is in the change. Another interpreter or protobuf counts otherwise; then nothing can be said.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.guarded import OPERATIONS, ROUNDS

BASELINE: Final = Path(__file__).with_name("guard.json")
ROOT: Final = Path(__file__).resolve().parents[2]
TOLERANCE: Final = 0.05
_MARK: Final = "getpgrp"
_TOTALS: Final = re.compile(r"^totals: (\d+)", re.M)


def made_with() -> dict[str, str]:
    """What the counts depend on beside our own code."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, **{name: version(name) for name in ("protobuf", "crc32c")}}


def counted(folder: Path) -> dict[str, int]:
    """Instructions of one round of each operation, from what callgrind dumped at each mark.

    Dumps are numbered from 1 and hold what was done since the one before, so every second is an operation's.
    """
    found = {}
    for number, operation in enumerate(OPERATIONS):
        text = (folder / f"out.{2 * number + 2}").read_text()
        match = _TOTALS.search(text)
        assert match is not None, "callgrind writes totals"
        found[operation.__name__] = round(int(match[1]) / ROUNDS)
    return found


def count() -> dict[str, int]:
    """Runs the operations under callgrind. Raises `CalledProcessError`."""
    with tempfile.TemporaryDirectory() as folder:
        callgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", f"--dump-before={_MARK}"]
        subprocess.run(
            [*callgrind, sys.executable, "-m", "tests.benchmarks.guarded"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            check=True,
            capture_output=True,
            text=True,
        )
        return counted(Path(folder))


def compare(found: Mapping[str, int], baseline: Mapping[str, Any]) -> tuple[list[str], bool]:
    """A line for each operation, and whether none has become dearer than `TOLERANCE` allows."""
    before: dict[str, int] = baseline["instructions"]
    lines, good = [], True
    for name, now in found.items():
        if name not in before:
            lines.append(f"{name}: {now:,} instructions, and none to compare with")
            good = False
            continue
        change = now / before[name] - 1
        verdict = "dearer" if change > TOLERANCE else "cheaper: accept it" if change < -TOLERANCE else "as before"
        good = good and change <= TOLERANCE
        lines.append(f"{name}: {now:,} instructions, {change:+.1%}, {verdict}")
    lines += [f"{name}: is not counted any more" for name in before.keys() - found.keys()]
    return lines, good and before.keys() <= found.keys()


def main() -> int:
    """Exit code: 0 good, 1 something is dearer, 2 nothing can be said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="write what is counted into guard.json")
    accept = parser.parse_args().accept
    if shutil.which("valgrind") is None:
        print("valgrind is not there; on Debian: apt-get install valgrind", file=sys.stderr)
        return 2
    found = count()
    if accept:
        text = json.dumps({"made_with": made_with(), "instructions": found}, indent=2)
        BASELINE.write_text(text + "\n")
        print(f"{len(found)} counts are in {BASELINE.name} now; commit it.")
        return 0
    baseline = json.loads(BASELINE.read_text())
    if baseline["made_with"] != made_with():
        print(f"guard.json is of {baseline['made_with']}, this is {made_with()}: nothing can be said", file=sys.stderr)
        return 2
    lines, good = compare(found, baseline)
    print("\n".join(lines))
    if not good:
        print("Make it cheaper, or say why it is worth it and run: python -m tests.benchmarks.guard --accept")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
