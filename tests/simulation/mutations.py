"""Each guard of the core, taken out: the simulator must notice. A guard is a piece of a method's source.

These guards are not here, because no run can show what their loss does as long as the others stand:

- Epochs are compared (`on_fetch`, `on_ack`, `_following`), and a leader commits nothing before its EPOCH_START. An
  answer of another epoch names another fetch, whose id is never used again in a process. A fetch or an acknowledgement
  of an older epoch cannot tell of a position at or behind the new EPOCH_START, so it makes nothing commit and lets
  nobody join. Nor could the leader commit what older epochs left: acknowledgements of its own epoch only count, and
  whoever gave one has it and keeps it. Each of the two is enough; stories in tests/node/replication tell of each.
- The fence of P6. Whoever is in sync has all that is committed, so any of them may be elected, and old leaders commit
  nothing without the new one. The fence only makes the end that an election compares the last one, so that less of what
  was never acknowledged is thrown away.
- The linearizable read of a new leader (P2). A leader of an epoch that is over needs the acknowledgement of the next
  one's leader, who gives it to nobody. The read spares logs an EPOCH_START for nothing.
- `settled`. Here a cut and what is appended after it are in one journal, in order: what is fsynced after a cut proves
  the cut. It is for logs that keep the two apart.
- The session that a fetch comes from. What another session of the same replica has fsynced is still there; who has lost
  it has another replica id, which the compare of sessions in P5 tells (that one is below).
- That a leader which hands over gives groups nothing more (`may_deliver`). Whom it hands over to is asked for its word,
  and gives it none: the old one goes on only for as long as an earlier word is good. A story tells it.
- Whether an answer is about the pending proposal (`proposed`). It needs three delays that must meet; a story in
  tests/node/replication tells it.
"""

from ringpost.cluster.view import ShardRecord
from ringpost.node.replication.core import ReplicaCore
from ringpost.node.replication.follower import Following
from ringpost.node.replication.leader import Leading
from tests.simulation.mutation import Cut, Mutation
from tests.simulation.world import World

