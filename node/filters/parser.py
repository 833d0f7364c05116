"""From a filter's text to a term, by recursive descent. Types are checked on the way, so that no message can be of a
wrong type for it.

    or := and ("||" and)*                  and := relation ("&&" relation)*
    relation := unary (("==" | "!=" | "<" | "<=" | ">" | ">=") unary | "in" (list | unary))*
    unary := "!"* member | "-"? INT
    member := primary ("." NAME | "." METHOD "(" or? ")" | "[" or "]")*     (contains() with a STRING alone)
    primary := STRING | "true" | "false" | VARIABLE | "(" or ")" | "has" "(" or ")" | "size" "(" or ")"
    list := "[" (literal ("," literal)* ","?)? "]"
"""

from ringpost.node.filters.lexer import INT_MAX, FilterError, Kind, Token, tokens
from ringpost.node.filters.terms import (
    COMPARISONS,
    METHODS,
    VARIABLES,
    Evaluate,
    Term,
    Type,
    applied,
    compared,
    constant,
    decided,
    has_header,
    header,
    header_named,
    is_among,
    length,
    negated,
)

DEPTH_MAX = 32
_WORDS = (
    "true false null in as break const continue else for function if import let loop package"
    " namespace return var void while"
)
_RESERVED = frozenset(_WORDS.split())
_LITERALS = (Kind.STRING, Kind.INT)
_NAMES = ", ".join(sorted(VARIABLES))
_METHODS = ", ".join(f"{name}()" for name in (*METHODS, "size"))


