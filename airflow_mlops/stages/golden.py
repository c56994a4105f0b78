"""Golden rows: raw rows of the training with what the model said of them before it was ever written.

Whoever serves the model must say the same: that is the parity of training and serving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.deployments.endpoint import Answer
from airflow_mlops.stages.model_io import Facts

GOLDEN = "mlops/golden.parquet"
MOST = 50
"""How many rows are kept."""
_PREDICTION = "answer.prediction"
_PROBABILITY = "answer.probability."


class Golden(NamedTuple):
    """Rows as a client sends them, and what training saw."""

    columns: list[str]
    rows: list[list[Any]]
    predictions: list[Any]
    probabilities: dict[str, list[float]]
    """Of a classifier that gives them: of each class, by its name as JSON has it."""


def write_golden(file: Path, model: Any, rows: pd.DataFrame, facts: Facts) -> None:
    """Keep rows, spread evenly over the training's, with the answers of the model as it was fitted."""
    at = np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int))
    chosen = rows.iloc[at]
    table = pa.Table.from_pandas(chosen, preserve_index=False).replace_schema_metadata(None)
    said = {_PREDICTION: pa.array(np.asarray(model.predict(chosen)).tolist())}
    if facts.task != "regression" and hasattr(model, "predict_proba"):
        chances = np.asarray(model.predict_proba(chosen), dtype=np.float64)
        said |= {
            f"{_PROBABILITY}{name_of_class(each)}": pa.array(np.ascontiguousarray(chances[:, index]))
            for index, each in enumerate(facts.classes)
        }
    pq.write_table(pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **said}), file)


def name_of_class(value: Any) -> str:
    """A class as the key of a JSON object."""
    return str(value)


def read_golden(file: Path) -> Golden:
    """What `write_golden` has kept."""
    table = pq.read_table(file)
    columns = [name for name in table.column_names if not name.startswith("answer.")]
    return Golden(
        columns,
        [[as_json(value) for value in row.values()] for row in table.select(columns).to_pylist()],
        table[_PREDICTION].to_pylist(),
        {
            name.removeprefix(_PROBABILITY): table[name].to_pylist()
            for name in table.column_names
            if name.startswith(_PROBABILITY)
        },
    )


def as_json(value: Any) -> Any:
    """A value of a raw row as a client writes it in JSON: times in ISO 8601, no number that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | bytes) else value


def differences(golden: Golden, answer: Answer, tolerance: float, *, regression: bool) -> list[str]:
    """In what a server's answer is not what training saw, in words; empty where it is the same.

    Args:
        golden: the rows and what training saw.
        answer: what the server said of them.
        tolerance: how far numbers may lie apart, in absolute value or, above 1, as a share.
        regression: whether predictions are numbers that may lie apart by that.
    """
    found = []
    if regression:
        apart = _apart(golden.predictions, answer.predictions)
        if apart > tolerance:
            found.append(f"a prediction is {apart:.3g} away from what training saw, beyond {tolerance:g}")
    else:
        other = sum(own != said for own, said in zip(golden.predictions, answer.predictions, strict=True))
        if other:
            found.append(f"{other} of {len(golden.rows)} golden rows get another label than in training")
    for name, own in golden.probabilities.items():
        if name not in answer.probabilities:
            found.append(f"the probability of class {name} is missing from the answer")
            continue
        apart = _apart(own, answer.probabilities[name])
        if apart > tolerance:
            found.append(f"a probability of class {name} is {apart:.3g} away from what training saw")
    return found


def _apart(own: Sequence[Any], said: Sequence[Any]) -> float:
    try:
        first, second = np.asarray(own, dtype=float), np.asarray(said, dtype=float)
    except (TypeError, ValueError):
        return math.inf
    gap = np.abs(first - second) / np.maximum(1.0, np.abs(first))
    gap[np.isnan(first) & np.isnan(second)] = 0.0
    return float(np.nan_to_num(gap, nan=math.inf).max(initial=0.0))


def latency(seconds: Sequence[float]) -> Mapping[str, float]:
    """The median and the 99% point of answer times, in milliseconds."""
    found = np.asarray(seconds) * 1000
    return {"p50_ms": float(np.median(found)), "p99_ms": float(np.quantile(found, 0.99))}
