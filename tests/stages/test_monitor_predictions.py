"""Monitoring of predictions and of performance: every task, and workers that are killed in between."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.call import Store
from airflow_mlops.registry.verdicts import SENSORS, MonitoringVerdict, Verdicts
from airflow_mlops.spec import Declaration, monitor_node, performance_node, prediction_drift_node
from airflow_mlops.triggers.window import arrived
from tests import forked, toy
from tests.toy import World

NODES: dict[str, Any] = {
    "monitor": monitor_node,
    "monitor_predictions": prediction_drift_node,
    "monitor_performance": performance_node,
}
MONITOR: dict[str, Any] = {
    "prediction_drift": {"min_rows": 50, "consecutive": 1},
    "performance": {"labels": "labels/{window}.parquet", "min_labels": 100, "drop": 0.1},
}
MODELS: dict[str, Any] = {
    "binary": {},
    "regression": {"task": "regression", "train": {"estimator": "sklearn.linear_model.Ridge"}},
    "multiclass": {"task": "multiclass"},
}


def rows(task: str, month: str, shift: float = 0.0) -> pa.Table:
    """Rows of a month with a target of the task."""
    table = toy.rows(month, shift=shift)
    amount = table["amount"].to_numpy() - shift
    noise = np.random.default_rng(len(month) + int(month[-2:])).normal(size=table.num_rows)
    if task == "regression":
        return table.set_column(6, "y", pa.array(20 + 10 * amount + noise))
    if task == "multiclass":
        level = np.digitize(amount + noise / 2, [-0.5, 0.5])
        return table.set_column(6, "y", pa.array(np.array(["low", "middle", "high"])[level]))
    return table


def make(task: str, server: str, folder: Path) -> World:
    """A champion of January, and its predictions of February, and of March, where ``amount`` moved."""
    world = World(folder, str(folder / "store"), toy.registry_ref(server, f"{task}-{folder.name}"))
    for month, shift in (("2024-01", 0.0), ("2024-02", 0.0), ("2024-03", 3.0)):
        toy.write(rows(task, month, shift), folder / "data" / f"{month}.parquet")
    declaration = declaration_of(world, task)
    toy.run_plan(declaration, "2024-01", "train", world.store, world.registry)
    for month in ("2024-02", "2024-03"):
        toy.run_predict(declaration, month, f"predict-{month}", world.store, world.registry)
    return world


@pytest.fixture(scope="module", params=MODELS)
def predicted(request: pytest.FixtureRequest, mlflow_server: str, tmp_path_factory: Any) -> Iterator[tuple[World, str]]:
    """A world for each task."""
    yield make(request.param, mlflow_server, tmp_path_factory.mktemp(request.param)), request.param


def declaration_of(world: World, task: str) -> Declaration:
    return toy.declare(world.folder, world.registry.model, monitor=MONITOR, **MODELS[task])


def judge(world: World, task: str, stage: str, month: str, run: str) -> Any:
    declaration = declaration_of(world, task)
    return toy.run_monitor(declaration, month, run, world.store, world.registry, NODES[stage])


def label(world: World, task: str, month: str, share: float = 1.0, *, wrong: bool = False) -> None:
    """Write the labels of a share of a month's rows, or those of other rows."""
    table = rows(task, month).select(["id", "y"])
    if wrong:
        order = np.random.default_rng(4).permutation(table.num_rows)
        table = table.set_column(1, "y", table["y"].take(pa.array(order)))
    toy.write(table.slice(0, int(table.num_rows * share)), world.folder / "labels" / f"{month}.parquet")


def verdicts(world: World, stage: str, month: str) -> list[MonitoringVerdict]:
    found = Verdicts(Store(world.store), world.registry.model, SENSORS[stage]).of_window(month)
    return [MonitoringVerdict.model_validate(each) for each in found]


def test_what_any_model_says_is_compared_with_what_it_said(predicted: tuple[World, str]) -> None:
    world, task = predicted
    usual = judge(world, task, "monitor_predictions", "2024-02", "usual")
    assert usual.verdict.status == "ok", usual.verdict.reasons
    moved = judge(world, task, "monitor_predictions", "2024-03", "moved")
    assert moved.verdict.status == "drift", moved.verdict.reasons
    (verdict,) = verdicts(world, "monitor_predictions", "2024-03")
    columns = {column["column"] for column in verdict.columns}
    if task == "multiclass":
        assert columns == {"probability.high", "probability.low", "probability.middle"}
    else:
        assert columns == {"probability" if task == "binary" else "prediction"}
    assert set(verdict.moved) <= columns and verdict.moved
    assert verdict.report_url
    client = mlflow.MlflowClient(world.registry.uri)
    files = {file.path for file in client.list_artifacts(moved.info["run_id"])}
    assert files == {"report.html", "verdict.json"}


