"""Preparation as a Beam pipeline: rows are set apart piece by piece, on as many machines as there are.

    python -m airflow_mlops.stages.prepare_beam --call CALL.json --pieces FOLDER [options of Beam]

A piece is a row group of the snapshot. What the pipeline leaves are pieces of train and test rows, which `assemble`
streams together in the snapshot's order: the artifacts are those of `airflow_mlops.stages.prepare`, byte for byte.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.code import code_scope, unpack
from airflow_mlops.call.store import Store, reaching
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome
from airflow_mlops.errors import DataError, JobLostError
from airflow_mlops.spec.stages import Prepare
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.prepare import check_features, columns_needed, hashed_apart
from airflow_mlops.stages.tables import canonical, require_columns, write_tables

SIDES = ("train", "test")
Counts = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", int]
"""Instants as integers, in order; how many rows have each; how many rows have none."""


def main(arguments: list[str]) -> int:
    """Start the pipeline; wait for its end unless it runs on Dataflow, where whoever has started it waits."""
    parser = argparse.ArgumentParser(prog="prepare_beam", allow_abbrev=False)
    parser.add_argument("--call", required=True)
    parser.add_argument("--pieces", required=True)
    own, others = parser.parse_known_args(arguments)
    with reaching(own.call), fsspec.open(own.call, "rb") as file:
        call = Call.model_validate_json(file.read())
    params, store = Prepare.model_validate(call.params), Store(call.store)
    data = call.input("data")
    _check(call, params, store, data)

    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    options = PipelineOptions(others)
    pipeline = beam.Pipeline(options=options)
    pieces = pipeline | "Pieces" >> beam.Create(range(_row_groups(data))) | beam.Reshuffle()
    cut: Any = None
    if params.split.by == "time":
        counts = pieces | "Instants" >> beam.Map(_instants, data.uri, params.time)
        share = 1 - params.split.test
        cut = beam.pvalue.AsSingleton(counts | beam.CombineGlobally(_together) | "Cut" >> beam.Map(_cut, share))
    _ = pieces | "Set apart" >> beam.Map(_set_apart, data.uri, own.pieces, params, cut)
    result = pipeline.run()
    if "dataflow" not in (options.view_as(StandardOptions).runner or "").lower():
        result.wait_until_finish()
    return 0


def _check(call: Call, params: Prepare, store: Store, data: ArtifactRef) -> None:
    """What can be seen beforehand: the columns, and the feature function's contract on some rows."""
    with _open(data.uri) as file:
        require_columns(file.schema_arrow.names, columns_needed(params))
        sample = next(file.iter_batches(500), None)
    if params.features and sample is not None:
        with code_scope(unpack(call.code, store) if call.code else None):
            check_features(params.features, pa.Table.from_batches([sample]), params.target)


def _open(uri: str) -> pq.ParquetFile:
    with reaching(uri):
        return pq.ParquetFile(fsspec.open(uri, "rb").open(), pre_buffer=False)


def _row_groups(data: ArtifactRef) -> int:
    with _open(data.uri) as file:
        return int(file.metadata.num_row_groups)


def _instants(piece: int, uri: str, time: str) -> Counts:
    with _open(uri) as file:
        column = file.read_row_group(piece, columns=[time])[time]
    known = column.drop_null()
    instants, rows = np.unique(known.to_numpy().astype("datetime64[us]").astype(np.int64), return_counts=True)
    return instants, rows, column.null_count


def _together(counts: Iterable[Counts]) -> Counts:
    """Add up counts, in any order and any grouping."""
    parts = list(counts)
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), 0
    instants, place = np.unique(np.concatenate([each[0] for each in parts]), return_inverse=True)
    rows = np.zeros(len(instants), np.int64)
    np.add.at(rows, place, np.concatenate([each[1] for each in parts]))
    return instants, rows, sum(each[2] for each in parts)


def _cut(counts: Counts, share: float) -> int:
    """The instant from which on rows are test rows: that of the row at this share of all, in their order."""
    instants, rows, nulls = counts
    if nulls:
        raise DataError(f"the time column has {nulls} nulls", fix="leave these rows out")
    before = np.cumsum(rows)
    return int(instants[np.searchsorted(before, int(before[-1] * share), side="right")])


def _set_apart(piece: int, uri: str, folder: str, params: Prepare, cut: int | None) -> None:
    with _open(uri) as file:
        table = file.read_row_group(piece)
    if cut is None:
        test = hashed_apart(table, params.split, params.seed)
    else:
        test = table[params.time].to_numpy().astype("datetime64[us]").astype(np.int64) >= cut
    for side, mask in zip(SIDES, (~test, test), strict=True):
        target = f"{folder}/{side}/{piece:08}.parquet"
        # Written whole under its name, so a piece that is done twice is the same piece.
        with reaching(target), fsspec.open(target, "wb", auto_mkdir=True) as written:
            pq.write_table(table.filter(pa.array(mask)), written)


def assemble(call: Call, params: Prepare, store: Store, folder: str) -> Outcome:
    """The Outcome of a pipeline that has ended: its pieces as the two artifacts; the pieces are removed.

    Raises:
        JobLostError: when pieces are missing.
        DataError: when a side has no rows.
    """
    groups = _row_groups(call.input("data"))
    fs, path = fsspec.core.url_to_fs(folder)
    fs.invalidate_cache()
    outputs = {side: _stream(store, folder, side, groups) for side in SIDES}
    shares = outputs["train"].rows or 0, outputs["test"].rows or 0
    if not all(shares):
        raise DataError(
            f"the split by {params.split.by} leaves {shares[0]} rows to train and {shares[1]} to test",
            fix="read more windows (train.windows), or change prepare.split",
        )
    outcome = outcome_of(call, outputs=outputs, metrics={"train_rows": float(shares[0]), "test_rows": float(shares[1])})
    store.write_outcome(outcome)
    fs.rm(path, recursive=True)
    return outcome


def _stream(store: Store, folder: str, side: str, groups: int) -> ArtifactRef:
    def tables() -> Iterator[pa.Table]:
        for piece in range(groups):
            with _open(f"{folder}/{side}/{piece:08}.parquet") as file:
                yield file.read().cast(schema)

    try:
        with _open(f"{folder}/{side}/{0:08}.parquet") as first:
            schema = canonical(first.schema_arrow)
        return write_tables(tables(), schema, store)
    except Exception as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise JobLostError(f"the pipeline has ended and left no {side} rows: {error}") from error
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
