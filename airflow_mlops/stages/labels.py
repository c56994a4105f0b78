"""Labels that came later, joined by key to what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from airflow_mlops.errors import SchemaError
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.model_io import Facts
from airflow_mlops.stages.tables import require_columns


class Joined(NamedTuple):
    """What is known of a window's predictions."""

    scores: Scores
    """The predictions that have a label, and the label."""
    predictions: int
    """How many predictions there are."""
    notes: tuple[str, ...]
    """What was left out, and how much of it."""


def join(predictions: pa.Table, labels: pa.Table, key: Sequence[str], facts: Facts) -> Joined:
    """Bring labels to predictions.

    A prediction counts once, with the one label of its key: keys predicted twice, keys with different labels and keys
    with a null are left out, for nothing says which is meant; so are classes that the model cannot say.

    Args:
        predictions: the key columns, and what the model said.
        labels: the key columns and the target. Without the target no label has come yet.
        key: the key columns.
        facts: what is known of the model.

    Raises:
        SchemaError: when a key column is missing, or holds another kind of values on either side.
    """
    use = "the key that joins labels and predictions"
    for table, what in ((predictions, "predictions"), (labels, "labels")):
        try:
            require_columns(table.column_names, dict.fromkeys(key, use))
        except SchemaError as error:
            raise SchemaError(
                f"of the {what}, {error}", fix="declare data.key, and predict again" if what == "predictions" else None
            ) from error
    count, notes = predictions.num_rows, list[str]()
    if facts.target not in labels.column_names:
        notes.append(f"the labels have no column {facts.target!r} yet")
        return Joined(_scores(predictions.slice(0, 0), np.zeros(0), facts), count, tuple(notes))
    said = _keys(predictions, key).assign(__row=np.arange(count))
    truth = _keys(_cast(labels, predictions, key), key)
    truth["__label"] = labels[facts.target].to_pandas().to_numpy(dtype=object)
    said = _left_out(said, said[list(key)].isna().any(axis=1), "predictions without a key", notes)
    said = _left_out(said, said.duplicated(list(key), keep=False), "predictions that share a key", notes)
    truth = truth[~pd.isna(truth["__label"])]
    truth = _left_out(truth, truth[list(key)].isna().any(axis=1), "labels without a key", notes)
    truth = truth.drop_duplicates([*key, "__label"])
    truth = _left_out(truth, truth.duplicated(list(key), keep=False), "labels that contradict another", notes)
    both = said.merge(truth, on=list(key), how="inner")
    if len(truth) > len(both):
        notes.append(f"{len(truth) - len(both):,} labels are for rows never predicted in this window")
    both = _known(both, facts, notes).sort_values("__row")
    table = predictions.take(pa.array(both["__row"].to_numpy(dtype=np.int64)))
    return Joined(_scores(table, _truth(both["__label"], facts), facts), count, tuple(notes))


def _keys(table: pa.Table, key: Sequence[str]) -> pd.DataFrame:
    frame: pd.DataFrame = table.select(list(key)).to_pandas().reset_index(drop=True)
    return frame


def _cast(labels: pa.Table, predictions: pa.Table, key: Sequence[str]) -> pa.Table:
    columns = []
    for name in key:
        kind = predictions.schema.field(name).type
        try:
            columns.append(labels[name].cast(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SchemaError(
                f"the key {name!r} holds {labels[name].type} in the labels and {kind} in the predictions: {error}",
                fix="write it with one type on both sides",
            ) from error
    return pa.table(columns, names=list(key))


def _left_out(frame: pd.DataFrame, which: Any, what: str, notes: list[str]) -> pd.DataFrame:
    if which.any():
        notes.append(f"{int(which.sum()):,} {what} are left out")
    kept: pd.DataFrame = frame[~which]
    return kept


def _known(both: pd.DataFrame, facts: Facts, notes: list[str]) -> pd.DataFrame:
    if facts.task == "regression":
        numbers = pd.to_numeric(both["__label"], errors="coerce")
        return _left_out(both, ~np.isfinite(numbers.to_numpy(dtype=float)), "labels that are no numbers", notes)
    known = set(facts.classes)
    strange = ~both["__label"].map(lambda label: label in known).astype(bool)
    if strange.any():
        names = ", ".join(sorted({str(label) for label in both["__label"][strange]})[:5])
        classes = ", ".join(map(str, facts.classes))
        what = f"labels of classes that the model does not know ({names}; it knows {classes})"
        return _left_out(both, strange, what, notes)
    return both


def _truth(labels: pd.Series[Any], facts: Facts) -> Any:
    if facts.task == "regression":
        return labels.to_numpy(dtype=float)
    index = {value: position for position, value in enumerate(facts.classes)}
    return np.array([index[label] for label in labels], dtype=np.int64)


def _scores(table: pa.Table, truth: Any, facts: Facts) -> Scores:
    if facts.task == "regression":
        return Scores(truth, table["prediction"].to_numpy().astype(float))
    classes = len(facts.classes)
    names = ["probability"] if classes == 2 else [f"probability.{name}" for name in facts.classes]
    if names[0] in table.column_names:
        probability = np.column_stack([table[name].to_numpy() for name in names])
        if classes == 2:
            probability = np.column_stack([1 - probability[:, 0], probability[:, 0]])
        return Scores(truth, probability.argmax(axis=1), probability)
    index = {value: position for position, value in enumerate(facts.classes)}
    answered = np.array([index[label] for label in table["prediction"].to_pylist()], dtype=np.int64)
    return Scores(truth, answered, np.eye(classes)[answered])
