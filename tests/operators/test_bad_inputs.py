"""Bad input in a DAG run: it ends in the right state after the right number of tries, says why, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.errors import (
    CodeError,
    DataError,
    DataNotFoundError,
    RegistryError,
    RegistryUnreachableError,
    SchemaError,
)
from tests import toy
from tests.airflow_fixtures import Airflow, Run
from tests.conftest import free_port


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with another column of that name."""
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def truncated(file: Path) -> None:
    """A Parquet file that was cut off while it was copied."""
    toy.write(toy.rows("2024-05"), file)
    file.write_bytes(file.read_bytes()[:-100])


def changed(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    """What writes the toy rows after a change."""
    return lambda file: toy.write(change(toy.rows("2024-05")), file)


BAD_WINDOWS: dict[str, tuple[Callable[[Path], object], str, type[Exception], str]] = {
    "no file": (lambda file: None, "extract", DataNotFoundError, "allowed: 2024-01 to 2024-03"),
    "cut off": (truncated, "extract", DataError, "it may have been cut off"),
    "no Parquet": (lambda file: file.write_text("at,y\n"), "extract", DataError, "no readable parquet file"),
    "empty": (changed(lambda table: table.slice(0, 0)), "extract", DataNotFoundError, "has no rows"),
    "rows of another month": (
        changed(lambda table: toy.rows("2024-04")),
        "extract",
        DataNotFoundError,
        "no rows in the window 2024-05",
    ),
    "no target": (
        changed(lambda table: table.drop_columns(["y"])),
        "validate_data",
        SchemaError,
        "the target 'y' is missing",
    ),
    "no time": (
        changed(lambda table: table.drop_columns(["at"])),
        "extract",
        SchemaError,
        "no column 'at' (data.time)",
    ),
    "time as text": (
        changed(lambda table: with_column(table, "at", ["yesterday"] * 400)),
        "extract",
        SchemaError,
        "holds string",
    ),
    "target with nulls": (
        changed(lambda table: with_column(table, "y", [None, 1] * 200)),
        "validate_data",
        SchemaError,
        "has 200 nulls",
    ),
    "one class": (
        changed(lambda table: with_column(table, "y", np.ones(400, int))),
        "train",
        DataError,
        "'y' has one class only, 1, in all 320 training rows",
    ),
    "infinite": (
        changed(lambda table: with_column(table, "amount", np.full(400, np.inf))),
        "validate_data",
        SchemaError,
        "'amount' has 400 infinite values",
    ),
}


@pytest.mark.parametrize("case", BAD_WINDOWS)
def test_a_bad_window_fails_once_and_changes_nothing(champion: Airflow, case: str) -> None:
    make, task, kind, text = BAD_WINDOWS[case]
    file = champion.folder / "data" / "2024-05.parquet"
    file.unlink(missing_ok=True)
    make(file)
    before = toy.state_of(champion.world)

    run = champion.test("train", "2024-05")

    assert failed_once(run, task, kind, text)
    assert toy.state_of(champion.world) == before
    file.unlink(missing_ok=True)


def failed_once(run: Run, task: str, kind: type[Exception], text: str) -> bool:
    """A task failed at its first try, with that error, and what follows it did not run."""
    error = run.error(task)
    assert isinstance(error, kind), repr(error)
    assert text in str(error)
    assert f"stage '{task}'" in str(error)
    assert run.state == "failed"
    assert (run.states[task], run.tries[task]) == ("failed", 1)
    return list(run.states.values()).count("failed") == 1 and run.states.get("promote") != "success"


@pytest.mark.parametrize("columns", [["age"], ["amount", "age"]])
def test_columns_that_are_nan_throughout_change_nothing(champion: Airflow, columns: list[str]) -> None:
    table = toy.rows("2024-05")
    for name in columns:
        table = with_column(table, name, np.full(400, np.nan))
    file = toy.write(table, champion.folder / "data" / "2024-05.parquet")

    run = champion.test("train", "2024-05")
    file.unlink()

    assert run.state == "success"
    assert (run.states["evaluate"], run.states["promote"]) == ("success", "skipped")
    assert toy.state_of(champion.world)["aliases"] == {"champion": "1"}


SCHEMA = """
apiVersion: airflow-mlops/schema/v1
columns:
  amount: {type: number}
  age: {type: number}
  region: {type: string}
"""


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda table: table.drop_columns(["region"]), "the column 'region' is missing"),
        (lambda table: with_column(table, "amount", ["much"] * 400), "'amount' holds string, not number"),
    ],
)
def test_a_column_gone_or_of_another_type_breaks_the_schema(
    airflow: Airflow, change: Callable[[pa.Table], pa.Table], text: str
) -> None:
    toy.write(change(toy.rows("2024-01")), airflow.folder / "data" / "2024-01.parquet")
    (airflow.folder / "schemas").mkdir()
    (airflow.folder / "schemas" / "toy.yaml").write_text(SCHEMA)
    airflow.declare(data={"schema": "schemas/toy.yaml"}, retries=2, retry_delay="0s")

    run = airflow.test("train", "2024-01")

    assert failed_once(run, "validate_data", SchemaError, text)
    assert "airflow-mlops schema infer" in str(run.error("validate_data"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda table: table.drop_columns(["amount"]), "'amount'"),
        (lambda table: with_column(table, "amount", ["much"] * 400), "'amount'"),
    ],
)
def test_rows_that_the_champion_cannot_take_leave_the_old_partition(
    champion: Airflow, change: Callable[[pa.Table], pa.Table], text: str
) -> None:
    file = champion.folder / "data" / "2024-06.parquet"
    toy.write(toy.rows("2024-06"), file)
    assert champion.test("predict", "2024-06").state == "success"
    toy.write(change(toy.rows("2024-06")), file)
    before = toy.state_of(champion.world)

    run = champion.test("predict", "2024-06")

    assert failed_once(run, "batch_predict", SchemaError, text)
    assert toy.state_of(champion.world) == before


