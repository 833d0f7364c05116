"""What filters let through, how they are refused, and that nothing in them takes long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.errors import InvalidRequest
from ringpost.node.filters.filter import TEXT_BYTES_MAX, Filter, checked, compiled
from ringpost.node.filters.lexer import FilterError
from ringpost.node.filters.terms import TEXT_MAX
from ringpost.v1.publish_pb2 import Message
from tests.node.filters.expressions import Node, conditions, messages, text_of, value_of

ORDER = Message(
    key="order-käse".encode(),
    data=b"12345",
    headers={"region": "eu", "tenant-id": "7", "empty": ""},
    producer_time_us=1_700_000_000_000_000,
    message_id="m-1",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('key == "order-käse"', True),
        ("key == 'order-k\\u00e4se'", True),
        (r'key == r"order-k\u00e4se"', False),
        ('"order-" == key', False),
        ('key != "x"', True),
        ('key.startsWith("order-") && !key.endsWith("x")', True),
        ('key.contains("-k") && key.size() == 10 && size(key) == 10', True),
        ('headers["region"] == "eu"', True),
        ("headers.region in ['us', 'eu',]", True),
        ("headers.region in []", False),
        ('headers["tenant-id"] > "6"', True),
        ('"tenant-id" in headers && !("x" in headers)', True),
        ("has(headers.empty) && headers.empty == ''", True),
        ("has(headers.none)", False),
        ("headers.size() == 3 && size(headers) >= 3", True),
        ('headers[headers["region"]] == "eu"', False),
        ("size == 5 && size in [4, 5, -6] && size > -1 && 0x5 == size", True),
        ("producer_time_us >= 1700000000000000", True),
        ('message_id == "m-1"', True),
        ("true", True),
        ("!!true == (1 < 2) // and so on\n && !false", True),
        ("1 < 2 == true", True),
        ("true in [true, false]", True),
        ("false || true && false", False),
        ("\tkey\n!=\r\f 'x'", True),
        (r'key == "\x61\X62\141\U0001F600\a\b\f\n\r\t\v\\\?\"\'\`"', False),
    ],
)
def test_a_filter_says_of_a_message_whether_it_is_let_through(text: str, expected: bool) -> None:
    assert Filter(text).matches(ORDER) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('headers.none == "x"', False),
        ('headers.none != "x"', False),
        ('!(headers.none == "x")', False),
        ("headers.none in ['x'] || size == 5", True),
        ("size == 5 || headers.none in ['x']", True),
        ("headers.none in ['x'] || size == 4", False),
        ("!(headers.none in ['x'] && size == 4)", True),
        ("!(headers.none in ['x'] && size == 5)", False),
        ('!has(headers.none) || headers.none == "x"', True),
    ],
)
def test_a_missing_header_lets_nothing_through_unless_something_else_decides(text: str, expected: bool) -> None:
    assert Filter(text).matches(ORDER) is expected


def test_looking_at_a_header_that_is_not_there_does_not_add_it() -> None:
    message = Message(key=b"k")
    assert not Filter('headers.none == "x"').matches(message)
    assert message == Message(key=b"k")


def test_a_key_that_is_no_utf_8_can_be_looked_at_and_equals_no_text() -> None:
    message = Message(key=b"a\xff\xfe")
    assert Filter('key.startsWith("a") && size(key) == 3').matches(message)
    assert not Filter(r'key == "a\ufffd\ufffd"').matches(message)
    assert Filter('key == headers.same || key != "x"').matches(message)


def test_a_text_that_is_too_long_to_look_at_counts_as_missing() -> None:
    longest = Message(key=b"a" * TEXT_MAX, headers={"x": "b" * (TEXT_MAX + 1)}, message_id="c" * (TEXT_MAX + 1))
    assert Filter(f"size(key) == {TEXT_MAX}").matches(longest)
    assert not Filter("size(headers.x) > 0 || size(message_id) > 0").matches(longest)
    assert Filter('has(headers.x) && "x" in headers').matches(longest)


@pytest.mark.parametrize(
    ("text", "line", "column", "problem"),
    [
        (" ", 1, 2, "expected a value, found the end"),
        ('headers["a"] == ', 1, 17, "expected a value, found the end"),
        ("key == 'a' 'b'", 1, 12, "expected &&, || or the end, found 'b'"),
        ("key == 'a')", 1, 11, "expected &&, || or the end, found )"),
        ("(key == 'a'", 1, 12, "expected ), found the end"),
        ("key = 'a'", 1, 5, "'=' has no meaning here; equality is =="),
        ("true & true", 1, 6, "'&' has no meaning here; and is &&"),
        ("true | true", 1, 6, "'|' has no meaning here; or is ||"),
        ("true\n  && key ~ 'a'", 2, 10, "'~' has no meaning here"),
        ("key == 'a", 1, 8, "the string does not end; expected ' on the same line"),
        ("key == 'a\n'", 1, 8, "the string does not end; expected ' on the same line"),
        ("key == '''a'''", 1, 8, "strings in triple quotes are not supported"),
        ("key == 'a\\q'", 1, 10, "no such escape"),
        ("key == '\\ud800'", 1, 9, "the escape is no Unicode character"),
        ("key == '\\U00110000'", 1, 9, "the escape is no Unicode character"),
        ("key == b'a'", 1, 8, "bytes are not supported; key and headers are strings"),
        ("size < 1.5", 1, 8, "only whole numbers are supported"),
        ("size < 5u", 1, 8, "only whole numbers are supported"),
        ("size < 9223372036854775808", 1, 8, "the number is beyond 9223372036854775807"),
        ("size < 1" + "0" * 30, 1, 8, "the number is beyond 9223372036854775807"),
        ("-9223372036854775808 <= size && -9223372036854775809 < size", 1, 34, "the number is beyond"),
        ("- key == 1", 1, 3, "expected a whole number behind -, found key"),
        ("size + 1 == 2", 1, 6, "'+' has no meaning here"),
        ("keyy == 'a'", 1, 1, "there is no 'keyy'; there are headers, key, message_id, producer_time_us, size"),
        ("null == key", 1, 1, "there is no 'null'"),
        ("key", 1, 1, "a filter must be true or false; this is string"),
        ("size", 1, 1, "a filter must be true or false; this is int"),
        ("headers", 1, 1, "a filter must be true or false; this is map(string, string)"),
        ("key == 1", 1, 5, "== compares what has one type, not string and int"),
        ("true < 'a'", 1, 6, "< compares what has one type, not bool and string"),
        ("key == headers", 1, 8, 'headers cannot be compared as a whole; name one, such as headers["x"]'),
        ("true && key", 1, 9, "&& joins what is true or false; this is string"),
        ("size || true", 1, 1, "|| joins what is true or false; this is int"),
        ("!key == 'a'", 1, 2, "! turns what is true or false; this is string"),
        ("key in ['a', 3]", 1, 14, "expected string as on the left of in, found int"),
        ("key in ['a' 'b']", 1, 13, "expected a comma or ], found 'b'"),
        ("key in [key]", 1, 9, "expected a string, a whole number, true or false, found key"),
        ("key in ['a'", 1, 12, "expected a comma or ], found the end"),
        ("key in 'abc'", 1, 8, "behind in comes a list, such as ['a', 'b'], or headers; this is string"),
        ("1 in headers", 1, 1, "names of headers are strings; this is int"),
        ("headers[1] == 'a'", 1, 9, "names of headers are strings; this is int"),
        ("headers['a'", 1, 12, "expected ], found the end"),
        ("key[0] == 'a'", 1, 1, "only headers have values by name; this is string"),
        ("key.x == 'a'", 1, 1, "only headers have values by name; this is string"),
        ("headers.", 1, 9, "expected a name behind the dot, found the end"),
        ("headers.in == 'a'", 1, 9, "expected a name behind the dot, found in"),
        ("key.matches('a')", 1, 5, "matches() is not supported; it takes time without bound; there are startsWith()"),
        ("key.lower() == 'a'", 1, 5, "lower() is not supported; there are startsWith()"),
        ("size.startsWith('a')", 1, 1, "startsWith() asks about a string; this is int"),
        ("key.startsWith(1)", 1, 16, "startsWith() takes a string; this is int"),
        ("key.startsWith()", 1, 16, "expected a value, found )"),
        ("key.contains(headers.x)", 1, 14, "contains() takes a literal"),
        ("key.contains(('x'))", 1, 14, "contains() takes a literal"),
        ("key.size(1) == 1", 1, 10, "expected ), found 1"),
        ("size(size) == 1", 1, 6, "size() counts a string or the headers, not int"),
        ("timestamp('x') == 1", 1, 1, "there is no function timestamp(); there are has(), size() and startsWith()"),
        ("has(key)", 1, 5, "has() takes a header by name, such as has(headers.x)"),
        ("has(headers)", 1, 5, "has() takes a header by name, such as has(headers.x)"),
        ("has(headers.'a')", 1, 13, "has() takes a header by name, such as has(headers.x)"),
        ("has(headers.x", 1, 14, "expected ), found the end"),
        ("(" * 32 + "true" + ")" * 32, 1, 33, "more than 32 parentheses and brackets inside each other"),
        ("'" + "a" * 40 + "' '" + "b" * 40 + "'", 1, 44, f"expected &&, || or the end, found '{'b' * 31}..."),
    ],
)
def test_a_wrong_filter_is_refused_with_the_place_of_the_mistake(
    text: str, line: int, column: int, problem: str
) -> None:
    with pytest.raises(FilterError) as caught:
        Filter(text)
    error = caught.value
    assert error.problem.startswith(problem)
    assert (error.line, error.column) == (line, column)
    assert str(error) == f"goes wrong at line {line}, column {column}: {error.problem}"


def test_a_request_is_told_the_field_the_place_and_the_bound() -> None:
    assert checked("", "open.filter") is None
    with pytest.raises(InvalidRequest, match=r"^open\.filter: goes wrong at line 1, column 5: '=' has no"):
        checked("key = 'a'", "open.filter")
    longest = "key == '" + "ä" * ((TEXT_BYTES_MAX - 9) // 2) + "'"
    assert checked(longest + " " * (TEXT_BYTES_MAX - len(longest.encode())), "config.filter") is not None
    with pytest.raises(InvalidRequest, match=r"^config\.filter: is 1025 bytes long, allowed are 1024$"):
        checked("true" + " " * (TEXT_BYTES_MAX - 3), "config.filter")


def test_equal_texts_share_one_filter() -> None:
    assert compiled("size == 7") is compiled("size == 7")


def test_the_deepest_filter_is_evaluated_without_trouble() -> None:
    nested = "(" * 31 + "size == 0" + ")" * 31
    for text in ("!" * 1000 + "true", "==".join(["true"] * 171), "headers[" * 31 + "key" + "]" * 31 + " == ''", nested):
        assert len(text) <= TEXT_BYTES_MAX
        Filter(text).matches(ORDER)


@settings(max_examples=250, deadline=None)
@given(conditions, messages)
def test_random_filters_mean_what_a_small_evaluator_makes_of_them(condition: Node, message: Message) -> None:
    assert Filter(text_of(condition)).matches(message) is (value_of(condition, message) is True)


_PIECES = (
    *("key", "headers", "size", "message_id", "has", "in", "true", "null", "startsWith", "contains", "matches", "_"),
    *('"a"', "'b'", 'r"\\"', "'''", "1", "-2", "0x", "0xff", "1.5", "5u", "\u00e4", "\ud7ff", "\\", "\n", "//"),
    *("&&", "||", "&", "!", "==", "!=", "<=", "<", ">", ">=", "(", ")", "[", "]", ".", ","),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(_PIECES), max_size=20).map(" ".join) | st.text(max_size=60) | conditions.map(text_of),
    st.data(),
)
def test_whatever_the_text_it_is_a_filter_or_refused_within_its_bounds(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    text = text[:at] + data.draw(st.sampled_from(["", "(", '"', "\\", "é", "&&"])) + text[at:]
    error = _refusal(text)
    if error is None:
        assert Filter(text).matches(ORDER) in (True, False)
    else:
        assert 0 <= error.at <= len(text)
        assert error.column == len(text[: error.at].split("\n")[-1]) + 1


def _refusal(text: str) -> FilterError | None:
    try:
        Filter(text)
    except FilterError as error:
        return error
    return None
