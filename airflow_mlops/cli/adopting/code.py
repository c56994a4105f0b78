"""Code of a script, written anew so that it stands by itself: features row by row, transformers, estimators."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, NamedTuple

from airflow_mlops.cli.adopting.names import Names, Unknown
from airflow_mlops.cli.adopting.rows import Tracer

_LIBRARIES = {"numpy", "pandas", "sklearn", "scipy", "xgboost", "lightgbm", "catboost", "category_encoders", "math"}
# What makes of a row's value another, whatever the other rows hold.
_BY_ROW = {
    "abs", "add", "astype", "between", "clip", "div", "eq", "fillna", "floordiv", "ge", "gt", "isin", "isna", "isnull",
    "le", "lt", "map", "mod", "mul", "ne", "notna", "notnull", "pow", "replace", "round", "sub", "to_numpy", "values",
    "where", "mask", "dt", "str",
}  # fmt: skip
_FUNCTIONS = {
    f"numpy.{name}"
    for name in (
        "abs", "ceil", "clip", "cos", "exp", "expm1", "floor", "isnan", "log", "log10", "log1p", "log2", "logical_and",
        "logical_not", "logical_or", "maximum", "minimum", "power", "round", "sign", "sin", "sqrt", "square", "tan",
        "tanh", "where", "float64", "float32", "int64", "int32", "nan", "pi", "inf",
    )
} | {"pandas.to_datetime", "pandas.to_numeric", "pandas.isna", "pandas.isnull", "pandas.notna"}  # fmt: skip
_TYPES = {"int", "float", "str", "bool"}


class Feature(NamedTuple):
    """A statement that gives each row a value of its own."""

    column: str
    source: str
    """``frame["x"] = ...``"""
    line: int
    uses: frozenset[str]
    imports: frozenset[str]


class Rebuilt(NamedTuple):
    """An expression that stands by itself."""

    source: str
    imports: frozenset[str]


def rebuilt(node: ast.AST, names: Names) -> Rebuilt:
    """Write an expression so that it needs its imports only.

    Raises:
        Unknown: when it needs what the text does not tell, or a library that is not known to be harmless.
    """
    imports: set[str] = set()
    return Rebuilt(ast.unparse(ast.fix_missing_locations(_Rebuilder(names, imports).visit(node))), frozenset(imports))


class _Rebuilder:
    """Gives a new tree in which every name is imported or written out."""

    def __init__(self, names: Names, imports: set[str], depth: int = 0) -> None:
        self.names, self.imports, self.depth = names, imports, depth

    def visit(self, node: ast.AST) -> Any:
        """A new node."""
        if self.depth > 30:
            raise Unknown
        match node:
            case ast.Constant():
                return literal(self.names.value(node))
            case ast.Name():
                return self._name(node)
            case ast.Attribute():
                path = self.names.dotted(node)
                if path is None:
                    return literal(self.names.value(node))
                return self._imported(node, path)
            case ast.Call(func=func, args=args, keywords=keywords):
                path = self.names.dotted(func)
                if path is None:
                    return literal(self.names.value(node))
                if any(isinstance(each, ast.Starred) for each in args):
                    raise Unknown
                given = [ast.keyword(each.arg, self.visit(each.value)) for each in keywords]
                return ast.Call(self._imported(func, path), [self.visit(each) for each in args], given)
            case ast.List(elts=items):
                return ast.List([self.visit(each) for each in items], ast.Load())
            case ast.Tuple(elts=items):
                return ast.Tuple([self.visit(each) for each in items], ast.Load())
            case ast.Dict(keys=keys, values=values) if None not in keys:
                return ast.Dict([self.visit(each) for each in keys if each], [self.visit(each) for each in values])
        return literal(self.names.value(node))

    def _name(self, node: ast.Name) -> Any:
        if (path := self.names.dotted(node)) is not None:
            return self._imported(node, path)
        bound = self.names.bound(node)
        if bound is None or bound.item is not None:
            return literal(self.names.value(node))
        return _Rebuilder(self.names, self.imports, self.depth + 1).visit(bound.node)

    def _imported(self, node: ast.expr, path: str) -> ast.expr:
        if path.partition(".")[0] not in _LIBRARIES:
            raise Unknown
        self.imports.add(self.names.import_of(node))
        return node


def literal(value: Any) -> ast.expr:
    """A plain value as an expression."""
    return ast.parse(repr(value), mode="eval").body


def feature(statement: ast.stmt, tracer: Tracer, known: Sequence[str], target: str | None) -> Feature | None:
    """A statement ``df["x"] = ...`` that computes each row's value from that row alone.

    Args:
        statement: any statement.
        tracer: knows which names are rows of the table.
        known: the columns that there are before it.
        target: the column that nobody knows when predicting.

    Returns:
        None when it assigns to no column of the table.

    Raises:
        Unknown: when it does, and more than the row itself may be in it.
    """
    column = assigned(statement, tracer)
    if column is None or not isinstance(statement, ast.Assign):
        return None
    uses: set[str] = set()
    imports: set[str] = set()
    made = _ByRow(tracer, uses, imports).visit(statement.value)
    if not uses or not uses <= set(known) or target in uses or column == target:
        raise Unknown
    source = f"frame[{column!r}] = {ast.unparse(ast.fix_missing_locations(made))}"
    return Feature(column, source, statement.lineno, frozenset(uses), frozenset(imports))


def assigned(statement: ast.stmt, tracer: Tracer) -> str | None:
    """The column that a statement ``df["x"] = ...`` assigns to; None where it assigns to no column of the table.

    Raises:
        Unknown: when it does, and the text does not tell to which one.
    """
    match statement:
        case ast.Assign(targets=[ast.Subscript(value=frame, slice=index)]) if _is_table(frame, tracer):
            column = tracer.names.value(index)
            if isinstance(column, str):
                return column
            raise Unknown
    return None


def _is_table(node: ast.AST, tracer: Tracer) -> bool:
    return isinstance(node, ast.Name) and tracer.rows(node) is not None


class _ByRow:
    """Gives a new tree over ``frame``, of operations that look at one row only."""

    def __init__(self, tracer: Tracer, uses: set[str], imports: set[str]) -> None:
        self.tracer, self.names, self.uses, self.imports = tracer, tracer.names, uses, imports

    def visit(self, node: ast.AST) -> Any:
        """A new node."""
        column = self._column(node)
        if column is not None:
            self.uses.add(column)
            return ast.Subscript(ast.Name("frame", ast.Load()), ast.Constant(column), ast.Load())
        match node:
            case ast.BinOp(left=left, op=operator, right=right):
                return ast.BinOp(self.visit(left), operator, self.visit(right))
            case ast.UnaryOp(op=operator, operand=operand):
                return ast.UnaryOp(operator, self.visit(operand))
            case ast.Compare(left=left, ops=operators, comparators=others):
                return ast.Compare(self.visit(left), operators, [self.visit(each) for each in others])
            case ast.Name(id=name) if name in _TYPES and self.names.bound(node) is None:
                return node
            case ast.Attribute() if self.names.dotted(node) is not None:
                return self._imported(node)
            case ast.Attribute(value=inner, attr=attr) if self._by_row(inner, attr):
                return ast.Attribute(self.visit(inner), attr, ast.Load())
            case ast.Call(func=func, args=args, keywords=keywords) if isinstance(func, ast.Attribute):
                made = self._imported(func) if self.names.dotted(func) else self.visit(func)
                given = [ast.keyword(each.arg, self.visit(each.value)) for each in keywords if each.arg]
                if len(given) != len(keywords):
                    raise Unknown
                return ast.Call(made, [self.visit(each) for each in args], given)
        return literal(self.names.value(node))

    @staticmethod
    def _by_row(inner: ast.expr, attr: str) -> bool:
        # Below .dt and .str everything is about the value itself.
        return attr in _BY_ROW or (isinstance(inner, ast.Attribute) and inner.attr in ("dt", "str"))

    def _column(self, node: ast.AST) -> str | None:
        match node:
            case ast.Subscript(value=frame, slice=index) if _is_table(frame, self.tracer):
                found = self.names.value(index)
                if isinstance(found, str):
                    return found
                raise Unknown
            case ast.Attribute(value=frame, attr=attr) if attr in self.tracer.table and _is_table(frame, self.tracer):
                return attr
        return None

    def _imported(self, node: ast.expr) -> ast.expr:
        if self.names.dotted(node) not in _FUNCTIONS:
            raise Unknown
        self.imports.add(self.names.import_of(node))
        return node
