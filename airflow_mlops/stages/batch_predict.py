"""Batch prediction: the champion scores a window, and its partition of predictions appears whole or not at all.

Rows are read, scored and written in batches, so memory does not grow with the window. The champion is read once, at the
start: a promotion meanwhile mixes no versions.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.code import told
from airflow_mlops.call.store import Store, digest_of_file, reaching
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome
from airflow_mlops.errors import CodeError, DataNotFoundError, MlopsError, SchemaError
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.registry.verdicts import SERVED
from airflow_mlops.spec.stages import BatchPredict
from airflow_mlops.stages.model_io import Model, loaded, raw_rows, read_facts
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.tables import require_columns, schema_id

FILE = "predictions.parquet"
STAMPS = ("model", "model_version", "run", "window")
"""The columns that say of every row where it comes from."""
_BATCH_ROWS = 32_768


def run(call: Call, params: BatchPredict, store: Store) -> Outcome:
    """Score the rows of ``data``; output ``predictions``. A rerun replaces its own partition and no other.

    Raises:
        ModelNotFoundError: when there is no champion.
        SchemaError: when the rows are not those that the model takes.
        CodeError: when the model fails on rows of the right form.
    """
    registry = ModelRegistry.of(call, store)
    champion = registry.need_champion()
    window = call.window.key if call.window else "all"
    stamps = dict(zip(STAMPS, (champion.model, champion.version, call.run, window), strict=True))
    with (
        tempfile.TemporaryDirectory() as scratch,
        store.scratch(".parquet") as file,
        pq.ParquetFile(store.fetch(call.input("data"))) as source,
    ):
        _check_kept(params, source.schema_arrow.names)
        facts = read_facts(registry.api, champion.run_id)
        if params.job == "vertex":
            from airflow_mlops.stages.batch_job import scored_by_job

            by_job = scored_by_job(call, params.google, store, registry, champion, facts, source)
            rows, schema = _write(source, by_job, params.keep, stamps, file)
        else:
            with loaded(facts, Path(scratch), registry.api) as model:
                rows, schema = _write(source, partial(score_rows, model), params.keep, stamps, file)
        digest = digest_of_file(file)
        target = Store(params.destination or store.uri("predictions", call.pipeline))
        uri = target.replace_file(file, *_partition(window))
    ref = ArtifactRef(uri=uri, digest=digest, kind="predictions", rows=rows, schema_id=schema_id(schema))
    return outcome_of(
        call,
        outputs={"predictions": ref},
        metrics={"rows": float(rows)},
        info={"champion": champion.version, "mlflow_url": registry.run_url(champion.run_id)},
    )


def read_predictions(destination: str, window: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The predictions of a window, those of a run and those that were served, in batches of bounded rows.

    Args:
        destination: the folder of predictions, as a path or any fsspec URI.
        window: the window's key; ``all`` where the data comes in no windows.
        columns: the columns to read. Default: all.

    Raises:
        DataNotFoundError: when nothing was predicted for the window.
    """
    store = Store(destination)
    folder, _ = _partition(window)
    names = [name for name in store.names(folder) if name == FILE or name.startswith(SERVED)]
    if not names:
        raise DataNotFoundError(
            f"there are no predictions {store.uri(folder)}", fix="run the pipeline's predict DAG, or serve the model"
        )
    for name in names:
        uri = store.uri(folder, name)
        with reaching(uri), fsspec.open(uri, "rb") as file, pq.ParquetFile(file) as source:
            for batch in source.iter_batches(_BATCH_ROWS, columns=columns):
                yield pa.Table.from_batches([batch])


def _partition(window: str) -> tuple[str, str]:
    return f"window={window}", FILE


def _check_kept(params: BatchPredict, names: list[str]) -> None:
    require_columns(names, dict.fromkeys(params.keep, "kept beside the predictions"))
    taken = [name for name in params.keep if name in (*STAMPS, "prediction") or name.startswith("probability")]
    if taken:
        raise SchemaError(
            f"the kept column {taken[0]!r} has the name of a column that predictions have of their own",
            fix="rename it at the source, or leave it out of the kept columns",
        )


def _write(
    source: pq.ParquetFile,
    score: Callable[[pa.Table], dict[str, Any]],
    keep: tuple[str, ...],
    stamps: dict[str, str],
    file: Path,
) -> tuple[int, pa.Schema]:
    """Score batch by batch into a Parquet file; return its rows and its schema."""
    rows = 0
    writer = None
    try:
        for batch in source.iter_batches(_BATCH_ROWS):
            table = pa.Table.from_batches([batch])
            columns = {name: table[name] for name in keep} | score(table)
            columns |= {name: pa.repeat(value, table.num_rows) for name, value in stamps.items()}
            scored = pa.table(columns)
            with reaching(str(file)):
                writer = writer or pq.ParquetWriter(file, scored.schema, compression="zstd")
                writer.write_table(scored)
            rows += table.num_rows
    except BaseException:
        if writer is not None:
            with suppress(OSError):  # what was raised first says why: the disk may be full
                writer.close()
        raise
    if writer is None:
        raise DataNotFoundError("there are no rows to predict", fix="give the run another window")
    with reaching(str(file)):
        writer.close()
    return rows, writer.schema


def score_rows(model: Model, table: pa.Table) -> dict[str, Any]:
    """The prediction, and for a classifier the probability of each class (of the positive one where there are two)."""
    facts = model.facts
    rows = raw_rows(table, facts)
    try:
        predicted, probability = model.answer(rows)
        predicted = np.asarray(predicted)
    except MlopsError:
        raise
    except (Exception, SystemExit) as error:
        raise CodeError(
            f"the model failed on {table.num_rows} rows: {told(error)}",
            fix="mend the feature function for such rows, and train again",
        ) from error
    if predicted.shape != (table.num_rows,):
        raise CodeError(
            f"the model gave predictions of shape {predicted.shape} for {table.num_rows} rows",
            allowed="one prediction a row",
        )
    kind = pa.float64() if facts.task == "regression" else pa.array(list(facts.classes)).type
    try:
        columns: dict[str, Any] = {"prediction": pa.array(predicted.tolist(), kind)}
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise CodeError(
            f"the model predicted values that are no {kind}: {error}",
            allowed="numbers" if facts.task == "regression" else json.dumps(facts.classes),
        ) from error
    if probability is None:
        return columns
    probability = np.asarray(probability, dtype=np.float64)
    if probability.shape != (table.num_rows, len(facts.classes)):
        raise CodeError(
            f"the model gave probabilities of shape {probability.shape} for {table.num_rows} rows and "
            f"{len(facts.classes)} classes"
        )
    if len(facts.classes) == 2:
        return {**columns, "probability": pa.array(np.ascontiguousarray(probability[:, 1]))}
    return columns | {
        f"probability.{name}": pa.array(np.ascontiguousarray(probability[:, index]))
        for index, name in enumerate(facts.classes)
    }
