"""`python -m ringpost.node.probe [SERVICE]`: is the node on this machine well? For the health checks of containers.

Exit 0: SERVING; 1: not, or no answer; 2: no such service. SERVICE is live, ready (the default), startup or storage. The
node's `http_listen` is taken from the environment, or is the default. It starts in a fraction of what a client takes.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException

SERVICES = ("live", "ready", "startup", "storage")
_DEFAULT = "127.0.0.1:7402"
_TIMEOUT_S = 4.0


def probe(service: str, environment: Mapping[str, str]) -> tuple[bool, str]:
    """Whether the service is SERVING, and what the node says."""
    host, _, port = environment.get("RINGPOST_HTTP_LISTEN", _DEFAULT).rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))
    connection = HTTPConnection(host, int(port), timeout=_TIMEOUT_S)
    try:
        connection.request("GET", f"/health/{service}")
        answer = connection.getresponse()
        return answer.status == 200, answer.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        return False, f"no answer from {host}:{port}: {error}"
    finally:
        connection.close()


def main(arguments: Sequence[str]) -> int:
    """Prints what the node says."""
    service = arguments[0] if arguments else "ready"
    if service not in SERVICES or len(arguments) > 1:
        print(f"probe: one of {', '.join(SERVICES)}", file=sys.stderr)
        return 2
    well, text = probe(service, os.environ)
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
