"""Limits of CPU for processes, by control groups: version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/cpu"))
PERIOD_US = 10_000  # short, so that a node that has used its share rests for milliseconds


def _own(root: Path) -> Path | None:
    """A new group below this root that limits CPU; None where there is no such thing or no permission."""
    if not root.is_dir():
        return None
    group = root / f"ringpost-bench-{os.getpid()}"
    try:
        if (root / "cgroup.controllers").exists():
            if "cpu" not in (root / "cgroup.controllers").read_text().split():
                return None
            (root / "cgroup.subtree_control").write_text("+cpu")
        group.mkdir()
        (group / "cgroup.procs").read_text()
        if (group / "cpu.max").exists() or (group / "cpu.cfs_quota_us").exists():
            return group
        group.rmdir()
    except OSError:
        with suppress(OSError):
            group.rmdir()
    return None


def missing() -> str:
    """Why CPU cannot be limited here; empty when it can."""
    for root in ROOTS:
        if group := _own(root):
            group.rmdir()
            return ""
    return "no control group with a CPU controller can be made here; it needs root and cgroup v2 or v1"


@contextmanager
def limited(pids: Sequence[int], share: float) -> Iterator[None]:
    """Each of these processes gets at most `share` of a core. Leave it after they have ended, or they get all again."""
    with ExitStack() as stack:
        parent = next(filter(None, map(_own, ROOTS)))
        stack.callback(parent.rmdir)
        if (parent / "cgroup.subtree_control").exists():
            (parent / "cgroup.subtree_control").write_text("+cpu")
        for pid in pids:
            group = parent / str(pid)
            group.mkdir()
            stack.callback(_emptied, group)
            quota = int(share * PERIOD_US)
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
            (group / "cgroup.procs").write_text(str(pid))
        yield


def _emptied(group: Path) -> None:
    root = next(root for root in reversed(ROOTS) if group.is_relative_to(root))
    for pid in (group / "cgroup.procs").read_text().split():
        (root / "cgroup.procs").write_text(pid)
    group.rmdir()