def test_the_performance_of_any_model_is_held_against_its_promotion(predicted: tuple[World, str]) -> None:
    world, task = predicted
    label(world, task, "2024-02", 0.2)
    few = judge(world, task, "monitor_performance", "2024-02", "few")
    assert few.verdict.status == "insufficient_data"
    assert "80 labels of 400 predictions have come; at least 100 are needed" in few.verdict.reasons[0]
    label(world, task, "2024-02")
    right = judge(world, task, "monitor_performance", "2024-02", "right")
    assert right.verdict.status == "ok", right.verdict.reasons
    label(world, task, "2024-02", wrong=True)
    wrong = judge(world, task, "monitor_performance", "2024-02", "wrong")
    assert wrong.verdict.status == "drift", wrong.verdict.reasons
    measured = [verdict.performance for verdict in verdicts(world, "monitor_performance", "2024-02")]
    assert len(measured) == 2
    for each in measured:
        assert each is not None and each.value is not None and each.promoted is not None
        assert each.metric == {"binary": "roc_auc", "regression": "rmse", "multiclass": "balanced_accuracy"}[task]
        low, high = each.loss_interval or (0, 0)
        worse = each.value - each.promoted if task == "regression" else each.promoted - each.value
        assert low < worse < high and worse == pytest.approx(each.loss)
    logged = mlflow.MlflowClient(world.registry.uri).get_run(wrong.info["run_id"]).data
    assert logged.tags["mlops.verdict"] == "drift"
    assert logged.metrics["loss.low"] > measured[1].limit  # type: ignore[union-attr, operator]


class Killed(BaseException):
    """As a signal: nothing handles it."""


@pytest.fixture(scope="module")
def scored(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A model of two classes, and labels of February."""
    world = make("binary", mlflow_server, tmp_path_factory.mktemp("scored"))
    label(world, "binary", "2024-02")
    return world


@pytest.fixture
def unjudged(scored: World) -> World:
    """The same, and nothing was judged."""
    for kept in ("verdicts", "prediction_verdicts", "performance_verdicts", "monitored"):
        shutil.rmtree(Path(scored.store, kept), ignore_errors=True)
    return scored


def next_of(world: World, stage: str, run: str) -> str | None:
    """The window that a run's sensor would judge now."""
    arguments: dict[str, Any] = {"store": world.store, "pipeline": world.registry.model, "grain": "month", "run": run}
    if stage == "monitor":
        arguments["source"] = f"{world.folder}/data/{{window}}.parquet"
    else:
        partitions = Store(world.store).uri("predictions", world.registry.model)
        arguments |= {"sensor": SENSORS[stage], "predictions": f"{partitions}/window={{window}}/predictions.parquet"}
    if stage == "monitor_performance":
        arguments["labels"] = f"{world.folder}/labels/{{window}}.parquet"
    window = arrived(arguments)
    return window.key if window else None


KILLED = """
import os, signal, sys
from airflow_mlops.call import Call
from airflow_mlops.call.dispatch import run
from airflow_mlops.registry.verdicts import Verdicts
Verdicts.record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run(Call.model_validate_json(sys.argv[1]))
"""


def kill(world: World, stage: str, moment: str, run: str, patch: pytest.MonkeyPatch) -> None:
    """Judge February, and die before or after the verdict is on record."""
    record = Verdicts.record

    def dies(verdicts: Verdicts, *what: Any) -> Any:
        if moment == "after":
            record(verdicts, *what)
        raise Killed

    if moment == "for real":
        node = NODES[stage](declaration_of(world, "binary").pipeline)
        declaration = declaration_of(world, "binary")
        call = toy.call_of(declaration, node, {}, "2024-02", run, world.store, world.registry)
        forked.killed(KILLED, call.model_dump_json())
        return
    with patch.context() as patched:
        patched.setattr(Verdicts, "record", dies)
        with pytest.raises(Killed):
            judge(world, "binary", stage, "2024-02", run)


@pytest.mark.parametrize(
    ("stage", "moment"),
    [*((stage, moment) for stage in NODES for moment in ("before", "after")), ("monitor_performance", "for real")],
)
def test_a_worker_that_dies_around_the_record_repeats_no_window_and_loses_none(
    unjudged: World, stage: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, run = unjudged, f"{stage} {moment}"
    assert next_of(world, stage, run) == "2024-02"
    Verdicts(Store(world.store), world.registry.model, SENSORS[stage]).take(run, toy.month("2024-02"))

    kill(world, stage, moment, run, monkeypatch)

    following = {"monitor": "2024-03", "monitor_predictions": "2024-03", "monitor_performance": None}[stage]
    # Were it never tried again, the next run would find the window if nothing is known of it.
    assert next_of(world, stage, "another") == (following if moment == "after" else "2024-02")
    assert next_of(world, stage, run) == "2024-02"
    outcome = judge(world, "binary", stage, "2024-02", run)
    (verdict,) = verdicts(world, stage, "2024-02")
    assert (verdict.run, verdict.status) == (run, "ok")
    assert next_of(world, stage, "another") == following
    client = mlflow.MlflowClient(world.registry.uri)
    (experiment,) = client.search_experiments(filter_string=f"name = '{world.registry.experiment}'")
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{run}'")
    assert [each.info.run_id for each in runs] == [outcome.info["run_id"]]
    assert runs[0].info.status == "FINISHED"
