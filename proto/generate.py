"""Generates the Python code of every .proto beside it, or compares it: `generate.py [--check]`."""

import argparse
import filecmp
import os
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def generate(out: Path) -> None:
    """Writes `*_pb2.py` and `*_pb2.pyi` for all files, `*_pb2_grpc.py` and `.pyi` for those with a service."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # protoc's plugins
    protos = sorted(ROOT.glob("ringpost/**/*.proto"))
    well_known = str(files("grpc_tools") / "_proto")
    common = ["protoc", f"-I{ROOT}", f"-I{well_known}"]
    messages = [*common, f"--python_out={out}", f"--mypy_out=quiet:{out}", *map(str, protos)]
    with_service = [str(p) for p in protos if "\nservice " in p.read_text()]
    services = [*common, f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *with_service]
    for command in (messages, services):
        if protoc.main(command) != 0:
            sys.exit("protoc failed")


def generated(root: Path) -> set[Path]:
    return {p.relative_to(root) for pattern in ("*_pb2*.py", "*_pb2*.pyi") for p in root.rglob(pattern)}


def check() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = generated(Path(scratch)), generated(ROOT)
        stale = sorted(str(p) for p in fresh & committed if not filecmp.cmp(Path(scratch) / p, ROOT / p, shallow=False))
        odd = sorted(str(p) for p in fresh ^ committed)
    for name in stale + odd:
        print(f"proto/{name} is not what the .proto says; run `make proto`", file=sys.stderr)
    return 1 if stale or odd else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 when something is stale")
    if parser.parse_args().check:
        sys.exit(check())
    generate(ROOT)


if __name__ == "__main__":
    main()
