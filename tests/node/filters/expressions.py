"""Random filters, each with what a small obvious evaluator makes of it: a tree, its text, and its value for a message.

Values are Python's; FAILS stands for an evaluation that fails, as CEL has it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st

from ringpost.v1.publish_pb2 import Message

FAILS = object()
WORDS = ("", "a", "b", "ab", "eu", "order-1", "ä\n\"'\\", "日")
NAMES = ("a", "b", "region", "x_1")


class Node(NamedTuple):
    """`kind` says what `parts` are: operands, or the literal itself."""

    kind: str
    parts: tuple[Any, ...]


def quoted(text: str) -> str:
    """A literal in the usual form."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def text_of(node: Node) -> str:
    """As CEL, with parentheses around everything that is joined."""
    kind, parts = node
    if kind == "literal":
        value = parts[0]
        return quoted(value) if isinstance(value, str) else str(value).lower()
    if kind == "variable":
        return str(parts[0])
    if kind in ("header", "indexed"):
        return f"headers.{parts[0]}" if kind == "header" else f"headers[{text_of(parts[0])}]"
    if kind == "has":
        return f"has(headers.{parts[0]})"
    if kind == "!":
        return f"!({text_of(parts[0])})"
    if kind == "size":
        return f"size({text_of(parts[0])})"
    if kind == "contains":
        return f"({text_of(parts[0])}).contains({text_of(parts[1])})"
    if kind in ("startsWith", "endsWith"):
        return f"({text_of(parts[0])}).{kind}({text_of(parts[1])})"
    if kind == "in":
        return f"({text_of(parts[0])}) in [{', '.join(text_of(Node('literal', (one,))) for one in parts[1])}]"
    if kind == "in headers":
        return f"({text_of(parts[0])}) in headers"
    return f" {kind} ".join(f"({text_of(part)})" for part in parts)


def value_of(node: Node, message: Message) -> Any:
    """What the filter must say."""
    kind, parts = node
    headers = dict(message.headers)
    if kind == "literal":
        return parts[0]
    if kind == "variable":
        return {
            "key": message.key.decode(),
            "message_id": message.message_id,
            "producer_time_us": message.producer_time_us,
            "size": len(message.data),
        }[parts[0]]
    if kind == "header":
        return headers.get(parts[0], FAILS)
    if kind == "has":
        return parts[0] in headers
    values = [value_of(part, message) for part in parts if isinstance(part, Node)]
    if kind in ("&&", "||"):
        decides = kind == "||"
        return decides if decides in values else FAILS if FAILS in values else not decides
    if FAILS in values:
        return FAILS
    first, second = values[0], values[-1]
    results: dict[str, Callable[[], Any]] = {
        "indexed": lambda: headers.get(first, FAILS),
        "!": lambda: not first,
        "size": lambda: len(first),
        "startsWith": lambda: first[: len(second)] == second,
        "endsWith": lambda: second == "" or first[-len(second) :] == second,
        "contains": lambda: second in first,
        "in": lambda: any(first == one for one in parts[1]),
        "in headers": lambda: first in headers,
        "==": lambda: first == second,
        "!=": lambda: first != second,
        "<": lambda: first < second,
        "<=": lambda: first < second or first == second,
        ">": lambda: second < first,
        ">=": lambda: second < first or first == second,
    }
    return results[kind]()


def _node(kind: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Node]:
    return st.tuples(*parts).map(lambda found: Node(kind, found))


words = st.sampled_from(WORDS)
numbers = st.integers(-3, 10) | st.sampled_from([2**63 - 1, -(2**63)])
names = st.sampled_from(NAMES)
texts: st.SearchStrategy[Node] = st.deferred(
    lambda: (
        _node("literal", words)
        | _node("variable", st.sampled_from(["key", "message_id"]))
        | _node("header", names)
        | _node("indexed", texts)
    )
)
ints = (
    _node("literal", numbers) | _node("variable", st.sampled_from(["size", "producer_time_us"])) | _node("size", texts)
)


def _compared(of: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.sampled_from(["==", "!=", "<", "<=", ">", ">="]).flatmap(lambda kind: _node(kind, of, of))


leaves = (
    _node("literal", st.booleans())
    | _node("has", names)
    | _compared(texts)
    | _compared(ints)
    | _node("in", texts, st.lists(words, max_size=3))
    | _node("in", ints, st.lists(numbers, max_size=3))
    | _node("in headers", texts)
    | st.sampled_from(["startsWith", "endsWith"]).flatmap(lambda kind: _node(kind, texts, texts))
    | _node("contains", texts, _node("literal", words))
)
conditions = st.recursive(
    leaves,
    lambda inner: (
        _node("!", inner)
        | _compared(inner)
        | st.tuples(st.sampled_from(["&&", "||"]), st.lists(inner, min_size=2, max_size=4)).map(
            lambda found: Node(found[0], tuple(found[1]))
        )
    ),
    max_leaves=6,
)
messages = st.builds(
    Message,
    key=words.map(str.encode),
    data=st.binary(max_size=4),
    headers=st.dictionaries(names | words, words, max_size=3),
    producer_time_us=st.integers(0, 5),
    message_id=words,
)
