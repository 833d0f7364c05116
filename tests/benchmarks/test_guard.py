"""The guard of the hot path: what it reads out of callgrind's dumps, and what it says of a change."""

from pathlib import Path

from tests.benchmarks import guard, guarded


def test_every_second_dump_is_an_operation(tmp_path: Path) -> None:
    for number in range(1, 2 * len(guarded.OPERATIONS) + 1):
        total = 1_000 * number if number % 2 == 0 else 77
        (tmp_path / f"out.{number}").write_text(f"events: Ir\nfn=(1)\n1 5\ntotals: {total}\n")
    found = guard.counted(tmp_path)
    assert list(found) == [operation.__name__ for operation in guarded.OPERATIONS]
    assert list(found.values()) == [round(2_000 * (n + 1) / guarded.ROUNDS) for n in range(len(found))]


def test_what_is_dearer_fails_and_what_is_cheaper_is_told() -> None:
    baseline = {"instructions": {"a": 1_000, "b": 1_000, "c": 1_000}}
    lines, good = guard.compare({"a": 1_049, "b": 900, "c": 1_000}, baseline)
    assert good
    assert lines == [
        "a: 1,049 instructions, +4.9%, as before",
        "b: 900 instructions, -10.0%, cheaper: accept it",
        "c: 1,000 instructions, +0.0%, as before",
    ]
    lines, good = guard.compare({"a": 1_060, "b": 1_000, "c": 1_000}, baseline)
    assert (good, lines[0]) == (False, "a: 1,060 instructions, +6.0%, dearer")


def test_an_operation_that_comes_or_goes_is_to_be_accepted() -> None:
    baseline = {"instructions": {"a": 1_000, "b": 1_000}}
    lines, good = guard.compare({"a": 1_000, "new": 5}, baseline)
    assert (good, lines[1:]) == (False, ["new: 5 instructions, and none to compare with", "b: is not counted any more"])


def test_each_operation_can_be_done_many_times() -> None:
    assert list(guarded.run()) == [operation.__name__ for operation in guarded.OPERATIONS]
