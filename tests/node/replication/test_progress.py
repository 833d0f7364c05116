"""A leader's picture of one follower."""

from ringpost.node.replication.progress import Progress


def flowing(end: int = 0) -> Progress:
    progress = Progress("b", "rb", 12, 0)
    progress.begin(1, end, 100)
    return progress


def test_what_is_under_way_takes_room_until_it_is_acknowledged() -> None:
    progress = flowing()
    progress.note_sent(3, 60)
    progress.note_sent(5, 30)
    assert progress.room == 10
    progress.note_acked(4, 5, 0)
    assert (progress.acked, progress.room) == (4, 70)
    progress.note_acked(5, 5, 0)
    assert progress.room == 100


def test_what_was_acknowledged_stays_so_when_the_flow_begins_again() -> None:
    progress = flowing(8)
    progress.begin(2, 6, 100)
    assert (progress.acked, progress.sent, progress.fetch_id) == (8, 6, 2)


def test_reaching_a_mark_proves_to_be_as_far_as_the_log_was_then() -> None:
    progress = flowing()
    progress.look(10, 1_000)  # behind; the mark is at 0, so it is now set to 10
    progress.note_acked(9, 20, 2_000)
    assert progress.caught_up_us == 0
    progress.note_acked(10, 30, 3_000)
    assert progress.caught_up_us == 1_000
    progress.note_acked(30, 30, 4_000)
    assert progress.caught_up_us == 4_000


def test_a_follower_that_always_is_a_little_behind_is_not_late() -> None:
    progress = flowing()
    for second in range(60):
        progress.note_acked(second * 10, second * 10 + 10, second * 1_000_000)
    assert progress.caught_up_us >= 57_000_000


def test_who_is_not_told_that_the_flow_ended_is_deserted() -> None:
    progress = flowing()
    progress.answer(2)
    assert not progress.deserted, "it was answered"
    progress.begin(3, 0, 100)
    progress.stop()
    assert progress.deserted
    progress.begin(4, 0, 100)
    assert not progress.deserted
