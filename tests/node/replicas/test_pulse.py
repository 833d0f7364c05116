"""When a peer counts as unreachable, and when no more."""

from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.replicas.pulse import BEAT_S, LOOK_S, SILENCE_S_MAX, Pulse


def lived(pulse: Pulse, begin: float, seconds: float) -> float:
    """This node looks as often as it should; the time afterwards."""
    now = begin
    while now < begin + seconds - 1e-9:
        now += LOOK_S
        pulse.look(now)
    return now


def answered_times(pulse: Pulse, count: int) -> None:
    for _ in range(count):
        pulse.asked()
        pulse.answered()


def test_who_owes_an_answer_for_too_long_is_unreachable() -> None:
    pulse = Pulse(10.0)
    now = lived(pulse, 10.0, 100.0)
    assert pulse.reachable, "nobody asked"
    pulse.asked()
    now = lived(pulse, now, SILENCE_S_MAX - LOOK_S)
    assert pulse.reachable
    lived(pulse, now, LOOK_S)
    assert not pulse.reachable


def test_a_question_that_fails_is_not_answered() -> None:
    pulse, now = Pulse(0.0), 0.0
    for _ in range(10):
        pulse.asked()
        pulse.failed()
        now = lived(pulse, now, LOOK_S)
    assert not pulse.reachable


def test_a_loop_that_is_busy_for_a_second_is_no_link_that_is_cut() -> None:
    """At both ends at once, again and again."""
    pulse, now = Pulse(0.0), 0.0
    for _ in range(50):
        pulse.asked()
        now = lived(pulse, now, 1.25)
        now += 1.0
        pulse.look(now)
        pulse.answered()
    assert pulse.reachable


def test_after_a_freeze_of_this_node_the_others_have_time_to_answer() -> None:
    pulse = Pulse(0.0)
    pulse.asked()
    pulse.look(60.0)
    now = lived(pulse, 60.0, 1.5)
    assert pulse.reachable
    pulse.answered()
    lived(pulse, now, 2.0)
    assert pulse.reachable


def test_it_is_reachable_again_after_some_answers_in_a_row() -> None:
    pulse = Pulse(0.0)
    pulse.asked()
    lived(pulse, 0.0, 5.0)
    answered_times(pulse, 3)
    pulse.asked()
    pulse.failed()
    answered_times(pulse, 3)
    assert not pulse.reachable, "this link flaps"
    answered_times(pulse, 1)
    assert pulse.reachable
    assert pulse.pause_s == BEAT_S


steps = st.lists(st.sampled_from(["asked", "answered", "failed", "look", "freeze"]), max_size=200)


@given(steps)
def test_nobody_is_unreachable_who_owed_nothing_for_long(what: list[str]) -> None:
    """Against a plain account of the time since the oldest question that was not answered."""
    pulse, now, owes_since = Pulse(0.0), 0.0, None
    for step in what:
        before = pulse.reachable
        match step:
            case "asked":
                pulse.asked()
                owes_since = now if owes_since is None else owes_since
            case "answered":
                pulse.answered()
                owes_since = None
            case "failed":
                pulse.failed()
            case _:
                now += LOOK_S if step == "look" else 100.0
                pulse.look(now)
        if before and not pulse.reachable:
            assert owes_since is not None
            assert now - owes_since >= SILENCE_S_MAX
            assert step in ("look", "freeze")
        if pulse.reachable and not before:
            assert step == "answered"
