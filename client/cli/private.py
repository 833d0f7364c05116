"""A cluster of a command's own: started below a temporary home, removed afterwards."""

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ringpost.client.cli import etcd, local_cluster
from ringpost.client.cli.local import LocalNodeError
from ringpost.client.cli.local_cluster import Place, Wanted, on_loopback


@contextlib.contextmanager
def private_cluster(nodes: int, *, in_process: bool = False, place: Place = on_loopback) -> Iterator[Path]:
    """Gives the home of a running cluster on free ports. `place` is for processes. Raises `LocalNodeError`.

    What a node or etcd logged is gone with it, unless the start fails: then the home stays, and the error names it.
    """
    folder = Path(tempfile.mkdtemp(prefix="ringpost-"))
    # SIGTERM ends the command as Ctrl-C does: nothing may be left running.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield from _cluster(folder, Wanted(nodes, 0, place=place), in_process=in_process)
    finally:
        signal.signal(signal.SIGTERM, before)


def _cluster(folder: Path, wanted: Wanted, *, in_process: bool) -> Iterator[Path]:
    try:
        _start(folder, wanted, in_process=in_process)
    except LocalNodeError:
        raise
    except BaseException:  # interrupted
        _remove(folder)
        raise
    try:
        yield folder
    finally:
        _remove(folder)


def _start(folder: Path, wanted: Wanted, *, in_process: bool) -> None:
    if in_process:
        local_cluster.start_together(folder, wanted)
        return
    program = etcd.find()
    if program is None:
        raise LocalNodeError(etcd.HOW_TO_GET)
    local_cluster.start(folder, wanted, program)


def _remove(folder: Path) -> None:
    cluster = local_cluster.remembered(folder)
    if cluster is not None:
        local_cluster.stop(cluster)
    shutil.rmtree(folder, ignore_errors=True)
