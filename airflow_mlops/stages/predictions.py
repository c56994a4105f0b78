"""Logged predictions as monitoring reads them: whose they are, which columns say something, and their reference."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call
from airflow_mlops.errors import DataNotFoundError
from airflow_mlops.registry.mlflow_api import MlflowApi, Version
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.window import Grain, Window, last_windows, parse_key
from airflow_mlops.stages.batch_predict import read_predictions
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.model_io import Facts
from airflow_mlops.stages.profiles import reference_of

REFERENCE = "mlops/predictions.bin"
"""The profile of what a model has said of its held-out rows, among the artifacts of its run."""


class Predicted(NamedTuple):
    """A window's predictions."""

    table: pa.Table
    version: Version
    """The version that made them."""
    served: str | None
    """The champion of today, where that is another one."""


def folder_of(destination: str | None, call: Call, store: Store) -> str:
    """Where a pipeline's predictions are."""
    return destination or store.uri("predictions", call.pipeline)


def predicted(destination: str, call: Call, registry: ModelRegistry, columns: Sequence[str] = ()) -> Predicted:
    """The predictions of a Call's window: the columns asked for that are there, and all that the model said.

    Where several versions have answered in the window, they are those of the champion or, where it has none, of the
    version with the most. What a version said in another one's shadow is left out: nobody got to see it.

    Raises:
        DataNotFoundError: when nothing was predicted for the window.
    """
    window = call.window.key if call.window else "all"
    tables = []
    for batch in read_predictions(destination, window):
        names = batch.column_names
        wanted = [name for name in names if name in columns or name == "model_version" or said(name)]
        shown = batch.filter(pc.not_equal(batch["role"], "shadow")) if "role" in names else batch
        tables.append(shown.select(wanted))
    table = pa.concat_tables(tables, promote_options="default")
    champion = registry.ledger.champion()
    counts = {str(each["values"]): each["counts"] for each in table["model_version"].value_counts().to_pylist()}
    if not counts:
        raise DataNotFoundError(f"nobody has got a prediction of {window}: all were compared in a shadow")
    chosen = champion if champion in counts else max(counts, key=lambda each: counts[each])
    table = table.filter(pc.equal(table["model_version"], chosen)).drop_columns(["model_version"])
    version = registry.api.version(registry.ref.model, chosen)
    return Predicted(table, version, None if champion == version.version else champion)


def said(name: str) -> bool:
    """Whether a column of predictions is what the model said."""
    return name in {"prediction", "probability"} or name.startswith("probability.")


def watched(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that are watched: probabilities tell all that labels do; without any it is the prediction."""
    return tuple(name for name in names if name.startswith("probability")) or ("prediction",)


def trained_on(facts: Facts, window: Window | None, grain: Grain) -> bool:
    """Whether a model has seen the window in training, so that what it says of it is no news."""
    if window is None or facts.window is None or facts.window == "all":
        return False
    return window in last_windows(grain, parse_key(grain, facts.window), facts.windows)


def columns_of(facts: Facts, scores: Scores, *, probabilities: bool) -> dict[str, pa.Array]:
    """Scores in the columns that are watched, by the names that batch prediction gives them."""
    if scores.probability is None:
        return {"prediction": pa.array(scores.prediction.astype(float))}
    if not probabilities:
        labels = pa.array(list(facts.classes))
        return {"prediction": labels.take(pa.array(scores.prediction))}
    if len(facts.classes) == 2:
        return {"probability": pa.array(np.ascontiguousarray(scores.probability[:, 1]))}
    return {
        f"probability.{name}": pa.array(np.ascontiguousarray(scores.probability[:, index]))
        for index, name in enumerate(facts.classes)
    }


def log_reference(
    api: MlflowApi, run_id: str, facts: Facts, scores: Scores, rows: pa.Table, time: str | None, *, probabilities: bool
) -> None:
    """Keep the profile of what a model says of its held-out rows with its run; logged once more it is the same.

    Raises:
        RegistryUnreachableError: when MLflow does not take it.
    """
    columns = columns_of(facts, scores, probabilities=probabilities)
    table = pa.table(columns)
    if time in rows.column_names:
        table = table.append_column(time, rows[time])
    profile = reference_of(table, tuple(columns), time)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, Path(REFERENCE).name)
        file.write_bytes(profile.to_bytes())
        api.log_file(run_id, REFERENCE, file)
