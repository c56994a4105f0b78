"""Monitoring and batch prediction: what the champion makes of a window, and what neither may touch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_mlops.call import Store
from airflow_mlops.errors import DataNotFoundError, ModelNotFoundError, SchemaError
from airflow_mlops.registry.mlflow_api import pointed_at
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec import Declaration
from tests import toy
from tests.toy import World

NAME = "watched"


@pytest.fixture(scope="module")
def trained(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A champion of January, and files of later months: one as usual, one that moved."""
    folder = tmp_path_factory.mktemp("trained")
    world = World(folder, str(folder / "store"), toy.registry_ref(mlflow_server, f"{NAME}-{folder.name}"))
    toy.months(folder, ["2024-01", "2024-02"])
    toy.months(folder, ["2024-03"], shift=1.5)
    toy.run_plan(declaration_of(world), "2024-01", "train", world.store, world.registry)
    yield world


@pytest.fixture
def unchanged(trained: World) -> Iterator[World]:
    """A trained world that must be after the test as it was before."""
    before = toy.state_of(trained)
    yield trained
    assert toy.state_of(trained) == before


def declaration_of(world: World, **sections: Any) -> Declaration:
    return toy.declare(world.folder, NAME, **sections)


def monitor(world: World, month: str, run_id: str, **sections: Any) -> Any:
    return toy.run_monitor(declaration_of(world, **sections), month, run_id, world.store, world.registry)


def predict(world: World, month: str, run_id: str, **sections: Any) -> Any:
    return toy.run_predict(declaration_of(world, **sections), month, run_id, world.store, world.registry)


def put(world: World, month: str, table: pa.Table) -> None:
    toy.write(table, world.folder / "data" / f"{month}.parquet")


def verdicts(world: World, month: str) -> list[dict[str, Any]]:
    return Verdicts(Store(world.store), NAME).of_window(month)


def test_a_usual_window_is_ok_and_leaves_a_verdict(unchanged: World) -> None:
    outcome = monitor(unchanged, "2024-02", "usual")
    assert outcome.verdict.status == "ok" and outcome.info["champion"] == "1"
    (verdict,) = verdicts(unchanged, "2024-02")
    assert (verdict["status"], verdict["run"], verdict["champion"], verdict["moved"]) == ("ok", "usual", "1", [])
    assert {column["column"] for column in verdict["columns"]} == {"amount", "age", "region", "member"}
    assert verdict["mlflow_url"] == outcome.info["mlflow_url"]


def test_a_window_that_moved_is_drift_and_the_run_in_mlflow_tells_all(unchanged: World) -> None:
    outcome = monitor(unchanged, "2024-03", "moved")
    assert outcome.verdict.status == "drift" and not outcome.verdict.passed
    assert outcome.info["moved"] == "amount" and outcome.metrics == {"rows": 400.0, "columns_moved": 1.0}
    (verdict,) = verdicts(unchanged, "2024-03")
    assert verdict["moved"] == ["amount"] and verdict["report_url"].endswith("/artifacts/report.html")
    client = mlflow.MlflowClient(unchanged.registry.uri)
    found = client.get_run(outcome.info["run_id"])
    assert found.info.status == "FINISHED" and found.data.tags["mlops.verdict"] == "drift"
    assert found.data.metrics["effect.amount"] > 1
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"report.html", "verdict.json"}
    with pointed_at(unchanged.registry.uri):
        report = Path(mlflow.artifacts.download_artifacts(run_id=found.info.run_id, artifact_path="report.html"))
    assert "amount" in report.read_text()


def test_a_retry_leaves_one_verdict_and_one_run(unchanged: World) -> None:
    first, second = (monitor(unchanged, "2024-02", "twice") for _ in range(2))
    assert first.info["run_id"] == second.info["run_id"]
    assert len([verdict for verdict in verdicts(unchanged, "2024-02") if verdict["run"] == "twice"]) == 1


def test_a_column_that_training_never_saw_is_named_and_its_own_others_are_not(trained: World) -> None:
    put(trained, "2024-04", toy.rows("2024-04").append_column("promo", pa.array(range(400))))
    outcome = monitor(trained, "2024-04", "promo")
    assert outcome.verdict.status == "ok" and "(new: promo)" in outcome.verdict.reasons[0]
    columns = {column["column"]: column["note"] for column in verdicts(trained, "2024-04")[0]["columns"]}
    assert columns.keys() == {"amount", "age", "region", "member", "promo"}
    assert columns["promo"] == "promo is new: the reference does not have it"


def test_too_few_rows_are_no_verdict_on_drift(trained: World) -> None:
    put(trained, "2024-05", toy.rows("2024-05", 60, shift=5.0))
    outcome = monitor(trained, "2024-05", "few")
    assert outcome.verdict.status == "insufficient_data" and "report" not in outcome.outputs
    assert verdicts(trained, "2024-05")[0]["report_url"] is None


def test_a_window_that_cannot_be_judged_leaves_no_verdict(trained: World) -> None:
    put(trained, "2024-06", toy.rows("2024-06").drop_columns(["age"]))
    put(trained, "2024-07", toy.rows("2024-07").set_column(2, "amount", pa.array(["x"] * 400)))
    before = toy.state_of(trained)
    with pytest.raises(SchemaError, match="form of the reference: age is missing, and the reference has it"):
        monitor(trained, "2024-06", "gone")
    with pytest.raises(SchemaError, match="amount holds string, and double in the reference"):
        monitor(trained, "2024-07", "other")
    with pytest.raises(DataNotFoundError, match="for the window 2024-09"):
        monitor(trained, "2024-09", "late")
    assert [verdicts(trained, month) for month in ("2024-06", "2024-07", "2024-09")] == [[], [], []]
    assert toy.state_of(trained) == before


