"""The sensors of predictions in their DAGs: scores that move, labels that come late, twice, wrong, or not at all."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.registry.verdicts import MonitoringVerdict, Verdicts
from tests import toy
from tests.airflow_fixtures import Airflow, Run
from tests.toy import Trained

MONITOR: dict[str, Any] = {
    "poll": "1s",
    "prediction_drift": {"min_rows": 50},
    "performance": {"labels": "labels/{window}.parquet", "min_labels": 100, "drop": 0.05},
}


@pytest.fixture(scope="module")
def february(promoted: Airflow) -> Path:
    """What the champion predicts of February, kept aside."""
    assert promoted.test("predict", "2024-02").state == "success"
    return Path(promoted.world.store, "predictions").rename(promoted.folder / "predicted")


@pytest.fixture
def watched(champion: Airflow, february: Path) -> Airflow:
    """January trained on and promoted, and February predicted; nothing is judged, and no label has come."""
    predictions = Path(champion.world.store, "predictions")
    for kept in (predictions, champion.folder / "labels"):
        shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(february, predictions)
    toy.months(champion.folder)
    champion.declare(monitor=MONITOR, retries=2, retry_delay="0s")
    return champion


def labels(airflow: Airflow, month: str, share: float = 1.0, *, wrong: bool = False) -> pa.Table:
    """Write the labels of a share of a month's rows."""
    table = toy.rows(month).select(["id", "y"])
    table = table.slice(0, int(table.num_rows * share))
    if wrong:
        table = table.set_column(1, "y", pa.array(1 - table["y"].to_numpy()))
    put(airflow, month, table)
    return table


def put(airflow: Airflow, month: str, table: pa.Table) -> None:
    toy.write(table, airflow.folder / "labels" / f"{month}.parquet")


def judged(run: Run, task: str) -> Any:
    assert run.state == "success", run.errors
    return run.xcom[task, "return_value"]


def verdicts(airflow: Airflow, sensor: Any) -> list[dict[str, Any]]:
    return Verdicts(airflow.store, airflow.name, sensor).all()


def state(airflow: Airflow, sensor: str) -> Any:
    """What the asset's state holds, as Airflow keeps it."""
    from airflow.models.asset_state_store import AssetStateStoreModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        rows = session.scalars(select(AssetStateStoreModel).where(AssetStateStoreModel.key == sensor)).all()
        value = rows[-1].value
        return json.loads(value) if isinstance(value, str) else value


def test_predictions_as_usual_are_ok_and_all_keeps_one_form(watched: Airflow) -> None:
    run = watched.test("monitor_predictions")
    found = judged(run, "prediction_drift")
    assert (found["verdict"]["status"], found["window"][2]) == ("ok", "2024-02")
    assert run.events == []
    assert judged(watched.test("monitor"), "data_drift")["verdict"]["status"] == "ok"
    labels(watched, "2024-02")
    assert judged(watched.test("monitor_performance"), "performance")["verdict"]["status"] == "ok"
    every = Verdicts(watched.store, watched.name).of_window("2024-02")
    assert {each["sensor"] for each in every} == {"data_drift", "prediction_drift", "performance"}
    for each in every:
        verdict = MonitoringVerdict.model_validate(each)
        assert (verdict.window, verdict.champion, verdict.status) == ("2024-02", "1", "ok")
        assert verdict.mlflow_url
    # One run of MLflow each.
    assert len({each["mlflow_url"] for each in every}) == 3


def test_scores_that_moved_ask_by_their_own_word(watched: Airflow) -> None:
    toy.months(watched.folder, ("2024-03",), shift=3.0)
    assert watched.test("predict", "2024-03").state == "success"
    run = watched.test("monitor_predictions", "2024-03")
    found = judged(run, "prediction_drift")
    assert found["verdict"]["status"] == "drift"
    assert "probability" in found["verdict"]["reasons"][0]
    (recorded,) = watched.requests()
    assert (recorded.request.trigger, recorded.request.window.key) == ("prediction_drift", "2024-03")
    (event,) = run.events
    assert event["asset"] == f"x-mlops://{watched.name}/retrain"
    assert (event["extra"]["request"], event["extra"]["window"]) == (recorded.request.id, "2024-03")
    assert "probability moved" in event["extra"]["reason"]


