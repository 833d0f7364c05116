"""Who may make a group that keeps more dead letters than by default."""

import pytest

from ringpost.cluster.patterns import Patterns
from ringpost.node.access.caller import ANYONE, Caller, Usage
from ringpost.node.access.grants import Grants, Quota, Verb
from ringpost.node.errors import PermissionDenied
from ringpost.node.services.groups import check_dead_letter_room
from ringpost.node.shard.group_settings import DEAD_LETTER_AGE_MS, DEAD_LETTER_BYTES
from ringpost.v1.group_pb2 import GroupConfig

BOUNDS = {"dead_letter_bytes": DEAD_LETTER_BYTES, "dead_letter_age_ms": DEAD_LETTER_AGE_MS}


def caller_with(*verbs: Verb) -> Caller:
    return Caller("ann", Grants({verb: Patterns(["a"]) for verb in verbs}), Usage("ann", Quota()))


@pytest.mark.parametrize("field", BOUNDS)
def test_more_than_by_default_is_for_who_manages_the_channel(field: str) -> None:
    consumer, manager = caller_with(Verb.CONSUME), caller_with(Verb.CONSUME, Verb.MANAGE)
    for value in (0, BOUNDS[field] + 1):
        config = GroupConfig(**{field: value})
        with pytest.raises(PermissionDenied, match=f"^config.{field}: is {value}.*1 to {BOUNDS[field]}") as refused:
            check_dead_letter_room(config, consumer, "a")
        assert refused.value.reason == "NOT_PERMITTED"
        assert refused.value.metadata == {"principal": "ann", "verb": "manage", "channel": "a"}
        check_dead_letter_room(config, manager, "a")
        check_dead_letter_room(config, ANYONE, "a")


def test_up_to_the_default_whoever_consumes_may_choose() -> None:
    consumer = caller_with(Verb.CONSUME)
    check_dead_letter_room(GroupConfig(), consumer, "a")
    check_dead_letter_room(GroupConfig(**BOUNDS), consumer, "a")
    check_dead_letter_room(GroupConfig(dead_letter_bytes=1, dead_letter_age_ms=1), consumer, "a")
