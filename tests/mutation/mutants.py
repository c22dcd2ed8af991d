"""Small changes of a source file, each of which a good test suite notices."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants"]

_OPERATORS: dict[type[ast.AST], list[type[ast.AST]]] = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.Mult],
    ast.Pow: [ast.Mult],
    ast.MatMult: [ast.Mult],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}

_OTHER_NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "argmin": "argmax",
    "argmax": "argmin",
}


@dataclass(frozen=True)
class Mutant:
    """A changed source.

    Attributes:
        line: of the change.
        change: in words.
        source: of the whole file.
    """

    line: int
    change: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a source file: one operator, comparison, number, truth value, sign, condition or call changed.

    Type hints, docstrings, messages of errors, assertions and ``__all__`` are left alone: tests of behaviour cannot
    see them.
    """
    tree = ast.parse(source)
    untouched = _untouched(tree)
    for index, node in enumerate(ast.walk(tree)):
        if index in untouched:
            continue
        for change, edit in _edits(node):
            changed = copy.deepcopy(tree)
            target = next(item for place, item in enumerate(ast.walk(changed)) if place == index)
            edit(target)
            yield Mutant(getattr(node, "lineno", 0), change, ast.unparse(ast.fix_missing_locations(changed)))


def _untouched(tree: ast.AST) -> set[int]:
    """Positions in the walk of what is not mutated."""
    positions = {id(node): index for index, node in enumerate(ast.walk(tree))}
    skipped: set[int] = set()

    def skip(node: ast.AST | None) -> None:
        if node is not None:
            skipped.update(positions[id(inner)] for inner in ast.walk(node) if id(inner) in positions)

    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            skip(node.returns)
            for decorator in node.decorator_list:
                skip(decorator)
        if isinstance(node, (ast.arg, ast.AnnAssign)):
            skip(node.annotation)
        if isinstance(node, ast.Raise):
            skip(node.exc)
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            skip(node)
        if isinstance(node, ast.Call) and _is_message(node):
            skip(node)
        # zip's: an assertion.
        if isinstance(node, ast.keyword) and node.arg == "strict":
            skip(node)
    return skipped


def _is_message(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in ("warning", "info", "debug", "TypeVar")


def _edits(node: ast.AST):  # type: ignore[no-untyped-def]
    """(what it changes, function that changes the node in place) for a node."""
    for field in ("op", "ops"):
        value = getattr(node, field, None)
        if isinstance(node, ast.UnaryOp):
            continue
        operators = value if isinstance(value, list) else [value]
        for number, operator in enumerate(operators):
            for other in _OPERATORS.get(type(operator), []):
                yield (
                    f"{type(operator).__name__} -> {other.__name__}",
                    _replace_operator(field, number, other),
                )
    if isinstance(node, ast.Constant):
        yield from _constants(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        name = "-x -> x" if isinstance(node.op, ast.USub) else "not x -> x"
        yield name, _to_plus
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield "condition -> not condition", _negate
    if isinstance(node, ast.Attribute) and node.attr in _OTHER_NAMES:
        yield (
            f"{node.attr} -> {_OTHER_NAMES[node.attr]}",
            lambda item: setattr(item, "attr", _OTHER_NAMES[item.attr]),
        )
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _OTHER_NAMES:
        other = _OTHER_NAMES[node.func.id]
        yield (
            f"{node.func.id}() -> {other}()",
            lambda item: setattr(item.func, "id", _OTHER_NAMES[item.func.id]),
        )
    if isinstance(node, ast.Return) and node.value is not None:
        yield "return value -> return None", lambda item: setattr(item, "value", ast.Constant(None))
    if isinstance(node, ast.AugAssign):
        yield "augmented -> plain assignment", _noop_augmented


def _constants(node: ast.Constant):  # type: ignore[no-untyped-def]
    value = node.value
    if isinstance(value, bool):
        yield f"{value} -> {not value}", lambda item: setattr(item, "value", not item.value)
    elif isinstance(value, (int, float)):
        yield f"{value} -> {value + 1}", lambda item: setattr(item, "value", item.value + 1)
        if value not in (0, 1):
            yield f"{value} -> {-value}", lambda item: setattr(item, "value", -item.value)


def _replace_operator(field: str, number: int, other: type[ast.AST]):  # type: ignore[no-untyped-def]
    def edit(node: ast.AST) -> None:
        if field == "op":
            node.op = other()  # type: ignore[attr-defined]
        else:
            node.ops[number] = other()  # type: ignore[attr-defined]

    return edit


def _to_plus(node: ast.UnaryOp) -> None:
    if isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
    else:
        # Twice negated: the truth value of x.
        node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _negate(node: ast.If | ast.IfExp | ast.While) -> None:
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _noop_augmented(node: ast.AugAssign) -> None:
    node.value = ast.Constant(0) if isinstance(node.op, (ast.Add, ast.Sub)) else ast.Constant(1)
