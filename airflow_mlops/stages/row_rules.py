"""Rules about single rows: the data schema as a pandera schema, held against one batch after another.

What a row breaks depends on that row alone (and, for a repeated key, on what `repeats` found before), so the size of a
batch changes nothing but the memory it takes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.compute as pc

from airflow_mlops.call.code import load, told
from airflow_mlops.errors import CodeError, SchemaError
from airflow_mlops.spec.data_schema import CheckRule, DataSchema, RowSeverity
from airflow_mlops.stages.tables import holds, type_of

Mask = np.ndarray[Any, np.dtype[np.bool_]]

SHOWN = 5
_LONGEST = 40
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_NULLABLE = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


class RowRule:
    """One rule, and what was found of it so far: how many rows broke it, and a few values that did."""

    def __init__(
        self, rule: str, columns: tuple[str, ...], severity: RowSeverity, *, kind: str, limit: Any = None
    ) -> None:
        self.rule, self.columns, self.severity, self.kind, self.limit = rule, columns, severity, kind, limit
        self.broken = 0
        self.examples: list[str] = []
        self.rows: list[int] = []
        self.worst: float | None = None
        self.values: dict[str, None] = {}

    @property
    def column(self) -> str | None:
        """The column that the rule is about, or None where it is about several."""
        return self.columns[0] if len(self.columns) == 1 else None

    @property
    def reason(self) -> str:
        """Why a single row is set aside."""
        name, columns = self.column, ", ".join(self.columns)
        reasons = {
            "min": f"{name} is below {self.limit}",
            "max": f"{name} is above {self.limit}",
            "categories": f"{name} is none of the categories",
            "infinite": f"{name} is infinite",
            "nulls": f"{name} is null",
            "target": f"{name} is null",
            "unique": f"{columns} stood in an earlier row",
        }
        return reasons.get(self.kind, f"breaks {self.rule}")

    def note(self, batch: pa.RecordBatch, mask: Mask, first: int) -> None:
        """Count the rows of a batch that break the rule; ``first`` is the number of its first row."""
        where = np.flatnonzero(mask)
        self.broken += len(where)
        if not len(where):
            return
        shown = where[: SHOWN - len(self.rows)]
        self.rows += (shown + first).tolist()
        if self.columns and len(shown):
            picked = [batch.column(name).take(pa.array(shown)).to_pylist() for name in self.columns]
            self.examples += [", ".join(map(short, values)) for values in zip(*picked, strict=True)]
        if self.kind in ("min", "max"):
            bounds = pc.min_max(batch.column(self.columns[0]).filter(pa.array(mask))).as_py()
            ends = [float(bounds[self.kind]), *([] if self.worst is None else [self.worst])]
            self.worst = min(ends) if self.kind == "min" else max(ends)
        if self.kind == "categories" and len(self.values) <= SHOWN:
            there = pc.unique(batch.column(self.columns[0]).filter(pa.array(mask))).to_pylist()
            self.values |= dict.fromkeys(map(short, there[: 2 * SHOWN]))

    def text(self, rows: int) -> str:
        """What was found, as a sentence, of so many rows in all."""
        name, share = self.column, self.broken / max(1, rows)
        if self.kind == "min":
            return f"the column {name!r} goes down to {self.worst:g}, below {self.limit:g}, in {_rows(self.broken)}"
        if self.kind == "max":
            return f"the column {name!r} goes up to {self.worst:g}, above {self.limit:g}, in {_rows(self.broken)}"
        if self.kind == "categories":
            shown = ", ".join(sorted(list(self.values)[:SHOWN])) + (", ..." if len(self.values) > SHOWN else "")
            return f"the column {name!r} has new categories: {shown}, in {_rows(self.broken)}"
        if self.kind == "infinite":
            return f"the column {name!r} has {self.broken} infinite values"
        if self.kind == "target":
            return f"the target {name!r} has {self.broken} nulls"
        if self.kind == "nulls":
            return f"{share:.2%} of the column {name!r} are nulls; at most 0.00% may be"
        if self.kind == "unique":
            return f"{_rows(self.broken)} {_have(self.broken)} the key of an earlier one ({', '.join(self.columns)})"
        return f"{_rows(self.broken)} {_break(self.broken)} the rule {self.rule!r}"


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _break(count: int) -> str:
    return "breaks" if count == 1 else "break"


def short(value: Any) -> str:
    """A value as it is shown."""
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


class RowRules:
    """The rules of a schema for rows of given columns.

    Args:
        schema: the reviewed data schema.
        arrow: the rows' columns; rules of columns that are not there, or hold another type, are left out, and those
            over several columns stand in ``unjudged``.
        target: the column to predict, which may have no null.

    Raises:
        SchemaError: when two columns that are compared cannot be.
        CodeError: when a function of the schema does not import.
    """

    def __init__(self, schema: DataSchema, arrow: pa.Schema, target: str | None = None) -> None:
        self.rules: list[RowRule] = []
        self._by_name: dict[str, RowRule] = {}
        columns = dict.fromkeys((*schema.columns, *((target,) if target else ())))
        held = {}
        for name in columns:
            if name in arrow.names and _holds(schema, name, arrow.field(name).type):
                held[name] = self._column(schema, name, arrow.field(name).type, name == target)
        whole = all(name in held or not column.required for name, column in schema.columns.items())
        judged = [check for check in schema.checks if (whole if check.function else set(check.columns) <= set(held))]
        self.unjudged = [check.title for check in schema.checks if check not in judged]
        over_columns = [self._check(schema, check, arrow) for check in judged]
        self.pandera = pandera.DataFrameSchema(held, checks=over_columns)
        self._checks = [
            *((name, check) for name, column in held.items() for check in column.checks),
            *((None, check) for check in over_columns),
        ]
        used = {name for rule in self.rules for name in rule.columns}
        every = any(check.function for check in judged)
        self._used = [name for name in arrow.names if name in used or every]
        self._repeated: RowRule | None = None
        if schema.unique and all(name in arrow.names for name in schema.unique):
            title = f"unique: {', '.join(schema.unique)}"
            self._repeated = RowRule(title, schema.unique, schema.hard, kind="unique")
            self.rules.append(self._repeated)

    def _check_of(self, rule: RowRule, judge: Callable[[Any], Any], *, ignore_na: bool = True) -> pandera.Check:
        """A rule as a pandera check that goes by the rule's number."""
        self.rules.append(rule)
        self._by_name[str(len(self.rules))] = rule
        return pandera.Check(judge, name=str(len(self.rules)), n_failure_cases=1, ignore_na=ignore_na)

    def _column(self, schema: DataSchema, name: str, kind: pa.DataType, is_target: bool) -> pandera.Column:
        column = schema.columns.get(name)
        checks = []
        forbidden = is_target or (column is not None and column.max_null_fraction == 0)
        if forbidden:
            rule = RowRule(f"{name} is not null", (name,), schema.hard, kind="target" if is_target else "nulls")
            checks.append(self._check_of(rule, _not_null, ignore_na=False))
        floating = pa.types.is_floating(kind)
        if floating and not (column is not None and column.allow_inf):
            rule = RowRule(f"{name} is finite", (name,), schema.hard, kind="infinite")
            checks.append(self._check_of(rule, lambda values: ~np.isinf(values)))
        if column is not None and type_of(kind) in ("integer", "number"):
            # An infinite value is out of no range: it has a rule of its own.
            if (low := column.min) is not None:
                rule = RowRule(f"{name} >= {low:g}", (name,), schema.severity(column), kind="min", limit=low)
                checks.append(self._check_of(rule, _bound(operator.ge, low, floating)))
            if (high := column.max) is not None:
                rule = RowRule(f"{name} <= {high:g}", (name,), schema.severity(column), kind="max", limit=high)
                checks.append(self._check_of(rule, _bound(operator.le, high, floating)))
        if column is not None and column.categories is not None:
            known = list(column.categories)
            title = f"{name} is one of {len(known)} categories"
            rule = RowRule(title, (name,), schema.severity(column), kind="categories", limit=known)
            checks.append(self._check_of(rule, lambda values: values.isin(known)))
        return pandera.Column(None, checks, nullable=True)

    def _check(self, schema: DataSchema, check: CheckRule, arrow: pa.Schema) -> pandera.Check:
        rule = RowRule(check.title, check.columns, schema.severity(check), kind="check")
        if check.function:
            judge = _function(check.function)
        else:
            _require_comparable(check, arrow)
            judge = _comparison(check)
        return self._check_of(rule, judge, ignore_na=False)

    def frame(self, batch: pa.RecordBatch) -> pd.DataFrame:
        """The columns of a batch that the rules are about, in types that do not depend on where the nulls are."""
        frame: pd.DataFrame = batch.select(self._used).to_pandas(types_mapper=_NULLABLE.get, date_as_object=False)
        return frame

    def rule_of(self, check: pandera.Check) -> RowRule:
        """The rule that a check of the pandera schema stands for."""
        return self._by_name[str(check.name)]

    def broken(self, batch: pa.RecordBatch, first: int, repeated: Mask | None = None) -> Iterator[tuple[RowRule, Mask]]:
        """The rules that rows of a batch break, each with the rows, as a boolean array of shape ``(rows,)``.

        Args:
            batch: the rows.
            first: the number of the batch's first row in the whole.
            repeated: which rows have the key of an earlier one.

        Raises:
            CodeError: when a function of the schema raises, or gives something else than a boolean Series.
        """
        found: dict[RowRule, Mask] = {}
        frame = self.frame(batch)
        # One check at a time: `validate` says the same, and spends most of its time on a table of failures for people,
        # which nobody reads here.
        for column, check in self._checks:
            result = check(frame if column is None else frame[column])
            if not result.check_passed:
                good = result.check_output
                mask = np.zeros(len(frame), dtype=bool)
                mask[good.index[~good.to_numpy(dtype=bool)]] = True
                found[self.rule_of(check)] = mask
        if self._repeated is not None and repeated is not None and repeated.any():
            found[self._repeated] = repeated
        for rule in self.rules:
            if rule in found:
                rule.note(batch, found[rule], first)
                yield rule, found[rule]


