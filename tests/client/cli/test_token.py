"""Tokens that `token new` makes, and the principals that it adds to an access file."""

import itertools
import os
import random
import re
import stat
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ringpost.client.cli import main
from ringpost.client.cli.token import pattern
from ringpost.cluster.patterns import pattern_problem
from ringpost.node.access import policy
from tests.client.cli.conftest import Ran

THERE = '# kept\n[principals.shop]\ntokens = []\n\n[roles.all]\nmanage = [">"]'


def token(*arguments: str) -> Ran:
    done = CliRunner().invoke(main, ["token", "new", *arguments])
    return Ran(done.exit_code, done.stdout, done.stderr)


def test_a_principal_is_added_behind_what_is_there_and_a_node_can_read_it(tmp_path: Path) -> None:
    access = tmp_path / "access.toml"
    access.write_text(THERE)
    granted = ("--publish", "orders.>", "--publish", "a", "--consume", "b", "--manage", "c.*", "--cluster", "view")
    made = token("--access-file", str(access), "--principal", "a.b@c", *granted)
    assert made.code == 0, made.err
    shown = re.fullmatch(r"token  (rp_\S+)\nhash   (sha256:\w+)\n", made.out)
    assert shown
    assert access.read_text().startswith(THERE + "\n")
    wanted = {"tokens": [shown[2]], "publish": ["orders.>", "a"], "consume": ["b"], "manage": ["c.*"]}
    assert tomllib.loads(access.read_text())["principals"]["a.b@c"] == {**wanted, "cluster": "view"}
    known = policy.parse(access.read_text())
    assert known.by_hash[shown[2].removeprefix("sha256:")].name == "a.b@c"


def test_nodes_may_read_a_new_access_file_and_one_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    new, there, link = tmp_path / "folder/new.toml", tmp_path / "there.toml", tmp_path / "link.toml"
    there.write_text(THERE)
    there.chmod(0o640)
    link.symlink_to(there)
    before = os.umask(0o077)
    try:
        for path in (new, link):
            assert token("--access-file", str(path), "--principal", "a").code == 0
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (new.parent, new, there)] == [0o755, 0o644, 0o640]
    assert link.is_symlink()
    assert "a" in tomllib.loads(there.read_text())["principals"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--principal", "a"), "belong together"),
        (("--publish", "a"), "name it by --access-file"),
        (("--access-file", "x.toml", "--principal", "a b"), "A-Z"),
        (("--access-file", "x.toml", "--principal", "a", "--publish", "a.>.b"), "'a.>.b' is no pattern"),
        (("--access-file", "there.toml", "--principal", "a", "--consume", ">", "--manage", ""), "'' is no pattern"),
        (("--access-file", "there.toml", "--principal", "shop"), "has a principal shop already"),
        (("--access-file", "wrong.toml", "--principal", "shop"), "is not TOML"),
        (("--access-file", "inline.toml", "--principal", "shop"), "does not write its principals as"),
        (("--access-file", "number.toml", "--principal", "shop"), "does not write its principals as"),
        (("--access-file", "none/there/x.toml", "--principal", "shop"), "cannot be written"),
    ],
)
def test_a_principal_that_cannot_be_added_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    texts = {"there": THERE, "wrong": "x = ", "inline": "principals = {}", "number": "principals = 3"}
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text)
    paths = [str(tmp_path / one) if one.endswith(".toml") else one for one in arguments]
    ran = token(*paths, "--file", str(tmp_path / "shop.token"))
    assert ran.code != 0
    assert told in ran.err
    assert {path.stem: path.read_text() for path in tmp_path.glob("*.toml")} == texts
    assert not (tmp_path / "shop.token").exists(), "it would be nobody's"


def test_nobody_gets_a_permission_for_a_token_that_could_not_be_written(tmp_path: Path) -> None:
    file, access = tmp_path / "shop.token", tmp_path / "access.toml"
    file.write_text("another")
    ran = token("--access-file", str(access), "--principal", "shop", "--file", str(file))
    assert (ran.code, "is there already" in ran.err) == (1, True)
    assert file.read_text() == "another"
    assert not access.exists()


PIECES = ("a", "B_9", "*", ">", ".", "a*", "$x", "~", " ", "é", "\n", "x" * 130)


def test_a_pattern_is_what_the_broker_takes_for_one() -> None:
    """The command must not import the broker, so it has the rule once more."""
    texts = ["".join(pieces) for length in range(6) for pieces in itertools.product(PIECES, repeat=length)]
    random.Random(1).shuffle(texts)
    texts = [*texts[:30_000], "x" * 255, "x" * 256, f"{'x' * 253}.>", f"{'x' * 254}.*", "*.*.>", ">.>", "a\n"]
    assert [text for text in texts if taken(text) != (pattern_problem(text) is None)] == []


def taken(text: str) -> bool:
    try:
        return pattern(text) == text
    except click.BadParameter:
        return False