class Parser:
    """Reads one filter; see the module."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokens(text)
        self._next = next(self._tokens)
        self._previous = self._next
        self._depth = 0

    def parse(self) -> Term:
        """The whole text as a term that is true or false. Raises FilterError."""
        term = self._or()
        if self._next.kind is not Kind.END:
            raise self._expected("&&, || or the end")
        return self._of_type(term, Type.BOOL, "a filter must be true or false")

    # -- operators --------------------------------------------------------------------------------------------------

    def _or(self) -> Term:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(self._next.at, f"more than {DEPTH_MAX} parentheses and brackets inside each other")
        term = self._chain("||", True)
        self._depth -= 1
        return term

    def _chain(self, symbol: str, by: bool) -> Term:
        operands = [self._operand(by)]
        while self._skip(symbol):
            operands.append(self._operand(by))
        if len(operands) == 1:
            return operands[0]
        for operand in operands:
            self._of_type(operand, Type.BOOL, f"{symbol} joins what is true or false")
        return Term(Type.BOOL, decided([operand.evaluate for operand in operands], by), operands[0].at)

    def _operand(self, of_or: bool) -> Term:
        return self._chain("&&", False) if of_or else self._relation()

    def _relation(self) -> Term:
        left = self._unary()
        while True:
            token = self._next
            if token.text in COMPARISONS and token.kind is Kind.SYMBOL:
                self._advance()
                left = self._compared(left, token)
            elif token.text == "in" and token.kind is Kind.NAME:
                self._advance()
                left = self._in(left)
            else:
                return left

    def _compared(self, left: Term, token: Token) -> Term:
        literal = self._next if self._next.kind in _LITERALS else None
        right = self._unary()
        if Type.HEADERS in (left.type, right.type):
            where = left if left.type is Type.HEADERS else right
            raise self._error(where.at, 'headers cannot be compared as a whole; name one, such as headers["x"]')
        if left.type is not right.type:
            types = f"{left.type.value} and {right.type.value}"
            raise self._error(token.at, f"{token.text} compares what has one type, not {types}")
        function = COMPARISONS[token.text]
        if literal is not None and self._previous is literal:
            return Term(Type.BOOL, compared(function, left.evaluate, literal.value), left.at)
        return Term(Type.BOOL, applied(function, left.evaluate, right.evaluate), left.at)

    def _in(self, left: Term) -> Term:
        if self._next.text == "[" and self._next.kind is Kind.SYMBOL:
            return Term(Type.BOOL, is_among(left.evaluate, self._list(left)), left.at)
        right = self._unary()
        self._of_type(right, Type.HEADERS, "behind in comes a list, such as ['a', 'b'], or headers")
        self._of_type(left, Type.STRING, "names of headers are strings")
        return Term(Type.BOOL, has_header(left.evaluate), left.at)

    def _list(self, left: Term) -> frozenset[str | int | bool]:
        """The values of a list of literals, which must be of the left side's type."""
        values = set()
        self._need("[")
        while not self._skip("]"):
            at = self._next.at
            value, kind = self._literal()
            if kind is not left.type:
                raise self._error(at, f"expected {left.type.value} as on the left of in, found {kind.value}")
            values.add(value)
            if not self._skip(",") and self._next.text != "]":
                raise self._expected("a comma or ]")
        return frozenset(values)

    def _literal(self) -> tuple[str | int | bool, Type]:
        token = self._next
        if token.kind is Kind.STRING:
            return self._advance().value, Type.STRING
        if token.kind is Kind.INT or token.text == "-":
            return self._int(negative=self._skip("-")), Type.INT
        if token.kind is Kind.NAME and token.text in ("true", "false"):
            return self._advance().text == "true", Type.BOOL
        raise self._expected("a string, a whole number, true or false")

    def _unary(self) -> Term:
        at, bangs = self._next.at, 0
        while self._skip("!"):
            bangs += 1
        if self._next.kind is Kind.INT or (not bangs and self._next.text == "-" and self._next.kind is Kind.SYMBOL):
            value = self._int(negative=self._skip("-"))
            term = Term(Type.INT, constant(value), at)
        else:
            term = self._member()
        if not bangs:
            return term
        self._of_type(term, Type.BOOL, "! turns what is true or false")
        return Term(Type.BOOL, negated(term.evaluate) if bangs % 2 else term.evaluate, at)

    def _int(self, *, negative: bool) -> int:
        token = self._next
        if token.kind is not Kind.INT:
            raise self._expected("a whole number behind -")
        value = int(self._advance().value)
        if value > INT_MAX and not negative:
            raise self._error(token.at, f"the number is beyond {INT_MAX}")
        return -value if negative else value

    # -- members ----------------------------------------------------------------------------------------------------

    def _member(self) -> Term:
        term = self._primary()
        while True:
            if self._skip("."):
                term = self._selected(term)
            elif self._next.text == "[" and self._next.kind is Kind.SYMBOL:
                self._of_type(term, Type.HEADERS, "only headers have values by name")
                term = self._indexed(term)
            else:
                return term

    def _selected(self, term: Term) -> Term:
        name = self._next
        if name.kind is not Kind.NAME or name.text in _RESERVED:
            raise self._expected("a name behind the dot")
        self._advance()
        if self._next.text == "(" and self._next.kind is Kind.SYMBOL:
            return self._called(term, name)
        self._of_type(term, Type.HEADERS, "only headers have values by name")
        return Term(Type.STRING, header(name.text), term.at)

    def _indexed(self, term: Term) -> Term:
        self._need("[")
        literal = self._next if self._next.kind is Kind.STRING else None
        index = self._of_type(self._or(), Type.STRING, "names of headers are strings")
        value = header(str(literal.value)) if self._previous is literal else header_named(index.evaluate)
        self._need("]")
        return Term(Type.STRING, value, term.at)

    def _called(self, term: Term, name: Token) -> Term:
        if name.text == "size":
            self._need("(")
            self._need(")")
            return self._size(term)
        function = METHODS.get(name.text)
        if function is None:
            hint = "; it takes time without bound" if name.text == "matches" else ""
            raise self._error(name.at, f"{name.text}() is not supported{hint}; there are {_METHODS}")
        self._of_type(term, Type.STRING, f"{name.text}() asks about a string")
        self._need("(")
        literal = self._next
        argument = self._of_type(self._or(), Type.STRING, f"{name.text}() takes a string")
        if name.text == "contains" and (literal.kind is not Kind.STRING or self._previous is not literal):
            raise self._error(
                literal.at, "contains() takes a literal; looking for a text of the message takes too long"
            )
        self._need(")")
        return Term(Type.BOOL, applied(function, term.evaluate, argument.evaluate), term.at)

    def _size(self, term: Term) -> Term:
        if term.type not in (Type.STRING, Type.HEADERS):
            raise self._error(term.at, f"size() counts a string or the headers, not {term.type.value}")
        return Term(Type.INT, length(term.evaluate), term.at)

    def _primary(self) -> Term:
        token = self._next
        if token.kind is Kind.STRING:
            self._advance()
            return Term(Type.STRING, constant(token.value), token.at)
        if token.kind is Kind.NAME:
            return self._named(self._advance())
        if self._skip("("):
            inner = self._or()
            self._need(")")
            return inner._replace(at=token.at)
        raise self._expected("a value")

    def _named(self, token: Token) -> Term:
        if token.text in ("true", "false"):
            return Term(Type.BOOL, constant(token.text == "true"), token.at)
        if self._next.text == "(" and self._next.kind is Kind.SYMBOL:
            return self._function(token)
        if token.text not in VARIABLES:
            raise self._error(token.at, f"there is no {token.text!r}; there are {_NAMES}")
        kind, evaluate = VARIABLES[token.text]
        return Term(kind, evaluate, token.at)

    def _function(self, token: Token) -> Term:
        if token.text == "size":
            self._need("(")
            term = self._size(self._or())
            self._need(")")
            return term._replace(at=token.at)
        if token.text != "has":
            raise self._error(token.at, f"there is no function {token.text}(); there are has(), size() and {_METHODS}")
        self._need("(")
        return Term(Type.BOOL, self._has(), token.at)

    def _has(self) -> Evaluate:
        at = self._next.at
        problem = 'has() takes a header by name, such as has(headers.x); for other names say "x-y" in headers'
        if self._next.text != "headers" or self._advance() is None or not self._skip("."):
            raise self._error(at, problem)
        name = self._next
        if name.kind is not Kind.NAME or name.text in _RESERVED:
            raise self._error(name.at, problem)
        self._advance()
        self._need(")")
        return has_header(constant(name.text))

    # -- tokens -----------------------------------------------------------------------------------------------------

    def _advance(self) -> Token:
        self._previous = self._next
        if self._next.kind is not Kind.END:
            self._next = next(self._tokens)
        return self._previous

    def _skip(self, symbol: str) -> bool:
        found = self._next.kind is Kind.SYMBOL and self._next.text == symbol
        if found:
            self._advance()
        return found

    def _need(self, symbol: str) -> None:
        if not self._skip(symbol):
            raise self._expected(symbol)

    def _of_type(self, term: Term, wanted: Type, why: str) -> Term:
        if term.type is not wanted:
            raise self._error(term.at, f"{why}; this is {term.type.value}")
        return term

    def _expected(self, what: str) -> FilterError:
        return self._error(self._next.at, f"expected {what}, found {self._next.shown}")

    def _error(self, at: int, problem: str) -> FilterError:
        return FilterError(self._text, at, problem)
