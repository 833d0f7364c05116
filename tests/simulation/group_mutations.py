"""Guards of groups, taken out: what `mutations` does for replication."""

from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.keyed import KeyedCore
from ringpost.node.groups.policy import RetryPolicy
from ringpost.node.groups.retries import RetryTable
from ringpost.node.shard import apply, boxes, dead_letters, group_frames, replicated, snapshot
from ringpost.node.shard import group as groups
from ringpost.node.shard.dead_letters import Gravedigger
from ringpost.node.shard.group import Group
from tests.simulation import machine
from tests.simulation.machine import Machine
from tests.simulation.mutation import Cut, Mutation
from tests.simulation.seats import Seat

GROUP_MUTATIONS = (
    Mutation(
        "a settlement counts before it is committed",
        1,
        "",
        (
            Cut(
                Group,
                "_append",
                "number = self.channel.number",
                "number = self.channel.number\n    for one in changes:\n        self.core.apply(one)",
            ),
        ),
    ),
    Mutation(
        "a settlement is confirmed before it is committed",
        1,
        "",
        (
            Cut(
                Group,
                "_store",
                "self.unstored.append((change, results, reply))",
                "reply and reply(results)\n    self.unstored.append((change, results, None))",
            ),
        ),
    ),
    Mutation(
        "leases of an old leader still settle",
        3,
        "handovers",
        (
            Cut(Group, "retire", "self.removed = True", "self.removed = False"),
            Cut(Machine, "changed", "seat.end()", "pass"),
        ),
    ),
    Mutation(
        "a leader that is not sure gives groups messages",
        30,
        "network",
        (Cut(Seat, "may_deliver", "self.machine.hosted.core.may_deliver(now_us)", "True"),),
    ),
    Mutation(
        "a failure is not stored",
        1,
        "",
        (Cut(groups, "encode_settle", "retries=[retry_record(retry) for retry in change.retries],", ""),),
    ),
    Mutation(
        "a group's snapshot has no failures",
        1,
        "",
        (Cut(snapshot, "_group", "retries=[retry_record(retry) for retry in state.retries],", ""),),
    ),
    Mutation(
        "a group's snapshot does not say which letters have gone",
        1,
        "",
        (Cut(snapshot, "_group", "letters_gone=flatten(group.letters_gone),", ""),),
    ),
    Mutation(
        "a group's snapshot knows no seeks",
        3,
        "",
        (Cut(snapshot, "_group", "seeks=flatten(group.voids.seeks),", ""),),
    ),
    Mutation(
        "a dead letter and its settlement are two frames",
        1,
        "",
        (
            Cut(boxes, "bury", "if group.core.give_up(offset):", "if not group.core._settled.contains(offset):"),
            Cut(dead_letters, "bury", "if group.core.give_up(offset):", "if not group.core._settled.contains(offset):"),
            Cut(
                Gravedigger,
                "_stored",
                "_end(group, parts, outcome if",
                "[group.pass_over(at, at) for at in offsets]\n    _end(group, parts, outcome if",
            ),
        ),
    ),
    Mutation(
        "the letter of a message that was settled meanwhile counts",
        8,
        "",
        (
            Cut(boxes, "bury", "group.letters_gone.add(number, number)", "pass"),
            Cut(dead_letters, "bury", "group.letters_gone.add(number, number)", "pass"),
        ),
    ),
    Mutation(
        "a letter that is redriven stays in the box",
        1,
        "",
        (
            Cut(apply, "change_letters", "gone.add(number, number)", "pass"),
            Cut(dead_letters, "change_letters", "gone.add(number, number)", "pass"),
        ),
    ),
    Mutation(
        "a letter that a seek made void brings its message back",
        4,
        "",
        (
            Cut(apply, "change_letters", "not group.voids.void(number, offset)", "True"),
            Cut(dead_letters, "change_letters", "not group.voids.void(number, offset)", "True"),
        ),
    ),
    Mutation(
        "a leader that is replaced keeps what is not committed",
        3,
        "",
        (Cut(machine, "stop_leading", "_back_to_committed(shard, replicated)", "pass"),),
    ),
    Mutation(
        "a deletion that was lost is forgotten by halves",
        4,
        "",
        (Cut(group_frames, "_deleted", "if error is None:", "if True:"),),
    ),
    Mutation(
        "a follower does not apply settlements",
        1,
        "",
        (Cut(replicated, "apply_frame", "group.core.apply(decode_settle(record))", "pass"),),
    ),
    Mutation(
        "one attempt more than there may be",
        3,
        "",
        (Cut(RetryPolicy, "exhausted", "0 < self.max_attempts <= attempt", "0 < self.max_attempts < attempt"),),
    ),
    Mutation(
        "an extended lease ends when it would have ended before",
        6,
        "",
        (
            Cut(
                GroupCore,
                "_settle_leased",
                "request.now_us + (action.deadline_us or self._ack_deadline_us)",
                "held.hold.deadline_us",
            ),
        ),
    ),
    Mutation(
        "a failed message does not wait",
        1,
        "",
        (
            Cut(RetryTable, "put", "(retry.not_before_us, retry.first", "(0, retry.first"),
            Cut(RetryTable, "promote", "if failed.not_before_us <= now_us:", "if True:"),
        ),
    ),
    Mutation(
        "all messages of a key may be given out",
        1,
        "",
        (Cut(KeyedCore, "learn", "self._keys.add(offset, keys[offset - first])", "self._keys.add(offset, 0)"),),
    ),
    Mutation(
        "what comes back is not put in front of its key",
        8,
        "",
        (Cut(KeyedCore, "reopen", "self._reopened.add(offset, offset)", "pass"),),
    ),
)