BAD_CODE = {
    "no such class": ({"estimator": "sklearn.linear_model.LogisticRegresion"}, "try: sklearn.linear_model.LogisticR"),
    "no such module": ({"estimator": "sklearn.nowhere.Model"}, "No module named 'sklearn.nowhere'"),
    "no such argument": ({"estimator": toy.ESTIMATOR, "params": {"depth": 3}}, "has no parameter 'depth'; allowed: "),
    "raises": ({"function": "shop.features:fit"}, "shop.features:fit raised ZeroDivisionError"),
    "import fails": ({"function": "broken.features:fit"}, "ModuleNotFoundError: No module named 'pandaz'"),
}


@pytest.mark.parametrize("case", BAD_CODE)
def test_code_that_is_broken_fails_once(airflow: Airflow, case: str) -> None:
    train, text = BAD_CODE[case]
    toy.months(airflow.folder, ("2024-01",))
    toy.package(airflow.folder, "shop", "def fit(X, y, params):\n    return 1 / 0\n")
    toy.package(airflow.folder, "broken", "import pandaz\n")
    declared = {"train": {"estimator": None, **train}, "retries": 2, "retry_delay": "0s"}
    airflow.declare(**declared)

    run = airflow.test("train", "2024-01")

    assert failed_once(run, "train", CodeError, text)
    assert toy.state_of(airflow.world)["aliases"] == {}


def test_a_package_that_is_nowhere_fails_the_first_task(airflow: Airflow) -> None:
    toy.months(airflow.folder, ("2024-01",))
    airflow.declare(prepare={"features": "nowhere.features:build"}, retries=2, retry_delay="0s")

    run = airflow.test("train", "2024-01")

    assert (run.states["start"], run.tries["start"]) == ("failed", 1)
    assert isinstance(run.error("start"), CodeError)
    assert "there is no package 'nowhere'" in str(run.error("start"))


def test_a_missing_connection_fails_once_with_the_command_that_adds_it(champion: Airflow) -> None:
    before = toy.state_of(champion.world)
    champion.declare(registry="mlflow_elsewhere", retries=2, retry_delay="0s")

    run = champion.test("predict", "2024-02")
    champion.declare(retries=2, retry_delay="0s")

    assert (run.state, run.tries["batch_predict"]) == ("failed", 1)
    assert isinstance(run.error("batch_predict"), RegistryError)
    assert "airflow connections add mlflow_elsewhere --conn-type mlflow" in str(run.error("batch_predict"))
    assert toy.state_of(champion.world) == before


OWN = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_mlops.operators import BatchPredictOperator, ExtractDataOperator
with DAG("{name}.own", schedule=None, default_args={{"retries": 2, "retry_delay": timedelta(0)}}) as dag:
    extract = ExtractDataOperator(task_id="extract", source="data/{{window}}.parquet", grain="month", window="{window}")
    BatchPredictOperator(task_id="batch_predict", pipeline="{name}", data=extract.output)
"""


@pytest.mark.parametrize("own", [False, True])
def test_an_unreachable_mlflow_is_tried_again(champion: Airflow, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    host = f"http://127.0.0.1:{free_port()}"
    champion.write(OWN.format(name=champion.name, window="2024-02"), "own.py")
    before = toy.state_of(champion.world)
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": host}))

    run = champion.test(f"{champion.name}.own" if own else "predict", "2024-02")

    assert (run.state, run.tries["batch_predict"]) == ("failed", 3)
    assert [type(error) for error in run.errors["batch_predict"]] == [RegistryUnreachableError] * 3
    assert "start the server, or correct the connection's host" in str(run.errors["batch_predict"][0])
    assert toy.state_of(champion.world) == before


def test_between_two_tries_the_task_is_up_for_retry_and_then_mends(
    champion: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = f"http://127.0.0.1:{free_port()}"
    champion.declare(retries=2, retry_delay="1h")
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": host}))

    run = champion.run("predict", conf={"window": "2024-02"})
    champion.declare(retries=2, retry_delay="0s")

    assert run.state == "running"
    assert (run.states["batch_predict"], run.tries["batch_predict"]) == ("up_for_retry", 1)


def test_the_retry_policy_holds_in_a_team_s_own_dag(champion: Airflow) -> None:
    champion.write(OWN.format(name=champion.name, window="2024-09"), "own.py")

    run = champion.test(f"{champion.name}.own")

    assert failed_once(run, "extract", DataNotFoundError, "2024-09")
