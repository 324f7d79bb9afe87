"""What `--filter` takes: comparisons of columns with numbers and words, such as `lr>1e-3 and state=complete`.

    either     = both ("or" both)*
    both       = single ("and" single)*
    single     = "not" single | "(" either ")" | comparison
    comparison = operand (("=" | "==" | "!=" | "<" | "<=" | ">" | ">=") operand)*
               | operand ["not"] "in" ("(" operand ("," operand)* ")" | operand)
    operand    = column | number | word | 'text' | true | false | none

A word that is no column is a text, where one can stand: to the right of a column of texts. What a trial lacks compares
as false, but for `= none`. Read here, never run by Python.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.constraints import Kind, kind_of
from orchestrator.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    Test = Callable[[Mapping[str, Any]], bool]

MAX_LENGTH = 1000  # characters
MAX_DEPTH = 30  # of parentheses and `not`, which are read by recursion
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<word>\w(?:[\w.@:/+-]*[\w.@/+-])?)
    |(?P<sign>==|!=|<=|>=|[=<>(),\[\]]))""",
    re.VERBOSE,
)
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EQUAL = ("=", "==", "!=")
_CONSTANTS = {"true": True, "false": False, "none": None}
_OPERAND = "a column, a number or a word"


@dataclass(frozen=True, kw_only=True)
class _Operand:
    """A column, or a value that stands there."""

    column: str = ""
    value: Any = None
    at: int
    is_word: bool = False  # without quotation marks: it may have been meant as a column

    def of(self, row: Mapping[str, Any]) -> Any:
        return row[self.column] if self.column else self.value


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A filter, read: the columns that it is about, and whether it `holds` for a row of them."""

    columns: frozenset[str]
    holds: Test


def parse(
    text: str,
    columns: Collection[str],
    kinds: Callable[[str], Collection[Kind]],
    words: Mapping[str, Collection[str]] | None = None,
) -> Filter:
    """Read a filter on rows with these columns; `kinds` says what the values of one are, `words` all that it can have.

    Raises:
        UsageError: it is not one (the place is marked by «), there is no such column, or it compares unlike things, or
            with a word that none of a column is.
    """
    return _Parser(text, columns, kinds, words or {}).read()


class _Parser:
    def __init__(
        self,
        text: str,
        columns: Collection[str],
        kinds: Callable[[str], Collection[Kind]],
        words: Mapping[str, Collection[str]],
    ) -> None:
        self._text, self._columns, self._kinds, self._words = text, columns, kinds, words
        self._used: set[str] = set()
        self._place = self._depth = 0
        if len(text) > MAX_LENGTH:
            raise UsageError(f"a filter has at most {MAX_LENGTH} characters; found {len(text)}")
        self._tokens = [*self._scan(), ("end", "", len(text.rstrip()))]

    def read(self) -> Filter:
        holds = self._either()
        if self._kind != "end":
            self._refuse("'and', 'or' or the end")
        return Filter(columns=frozenset(self._used), holds=holds)

    # -- tokens

    def _scan(self) -> list[tuple[str, str, int]]:
        found, at = [], 0
        while at < len(self._text.rstrip()):
            match = _TOKEN.match(self._text, at)
            if match is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                self._refuse(_OPERAND, at)
            assert match.lastgroup is not None, "one of the groups matched"
            found.append((match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
            at = match.end()
        return found

    @property
    def _kind(self) -> str:
        return self._tokens[self._place][0]

    @property
    def _at(self) -> int:
        return self._tokens[self._place][2]

    def _next(self) -> str:
        """The token's text, where it can be a sign or a word of the grammar."""
        kind, text, _ = self._tokens[self._place]
        return text if kind in {"sign", "word"} else ""

    def _took(self, *wanted: str) -> str:
        """Go on behind the token if it is one of these; an empty text if it is not."""
        found = self._next()
        if found not in wanted:
            return ""
        self._place += 1
        return found

    def _refuse(self, wanted: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        marked = f"{self._text[:at]}«{self._text[at:]}"
        raise UsageError(f"filter not understood at «, where {wanted} is expected: {marked}")

    # -- the grammar

    def _either(self) -> Test:
        parts = [self._both()]
        while self._took("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else lambda row: any(part(row) for part in parts)

    def _both(self) -> Test:
        parts = [self._single()]
        while self._took("and"):
            parts.append(self._single())
        return parts[0] if len(parts) == 1 else lambda row: all(part(row) for part in parts)

    def _single(self) -> Test:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UsageError(f"a filter has at most {MAX_DEPTH} parentheses and 'not' within each other")
        if self._took("not"):
            found = _opposite(self._single())
        elif self._took("("):
            found = self._either()
            if not self._took(")"):
                self._refuse("')'")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> Test:
        left = self._operand()
        if (negated := self._next() == "not") or self._next() == "in":
            self._place += negated
            if not self._took("in"):
                self._refuse("'in'")
            return self._membership(left, negated=negated)
        tests = []
        while sign := self._took(*_COMPARED):
            right = self._operand()
            tests.append(self._test(left, sign, right))
            left = right
        if tests:
            return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)
        if left.column and set(self._kinds(left.column)) <= {"truth"}:
            return lambda row: bool(row[left.column])
        if left.is_word:
            self._unknown(left)
        return self._refuse("a comparison, as in lr>1e-3")

    def _membership(self, left: _Operand, *, negated: bool) -> Test:
        if not (opening := self._took("(", "[")):
            right = self._operand()
            self._check_kind(left, "text")
            self._check_kind(right, "text")
            return lambda row: (str(left.of(row)) in (right.of(row) or "")) is not negated
        among = [self._operand()]
        while self._took(","):
            among.append(self._operand())
        if not self._took({"(": ")", "[": "]"}[opening]):
            self._refuse("',' or the closing parenthesis")
        tests = [self._test(left, "=", right) for right in among]
        return lambda row: any(test(row) for test in tests) is not negated

    def _operand(self) -> _Operand:
        kind, text, at = self._tokens[self._place]
        if kind not in {"number", "text", "word"} or text in {"and", "or", "not", "in"}:
            self._refuse(_OPERAND)
        self._place += 1
        if kind == "number":
            return _Operand(value=float(text), at=at)
        if kind == "text":
            return _Operand(value=ast.literal_eval(text), at=at)
        if text in self._columns:
            self._used.add(text)
            return _Operand(column=text, at=at)
        if text.lower() in _CONSTANTS:
            return _Operand(value=_CONSTANTS[text.lower()], at=at)
        return _Operand(value=text, at=at, is_word=True)

    # -- what is compared

    def _test(self, left: _Operand, sign: str, right: _Operand) -> Test:
        for one in (left, right):
            if one.is_word and not (left.column or right.column):
                self._unknown(one)
        for one, other in ((left, right), (right, left)):
            if one.value is not None and not one.column:
                self._check_kind(other, kind_of(type(one.value)), one)
                self._check_word(other.column, one.value)
        compare, is_none = _COMPARED[sign], None in (self._constant(left), self._constant(right))
        if is_none and sign not in _EQUAL:
            self._refuse("= or != before none", right.at)

        def test(row: Mapping[str, Any]) -> bool:
            one, other = left.of(row), right.of(row)
            if is_none:
                return compare(one is None, other is None)
            if one is None or other is None:
                return False
            if isinstance(one, str) is not isinstance(other, str):  # a column may hold both
                return sign == "!="
            return compare(one, other)

        return test

    def _constant(self, one: _Operand) -> Any:
        """The value that stands there; of a column, something that is not None."""
        return one.column or one.value

    def _check_kind(self, one: _Operand, wanted: Kind, value: _Operand | None = None) -> None:
        """See that a column holds such values, or that a value is one."""
        found = set(self._kinds(one.column)) if one.column else {kind_of(type(one.value))}
        if not found or wanted in found or (wanted == "number" and "truth" in found):
            return
        if value is not None and value.is_word:
            self._unknown(value)
        what = one.column or repr(one.value)
        raise UsageError(f"filter compares {what}, a {'/'.join(sorted(found))}, with a {wanted}: {self._text}")

    def _check_word(self, column: str, value: Any) -> None:
        """See that a column which has but a few words can have this one."""
        known = self._words.get(column, ())
        if known and value not in known:
            raise UnknownNameError(column, str(value), known)

    def _unknown(self, word: _Operand) -> NoReturn:
        raise unknown_column(str(word.value), self._columns)


def _opposite(test: Test) -> Test:
    return lambda row: not test(row)


def unknown_column(name: str, columns: Collection[str]) -> UsageError:
    """One line on a column that there is not, with the nearest; all of them would be a screen full."""
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"some that are there: {', '.join(list(columns)[:12])}"
    return UsageError(f"unknown column {name!r}; {hint}")
