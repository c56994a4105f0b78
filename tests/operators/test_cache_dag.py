"""Never twice, in a real Airflow: identical reruns, and tasks that somebody clears."""

from __future__ import annotations

import pytest

from airflow_mlops.call.cache import INFO
from tests import toy
from tests.airflow_fixtures import Airflow, Run

STAGES = ["extract", "validate_data", "prepare", "train", "register", "evaluate", "validate_model", "promote"]
PURE = ["extract", "validate_data", "prepare", "train", "evaluate"]
FEATURES = """
def build(rows):
    return rows[["amount", "member"]]
"""
TRAINING = """
from pathlib import Path

from sklearn.linear_model import LogisticRegression


def fit(rows, target, params):
    if not Path(params["ready"]).exists():
        raise RuntimeError("the licence server is down")
    return LogisticRegression().fit(rows, target)
"""


def reasons(run: Run) -> dict[str, str]:
    """Why each stage that may be cached was computed or not."""
    infos = {
        task: value["info"] for (task, key), value in run.xcom.items() if key == "return_value" and task != "start"
    }
    return {task: info[INFO] for task, info in infos.items() if INFO in info}


def hits(run: Run) -> list[str]:
    """The stages that were not computed."""
    return [stage for stage in STAGES if reasons(run).get(stage, "").startswith("hit")]


@pytest.fixture
def toy_month(airflow: Airflow) -> Airflow:
    toy.months(airflow.folder, ("2024-01",), 1000)
    toy.package(airflow.folder, "team", FEATURES)
    airflow.declare(prepare={"features": "team.features:build"}, retries=0)
    return airflow


def mlflow_runs(airflow: Airflow) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(airflow.world.registry.uri)
    experiment = client.get_experiment_by_name(airflow.world.registry.experiment)
    assert experiment is not None
    return [run.info.run_id for run in client.search_runs([experiment.experiment_id])]


def test_an_identical_rerun_computes_nothing_and_changes_nothing(toy_month: Airflow) -> None:
    first = toy_month.test("train", "2024-01")
    assert hits(first) == [] and sorted(reasons(first)) == sorted(PURE)
    before, runs = toy.state_of(toy_month.world), mlflow_runs(toy_month)

    again = toy_month.test("train", "2024-01")

    assert again.states == dict.fromkeys(["start", *STAGES], "success")
    assert hits(again) == PURE
    assert f"as run {toy_month.name}.train/{first.run_id} of 20" in reasons(again)["train"]
    assert toy.state_of(toy_month.world) == before, "neither version, alias nor ledger entry"
    assert mlflow_runs(toy_month) == runs, "no MLflow run without anything in it"
    assert again.events == [], "no champion is new"
    assert again.xcom["validate_model", "return_value"]["verdict"]["reasons"] == ["it is the champion already"]
    for stage in ("train", "register", "evaluate", "validate_model", "promote"):
        link = [run.xcom[stage, "return_value"]["info"]["mlflow_url"] for run in (first, again)]
        assert link[0] == link[1], "links go to where the model was made"


def test_clearing_a_failed_task_redoes_it_and_what_follows(toy_month: Airflow) -> None:
    toy.package(toy_month.folder, "trainer", TRAINING)
    ready = toy_month.folder / "ready"
    train = {"estimator": None, "function": "trainer.features:fit", "params": {"ready": str(ready)}}
    toy_month.declare(prepare={"features": "team.features:build"}, train=train, retries=0)
    failed = toy_month.run("train", conf={"window": "2024-01"})
    assert failed.states["train"] == "failed" and failed.states["promote"] == "upstream_failed"
    ready.touch()

    done = toy_month.clear("train", failed.run_id, *STAGES[3:])

    assert done.state == "success"
    assert done.tries == {**dict.fromkeys(["start", *STAGES[:3]], 1), "train": 2, **dict.fromkeys(STAGES[4:], 1)}
    assert hits(done) == []
    assert len(toy_month.ledger()) == 1


def test_a_cleared_task_that_had_succeeded_is_a_hit_and_mended_code_a_miss(toy_month: Airflow) -> None:
    first = toy_month.run("train", conf={"window": "2024-01"})
    before = toy.state_of(toy_month.world)

    again = toy_month.clear("train", first.run_id, "start", *STAGES)
    assert again.state == "success" and set(hits(again)) >= {"extract", "validate_data", "prepare", "evaluate"}
    assert toy.state_of(toy_month.world) == before

    toy.package(toy_month.folder, "team", FEATURES.replace(', "member"', ""))
    mended = toy_month.clear("train", first.run_id, "start", *STAGES)
    assert mended.state == "success"
    assert hits(mended) == ["extract", "validate_data"], "they run no code of the team's"
    for stage in ("prepare", "train"):
        assert reasons(mended)[stage].startswith("miss: code changed: team/features.py (since run "), stage


def test_cache_false_computes_everything_again(toy_month: Airflow) -> None:
    toy_month.declare(prepare={"features": "team.features:build"}, cache=False)
    for _ in range(2):
        run = toy_month.test("train", "2024-01")
        assert run.state == "success" and reasons(run) == {}
    assert len(mlflow_runs(toy_month)) == 2
    assert len(toy.state_of(toy_month.world)["versions"]) == 1, "two equal models are one version"
