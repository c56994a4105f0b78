"""A profile says in a few numbers what pandas says of the whole."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.drift.summary import profile
from tests import toy


def test_numbers_are_what_pandas_says() -> None:
    table = toy.rows("2024-01")
    found = profile(table)["columns"]["age"]
    values = table["age"].to_pandas()
    assert found["nulls"] == values.isna().sum() > 0
    assert found["mean"] == pytest.approx(values.mean())
    assert found["std"] == pytest.approx(values.std(ddof=0))
    assert (found["min"], found["max"]) == (values.min(), values.max())
    assert found["quantiles"]["0.95"] == pytest.approx(values.quantile(0.95))


def test_texts_are_counted_most_frequent_first() -> None:
    found = profile(pa.table({"s": ["b", "a", None, "b"], "f": [True, True, False, None]}))["columns"]
    assert found["s"] == {"type": "string", "nulls": 1, "distinct": 2, "top": {"b": 2, "a": 1}}
    assert list(found["s"]["top"]) == ["b", "a"]
    assert found["f"]["nulls"] == 1 and found["f"]["distinct"] == 2


def test_nan_and_infinity_are_counted_and_spoil_nothing() -> None:
    found = profile(pa.table({"x": [1.0, np.nan, np.inf, None, 3.0]}))["columns"]["x"]
    assert (found["nulls"], found["infinite"], found["mean"]) == (2, 1, 2.0)


def test_a_profile_is_plain_json_for_every_kind_of_column() -> None:
    table = toy.rows("2024-01").append_column("empty", pa.nulls(400)).append_column("none", pa.nulls(400, pa.float64()))
    found = profile(table)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["rows"] == 400 and list(found["columns"]) == table.column_names
    assert found["columns"]["empty"]["nulls"] == 400
    assert "mean" not in found["columns"]["none"]