def test_the_sensor_waits_for_predictions_through_its_trigger(airflow: Airflow, january: Trained) -> None:
    toy.months(airflow.folder)
    airflow.declare(monitor=MONITOR)
    assert airflow.run("monitor_predictions", triggers=False).states == {"prediction_drift": "deferred"}
    airflow.promote(january)
    assert airflow.test("predict", "2024-02").state == "success"
    partition = Path(airflow.world.store, "predictions", airflow.name, "window=2024-02")
    aside = partition.rename(partition.with_name("aside"))
    timer = threading.Timer(2.0, aside.rename, (partition,))
    timer.start()
    run = airflow.test("monitor_predictions")
    timer.join()
    assert judged(run, "prediction_drift")["window"][2] == "2024-02"
    assert run.tries == {"prediction_drift": 1}


def test_labels_that_come_bit_by_bit_are_waited_for(watched: Airflow) -> None:
    assert watched.run("monitor_performance", triggers=False).states == {"performance": "deferred"}
    labels(watched, "2024-02", 0.1)
    first = judged(watched.test("monitor_performance"), "performance")
    assert first["verdict"]["status"] == "insufficient_data"
    assert "40 labels of 400 predictions have come; at least 100 are needed" in first["verdict"]["reasons"][0]
    # Nothing has come since, so the next run waits.
    assert watched.run("monitor_performance", triggers=False).states == {"performance": "deferred"}
    labels(watched, "2024-02")
    second = judged(watched.test("monitor_performance"), "performance")
    assert second["verdict"]["status"] == "ok"
    assert "400 labels of 400 predictions" in second["verdict"]["reasons"][0]
    assert [each["status"] for each in verdicts(watched, "performance")] == ["ok"]
    assert [each["status"] for each in verdicts(watched, None)] == ["insufficient_data", "ok"]
    assert watched.run("monitor_performance", triggers=False).states == {"performance": "deferred"}
    assert watched.requests() == []


def test_a_drop_asks_once_and_the_reason_holds_the_numbers(watched: Airflow) -> None:
    labels(watched, "2024-02", wrong=True)
    run = watched.test("monitor_performance")
    found = judged(run, "performance")
    assert found["verdict"]["status"] == "drift"
    (verdict,) = verdicts(watched, "performance")
    measured = verdict["performance"]
    assert measured["metric"] == "roc_auc" and measured["value"] < 0.5 < measured["promoted"]
    low, high = measured["loss_interval"]
    assert measured["limit"] == 0.05 < low < measured["loss"] < high
    (recorded,) = watched.requests()
    assert (recorded.request.trigger, recorded.request.window.key) == ("performance", "2024-02")
    (event,) = run.events
    assert event["extra"]["request"] == recorded.request.id
    for reason in (recorded.request.reason, event["extra"]["reason"]):
        assert f"{measured['promoted']:.4f}" in reason and f"from {low:+.4f} to {high:+.4f}" in reason

    # Cleared, it judges the same window again and leaves what it left.
    again = watched.clear("monitor_performance", run.run_id, "performance")
    assert judged(again, "performance")["window"][2] == "2024-02"
    assert len(verdicts(watched, "performance")) == len(watched.requests()) == 1
    assert state(watched, "performance")["2024-02"]["status"] == "drift"


def test_a_cleared_run_keeps_its_window_though_others_were_judged_since(watched: Airflow) -> None:
    first = watched.test("monitor_predictions")
    data = watched.test("monitor")
    assert watched.test("predict", "2024-03").state == "success"
    assert judged(watched.test("monitor_predictions"), "prediction_drift")["window"][2] == "2024-03"
    assert judged(watched.test("monitor"), "data_drift")["window"][2] == "2024-03"

    again = watched.clear("monitor_predictions", first.run_id, "prediction_drift")
    assert judged(again, "prediction_drift")["window"][2] == "2024-02"
    assert judged(watched.clear("monitor", data.run_id, "data_drift"), "data_drift")["window"][2] == "2024-02"
    for sensor in ("prediction_drift", "data_drift"):
        assert [each["window"] for each in verdicts(watched, sensor)] == ["2024-02", "2024-03"]
        assert list(state(watched, sensor)) == ["2024-02", "2024-03"]


def test_a_window_predicted_late_is_not_lost(watched: Airflow) -> None:
    assert watched.test("predict", "2024-03").state == "success"
    partition = Path(watched.world.store, "predictions", watched.name, "window=2024-02")
    aside = partition.rename(partition.with_name("aside"))
    assert judged(watched.test("monitor_predictions"), "prediction_drift")["window"][2] == "2024-03"
    aside.rename(partition)
    assert judged(watched.test("monitor_predictions"), "prediction_drift")["window"][2] == "2024-02"


