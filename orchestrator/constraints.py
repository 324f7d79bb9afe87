"""Constraints between fields, such as `width * depth <= 512`: read by Python's parser, never run by Python."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_LENGTH = 200  # characters
MAX_NODES = 100  # of the tree, which is walked by recursion

Kind = Literal["number", "text", "truth"]

_COMPUTED: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda base, power: math.pow(base, power),  # of floats: 9**9**9 as whole numbers never ends
}
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_TAKEN = "expected a comparison of fields, numbers and words, by + - * / // % **, and, or, not"


@dataclass(frozen=True)
class Constraint:
    """One constraint, read."""

    text: str
    tree: ast.expr

    @property
    def names(self) -> list[str]:
        """The fields that it is about."""
        return list(dict.fromkeys(node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)))

    def check(self, kinds: Mapping[str, Kind]) -> None:
        """See that it compares like with like; `kinds` has all of `names`.

        Raises:
            ValueError: it does not.
        """
        _kind(self.tree, self.text, kinds)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it holds for these values; what cannot be computed, such as 1 / 0, does not hold."""
        try:
            return bool(_value(self.tree, values))
        except (ArithmeticError, ValueError):  # the latter of math.pow
            return False


def parse(text: str) -> Constraint:
    """Read a constraint.

    Raises:
        ValueError: too long, or something else than arithmetic, comparisons, `and`, `or` and `not`.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a constraint has at most {MAX_LENGTH} characters, found {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes and the like
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"constraint {text!r} cannot be read; {_TAKEN}") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ValueError(f"constraint {text!r} is too large")
    if any(not _is_taken(node) for node in ast.walk(tree)):
        raise ValueError(f"constraint {text!r} is not taken; {_TAKEN}")
    if not isinstance(tree, ast.Compare | ast.BoolOp) and not _is_not(tree):
        raise ValueError(f"constraint {text!r} is not a comparison")
    return Constraint(text, tree)


def _is_not(node: ast.AST) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_taken(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return True
        case ast.BinOp(op=op):
            return type(op) in _COMPUTED
        case ast.UnaryOp(op=op):
            return isinstance(op, ast.Not | ast.USub | ast.UAdd)
        case ast.Compare(ops=ops):
            return all(type(op) in _COMPARED for op in ops)
    return isinstance(node, ast.Name | ast.BoolOp | ast.operator | ast.unaryop | ast.cmpop | ast.boolop | ast.Load)


def _kind(node: ast.expr, text: str, kinds: Mapping[str, Kind]) -> Kind:
    """What a part of a constraint is; see `Constraint.check`."""

    def see(part: ast.expr, wanted: Kind) -> None:
        if (found := _kind(part, text, kinds)) != wanted:
            raise ValueError(f"constraint {text!r}: {ast.unparse(part)} is a {found}, expected a {wanted}")

    match node:
        case ast.Name(id=name):
            return kinds[name]
        case ast.Constant(value=value):
            return kind_of(type(value))
        case ast.BinOp(left=left, right=right):
            see(left, "number")
            see(right, "number")
            return "number"
        case ast.UnaryOp(op=op, operand=operand):
            result: Kind = "truth" if isinstance(op, ast.Not) else "number"
            see(operand, result)
            return result
        case ast.BoolOp(values=parts):
            for part in parts:
                see(part, "truth")
        case ast.Compare(left=left, comparators=others):
            for part in others:
                see(part, _kind(left, text, kinds))
    return "truth"


def kind_of(annotation: type) -> Kind:
    """What values of a type are in a constraint."""
    if annotation is bool:
        return "truth"
    return "number" if issubclass(annotation, int | float) else "text"


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=value):
            return value
        case ast.BinOp(left=left, op=op, right=right):
            return _COMPUTED[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, values)
        case ast.UnaryOp(op=op, operand=operand):
            value = _value(operand, values)
            return -value if isinstance(op, ast.USub) else value
        case ast.BoolOp(op=op, values=parts):
            found = (_value(part, values) for part in parts)
            return all(found) if isinstance(op, ast.And) else any(found)
        case ast.Compare(left=left, ops=ops, comparators=others):
            compared = [_value(part, values) for part in (left, *others)]
            return all(
                _COMPARED[type(op)](one, other) for op, one, other in zip(ops, compared, compared[1:], strict=False)
            )
    raise AssertionError("parse took it")
