"""What channels, groups, consumers and nodes may be called. Pure.

Each `…_problem` answers None for a good name, otherwise half a sentence that follows the field's name.
"""

import re

CHANNEL_BYTES_MAX = 255
TOKEN_BYTES_MAX = 127
NODE_BYTES_MAX = 63
INBOX_PREFIX = "_inbox."

_TOKEN = "[A-Za-z0-9_:/@+=~-]+"
_ALLOWED = "A-Z a-z 0-9 _ - : / @ + = ~"
_channel = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*").fullmatch
_token = re.compile(_TOKEN).fullmatch
_node = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?").fullmatch
_stranger = re.compile(r"[^A-Za-z0-9_:/@+=~.-]").search


def channel_problem(name: str) -> str | None:
    """Checks a channel name: 1 to 255 bytes, tokens separated by "."; "$…" belongs to the broker."""
    if len(name) <= CHANNEL_BYTES_MAX and _channel(name):
        return None
    if not name:
        return f"is empty; it needs 1 to {CHANNEL_BYTES_MAX} bytes"
    if name[0] == "$":
        return "begins with '$'; such names belong to the broker"
    if problem := _common_problem(name, CHANNEL_BYTES_MAX):
        return problem
    return "has an empty token; tokens are separated by a single '.', with none at the ends"


def is_inbox(name: str) -> bool:
    """Whether the channel is for answers to one client: it is not made by first use, and does not stay when idle."""
    return name.startswith(INBOX_PREFIX)


def group_problem(name: str) -> str | None:
    """Checks the name of a group: one token, 1 to 127 bytes."""
    return _token_problem(name)


def consumer_problem(name: str) -> str | None:
    """Checks the name of a consumer: one token, 1 to 127 bytes."""
    return _token_problem(name)


def node_problem(name: str) -> str | None:
    """Checks the id of a node: 1 to 63 of A-Z a-z 0-9 . _ -, beginning and ending with a letter or digit."""
    if len(name) <= NODE_BYTES_MAX and _node(name):
        return None
    return f"must be 1 to {NODE_BYTES_MAX} of A-Z a-z 0-9 . _ -, with a letter or digit at both ends"


def _token_problem(name: str) -> str | None:
    if len(name) <= TOKEN_BYTES_MAX and _token(name):
        return None
    if not name:
        return f"is empty; it needs 1 to {TOKEN_BYTES_MAX} bytes"
    if problem := _common_problem(name, TOKEN_BYTES_MAX):
        return problem
    return f"contains '.'; it must be one token of {_ALLOWED}"


def _common_problem(name: str, bytes_max: int) -> str | None:
    # A name may hold lone surrogates when it did not come from protobuf; they count three bytes each.
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > bytes_max:
        return f"is {size} bytes long; the limit is {bytes_max}"
    if (found := _stranger(name)) is None:
        return None
    character = found.group()
    if character in "*>":
        return f"contains '{character}', which is kept for patterns; allowed are {_ALLOWED} and '.' between tokens"
    return f"contains {character!a} at {found.start()}; allowed are {_ALLOWED} and '.' between tokens"
