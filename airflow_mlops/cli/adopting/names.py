"""What the names of a script stand for, as far as its text tells.

Scopes are functions and classes by their plain name; a parameter stands for what its calls give it. That is not
Python's own resolution, and need not be: what cannot be told is `Unknown`, and a person is asked to look.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import PurePath
from typing import Any, NamedTuple

from airflow_mlops.errors import CodeError

_MOST_ITEMS = 10_000
_WHOLE = 2**63


class Unknown(Exception):
    """The text does not tell."""


class Bound(NamedTuple):
    """What a name was bound to: a node or, where it was unpacked, an item of it; and the statement's last position."""

    node: ast.AST
    item: int | None
    first: int
    last: tuple[int, int]


def parse(file: str) -> tuple[ast.Module, list[str]]:
    """Read a script; give its tree and its lines.

    Lines of a notebook's magic (``%matplotlib inline``, ``!pip install``) are left out.

    Raises:
        CodeError: when it cannot be read, or is no Python.
    """
    if file.endswith(".ipynb"):
        raise CodeError(f"{file} is a notebook", fix=f"jupyter nbconvert --to script {file}, and adopt the .py file")
    try:
        with open(file, "rb") as source:
            content = source.read()
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise CodeError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CodeError(f"{file} is not UTF-8 text", fix="save it as UTF-8") from error
    lines = text.split("\n")
    plain = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)
    wrong: Exception | None = None
    for each in (text, plain):
        try:
            return ast.parse(each), lines
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            wrong = wrong or error
    if isinstance(wrong, SyntaxError):
        raise CodeError(f"no valid Python: {wrong.msg}", where=f"{file}:{wrong.lineno or 1}", fix="correct that line")
    raise CodeError(f"{file} cannot be parsed: {wrong or 'it is nested too deeply'}")