def test_odd_labels_are_named_and_left_out(watched: Airflow) -> None:
    table = labels(watched, "2024-02")
    ids, truth = table["id"].to_pylist(), table["y"].to_pylist()
    odd = {
        "id": [*ids, ids[0], ids[1], "never", None],
        "y": [*truth, truth[0], 1 - truth[1], 1, 1],
    }
    odd["y"][2], odd["y"][3] = 7, None
    put(watched, "2024-02", pa.table(odd))
    found = judged(watched.test("monitor_performance"), "performance")
    reasons = "\n".join(found["verdict"]["reasons"])
    assert "397 labels of 400 predictions" in reasons
    assert "1 labels are for rows never predicted" in reasons
    assert "2 labels that contradict another are left out" in reasons
    assert "classes that the model does not know (7.0; it knows 0, 1)" in reasons
    assert "1 labels without a key are left out" in reasons


def test_late_labels_of_a_judged_window_are_said_and_not_judged_twice(watched: Airflow) -> None:
    assert watched.test("predict", "2024-03").state == "success"
    labels(watched, "2024-02", 0.5)
    assert judged(watched.test("monitor_performance"), "performance")["verdict"]["status"] == "ok"
    labels(watched, "2024-02")
    labels(watched, "2024-03")
    found = judged(watched.test("monitor_performance"), "performance")
    assert found["window"][2] == "2024-03"
    assert any("labels of 2024-02 were written again" in reason for reason in found["verdict"]["reasons"])
    assert len(verdicts(watched, "performance")) == 2
    asked = judged(watched.test("monitor_performance", "2024-02"), "performance")
    assert "400 labels of 400" in asked["verdict"]["reasons"][0]


def test_labels_by_default_are_the_target_of_the_source_when_it_has_come(watched: Airflow) -> None:
    bare = toy.rows("2024-02").drop_columns(["y"])
    toy.write(bare, watched.folder / "data" / "2024-02.parquet")
    watched.declare(monitor={**MONITOR, "performance": {}})
    assert watched.test("predict", "2024-02").state == "success"
    first = judged(watched.test("monitor_performance"), "performance")
    assert first["verdict"]["status"] == "insufficient_data"
    assert "the labels have no column 'y' yet" in first["verdict"]["reasons"]
    toy.months(watched.folder, ("2024-02",))
    assert judged(watched.test("monitor_performance"), "performance")["verdict"]["status"] == "ok"


def test_predictions_of_a_former_champion_warn_and_ask_for_nothing(airflow: Airflow, january: Trained) -> None:
    toy.months(airflow.folder)
    airflow.declare(monitor=MONITOR)
    airflow.promote(january)
    assert airflow.test("predict", "2024-02").state == "success"
    labels(airflow, "2024-02", wrong=True)
    version = toy.make_version(airflow.world, "sha256:other")
    registry = toy.registry_of(airflow.world.store, airflow.world.registry)
    registry.ledger.record(
        "promotion",
        version=version.uri.rpartition("/")[2],
        champion_before="1",
        decision="d",
        reasons=(),
        run="r",
        window="2024-01",
    )
    found = judged(airflow.test("monitor_performance"), "performance")
    assert found["verdict"]["status"] == "warn"
    assert "champion 2 serves now" in "\n".join(found["verdict"]["reasons"])
    assert airflow.requests() == []


def test_a_window_the_model_was_trained_on_is_no_news(watched: Airflow) -> None:
    assert watched.test("predict", "2024-01").state == "success"
    labels(watched, "2024-01")
    for dag, task in (("monitor_predictions", "prediction_drift"), ("monitor_performance", "performance")):
        found = judged(watched.test(dag, "2024-01"), task)
        assert found["verdict"]["status"] == "insufficient_data"
        assert "trained on this window" in found["verdict"]["reasons"][0]


def test_keys_of_another_kind_fail_once_with_words(watched: Airflow) -> None:
    table = toy.rows("2024-02").select(["id", "y"])
    put(watched, "2024-02", table.rename_columns(["key", "y"]))
    run = watched.test("monitor_performance")
    assert (run.state, run.tries) == ("failed", {"performance": 1})
    assert "no column 'id' (the key that joins labels and predictions)" in str(run.error("performance"))
    assert [each["status"] for each in verdicts(watched, "performance")] == ["error"]
    assert np.all([each["window"] == "2024-02" for each in verdicts(watched, "performance")])
