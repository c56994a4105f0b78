"""From a script's variables back to the table: which of its columns they hold, and what was done to them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from airflow_mlops.cli.adopting.names import Names, Unknown

READERS = ("read_csv", "read_parquet", "read_table", "read_feather", "read_excel", "read_json", "read_pickle")
SPLIT = "sklearn.model_selection.train_test_split"

_SAME_ROWS = {
    "copy",
    "reset_index",
    "sort_values",
    "sort_index",
    "to_numpy",
    "convert_dtypes",
    "infer_objects",
    "toarray",
}
_CHANGING = {
    "sample",
    "dropna",
    "fillna",
    "head",
    "query",
    "astype",
    "drop_duplicates",
    "replace",
    "assign",
    "set_index",
}
_SAME_VALUES = {"values", "to_numpy", "ravel", "copy", "squeeze", "flatten", "reset_index", "array", "tolist"}
_AROUND = ("numpy.array", "numpy.asarray", "pandas.DataFrame", "pandas.Series")
_FRAME_NAMES = {"df", "data", "dataset", "frame", "table", "raw"}
_DEEPEST = 60


class Rows(NamedTuple):
    """What a variable holds of the table."""

    columns: tuple[str, ...] | None = None
    """Those that were selected; None: all."""
    dropped: tuple[str, ...] = ()
    spread: tuple[ast.Call, ...] = ()
    """The calls of ``get_dummies`` that it went through."""
    learned: tuple[ast.expr, ...] = ()
    """The transformers that it went through, in their order."""


class Column(NamedTuple):
    """A column that a variable was made of."""

    name: str
    line: int
    changed: ast.expr | None = None
    """The expression that made other values of it."""


class Tracer:
    """Follows variables back to the table, and marks the statements that it went through as understood.

    Args:
        names: the script's bindings.
        table: the columns of the table.
    """

    def __init__(self, names: Names, table: Sequence[str]) -> None:
        self.names, self.table = names, tuple(table)
        self.understood: set[int] = set()
        """The ids of statements that were followed."""
        self.changing: set[int] = set()
        """The ids of those among them that leave rows out, or change values."""
        self.sliced: list[ast.expr] = []
        """Where rows were taken by their position."""
        self._asked: dict[tuple[str, int, int | None], Rows | Column | None] = {}

    def mark(self, node: ast.AST, *, changing: bool = False) -> None:
        """Count the statement of a node as followed, or as one that changes rows."""
        statement = self.names.statement_of.get(id(node))
        if statement is not None:
            (self.changing if changing else self.understood).add(id(statement))

    def texts(self, node: ast.AST | None) -> tuple[str, ...]:
        """The column names that an expression lists.

        Raises:
            Unknown: when the text does not tell.
        """
        bound = self.names.bound(node) if isinstance(node, ast.Name) else None
        if bound is not None and bound.item is None and isinstance(bound.node, ast.ListComp | ast.Call):
            listed = self.texts(bound.node)
            self.mark(bound.node)
            return listed
        if node is None:
            raise Unknown
        if isinstance(node, ast.ListComp) or (isinstance(node, ast.Call) and _is_named(node.func, "difference")):
            return self._all_but(node)
        found = self.names.value(node)
        if isinstance(found, str):
            return (found,)
        if isinstance(found, list) and all(isinstance(each, str) for each in found):
            return tuple(found)
        raise Unknown

    def _all_but(self, node: ast.expr) -> tuple[str, ...]:
        """``[c for c in df.columns if c != "y"]``, ``... if c not in OTHERS]`` and ``df.columns.difference([...])``."""
        match node:
            case ast.Call(args=[others], keywords=[]):
                left_out = self.texts(others)
            case ast.ListComp(
                elt=ast.Name(id=name),
                generators=[
                    ast.comprehension(
                        target=ast.Name(id=each),
                        iter=ast.Attribute(attr="columns"),
                        ifs=[
                            ast.Compare(left=ast.Name(id=left), ops=[ast.NotEq() | ast.NotIn()], comparators=[others])
                        ],
                    )
                ],
            ) if name == each == left:
                left_out = self.texts(others)
            case _:
                raise Unknown
        return tuple(each for each in dict.fromkeys((*self.table, *self._made())) if each not in left_out)

    def _made(self) -> Iterator[str]:
        """The columns that statements ``df["x"] = ...`` add."""
        for statement in self.names.statements:
            match statement:
                case ast.Assign(
                    targets=[ast.Subscript(value=ast.Name() as frame, slice=ast.Constant(value=str(name)))]
                ):
                    if self.rows(frame) is not None:
                        yield name

    def rows(self, node: ast.AST, item: int | None = None, depth: int = 0) -> Rows | None:
        """What an expression holds of the table; None where it is none of its rows, or the text does not tell."""
        key = "rows", id(node), item
        if key not in self._asked:
            self._asked[key] = None  # of what stands for itself
            try:
                self._asked[key] = self._rows(node, item, depth) if depth < _DEEPEST else None
            except Unknown:
                self._asked[key] = None
            if self._asked[key] is not None:
                self.mark(node)
        found = self._asked[key]
        return found if isinstance(found, Rows) else None

    def _rows(self, node: ast.AST, item: int | None, depth: int) -> Rows | None:
        names, deeper = self.names, depth + 1
        match node:
            case ast.Name():
                bound = names.bound(node)
                if bound is not None:
                    return self.rows(bound.node, bound.item, deeper)
                return Rows() if node.id in _FRAME_NAMES else None
            case ast.Tuple(elts=items) if item is not None and item < len(items):
                return self.rows(items[item], None, deeper)
            case ast.Call(func=func, args=args) if item is not None:
                if names.dotted(func) == SPLIT and item // 2 < len(args):
                    return self.rows(args[item // 2], None, deeper)
                return self._first(names.local(node), item, deeper)
            case ast.Attribute(value=inner, attr="values" | "T" | "loc" | "iloc"):
                return self.rows(inner, None, deeper)
            case ast.Subscript(value=ast.Attribute(value=inner, attr="loc" | "iloc" as by), slice=index):
                return self._located(self.rows(inner, None, deeper), by, index)
            case ast.Subscript(value=inner, slice=index):
                return self._selected(self.rows(inner, None, deeper), index)
            case ast.Call():
                return self._called(node, deeper)
        return None

    def _first(self, given_back: Sequence[ast.expr], item: int | None, depth: int) -> Rows | None:
        found = (self.rows(each, item, depth) for each in reversed(given_back))
        return next((each for each in found if each), None)

    def _called(self, node: ast.Call, depth: int) -> Rows | None:
        path = self.names.dotted(node.func) or ""
        keywords = {each.arg: each.value for each in node.keywords}
        if path.startswith("pandas.read_") or path.rpartition(".")[2] in READERS:
            return Rows()
        if path == "pandas.get_dummies" and node.args:
            inner = self.rows(node.args[0], None, depth)
            return inner._replace(spread=(*inner.spread, node)) if inner else None
        if path in _AROUND and node.args:
            return self.rows(node.args[0], None, depth)
        if not isinstance(node.func, ast.Attribute):
            return self._first(self.names.local(node), None, depth)
        method, of = node.func.attr, node.func.value
        if method in ("fit_transform", "transform") and node.args:
            inner = self.rows(node.args[0], None, depth)
            return inner._replace(learned=(*inner.learned, of)) if inner else None
        inner = self.rows(of, None, depth)
        if inner is None:
            return None
        if method == "drop":
            which = keywords.get("columns") or keywords.get("labels") or (node.args[0] if node.args else None)
            axis = keywords.get("axis") or (node.args[1] if len(node.args) > 1 else None)
            if "columns" not in keywords and (axis is None or self.names.value(axis) in (0, "index")):
                return inner  # rows
            return inner._replace(dropped=(*inner.dropped, *self.texts(which)))
        if method in _CHANGING:
            self.mark(node, changing=True)
        return inner if method in _SAME_ROWS | _CHANGING else None

    def _selected(self, inner: Rows | None, index: ast.expr) -> Rows | None:
        if inner is None:
            return None
        try:
            chosen = self.texts(index)
        except Unknown:
            if isinstance(index, ast.Constant | ast.List | ast.Name | ast.ListComp):
                raise
            self.mark(index, changing=True)  # a filter of rows
            return inner
        one = isinstance(index, ast.Constant) or (isinstance(index, ast.Name) and len(chosen) == 1)
        if one and not isinstance(self.names.value(index), list):
            return None  # a single column
        return inner._replace(columns=chosen)

    def _located(self, inner: Rows | None, by: str, index: ast.expr) -> Rows | None:
        if inner is not None and isinstance(index, ast.Slice):
            self.sliced.append(index.lower or index.upper or index)
        if inner is None or not isinstance(index, ast.Tuple) or len(index.elts) != 2:
            return inner
        columns = index.elts[1]
        if by == "loc":
            return inner if isinstance(columns, ast.Slice) else self._selected(inner, columns)
        if isinstance(columns, ast.Slice) and columns.step is None:
            low, high = (self.names.value(each) if each else None for each in (columns.lower, columns.upper))
            return inner._replace(columns=self.table[low:high])
        chosen = self.names.value(columns)
        return inner._replace(columns=tuple(self.table[each] for each in chosen)) if isinstance(chosen, list) else None

    def column(self, node: ast.AST, item: int | None = None, depth: int = 0) -> Column | None:
        """The one column of the table that an expression is made of; None where there is none, or several."""
        key = "column", id(node), item
        if key not in self._asked:
            self._asked[key] = None
            try:
                self._asked[key] = self._column(node, item, depth) if depth < _DEEPEST else None
            except (Unknown, LookupError, TypeError):
                self._asked[key] = None
            if self._asked[key] is not None:
                self.mark(node)
        found = self._asked[key]
        return found if isinstance(found, Column) else None

    def _column(self, node: ast.AST, item: int | None, depth: int) -> Column | None:
        names, deeper = self.names, depth + 1
        match node:
            case ast.Name():
                bound = names.bound(node)
                return self.column(bound.node, bound.item, deeper) if bound else None
            case ast.Tuple(elts=items) if item is not None and item < len(items):
                return self.column(items[item], None, deeper)
            case ast.Call(func=func, args=args) if item is not None:
                if names.dotted(func) == SPLIT and item // 2 < len(args):
                    return self.column(args[item // 2], None, deeper)
                return self._first_column(names.local(node), item, deeper)
            case ast.Call(func=ast.Attribute(attr="pop", value=frame), args=[name]) if self.rows(frame, None, deeper):
                return self._of_table(name)
            case ast.Subscript(value=ast.Attribute(value=frame, attr="loc" | "iloc" as by), slice=ast.Tuple() as index):
                if not self.rows(frame, None, deeper) or len(index.elts) != 2:
                    return None
                chosen = names.value(index.elts[1])
                return Column(self.table[chosen], node.lineno) if by == "iloc" else self._of_table(index.elts[1])
            case ast.Subscript(value=frame, slice=name) if self.rows(frame, None, deeper):
                return self._of_table(name)
            case ast.Attribute(value=frame, attr=attr) if attr in self.table and self.rows(frame, None, deeper):
                return Column(attr, node.lineno)
            case ast.Attribute(value=inner, attr=attr) if attr in _SAME_VALUES:
                return self.column(inner, None, deeper)
            case ast.Call(func=ast.Attribute(value=inner, attr=attr)) if attr in _SAME_VALUES:
                return self.column(inner, None, deeper)
            case ast.Call(func=func) if names.local(node) and isinstance(func, ast.Name):
                return self._first_column(names.local(node), None, deeper)
            case ast.expr():
                parts = [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr)]
                made = {each.name: each for part in parts if (each := self.column(part, None, deeper))}
                return next(iter(made.values()))._replace(changed=node) if len(made) == 1 else None
        return None

    def _first_column(self, given_back: Sequence[ast.expr], item: int | None, depth: int) -> Column | None:
        found = (self.column(each, item, depth) for each in reversed(given_back))
        return next((each for each in found if each), None)

    def _of_table(self, node: ast.AST) -> Column | None:
        (name,) = self.texts(node) if len(self.texts(node)) == 1 else (None,)
        return Column(name, getattr(node, "lineno", 0)) if name in self.table else None


def _is_named(node: ast.AST, attr: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == attr
