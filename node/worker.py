"""`python -m ringpost.node.worker`: a node of a supervisor. It stops when that is gone: standard input ends."""

import os
import signal
import sys
import threading

from ringpost.node.__main__ import main


def _stop_with_supervisor() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_supervisor, daemon=True).start()
    # As in `ringpost.node.__main__`.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
