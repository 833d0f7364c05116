"""A group's retry policy in its shard: what is configured and what failed is in the log, and a replay agrees."""

import pytest

from ringpost.internal.v1.record_pb2 import Failure
from ringpost.node.errors import NotFound
from ringpost.node.groups.changes import Lease, Nack
from ringpost.node.groups.policy import ENDED, Backoff, RetryPolicy
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.configure import set_group
from ringpost.node.shard.group_frames import delete_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.group_pb2 import BACKOFF_LINEAR, GroupConfig
from ringpost.v1.group_pb2 import RetryPolicy as RetryMessage
from tests.node.shard.fakes import Outcomes, Rig, checkpoint_of, replayed
from tests.node.shard.test_group import S, check_replay, made, settle, settles, take

POLICY = RetryPolicy(Backoff.LINEAR, S, 90 * S, max_attempts=3)


def test_a_nack_without_a_delay_waits_as_the_policy_says() -> None:
    rig = Rig()
    group = made(rig, messages=1, policy=POLICY)
    for attempt in (1, 2):
        assert take(rig, group, 1) == [Lease(0, 0, attempt)]
        settle(group, Nack(reason="busy"), (0, 0))
        rig.time.turn()
        rig.commit()
        (retry,) = settles(rig)[-1].retries
        assert retry.failures == [Failure(attempt=attempt, time_us=rig.time.now_us, reason="busy")]
        assert retry.not_before_us == rig.time.now_us + attempt * S
        rig.time.pass_us(attempt * S)
    take(rig, group, 1)
    settle(group, Nack(reason="broken"), (0, 0))
    rig.time.turn()
    rig.commit()
    assert (group.core.rejected, group.core.pending(1)) == (1, 0)
    assert settles(rig)[-1].reject_reason == "broken"
    check_replay(rig)


def test_a_lease_that_ends_waits_as_the_policy_says_and_is_given_up_at_last() -> None:
    rig = Rig()
    group = made(rig, messages=1, ack_deadline_ms=1_000, policy=POLICY)
    for attempt in (1, 2, 3):
        assert take(rig, group, 1) == [Lease(0, 0, attempt)]
        rig.time.pass_us(S + 2_000)
        rig.commit()
        rig.time.pass_us(attempt * S + 2_000)
    assert (group.core.rejected, settles(rig)[-1].reject_reason) == (1, ENDED)
    check_replay(rig)


def test_a_changed_configuration_is_in_the_log() -> None:
    rig = Rig()
    group = made(rig)
    done = Outcomes()
    retry = RetryMessage(backoff=BACKOFF_LINEAR, delay_ms=500, jitter_percent=7)
    set_group(group, GroupConfig(retry=retry), done)
    set_group(group, GroupConfig(max_attempts=4, ack_deadline_ms=9_000), done)
    assert group.settings == GroupSettings()
    rig.commit()
    policy = RetryPolicy(Backoff.LINEAR, S // 2, jitter=0.07, max_attempts=4)
    assert group.settings == GroupSettings(ack_deadline_ms=9_000, policy=policy)
    assert done == [None, None]
    check_replay(rig)
    set_group(group, GroupConfig(retry=RetryMessage()), done)
    rig.commit()
    assert group.settings.policy == RetryPolicy(max_attempts=4)
    check_replay(rig)


def test_a_checkpoint_remembers_policy_and_failures() -> None:
    rig = Rig()
    group = made(rig, messages=1, policy=POLICY)
    take(rig, group, 1)
    settle(group, Nack(reason="busy"), (0, 0))
    rig.time.turn()
    rig.commit()
    again, quarantined = replayed([], checkpoint=checkpoint_of(rig.store))
    assert (quarantined, again.snapshots()) == ([], rig.snapshots())
    (channel,) = again.store
    loaded = (channel.groups or {})["g"]
    assert loaded.settings == group.settings
    assert loaded.core.last_failure(0, 0) == (0, "busy")


def test_a_deleted_group_cannot_be_configured() -> None:
    rig = Rig()
    group = made(rig)
    delete_group(group, Outcomes())
    with pytest.raises(NotFound):
        set_group(group, GroupConfig(max_attempts=4), Outcomes())
    assert [kind for kind in rig.journal.kinds() if kind == FrameType.GROUP] == [FrameType.GROUP] * 2