def _holds(schema: DataSchema, name: str, kind: pa.DataType) -> bool:
    """Whether a column holds the type that was declared; where not, it stops the run by that alone."""
    column = schema.columns.get(name)
    return column is None or holds(kind, column.type)


def _bound(compare: Callable[[Any, Any], Any], limit: float, floating: bool) -> Callable[[Any], Any]:
    if floating:
        return lambda values: compare(values, limit) | np.isinf(values)
    return lambda values: compare(values, limit)


def _not_null(values: pd.Series[Any]) -> pd.Series[bool]:
    return values.notna()


def _function(path: str) -> Callable[[pd.DataFrame], pd.Series[bool]]:
    function = load(path)

    def judge(frame: pd.DataFrame) -> pd.Series[bool]:
        try:
            result = function(frame.copy(deep=False))
        except (Exception, SystemExit) as error:
            raise CodeError(
                f"{path} raised {told(error)}",
                fix=f"call it on a few rows with the columns {', '.join(map(str, frame.columns[:12]))}",
            ) from error
        return _judged(result, frame, path)

    return judge


def _comparison(check: CheckRule) -> Callable[[pd.DataFrame], pd.Series[bool]]:
    compare = _OPERATORS[str(check.op)]

    def judge(frame: pd.DataFrame) -> pd.Series[bool]:
        left, right = frame[check.left], frame[check.right]
        unknown = (left.isna() | right.isna()).to_numpy(dtype=bool)
        held = compare(left, right).fillna(True).to_numpy(dtype=bool)
        return pd.Series(held | unknown, index=frame.index)

    return judge


