"""Batch prediction: the champion scores a window, and its partition of predictions appears whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.store import Store, digest_of_file
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome
from airflow_mlops.registry.mlflow_api import pointed_at
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.stages import BatchPredict
from airflow_mlops.stages.model_io import Model, loaded, raw_rows, read_facts
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.tables import read_table, require_columns, schema_id

FILE = "predictions.parquet"


def run(call: Call, params: BatchPredict, store: Store) -> Outcome:
    """Score the rows of ``data``; output ``predictions``. A rerun replaces its own partition and no other."""
    table = read_table(call.input("data"), store)
    require_columns(table.column_names, dict.fromkeys(params.keep, "kept beside the predictions"))
    registry = ModelRegistry.of(call, store)
    champion = registry.need_champion()
    with tempfile.TemporaryDirectory() as scratch, pointed_at(registry.ref.uri):
        facts = read_facts(champion.run_id, Path(scratch, "facts"))
        with loaded(facts, Path(scratch, "model")) as model:
            scored = _score(model, table)
    window = call.window.key if call.window else "all"
    stamps = {"model": champion.model, "model_version": champion.version, "run": call.run, "window": window}
    columns = {name: table[name] for name in params.keep} | scored
    columns |= {name: pa.array([value] * table.num_rows, pa.string()) for name, value in stamps.items()}
    predictions = pa.table(columns)
    target = Store(params.destination or store.uri("predictions", call.pipeline))
    with store.scratch(".parquet") as file:
        pq.write_table(predictions, file, compression="zstd")
        digest = digest_of_file(file)
        uri = target.replace_file(file, f"window={window}", FILE)
    ref = ArtifactRef(
        uri=uri, digest=digest, kind="predictions", rows=table.num_rows, schema_id=schema_id(predictions.schema)
    )
    return outcome_of(
        call,
        outputs={"predictions": ref},
        metrics={"rows": float(table.num_rows)},
        info={"champion": champion.version, "mlflow_url": registry.run_url(champion.run_id)},
    )


def _score(model: Model, table: pa.Table) -> dict[str, Any]:
    """The prediction, and for a classifier the probability of each class (of the positive one where there are two)."""
    rows = raw_rows(table, model.facts)
    columns: dict[str, Any] = {"prediction": pa.array(np.asarray(model.predict(rows)).tolist())}
    probability = model.probability(rows)
    if probability is None:
        return columns
    if len(model.facts.classes) == 2:
        return {**columns, "probability": pa.array(np.ascontiguousarray(probability[:, 1]))}
    return columns | {
        f"probability.{name}": pa.array(np.ascontiguousarray(probability[:, index]))
        for index, name in enumerate(model.facts.classes)
    }
