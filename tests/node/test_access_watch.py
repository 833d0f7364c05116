"""What goes wrong in one turn of the watch does not end it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from ringpost.node.access.access import Access
from ringpost.node.access_watch import watch_access
from ringpost.node.health import PARTS, Health
from tests.node.access.test_access import principal, rewrite


@pytest.fixture
def health() -> Health:
    made = Health()
    for part in PARTS:
        made.set_part(part, True)
    return made


@pytest.fixture
def access(tmp_path: Path) -> Access:
    file = tmp_path / "access.toml"
    file.write_text(principal("shop", "one"))
    return Access(str(file))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


def why(health: Health) -> str:
    """Why the part `access` is not well, "" when it is."""
    return str(health.report("storage")["parts"]["access"].get("why", ""))


@pytest.mark.parametrize("error", [RecursionError("deep"), ValueError("embedded null byte")])
async def test_a_turn_that_fails_is_logged_once_and_the_next_takes_up_the_file(
    access: Access, health: Health, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    turns = 0

    async def fails() -> bool:
        nonlocal turns
        turns += 1
        raise error

    checked: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(access, "renew", fails)
        watch = asyncio.create_task(watch_access(access, health, [lambda: checked.append(turns)], 0.01))
        await until(lambda: turns > 2)
        assert why(health).startswith(f"the access file cannot be taken up: {type(error).__name__}")
        assert health.serving("ready"), "the rules before go on"
        assert checked, "streams are checked all the same"
    await until(lambda: not why(health))
    watch.cancel()
    assert len([one for one in caplog.records if one.getMessage() == "access.watch_failed"]) == 1


async def test_a_check_that_fails_keeps_the_others_from_nothing(access: Access, health: Health) -> None:
    checked: list[int] = []

    def fails() -> None:
        raise KeyError("x")

    watch = asyncio.create_task(watch_access(access, health, [fails, lambda: checked.append(1)], 0.01))
    await until(lambda: len(checked) > 2)
    assert why(health) == "streams cannot be checked: KeyError; see the node's log"
    watch.cancel()


async def test_a_file_that_cannot_be_read_shows_in_health_until_it_can(
    access: Access, health: Health, tmp_path: Path
) -> None:
    watch = asyncio.create_task(watch_access(access, health, [], 0.01))
    file = tmp_path / "access.toml"
    file.unlink()
    await until(lambda: bool(why(health)))
    assert why(health) == "the access file cannot be taken up; see the node's log"
    assert (health.serving("storage"), health.serving("ready")) == (False, True)
    rewrite(file, principal("shop", "two"))
    await until(lambda: not why(health))
    assert access.verify("two").name == "shop"
    watch.cancel()
