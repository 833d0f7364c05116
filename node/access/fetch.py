"""One document from an https address, within a time and a size. Blocks, so it is for threads."""

import http.client
import ssl
import time
import urllib.error
import urllib.request
from typing import Any

_PIECE = 64 << 10


class FetchError(Exception):
    """It cannot be had; the message says why."""


class _Socket(ssl.SSLSocket):
    """Reads until `end` and no longer, however slowly the bytes come: a timeout of its own starts anew with each."""

    end = float("inf")  # by `time.monotonic`

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("it takes too long")
        self.settimeout(left)
        return super().recv_into(*arguments, **options)


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Whoever is on the way could put anything in the place of what is fetched in plain text."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith("https://"):
            raise FetchError(f"it is redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, size_max: int, *, within_s: float) -> bytes:
    """At most the first `size_max` bytes. Redirects to https only are followed. Raises FetchError.

    Only looking up the name, and what a proxy says before there is TLS, may take longer than `within_s`.
    """
    end = time.monotonic() + within_s
    context = ssl.create_default_context()
    context.sslsocket_class = type("_Socket", (_Socket,), {"end": end})
    opener = urllib.request.build_opener(_HttpsOnly(), urllib.request.HTTPSHandler(context=context))
    pieces: list[bytes] = []
    try:
        with opener.open(url, timeout=within_s) as answer:
            while size_max > 0 and (piece := answer.read(min(_PIECE, size_max))):
                pieces.append(piece)
                size_max -= len(piece)
    except (OSError, urllib.error.URLError, ValueError, http.client.HTTPException) as error:
        raise FetchError(str(error) or type(error).__name__) from error
    return b"".join(pieces)