MUTATIONS = (
    Mutation(
        "a leader that restarts resumes its epoch",
        3,
        "restarts",
        (
            Cut(ReplicaCore, "see", "leader.session == sessions.get(self._node, 0) > 0", "True"),
            Cut(ReplicaCore, "__init__", "self._led_epoch = log.epochs.last", "self._led_epoch = 0"),
        ),
    ),
    Mutation(
        "commits count the recorded set only",
        3,
        "joins",
        (Cut(Leading, "_must_have", "self.pending is not None", "False"),),
    ),
    Mutation(
        "the in-sync set shrinks below min_isr",
        2,
        "",
        (
            Cut(Leading, "_wanted_in_sync", "record.min_isr", "1"),
            Cut(Leading, "advance", "self.fenced or len(record.in_sync) < record.min_isr", "self.fenced"),
            Cut(ShardRecord, "__post_init__", "len(self.in_sync) >= self.min_isr >= 1", "True"),
        ),
    ),
    Mutation(
        "a follower fetches, and so acknowledges, before it has fsynced",
        21,
        "snapshots",
        (Cut(Following, "_all_durable", "self._log.durable == self._log.end", "True"),),
    ),
    Mutation(
        "a follower acknowledges what is not fsynced",
        2,
        "",
        (Cut(Following, "_acknowledge", "end=self._log.durable", "end=self._log.end"),),
    ),
    Mutation(
        "a leader commits what it has not fsynced",
        1,
        "",
        (Cut(Leading, "advance", "position = log.durable", "position = log.end"),),
    ),
    Mutation(
        "joins without the epoch's start",
        23,
        "killer",
        (Cut(Leading, "_wants_in", "max(self._log.committed, self.start_position)", "self._log.committed"),),
    ),
    Mutation(
        "joins without what is committed",
        1,
        "",
        (Cut(Leading, "_wants_in", "max(self._log.committed, self.start_position)", "self.start_position"),),
    ),
    Mutation(
        "joins as soon as it is known",
        1,
        "",
        (Cut(Leading, "_wants_in", "progress.acked >= max(self._log.committed, self.start_position)", "True"),),
    ),
    Mutation(
        "a follower takes answers to older fetches",
        1,
        "snapshots",
        (Cut(Following, "takes", "fetch_id == self._fetch_id", "True"),),
    ),
    Mutation(
        "a follower takes what comes of a flow that it gave up",
        24,
        "snapshots",
        (Cut(Following, "again", "self._fetch_id = 0", "pass"),),
    ),
    Mutation(
        "a leader answers older fetches",
        60,
        "snapshots",
        (Cut(Leading, "fetch", "message.fetch_id <= progress.fetch_id", "False"),),
    ),
    Mutation(
        "an unknown outcome counts as a failure",
        52,
        "joins",
        (
            Cut(
                Leading,
                "proposed",
                "if outcome is Proposal.UNKNOWN or self.pending != record:",
                "if outcome is Proposal.UNKNOWN:\n        self.pending = None\n    if self.pending != record:",
            ),
        ),
    ),
    Mutation(
        "a refusal counts before the record was read again",
        170,
        "joins",
        (Cut(Leading, "proposed", "self._conflict_token = token", "self.pending = None"),),
    ),
    Mutation(
        "any view is the answer to a refusal",
        31,
        "joins",
        (Cut(Leading, "confirmed", "self._conflict_token > 0", "self._conflict_token"),),
    ),
    Mutation(
        "sessions are not compared when somebody joins",
        146,
        "joins",
        (Cut(Leading, "_propose", "{node: known[node] for node in nodes}", "{}"),),
    ),
    Mutation(
        "a directory that was lost comes back under its name",
        7,
        "",
        (
            Cut(World, "wipe", "self.lost.update(self.disks[node].logs)", "old = self.disks[node]"),
            Cut(
                World,
                "wipe",
                'self.disks[node] = Disk(self.new_id("d"), self.rng)',
                "self.disks[node] = Disk(old.directory, self.rng)\n"
                "    for log in old.logs.values():\n"
                "        self.disks[node].create(log.shard, log.replica_id)",
            ),
        ),
    ),
    Mutation(
        "a restart cuts the log at what is committed",
        3,
        "",
        (
            Cut(
                ReplicaCore,
                "__init__",
                "self._led_epoch = log.epochs.last",
                "self._led_epoch = log.epochs.last\n    log.end > log.committed and log.truncate(log.committed)",
            ),
        ),
    ),
    Mutation(
        "serves before its first commit",
        10,
        "",
        (Cut(Leading, "__init__", "self.serving = False", "self.serving = True"),),
    ),
    Mutation(
        "any snapshot is taken",
        7,
        "snapshots",
        (Cut(ReplicaCore, "on_snapshot", "following is None or not following.takes(fetch_id)", "following is None"),),
    ),
    Mutation(
        "a fetch fits when its epoch does",
        5,
        "",
        (Cut(Leading, "fetch", "or end < message.end", ""),),
    ),
    Mutation(
        "a log that differs is cut at its own end of the epoch",
        3,
        "",
        (
            Cut(
                Following,
                "diverged",
                "min(own[1] if own is not None else log.start - 1, message.log_end)",
                "own[1] if own is not None else log.start - 1",
            ),
        ),
    ),
    Mutation(
        "a log that differs is cut at the leader's end of the epoch",
        150,
        "snapshots",
        (
            Cut(
                Following,
                "diverged",
                "min(own[1] if own is not None else log.start - 1, message.log_end)",
                "message.log_end",
            ),
        ),
    ),
    Mutation(
        "frames are taken wherever they belong",
        1,
        "snapshots",
        (Cut(Following, "data", "message.after != log.end", "False"),),
    ),
    Mutation(
        "a flow ends, and the follower is not told",
        104,
        "snapshots",
        (Cut(Leading, "_call_back", "progress.deserted", "False"),),
    ),
    Mutation(
        "a new leader gives groups messages at once",
        20,
        "",
        (Cut(Leading, "__init__", "now_us + limits.alone_us", "0"),),
    ),
    Mutation(
        "a leader gives groups messages as long as it knows no other",
        20,
        "",
        (Cut(Leading, "may_deliver", "now_us < oldest_us + word_us", "True"),),
    ),
    Mutation(
        "who is handed a shard waits for no leader before that one",
        400,
        "handovers",
        (
            Cut(
                ReplicaCore,
                "_look_who_is_gone",
                "min(leading.alone_from_us, before.since_us + self._limits.alone_us)",
                "0",
            ),
        ),
    ),
    Mutation(
        "a leader reads its record only once",
        1,
        "churn",
        (Cut(ReplicaCore, "tick", "not self._lead_confirmed and", "False and"),),
    ),
)
