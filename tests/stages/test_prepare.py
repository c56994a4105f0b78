"""Preparation: the feature function keeps its promises, and no row is on both sides of the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.code import snapshot
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import CodeError, DataError, SchemaError
from airflow_mlops.spec.pipeline import Split
from airflow_mlops.stages.prepare import held_out
from airflow_mlops.stages.tables import read_table, write_table
from tests import toy

FEATURES = "import pandas as pd\ndef build(frame):\n    {}\n"
IDS = st.lists(st.integers(0, 30), min_size=1, max_size=60)


def prepare(folder: Path, table: pa.Table, **params: Any) -> Outcome:
    store = Store(str(folder / "store"))
    code = snapshot([params["features"]], str(folder), store) if "features" in params else None
    call = Call(
        pipeline="toy",
        stage="prepare",
        run="r",
        inputs={"data": write_table(table, store)},
        params={"target": "y", "split": {"by": "random"}, **params},
        code=code,
        store=store.root,
    )
    return run(call)


def sides(table: pa.Table, split: Split, time: str | None = None, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    test = held_out(table, split, time, seed)
    return table.filter(pa.array(~test)), table.filter(pa.array(test))


def test_every_row_is_on_one_side_as_it_was(tmp_path: Path) -> None:
    table = toy.rows("2024-01")
    outcome = prepare(tmp_path, table)
    store = Store(str(tmp_path / "store"))
    train, test = (read_table(outcome.outputs[name], store) for name in ("train", "test"))
    both = pa.concat_tables([train, test]).sort_by("id")
    assert both == table.sort_by("id")
    assert outcome.metrics == {"train_rows": float(len(train)), "test_rows": float(len(test))}
    assert 40 < test.num_rows < 130


def test_by_time_the_newest_rows_are_held_out(tmp_path: Path) -> None:
    table = toy.rows("2024-01", 1000)
    train, test = sides(table, Split(by="time", test=0.25), "at")
    assert max(train["at"].to_pylist()) < min(test["at"].to_pylist())
    assert abs(test.num_rows - 250) < 5


@given(st.lists(st.integers(0, 12), min_size=1, max_size=50), st.floats(0.05, 0.95))
def test_no_instant_is_on_both_sides(days: list[int], share: float) -> None:
    at = pd.Timestamp("2024-01-01") + pd.to_timedelta(days, unit="D")
    for zone in (None, "UTC"):
        table = pa.table({"at": pa.array(at, pa.timestamp("us", zone)), "y": days})
        train, test = sides(table, Split(by="time", test=share), "at")
        assert not set(train["y"].to_pylist()) & set(test["y"].to_pylist())
        assert test.num_rows >= min(len(days), int(len(days) * share))


@given(IDS, IDS, st.integers(0, 5))
def test_a_group_is_on_one_side_and_stays_there_when_rows_come(groups: list[int], more: list[int], seed: int) -> None:
    split = Split(by="group", group="g", test=0.4)

    def held(values: list[int]) -> set[int]:
        table = pa.table({"g": values, "y": list(range(len(values)))})
        train, test = sides(table, split, seed=seed)
        assert not set(train["g"].to_pylist()) & set(test["g"].to_pylist())
        return set(test["g"].to_pylist())

    before, after = held(groups), held([*more, *groups])
    assert after & set(groups) == before


@given(IDS, IDS, st.integers(0, 5))
def test_equal_rows_are_on_one_side_and_stay_there_when_rows_come(rows: list[int], more: list[int], seed: int) -> None:
    split = Split(by="random", test=0.4)

    def held(values: list[int], nulls: int = 0) -> set[int]:
        # Nulls turn whole numbers into broken ones, and booleans into objects.
        column = [*values, *[None] * nulls]
        table = pa.table({"x": column, "b": [None if each is None else each % 2 == 0 for each in column]})
        train, test = sides(table, split, seed=seed)
        assert not set(train["x"].to_pylist()) & set(test["x"].to_pylist())
        return set(test["x"].to_pylist())

    before, after = held(rows), held([*more, *rows], nulls=3)
    assert after & set(rows) == before


def test_another_seed_holds_out_other_rows() -> None:
    table = toy.rows("2024-01")
    held = [held_out(table, Split(by="random"), None, seed) for seed in (0, 1)]
    assert np.mean(held[0] & held[1]) < 0.1


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_the_share_is_kept(share: float) -> None:
    table = pa.table({"x": np.arange(5000)})
    assert abs(np.mean(held_out(table, Split(by="random", test=share), None, 0)) - share) < 0.03


def test_a_split_that_leaves_a_side_empty_says_what_to_do(tmp_path: Path) -> None:
    same = pa.table({"x": [1, 1], "y": [0, 0]})
    with pytest.raises(DataError, match=r"the split by random of 2 rows leaves .* try: read more windows"):
        prepare(tmp_path, same)


def test_what_the_split_needs_must_be_there(tmp_path: Path) -> None:
    table = toy.rows("2024-01")
    with pytest.raises(SchemaError, match=r"'z' \(the target\)"):
        prepare(tmp_path, table, target="z")
    with pytest.raises(SchemaError, match=r"'g' \(the group\)"):
        prepare(tmp_path, table, split={"by": "group", "group": "g"})
    with pytest.raises(SchemaError, match=r"'when' \(the time column\)"):
        prepare(tmp_path, table, time="when", split={"by": "time"})
    with pytest.raises(DataError, match="needs a time column"):
        prepare(tmp_path, table, split={"by": "time"})
    missing = pa.table({"at": pa.array([None, 1], pa.timestamp("us")), "y": [0, 1]})
    with pytest.raises(DataError, match="'at' has 1 nulls"):
        prepare(tmp_path, missing, time="at", split={"by": "time"})


GOOD = [
    "frame = frame.copy(); frame['twice'] = frame.amount * 2; return frame",
    "return frame[['amount']].fillna(0)",
    "return frame.assign(hour=frame['at'].dt.hour, known=frame.region.isin(['east', 'west']))",
    "return pd.DataFrame({'region': frame.region.str.upper()})",
    "return frame[['id', 'region']].astype('category')",
]


@pytest.mark.parametrize("body", GOOD)
def test_a_stateless_function_is_accepted(tmp_path: Path, body: str) -> None:
    toy.package(tmp_path, "goodies", FEATURES.format(body))
    assert prepare(tmp_path, toy.rows("2024-01"), features="goodies.features:build").metrics["train_rows"] > 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return frame.assign(z=frame.amount - frame.amount.mean())", "is not stateless: 'z' of a row changes"),
        ("return frame.assign(z=frame.age.fillna(frame.age.median()))", "is not stateless: 'z'"),
        ("return frame.assign(z=range(len(frame)))", "is not stateless: 'z'"),
        ("return frame.dropna()", "rows with another index for 400 rows"),
        ("return frame.sort_values('amount')", "rows with another index"),
        ("frame['z'] = 1; return frame", "changes the frame that it is given"),
        ("frame.loc[0, 'amount'] = 0.0; return frame.copy()", "changes the frame that it is given"),
        ("return frame.drop(columns='y')", "; try: leave 'y' out: features are built without the target"),
        ("return frame.assign(z=frame['y'])", "raised KeyError: 'y' (at baddies/features.py:"),
        ("return frame.assign(z=frame.y)", "try: leave 'y' out"),
        ("return frame[['yy']]", "try: call it on a few rows without the target"),
        ("return frame.amount", "gives Series; allowed: a pandas DataFrame"),
        ("return None", "gives NoneType"),
        ("raise ValueError('no luck')", "raised ValueError: no luck"),
        ("return pd.get_dummies(frame[['id']])", "gives other columns for other rows"),
    ],
)
def test_a_function_that_breaks_its_contract_is_told_which(tmp_path: Path, body: str, said: str) -> None:
    toy.package(tmp_path, "baddies", FEATURES.format(body))
    with pytest.raises(CodeError) as caught:
        prepare(tmp_path, toy.rows("2024-01"), features="baddies.features:build")
    assert said in str(caught.value) and "baddies.features:build" in str(caught.value)
    assert "stage 'prepare'" in str(caught.value)


def test_a_function_that_is_not_there_is_told_what_is(tmp_path: Path) -> None:
    toy.package(tmp_path, "fewer", FEATURES.format("return frame"))
    with pytest.raises(CodeError, match=r"has no 'built'.*build"):
        prepare(tmp_path, toy.rows("2024-01"), features="fewer.features:built")