def _require_comparable(check: CheckRule, arrow: pa.Schema) -> None:
    kinds = {name: arrow.field(name).type for name in check.columns}
    groups = set()
    for kind in kinds.values():
        if pa.types.is_null(kind):
            continue
        word = type_of(kind)
        zone = "in a time zone" if pa.types.is_timestamp(kind) and kind.tz else ""
        groups.add(({"integer": "number", "date": "timestamp"}.get(str(word), word), zone))
    if len(groups) > 1:
        what = " and ".join(f"{name!r} holds {kind}" for name, kind in kinds.items())
        raise SchemaError(f"the rule {check.title!r} cannot be judged: {what}", fix="compare columns of one kind")


def _judged(result: Any, frame: pd.DataFrame, path: str) -> pd.Series[bool]:
    """Hold what a function gives against its contract; a null is no verdict, and passes."""
    if isinstance(result, np.ndarray) and result.shape == (len(frame),):
        result = pd.Series(result, index=frame.index)
    if not isinstance(result, pd.Series):
        raise CodeError(f"{path} gives {type(result).__name__}", allowed="a boolean Series, true where a row is good")
    if not result.index.equals(frame.index):
        raise CodeError(
            f"{path} gives {len(result)} values with another index for {len(frame)} rows",
            fix="give a value for every row, in their order",
        )
    if (
        not pd.api.types.is_bool_dtype(result.dtype)
        and not result.dropna().map(lambda each: isinstance(each, (bool, np.bool_))).all()
    ):
        raise CodeError(
            f"{path} gives a Series of {result.dtype}", allowed="a boolean Series, true where a row is good"
        )
    return pd.Series(result.astype("boolean").fillna(True).to_numpy(dtype=bool), index=frame.index)
