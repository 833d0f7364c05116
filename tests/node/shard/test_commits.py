"""The queue of commits: in the order of the journal, each action once, with the right outcome."""

from typing import Any

from ringpost.node.errors import Unavailable
from ringpost.node.shard.commits import Commits, Waiting

ERROR = Unavailable("the disk failed")


class Log:
    """Remembers calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def action(self, name: str) -> Any:
        return lambda error, *args: self.calls.append((name, error, *args))


def waiting(address: int, action: Any, *args: Any) -> Waiting:
    return Waiting(address, None, 0, 0, action, args)


class Place:
    """The part of a shard that a commit touches."""

    committed = 0
    committed_crc = 0


def test_frames_below_the_durable_address_commit_in_order() -> None:
    commits, log = Commits(), Log()
    for address in (10, 20, 20, 30):
        commits.add(waiting(address, log.action(f"at {address}"), "argument"))
    commits.durable(10)
    assert log.calls == []
    commits.durable(21)
    assert log.calls == [("at 10", None, "argument"), ("at 20", None, "argument"), ("at 20", None, "argument")]
    assert len(commits) == 1
    commits.durable(31)
    assert [call[0] for call in log.calls] == ["at 10", "at 20", "at 20", "at 30"]


def test_the_shard_has_advanced_when_its_action_runs() -> None:
    commits, place, seen = Commits(), Place(), []
    commits.add(Waiting(5, place, 3, 99, lambda error: seen.append((place.committed, place.committed_crc)), ()))
    commits.durable(6)
    assert seen == [(3, 99)]


def test_after_all_waits_for_what_waits_now() -> None:
    commits, log = Commits(), Log()
    commits.after_all(log.action("at once"), 1)
    assert log.calls == [("at once", None, 1)]
    commits.add(waiting(10, log.action("first")))
    commits.after_all(log.action("then"), 2)
    commits.add(waiting(20, log.action("later")))
    commits.durable(11)
    assert [call[0] for call in log.calls] == ["at once", "first", "then"]


def test_an_action_may_queue_more() -> None:
    commits, log = Commits(), Log()
    commits.add(waiting(10, lambda error: commits.add(waiting(15, log.action("second")))))
    commits.durable(11)
    assert log.calls == []
    commits.durable(16)
    assert log.calls == [("second", None)]


def test_after_a_failure_everything_is_open() -> None:
    commits, log = Commits(), Log()
    commits.add(waiting(10, log.action("before")))
    commits.add(waiting(20, log.action("waits"), 7))
    commits.durable(11)
    commits.fail(ERROR)
    commits.add(waiting(30, log.action("too late")))
    commits.after_all(log.action("all"))
    commits.durable(40)
    assert log.calls == [("before", None), ("waits", ERROR, 7), ("too late", ERROR), ("all", ERROR)]
    assert len(commits) == 0