def test_without_a_champion_there_is_nothing_to_do(world: World) -> None:
    toy.months(world.folder)
    for work in (monitor, predict):
        with pytest.raises(ModelNotFoundError, match="has no champion yet"):
            work(world, "2024-01", "early")
    assert Verdicts(Store(world.store), NAME).all() == []
    assert not Path(world.store, "predictions").exists()


def rows_of(outcome: Any) -> pa.Table:
    return pq.ParquetFile(outcome["batch_predict"].outputs["predictions"].uri).read()


def test_predictions_are_the_champions_and_say_whose_they_are(trained: World) -> None:
    outcome = predict(trained, "2024-02", "score")
    table = rows_of(outcome)
    source = toy.rows("2024-02")
    assert table["id"].to_pylist() == source["id"].to_pylist() and table["at"].to_pylist() == source["at"].to_pylist()
    chance = table["probability"].to_numpy()
    assert (table["prediction"].to_numpy() == (chance > 0.5)).all()
    assert np.corrcoef(chance, source["amount"].to_numpy())[0, 1] > 0.8
    stamps = {name: set(table[name].to_pylist()) for name in ("model", "model_version", "run", "window")}
    assert stamps == {
        "model": {trained.registry.model},
        "model_version": {"1"},
        "run": {"score"},
        "window": {"2024-02"},
    }
    assert outcome["batch_predict"].info["champion"] == "1"


def test_rows_without_the_target_are_scored_the_same(trained: World) -> None:
    put(trained, "2024-08", toy.rows("2024-08"))
    with_target = rows_of(predict(trained, "2024-08", "p"))
    put(trained, "2024-08", toy.rows("2024-08").drop_columns(["y"]))
    assert rows_of(predict(trained, "2024-08", "p")) == with_target


def test_a_rerun_replaces_its_own_partition_and_no_other(trained: World, tmp_path: Path) -> None:
    output = {"predict": {"output": str(tmp_path / "out")}}
    for month in ("2024-02", "2024-03"):
        predict(trained, month, "one", **output)
    files = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert [str(file.relative_to(tmp_path)) for file in sorted(files)] == [
        "out/window=2024-02/predictions.parquet",
        "out/window=2024-03/predictions.parquet",
    ]
    predict(trained, "2024-03", "two", **output)
    now = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    changed = [file.parent.name for file in files if now[file] != files[file]]
    assert now.keys() == files.keys() and changed == ["window=2024-03"]


def test_rows_that_the_champion_cannot_take_leave_the_partition_as_it_was(trained: World) -> None:
    put(trained, "2024-10", toy.rows("2024-10"))
    predict(trained, "2024-10", "good")
    kept = list(Path(trained.store, "predictions", NAME).rglob("*.parquet"))
    before = {file: file.read_bytes() for file in kept}
    put(trained, "2024-10", toy.rows("2024-10").drop_columns(["region"]))
    with pytest.raises(SchemaError, match=r"no column 'region' \(the model takes it\)"):
        predict(trained, "2024-10", "gone")
    put(trained, "2024-10", toy.rows("2024-10").set_column(4, "region", pa.array([1] * 400)))
    with pytest.raises(SchemaError, match="'region' holds int64, and the model was trained on string"):
        predict(trained, "2024-10", "other")
    put(trained, "2024-10", toy.rows("2024-10").drop_columns(["id"]))
    with pytest.raises(SchemaError, match=r"no column 'id' \(kept beside the predictions\)"):
        predict(trained, "2024-10", "no key")
    assert {file: file.read_bytes() for file in kept} == before


def test_numbers_of_another_width_and_finer_times_are_taken(trained: World) -> None:
    plain = toy.rows("2024-11")
    put(trained, "2024-11", plain)
    wanted = rows_of(predict(trained, "2024-11", "a"))["probability"].to_pylist()
    other = plain.set_column(3, "age", plain["age"].cast(pa.int32()))
    other = other.set_column(1, "at", plain["at"].cast(pa.timestamp("ns")))
    put(trained, "2024-11", other.select(list(reversed(plain.column_names))))
    assert rows_of(predict(trained, "2024-11", "b"))["probability"].to_pylist() == wanted


def test_an_alarm_that_must_be_confirmed_warns_until_the_next_window_says_the_same(trained: World) -> None:
    put(trained, "2024-10", toy.rows("2024-10", shift=1.5))
    put(trained, "2024-11", toy.rows("2024-11", shift=1.5))
    section = {"data_drift": {"consecutive": 2}}
    first = monitor(trained, "2024-10", "alarmed", monitor=section)
    assert first.verdict.status == "warn" and first.verdict.passed
    assert "1 of the 2 windows in a row that make it drift" in first.verdict.reasons
    second = monitor(trained, "2024-11", "confirmed", monitor=section)
    assert second.verdict.status == "drift" and second.info["moved"] == "amount"
    assert [verdict["status"] for month in ("2024-10", "2024-11") for verdict in verdicts(trained, month)] == [
        "warn",
        "drift",
    ]


def test_all_columns_together_are_judged_when_that_is_asked_for(trained: World) -> None:
    put(trained, "2024-12", toy.rows("2024-12", shift=1.5))
    outcome = monitor(trained, "2024-12", "together", monitor={"data_drift": {"multivariate": True}})
    assert outcome.verdict.status == "drift"
    assert "amount" in outcome.info["moved"] and "all columns together" in outcome.info["moved"]
