"""Tuning in real DAG runs: in the train DAG, over mapped tasks, and alone in a team's own DAG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from airflow_mlops.errors import DeclarationError
from tests import toy
from tests.airflow_fixtures import Airflow, Run

SPACE = {"C": {"low": 0.001, "high": 10.0, "log": True}}
OWN = """
from airflow.sdk import DAG
from airflow_mlops.operators import ExtractDataOperator, PrepareDataOperator, TrainModelOperator, TuneModelOperator

with DAG("own", schedule=None, default_args={{"retries": 0}}) as dag:
    rows = ExtractDataOperator(task_id="extract", source="data/{{window}}.parquet", grain="month", window="2024-01")
    split = PrepareDataOperator(task_id="split", data=rows.output, target="y")
    model = {{"train": split.output, "target": "y", "estimator": "sklearn.linear_model.LogisticRegression"}}
    tune = TuneModelOperator(task_id="tune", space={space}, trials={trials}, sampler="{sampler}", **model)
    TrainModelOperator(task_id="train", tuned=tune.output, exclude=["id", "at"], **model)
"""


@pytest.fixture
def january(airflow: Airflow) -> Airflow:
    """A month of data."""
    toy.months(airflow.folder, ["2024-01"], 500)
    return airflow


def logged(airflow: Airflow, run: Run, task: str = "train") -> Any:
    """MLflow's run of the pipeline, and the runs of the trials below it."""
    client = MlflowClient(airflow.world.registry.uri)
    parent = client.get_run(run.xcom[task, "return_value"]["info"]["run_id"])
    below = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=100
    )
    return parent, list(below)


def best(run: Run) -> Any:
    return json.loads(Path(run.xcom["tune", "return_value"]["outputs"]["tuned"]["uri"]).read_text())


def test_the_train_dag_tunes_before_it_trains(january: Airflow) -> None:
    january.declare(tune={"space": SPACE, "trials": 4})
    run = january.test("train", "2024-01")

    assert run.state == "success"
    assert {"tune", "train", "promote"} <= {task for task, state in run.states.items() if state == "success"}
    parent, below = logged(january, run)
    assert float(parent.data.params["model.C"]) == best(run)["params"]["C"]
    assert len(below) == 4
    assert run.xcom["tune", "mlflow_url"].endswith(parent.info.run_id)
    assert len(json.dumps(run.xcom["tune", "return_value"])) < 4096


def test_mapped_tasks_share_one_study_below_one_run(january: Airflow) -> None:
    january.declare(tune={"space": SPACE, "trials": 5, "as_tasks": 2})
    dag = january.dag("train")
    assert dag.get_task("tune").upstream_task_ids >= {"tune_trials", "prepare"}
    run = january.test("train", "2024-01")

    assert run.state == "success"
    parent, below = logged(january, run)
    assert sorted(int(each.data.tags["mlops.trial"]) for each in below) == list(range(5))
    assert best(run)["trials"] == 5
    assert float(parent.data.params["model.C"]) == best(run)["params"]["C"]
    (journal,) = Path(january.world.store, "studies").rglob("*.journal")
    assert journal.parent.name == january.name


def test_a_team_tunes_in_its_own_dag(january: Airflow) -> None:
    january.write(OWN.format(space=SPACE, trials=3, sampler="random"))
    run = january.test("own")
    assert run.state == "success"
    parent, below = logged(january, run)
    assert len(below) == 3
    assert float(parent.data.params["model.C"]) == best(run)["params"]["C"]


@pytest.mark.parametrize(
    ("space", "sampler", "said"),
    [
        ({"C": {"low": 2, "high": 1}}, "tpe", "argument 'space.C.Range': low 2 is above high 1"),
        (SPACE, "tpee", "argument 'sampler': Input should be 'tpe', 'random' or 'grid'"),
    ],
)
def test_what_is_wrong_in_a_teams_dag_is_told_and_not_retried(
    january: Airflow, space: dict[str, Any], sampler: str, said: str
) -> None:
    january.write(OWN.format(space=space, trials=3, sampler=sampler).replace('"retries": 0', '"retries": 3'))
    run = january.test("own")
    assert (run.state, run.states["tune"], run.tries["tune"]) == ("failed", "failed", 1)
    error = run.error("tune")
    assert isinstance(error, DeclarationError)
    assert said in str(error)
