"""Preparation: the feature function's contract is checked, and test rows are set apart.

The snapshots stay raw rows. Features are computed inside the model, by the same code in training and in serving, so
there is nothing that could differ between the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from airflow_mlops.call.code import load, told
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import CodeError, DataError
from airflow_mlops.spec.pipeline import Split
from airflow_mlops.spec.stages import Prepare
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.rows import row_hashes
from airflow_mlops.stages.tables import read_table, require_columns, to_frame, write_table

_SAMPLE_ROWS = 500


def run(call: Call, params: Prepare, store: Store) -> Outcome:
    """Split the rows; outputs ``train`` and ``test``, raw rows both."""
    table = read_table(call.input("data"), store)
    require_columns(table.column_names, columns_needed(params))
    if params.features:
        check_features(params.features, table.slice(0, _SAMPLE_ROWS), params.target)
    test = held_out(table, params.split, params.time, params.seed)
    shares = int(test.sum()), int((~test).sum())
    if not all(shares):
        raise DataError(
            f"the split by {params.split.by} of {table.num_rows} rows leaves {shares[1]} rows to train and "
            f"{shares[0]} to test",
            fix="read more windows (train.windows), or change prepare.split",
        )
    return outcome_of(
        call,
        outputs={
            "train": write_table(table.filter(pa.array(~test)), store),
            "test": write_table(table.filter(pa.array(test)), store),
        },
        metrics={"train_rows": float(shares[1]), "test_rows": float(shares[0])},
    )


def columns_needed(params: Prepare) -> dict[str, str]:
    """The columns that must be there, and what each is for."""
    wanted = {params.target: "the target"}
    if params.time:
        wanted[params.time] = "the time column"
    if params.split.group:
        wanted[params.split.group] = "the group"
    return wanted


def held_out(table: pa.Table, split: Split, time: str | None, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows are test rows, as a boolean array of shape ``(rows,)``.

    By time, the newest rows, and no instant on both sides. By group or at random, those whose hash falls into the
    share: a row (a group) is on the same side in every run, equal rows are never on two sides, and a row that one model
    was tested on was not trained on by the next.
    """
    if split.by == "time":
        if time is None:
            raise DataError("a split by time needs a time column", fix="declare data.time")
        at = table[time].to_pandas()
        if at.isna().any():
            raise DataError(f"the time column {time!r} has {int(at.isna().sum())} nulls", fix="leave these rows out")
        cut = np.sort(at.to_numpy())[int(len(at) * (1 - split.test))]
        return np.asarray(at.to_numpy() >= cut)
    return hashed_apart(table, split, seed)


def hashed_apart(table: pa.Table, split: Split, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows are test rows by a split by group or at random: of each row by itself, so of any piece of the rows."""
    frame = to_frame(table.select([split.group]) if split.by == "group" and split.group else table)
    return np.asarray(row_hashes(frame, seed) < np.uint64(split.test * float(2**64 - 1)))


def check_features(path: str, sample: pa.Table, target: str) -> None:
    """Hold a feature function against its contract on a sample of rows.

    It must take rows without the target, give a frame with a row for each row in their order, not change its input, and
    be stateless: the features of a row depend on that row alone, or serving would see other features than training.

    Raises:
        CodeError: that says which promise was broken.
    """
    build = load(path)
    frame = to_frame(sample.drop_columns([target]))
    before = frame.copy()
    whole = call_features(build, path, frame, target)
    if not frame.equals(before):
        raise CodeError(f"{path} changes the frame that it is given", fix="start with `frame = frame.copy()`")
    if not whole.index.equals(frame.index):
        raise CodeError(
            f"{path} gives {len(whole)} rows with another index for {len(frame)} rows",
            fix="keep every row and its order; leave rows out before extraction",
        )
    # Several pieces: a median may happen to be the same in one of them.
    for piece in (slice(len(frame) // 2, None), slice(None, None, 3), slice(0, 1 + len(frame) // 10)):
        compare_features(
            path, call_features(build, path, before.iloc[piece].reset_index(drop=True), target), whole.iloc[piece]
        )


def compare_features(path: str, part: pd.DataFrame, whole: pd.DataFrame) -> None:
    """Hold the features of a piece of the rows against those that the same rows had among all.

    Raises:
        CodeError: when they differ.
    """
    expected = whole.reset_index(drop=True)
    if list(part.columns) != list(expected.columns):
        raise CodeError(
            f"{path} gives other columns for other rows: {sorted(set(part.columns) ^ set(expected.columns))}",
            fix="name every column whatever the rows hold; one-hot encoding belongs into prepare.preprocess",
        )
    for column in expected.columns:
        if len(part) != len(expected) or not _same(part[column], expected[column]):
            raise CodeError(
                f"{path} is not stateless: {column!r} of a row changes with the other rows of the frame",
                fix="move what is learned from many rows (means, scaling, encoding) into prepare.preprocess",
            )


def _same(left: pd.Series[Any], right: pd.Series[Any]) -> bool:
    if pd.api.types.is_numeric_dtype(left) and pd.api.types.is_numeric_dtype(right):
        a, b = (np.asarray(side.to_numpy(dtype=float, na_value=np.nan)) for side in (left, right))
        return bool(np.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True))
    # Whatever categories the other rows have brought.
    left, right = (
        side.astype(object) if isinstance(side.dtype, pd.CategoricalDtype) else side for side in (left, right)
    )
    return bool(((left == right) | (left.isna() & right.isna())).all())


def call_features(build: Any, path: str, frame: pd.DataFrame, target: str | None = None) -> pd.DataFrame:
    """Call a feature function and see that a frame comes back.

    Args:
        build: the function.
        path: what it goes by.
        frame: raw rows without the target.
        target: the target's name, to be told where the function asks for it.
    """
    try:
        result = build(frame)
    except (Exception, SystemExit) as error:
        fix = f"call it on a few rows without the target, with the columns {', '.join(map(str, frame.columns[:12]))}"
        if target and isinstance(error, (KeyError, AttributeError)) and repr(target) in str(error):
            fix = f"leave {target!r} out: features are built without the target, which nobody knows when predicting"
        raise CodeError(f"{path} raised {told(error)}", fix=fix) from error
    if not isinstance(result, pd.DataFrame):
        raise CodeError(f"{path} gives {type(result).__name__}", allowed="a pandas DataFrame")
    return result
