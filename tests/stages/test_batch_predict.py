"""Batch prediction: bounded memory, whole partitions, one champion a partition, and what a reader finds."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import CodeError, DataNotFoundError, SchemaError, StoreFullError
from airflow_mlops.stages import batch_predict
from airflow_mlops.stages.batch_predict import read_predictions
from airflow_mlops.stages.model_io import Facts, Model
from airflow_mlops.stages.tables import write_table
from tests import toy
from tests.toy import World, finish, start

NAME = "batch"
PEAKS = """
import json, re, sys
from airflow_mlops.call import Call
from airflow_mlops.call.dispatch import run
said = []
for text in sys.argv[1:]:
    outcome = run(Call.model_validate_json(text))
    # What getrusage says is never less than the process had that this one was started by.
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
    said.append([outcome.metrics["rows"], int(peak[1]) / 1024])
print(json.dumps(said))
"""
AGAIN = """
import sys
from airflow_mlops.call import Call
from airflow_mlops.call.dispatch import run
for _ in range(8):
    run(Call.model_validate_json(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def trained(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose champion knows January."""
    folder = tmp_path_factory.mktemp("batch")
    world = World(folder, str(folder / "store"), toy.registry_ref(mlflow_server, f"batch-{folder.name}"))
    toy.months(folder, ["2024-01"], 800)
    toy.run_plan(toy.declare(folder, NAME), "2024-01", "first", world.store, world.registry)
    return world


def call_of(world: World, table: pa.Table, window: str, run_id: str = "p", **params: Any) -> Call:
    """The Call that scores these rows."""
    return Call(
        pipeline=NAME,
        stage="batch_predict",
        run=run_id,
        window=toy.month(window),
        inputs={"data": write_table(table, Store(world.store))},
        params={"keep": ["id", "at"], **params},
        store=world.store,
        registry=world.registry,
    )


def file_of(outcome: Outcome) -> Path:
    return Path(outcome.outputs["predictions"].uri)


def leftovers(world: World) -> list[Path]:
    """What is neither finished nor gone."""
    return [*Path(world.store, "scratch").iterdir(), *Path(world.store).rglob("*.part")]


def test_batches_give_what_one_batch_gives(trained: World, monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(trained, toy.rows("2024-02"), "2024-02")
    whole = pq.ParquetFile(file_of(run(call))).read()
    monkeypatch.setattr(batch_predict, "_BATCH_ROWS", 64)
    outcome = run(call)
    assert pq.ParquetFile(file_of(outcome)).read() == whole
    assert (outcome.metrics["rows"], outcome.outputs["predictions"].rows) == (400, 400)


def test_the_same_run_writes_the_same_bytes_and_fewer_rows_leave_none_behind(trained: World) -> None:
    call = call_of(trained, toy.rows("2024-03"), "2024-03")
    file = file_of(run(call))
    first = file.read_bytes()
    assert file_of(run(call)).read_bytes() == first
    run(call_of(trained, toy.rows("2024-03").slice(0, 7), "2024-03"))
    assert [each.name for each in file.parent.iterdir()] == ["predictions.parquet"]
    assert sum(batch.num_rows for batch in read_predictions(str(file.parents[1]), "2024-03")) == 7


def test_a_promotion_meanwhile_mixes_no_versions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.months(world.folder, ["2024-01"], 800)
    toy.run_plan(toy.declare(world.folder, NAME), "2024-01", "first", world.store, world.registry)
    score = batch_predict.score_rows

    def promote_and_score(model: Model, table: pa.Table) -> Any:
        if toy.registry_of(world.store, world.registry).ledger.champion() == "1":
            run(toy.make_promotion(world, toy.make_version(world, "sha256:b"), "1", "second"))
        return score(model, table)

    monkeypatch.setattr(batch_predict, "_BATCH_ROWS", 64)
    monkeypatch.setattr(batch_predict, "score_rows", promote_and_score)
    outcome = run(call_of(world, toy.rows("2024-02"), "2024-02"))
    assert toy.registry_of(world.store, world.registry).ledger.champion() == "2"
    assert set(pq.ParquetFile(file_of(outcome)).read()["model_version"].to_pylist()) == {"1"}


@pytest.mark.parametrize("what", ["disk", "rows"])
def test_what_fails_half_way_leaves_the_partition_as_it_was(
    trained: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    file = file_of(run(call_of(trained, toy.rows("2024-04"), "2024-04")))
    before = file.read_bytes()
    monkeypatch.setattr(batch_predict, "_BATCH_ROWS", 64)
    write, calls = pq.ParquetWriter.write_table, []

    def full(writer: Any, *arguments: Any, **options: Any) -> None:
        calls.append(None)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, *arguments, **options)

    table = toy.rows("2024-04", seed=7)
    if what == "disk":
        call = call_of(trained, table, "2024-04", "again")
        monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(StoreFullError, match="No space left on device"):
            run(call)
    else:
        wide = table.set_column(5, "member", pa.array([True] * 399 + [None]).cast(pa.int64()))
        wide = wide.set_column(5, "member", pa.array([0] * 399 + [7]))
        with pytest.raises(SchemaError, match="member"):
            run(call_of(trained, wide.set_column(4, "region", pa.array([1] * 400)).drop_columns(["member"]), "2024-04"))
    assert file.read_bytes() == before
    assert leftovers(trained) == []


def test_a_reader_sees_one_run_s_rows_whatever_is_written_meanwhile(trained: World) -> None:
    calls = [call_of(trained, toy.rows("2024-05", rows), "2024-05", name) for name, rows in (("a", 400), ("b", 300))]
    destination = str(file_of(run(calls[0])).parents[1])
    # In processes of their own, as tasks are: where MLflow is, is one for a whole process.
    writers = [
        subprocess.Popen([sys.executable, "-c", AGAIN, call.model_dump_json()], stderr=subprocess.PIPE, text=True)
        for call in calls
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        table = pa.concat_tables(read_predictions(destination, "2024-05", ["run"]))
        (name,) = set(table["run"].to_pylist())
        seen.add((name, table.num_rows))
        time.sleep(0.01)
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors
    assert seen <= {("a", 400), ("b", 300)}


def test_memory_does_not_grow_with_the_rows(trained: World) -> None:
    calls = []
    part = toy.rows("2024-06", 50_000)
    for count in (2, 12):
        with Store(trained.store).scratch(".parquet") as file:
            with pq.ParquetWriter(file, part.schema) as writer:
                for _ in range(count):
                    writer.write_table(part)
            data = Store(trained.store).put_file(file, "dataset", rows=part.num_rows * count)
        call = call_of(trained, part.slice(0, 1), "2024-06", f"p{count}").model_copy(update={"inputs": {"data": data}})
        calls.append(call.model_dump_json())
    few, many = finish(start(PEAKS, *calls))
    assert (few[0], many[0]) == (100_000, 600_000)
    # Half a million rows of this table are 65 MB in Arrow, and several times that in pandas.
    assert many[1] < few[1] + 40, (few, many)


def test_an_object_store_serves_as_destination(trained: World) -> None:
    outcome = run(call_of(trained, toy.rows("2024-07"), "2024-07", destination="memory://predicted/batch"))
    assert outcome.outputs["predictions"].uri == "memory://predicted/batch/window=2024-07/predictions.parquet"
    (table,) = read_predictions("memory://predicted/batch", "2024-07", ["id", "probability"])
    assert (table.num_rows, table.column_names) == (400, ["id", "probability"])


def test_a_window_that_was_not_predicted_is_no_data(trained: World) -> None:
    with pytest.raises(DataNotFoundError, match=r"window=2031-01; try: run the pipeline's predict"):
        list(read_predictions(f"{trained.store}/predictions/{NAME}", "2031-01"))


@pytest.mark.parametrize("name", ["run", "prediction", "probability.a"])
def test_a_kept_column_with_a_name_of_ours_is_refused(trained: World, name: str) -> None:
    table = toy.rows("2024-08").append_column(name, pa.array(["x"] * 400))
    with pytest.raises(SchemaError, match=f"the kept column '{name}' has the name"):
        run(call_of(trained, table, "2024-08", keep=[name]))


class Bad:
    """A model that gives what it is told to."""

    def __init__(self, predicted: Any, probability: Any = None) -> None:
        self.predicted, self.given = predicted, probability
        if probability is not None:
            self.predict_proba = lambda frame: probability

    def predict(self, frame: Any) -> Any:
        if isinstance(self.predicted, Exception):
            raise self.predicted
        return self.predicted


@pytest.mark.parametrize(
    ("task", "model", "text"),
    [
        ("regression", Bad(np.zeros(2)), r"shape \(2,\) for 3 rows"),
        ("regression", Bad(np.array(["a", "b", "c"])), "values that are no double"),
        ("binary", Bad(np.array(["x", "y", "z"])), r"values that are no int64.*allowed: \[0, 1\]"),
        ("binary", Bad(np.zeros(3, "int64"), np.zeros((3, 3))), r"shape \(3, 3\) for 3 rows and 2 classes"),
        ("regression", Bad(KeyError("age")), "the model failed on 3 rows: KeyError: 'age'"),
    ],
)
def test_a_model_that_gives_the_wrong_thing_is_named(task: Any, model: Bad, text: str) -> None:
    facts = Facts(
        task=task,
        target="y",
        columns={"x": "double"},
        watched=("x",),
        classes=() if task == "regression" else (0, 1),
        hash_columns=("x",),
    )
    with pytest.raises(CodeError, match=text):
        batch_predict.score_rows(Model(model, facts, Path()), pa.table({"x": [1.0, 2.0, 3.0]}))
