"""Slices: the held-out rows parted by a raw column, each part measured by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from airflow_mlops.errors import GateError
from airflow_mlops.stages.bootstrap import Scores, part_of
from airflow_mlops.stages.intervals import Estimate, as_json, intervals, mean
from airflow_mlops.stages.scoring import evaluate

MAX_VALUES = 20
_RANGES = 4


class Slice(NamedTuple):
    """Some rows, by their numbers, and what they have in common."""

    value: str
    kind: Literal["value", "range", "null", "other"]
    """A value of the column, a range of its numbers or times, its nulls, or its rarer values together."""
    rows: npt.NDArray[np.int64]


def slices_of(values: pa.ChunkedArray, most: int = MAX_VALUES) -> list[Slice]:
    """Part rows by a column's values, the largest part first; nulls are a part of their own.

    Of more than ``most`` values, numbers and times are parted at their quartiles; of anything else the ``most``
    commonest values stay, and the others are one part.
    """
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("ms"))
    series = values.to_pandas().reset_index(drop=True)
    there = series.dropna()
    null = np.flatnonzero(series.isna().to_numpy())
    nulls = [Slice("no value", "null", null)] if len(null) else []
    plain = not (pa.types.is_nested(values.type) or pa.types.is_binary(values.type))
    ordered = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if (ordered or pa.types.is_timestamp(values.type)) and there.nunique() > most:
        return _ranges(there) + nulls
    # Values that have no hash, such as lists, are told apart by how they read.
    keys = there if plain else there.map(repr)
    counts = keys.value_counts()
    # Values of equal count stand in the order of their names, whatever the order of the rows.
    names = sorted(counts.index, key=lambda value: (-counts[value], str(value)))
    rows = keys.groupby(keys, observed=True, sort=False).indices
    numbers = there.index.to_numpy()
    whole = pd.api.types.is_float_dtype(keys) and bool((keys == keys.round()).all())
    found = [Slice(_written(name, whole), "value", numbers[rows[name]]) for name in names[:most]]
    found = sorted(found + nulls, key=lambda part: -len(part.rows))
    if names[most:]:
        rest = np.sort(np.concatenate([numbers[rows[name]] for name in names[most:]]))
        found.append(Slice(f"{len(names) - most:,} other values", "other", rest))
    return found


def _ranges(there: pd.Series[Any]) -> list[Slice]:
    """Numbers or times at their quartiles, which are values that are there."""
    inner = [len(there) * part // _RANGES for part in range(1, _RANGES)]
    edges = there.sort_values().iloc[[0, *inner, -1]].unique()
    numbers = there.index.to_numpy()
    range_of = np.searchsorted(edges[1:-1], there.to_numpy(), side="right")
    found = []
    for index in range(len(edges) - 1):
        below = "" if index == len(edges) - 2 else "below "
        name = f"{_written(edges[index])} to {below}{_written(edges[index + 1])}"
        found.append(Slice(name, "range", numbers[range_of == index]))
    return found


def _written(value: Any, whole: bool = False) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.0f}" if whole else f"{value:g}"
    return str(pd.Timestamp(value)) if isinstance(value, np.datetime64) else str(value)


def measured(
    parts: Sequence[Slice], scores: Scores, names: Sequence[str], *, min_rows: int, residuals: bool = False
) -> list[dict[str, Any]]:
    """Every metric of every part, with its interval, as plain JSON.

    A part of fewer than ``min_rows`` rows has a ``note`` and no metrics; a metric that is not defined on a part has its
    reason under ``undefined``. ``residuals`` adds the mean of true minus predicted, as ``mean_error``.
    """
    found = []
    for part in parts:
        entry: dict[str, Any] = {"value": part.value, "kind": part.kind, "rows": len(part.rows), "metrics": {}}
        found.append(entry)
        if len(part.rows) < min_rows:
            entry["note"] = f"fewer than {min_rows} rows"
            continue
        inside = part_of(scores, part.rows)
        values: dict[str, float] = {}
        for name in names:
            try:
                values[name] = evaluate(name, inside)
            except GateError as error:
                entry.setdefault("undefined", {})[name] = error.what
        bounds = intervals(list(values), inside)
        entry["metrics"] = {name: as_json(Estimate(value, *(bounds[name] or ()))) for name, value in values.items()}
        if residuals:
            entry["metrics"]["mean_error"] = as_json(mean(inside.truth - inside.prediction))
    return found
