"""constraints.txt: what CI installs is what pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def pins() -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}


def requirements() -> list[Requirement]:
    extras = [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    return [Requirement(r) for r in (*PROJECT["dependencies"], *extras)]


def test_every_line_is_one_exact_version_and_names_no_place() -> None:
    assert [line for line in LINES if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert len(pins()) == len(LINES)


def test_every_requirement_is_pinned_within_its_range() -> None:
    pinned = pins()
    outside = [str(r) for r in requirements() if not r.specifier.contains(pinned.get(canonicalize_name(r.name), "0"))]
    assert outside == []
