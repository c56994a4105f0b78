"""Batch prediction by a job of Vertex AI: rows go out as JSON lines, and come back into the order they had.

The stage that scores by itself does the same with less: no detour over JSON, which is five to ten times as large. A job
is for models whose rows need many machines at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_mlops.call.store import Store, reaching
from airflow_mlops.call.wire import Call, digest_of
from airflow_mlops.errors import CloudError, CodeError, DataNotFoundError, DeclarationError
from airflow_mlops.google.batch import ROW, BatchJobs
from airflow_mlops.registry.mirror import mirror_of
from airflow_mlops.registry.mlflow_api import Version
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.google import Google
from airflow_mlops.stages.golden import as_json, name_of_class
from airflow_mlops.stages.model_io import Facts
from airflow_mlops.stages.tables import require_columns

_BATCH_ROWS = 32_768
_RESULTS, _ERRORS = "prediction.results-", "prediction.errors_stats-"


def scored_by_job(
    call: Call,
    google: Google | None,
    store: Store,
    registry: ModelRegistry,
    champion: Version,
    facts: Facts,
    source: pq.ParquetFile,
) -> Callable[[pa.Table], dict[str, Any]]:
    """Have a job score all rows; what gives the answers of one table of them after the other, in their order.

    A retry finds the job of an earlier try by its label, and submits no second.

    Raises:
        DeclarationError: when it is not said where.
        CloudError: when the job fails.
        CodeError: when the model failed on rows.
    """
    mirror = mirror_of(registry, store, google)
    if mirror is None:
        raise DeclarationError(["a batch prediction job needs 'google' with a project, a region and an image"])
    key = digest_of([call.identity, call.digest, champion.version])[7:39]
    jobs = BatchJobs(mirror.google)
    job = jobs.find(key)
    if job is None:
        if not source.metadata.num_rows:
            raise DataNotFoundError("there are no rows to predict", fix="give the run another window")
        instances = mirror.store.uri("batch", key, "instances.jsonl")
        _send(source, facts, instances)
        model = mirror.have(champion.version)
        job = jobs.submit(key, f"{call.pipeline} {call.run}"[:120], model, instances, mirror.store.uri("batch", key))
    answers = _answers(jobs.finished(job), facts, source.metadata.num_rows)
    at = 0

    def next_of(table: pa.Table) -> dict[str, Any]:
        nonlocal at
        part = answers.slice(at, table.num_rows)
        at += table.num_rows
        return {name: part[name] for name in part.column_names}

    return next_of


def _send(source: pq.ParquetFile, facts: Facts, uri: str) -> None:
    """Write the rows as JSON lines, each with its number as its key."""
    require_columns(source.schema_arrow.names, dict.fromkeys(facts.columns, "the model takes it"))
    number = 0
    with reaching(uri), fsspec.open(uri, "wb") as file:
        for batch in source.iter_batches(_BATCH_ROWS, columns=list(facts.columns)):
            lines = []
            for row in batch.to_pylist():
                lines.append(msgspec.json.encode({ROW: number} | {name: as_json(row[name]) for name in facts.columns}))
                number += 1
            file.write(b"\n".join(lines) + b"\n")


def _answers(folder: str, facts: Facts, rows: int) -> pa.Table:
    """The columns of predictions as a stage makes them, in the order of the rows."""
    classes = [name_of_class(each) for each in facts.classes]
    kind = pa.float64() if facts.task == "regression" else pa.array(list(facts.classes)).type
    parts = []
    for lines in _lines(folder, _RESULTS):
        said = [msgspec.json.decode(line) for line in lines]
        found = [each["prediction"] for each in said]
        try:
            columns: dict[str, Any] = {
                ROW: pa.array([int(each["key"]) for each in said], pa.int64()),
                "prediction": pa.array([_as(each["prediction"], kind) for each in found], kind),
            }
            if found and "probabilities" in found[0]:
                chances = {name: [each["probabilities"][name] for each in found] for name in classes}
                if len(classes) == 2:
                    columns["probability"] = pa.array(chances[classes[1]], pa.float64())
                else:
                    columns |= {f"probability.{name}": pa.array(each, pa.float64()) for name, each in chances.items()}
        except (LookupError, TypeError, ValueError) as error:
            raise CloudError(f"{folder} holds what is no prediction of this model: {error}") from error
        parts.append(pa.table(columns))
    whole = pa.concat_tables(parts) if parts else pa.table({ROW: pa.array([], pa.int64())})
    if whole.num_rows != rows or pc.count_distinct(whole[ROW]).as_py() != rows:
        wrong = next((line for lines in _lines(folder, _ERRORS) for line in lines), b"")
        raise CodeError(
            f"the job has {whole.num_rows:,} answers for {rows:,} rows; {_told(wrong)}",
            fix="mend the feature function for such rows, and train again",
        )
    return whole.sort_by(ROW).drop_columns([ROW])


def _as(value: Any, kind: pa.DataType) -> Any:
    """A prediction after JSON of Google's, which knows no whole numbers."""
    return int(value) if pa.types.is_integer(kind) and isinstance(value, float) and value.is_integer() else value


def _told(line: bytes) -> str:
    try:
        return f"the first error: {json.loads(line)['error']['message'][:500]}"
    except (ValueError, LookupError, TypeError):
        return "it names no error"


def _lines(folder: str, prefix: str) -> Iterator[list[bytes]]:
    """The lines of a job's files of one kind, some thousands at a time."""
    store = Store(folder)
    for name in store.names():
        if not name.startswith(prefix):
            continue
        uri = store.uri(name)
        with reaching(uri), fsspec.open(uri, "rb") as file:
            lines = []
            for line in file:
                if line.strip():
                    lines.append(line)
                if len(lines) == _BATCH_ROWS:
                    yield lines
                    lines = []
            if lines:
                yield lines