class Names:
    """The bindings of a script.

    Args:
        tree: the parsed script.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.imports: dict[str, str] = {}
        """The path of what an import binds: ``np`` is ``numpy``, ``RF`` is ``sklearn.ensemble.RF...``."""
        self.import_lines: dict[str, str] = {}
        """The statement that would import it."""
        self.functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self.returns: dict[str, list[ast.expr]] = defaultdict(list)
        self.calls: list[ast.Call] = []
        self.statements: list[ast.stmt] = []
        """All that are no blocks, in the order of their lines."""
        self.statement_of: dict[int, ast.stmt] = {}
        self._bound: dict[tuple[str, str], list[Bound]] = defaultdict(list)
        self._scope: dict[int, str] = {}
        self._classes: set[str] = set()
        self._options: dict[str, ast.expr] = {}
        self._values: dict[int, Any] = {}
        self._read()

    def _read(self) -> None:
        stack: list[tuple[ast.AST, str, ast.stmt | None]] = [(self.tree, "", None)]
        while stack:
            node, scope, statement = stack.pop()
            inner = scope
            self._scope[id(node)] = scope
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions[node.name] = node
                inner = node.name
            elif isinstance(node, ast.ClassDef):
                self._classes.add(node.name)
                inner = node.name
            elif isinstance(node, ast.stmt):
                statement = node
                if not hasattr(node, "body"):
                    self.statements.append(node)
            if statement is not None:
                self.statement_of[id(node)] = statement
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
            elif isinstance(node, ast.Return) and node.value is not None:
                self.returns[scope].append(node.value)
            elif isinstance(node, ast.Call):
                self.calls.append(node)
            stack += [(child, inner, statement) for child in reversed(list(ast.iter_child_nodes(node)))]
        self.statements.sort(key=lambda each: (each.lineno, each.col_offset))
        self.calls.sort(key=lambda each: (each.end_lineno or 0, each.end_col_offset or 0))
        for function in self.functions.values():
            self._bind_defaults(function)
        for each in self.statements:
            self._bind_statement(each)
        for call in self.calls:
            self._bind_call(call)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            as_ = f" as {alias.asname}" if alias.asname else ""
            if isinstance(node, ast.Import):
                name = alias.asname or alias.name.partition(".")[0]
                self.imports[name] = alias.name if alias.asname else name
                self.import_lines[name] = f"import {alias.name}{as_}"
            elif node.module and not node.level and alias.name != "*":
                name = alias.asname or alias.name
                self.imports[name] = f"{node.module}.{alias.name}"
                self.import_lines[name] = f"from {node.module} import {alias.name}{as_}"

    def _bind_defaults(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        given = function.args
        named = [*given.posonlyargs, *given.args]
        pairs = [*zip(named[len(named) - len(given.defaults) :], given.defaults, strict=True)]
        pairs += [(arg, value) for arg, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value]
        for arg, value in pairs:
            self._bind_parameter(function, arg.arg, value)

    def _bind_parameter(
        self, function: ast.FunctionDef | ast.AsyncFunctionDef, name: str, value: ast.expr, item: int | None = None
    ) -> None:
        head = function.lineno
        self._bound[function.name, name].append(Bound(value, item, head, (head, 0)))

    def _bind_statement(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                self._bind_target(target, statement.value, statement)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._bind_target(statement.target, statement.value, statement)
        elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            before = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement)
            both = ast.copy_location(ast.BinOp(before, statement.op, statement.value), statement)
            for made in (before, both):
                self._scope[id(made)] = self._scope[id(statement)]
                self.statement_of[id(made)] = statement
            self._bind_target(statement.target, both, statement)

    def _bind_target(self, target: ast.expr, value: ast.expr, statement: ast.stmt, item: int | None = None) -> None:
        if isinstance(target, ast.Name):
            last = (statement.end_lineno or statement.lineno, statement.end_col_offset or 0)
            key = self._scope[id(target)], target.id
            self._bound[key].append(Bound(value, item, statement.lineno, last))
        elif isinstance(target, ast.Tuple | ast.List) and item is None:
            same = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
            for index, each in enumerate(target.elts):
                if same and isinstance(value, ast.Tuple | ast.List):
                    self._bind_target(each, value.elts[index], statement)
                else:
                    self._bind_target(each, value, statement, index)

    def _bind_call(self, call: ast.Call) -> None:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            self._bind_option(call)
        function = self.functions.get(call.func.id) if isinstance(call.func, ast.Name) else None
        if function is None:
            return
        named = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
        starred = next((i for i, each in enumerate(call.args) if isinstance(each, ast.Starred)), len(call.args))
        for name, value in zip(named, call.args[:starred], strict=False):
            self._bind_parameter(function, name, value)
        if starred == len(call.args) - 1 and isinstance(call.args[starred], ast.Starred):
            for item, name in enumerate(named[starred:]):
                self._bind_parameter(function, name, call.args[starred].value, item)  # type: ignore[attr-defined]
        for keyword in call.keywords:
            if keyword.arg:
                self._bind_parameter(function, keyword.arg, keyword.value)

    def _bind_option(self, call: ast.Call) -> None:
        default = next((each.value for each in call.keywords if each.arg == "default"), None)
        for flag in call.args:
            if default is not None and isinstance(flag, ast.Constant) and isinstance(flag.value, str):
                self._options[flag.value.lstrip("-").replace("-", "_")] = default

    def bound(self, node: ast.Name) -> Bound | None:
        """What a name stands for where it is used: the last binding before, else the first after."""
        here = (node.lineno, node.col_offset)
        for scope in dict.fromkeys((self._scope.get(id(node), ""), "")):
            found = self._bound.get((scope, node.id), [])
            before = [each for each in found if each.last <= here]
            after = [each for each in found if each.first > node.lineno]
            if before:
                return max(before, key=lambda each: each.last)
            if after:
                return after[0]
        return None

    def dotted(self, node: ast.AST) -> str | None:
        """The path of what is imported: ``pd.read_csv`` is ``pandas.read_csv``."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.imports:
            return None
        return ".".join([self.imports[node.id], *reversed(parts)])

    def import_of(self, node: ast.AST) -> str:
        """The statement that imports what `dotted` has found."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return self.import_lines[node.id] if isinstance(node, ast.Name) else ""

    def local(self, call: ast.Call) -> list[ast.expr]:
        """What a function of the script gives back, where this is a call of one."""
        return self.returns.get(call.func.id, []) if isinstance(call.func, ast.Name) else []

    def value(self, node: ast.AST) -> Any:
        """The plain value of an expression: texts, numbers, booleans, None, lists and maps of them.

        Raises:
            Unknown: when the text does not tell.
        """
        key = id(node)
        if key not in self._values:
            self._values[key] = Unknown()  # of what stands for itself
            try:
                self._values[key] = self._bounded(self._evaluate(node))
            except (ArithmeticError, LookupError, TypeError, ValueError):
                self._values[key] = Unknown()
            except Unknown as unknown:
                self._values[key] = unknown
        found = self._values[key]
        if isinstance(found, Unknown):
            raise found
        return found

    @staticmethod
    def _bounded(value: Any) -> Any:
        if isinstance(value, str):
            value.encode()  # a lone surrogate is no text
        large = isinstance(value, str | list | dict) and len(value) > _MOST_ITEMS
        if large or (isinstance(value, int) and abs(value) >= _WHOLE):
            raise Unknown
        return value

    def _evaluate(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str()):
                return node.value
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return [self.value(each) for each in items]
            case ast.Dict(keys=keys, values=values):
                if None in keys:
                    raise Unknown
                return {self.value(key): self.value(each) for key, each in zip(keys, values, strict=True) if key}
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand)
            case ast.BinOp(left=left, op=operator, right=right):
                return _combined(operator, self.value(left), self.value(right))
            case ast.Name():
                bound = self.bound(node)
                if bound is None:
                    raise Unknown
                found = self.value(bound.node)
                return found if bound.item is None else found[bound.item]
            case ast.JoinedStr(values=parts):
                return "".join(str(self.value(part)) for part in parts)
            case ast.FormattedValue(value=inner, conversion=-1, format_spec=None):
                return self.value(inner)
            case ast.Subscript(value=inner, slice=index) if not isinstance(index, ast.Slice):
                return self.value(inner)[self.value(index)]
            case ast.Attribute(value=ast.Name(id=name), attr=attr):
                if name in self._classes:
                    return self.value(self._bound[name, attr][-1].node)
                if attr in self._options:
                    return self.value(self._options[attr])
                raise Unknown
            case ast.Call(func=ast.Name(id="list" | "tuple" | "sorted"), args=[inner], keywords=[]):
                return list(self.value(inner))
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=given) if all(each.arg for each in given):
                return {each.arg: self.value(each.value) for each in given}
            case ast.Call(args=parts, keywords=[]) if self.dotted(node.func) in ("pathlib.Path", "os.path.join"):
                return str(PurePath(*(self.value(part) for part in parts)))
        raise Unknown


def _combined(operator: ast.operator, left: Any, right: Any) -> Any:
    numbers = all(isinstance(each, int | float) for each in (left, right))
    match operator:
        case ast.Add() if numbers or type(left) is type(right):
            return left + right
        case ast.Sub() if numbers:
            return left - right
        case ast.Mult() if numbers:
            return left * right
        case ast.Div() if numbers:
            return left / right
        case ast.Pow() if numbers and abs(right) <= 64:
            return left**right
        case ast.Div() if isinstance(left, str) and isinstance(right, str):
            return str(PurePath(left, right))  # of pathlib
        case ast.BitOr() if isinstance(left, dict) and isinstance(right, dict):
            return {**left, **right}
    raise Unknown
