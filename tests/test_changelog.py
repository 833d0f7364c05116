"""CHANGELOG.md speaks of this version, and of the formats that the code has."""

import re
import tomllib
from pathlib import Path

from ringpost.cluster import levels, records
from ringpost.node.journal import frame, identity

ROOT = Path(__file__).resolve().parent.parent
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_newest_entry_is_this_version() -> None:
    assert re.findall(r"^## (\S+)", CHANGELOG, re.MULTILINE)[0] == VERSION


def test_the_formats_are_those_of_the_code() -> None:
    told = dict(re.findall(r"^\| ([^|]+) \| (\d+) \|$", CHANGELOG, re.MULTILINE))
    assert {name: int(version) for name, version in told.items()} == {
        "data directory": identity.FORMAT,
        "frames of the journal": frame.VERSION,
        "records in etcd": records.FORMAT,
        "level (what nodes say to each other)": levels.LEVEL,
    }
