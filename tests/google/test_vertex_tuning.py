"""A search as one job of Vertex AI: its points, what its trials measure, and an Outcome like the stage's own."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from airflow_mlops.backends import TERMINAL, backend_of
from airflow_mlops.backends.google import tuning
from airflow_mlops.call import Call, Store
from airflow_mlops.errors import CodeError, DeclarationError
from airflow_mlops.spec.wiring import problems_of
from tests import toy
from tests.loopback.rest import until

GOOGLE: dict[str, Any] = {"project": "loopback", "region": "us-central1", "image": "europe-docker.pkg.dev/l/r/stage:1"}
SPACE = {
    "C": {"low": 0.01, "high": 10.0, "log": True},
    "max_iter": {"low": 50, "high": 150, "step": 50},
    "solver": {"choices": ["lbfgs", "newton-cholesky", "no-such-solver"]},
}
TUNE: dict[str, Any] = {"space": SPACE, "trials": 4, "jobs": 2, "sampler": "random"}


def tuning_call(folder: Path, store: str, server: str, tune: dict[str, Any]) -> Call:
    declaration = toy.declare(folder, tune=tune, evaluate={"metrics": ["log_loss"]})
    toy.months(folder, ["2024-01"], 200)
    registry = toy.registry_ref(server, f"tuned-{time.time_ns()}")
    outcomes = toy.run_plan(declaration, "2024-01", "r", store, registry, until="prepare")
    return toy.next_call(declaration, "tune", outcomes, "2024-01", "r", store, registry)


def test_a_search_is_one_job_and_comes_to_what_the_stage_comes_to(
    tmp_path: Path, vertex: Any, gcs: str, mlflow_server: str
) -> None:
    call = tuning_call(tmp_path, f"{gcs}/mlops", mlflow_server, TUNE)
    backend = backend_of("vertex", GOOGLE)
    handle = backend.submit(call, {})
    assert backend.find(call) == handle and backend.status(handle) == "running"
    until(lambda: backend.status(handle) in TERMINAL, 300)
    (job,) = vertex.jobs.values()
    assert job.state.name == "JOB_STATE_SUCCEEDED", vertex.log_of(handle.job)
    assert (job.max_trial_count, job.parallel_trial_count) == (4, 2)
    assert job.study_spec.metrics[0].goal.name == "MINIMIZE"
    kinds = {each.parameter_id: each for each in job.study_spec.parameters}
    assert kinds["C"].scale_type.name == "UNIT_LOG_SCALE" and kinds["C"].double_value_spec.max_value == 10.0
    assert list(kinds["max_iter"].discrete_value_spec.values) == [50.0, 100.0, 150.0]

    outcome = backend.collect(handle)

    store = Store(call.store)
    found = store.fetch_json(outcome.outputs["tuned"])
    assert (outcome.metrics["trials"], outcome.metrics["failed"], found["metric"]) == (4.0, 1.0, "log_loss")
    assert isinstance(found["params"]["max_iter"], int) and found["params"]["solver"] in ("lbfgs", "newton-cholesky")
    assert outcome == store.read_outcome(call) and backend.collect(handle).outputs == outcome.outputs
    best = min((each for each in job.trials if each.final_measurement), key=_value)
    assert found["value"] == _value(best)

    # The stage itself measures that very point alike.
    from airflow_mlops.stages.trials import measure

    texts = {each.parameter_id: str(each.value) for each in best.parameters}
    again = measure(tuning.settled(call), texts)
    assert again["value"] == pytest.approx(found["value"], rel=1e-9)

    client = MlflowClient(mlflow_server, mlflow_server)
    experiment = client.get_experiment_by_name(call.registry.experiment if call.registry else "")
    runs = client.search_runs([experiment.experiment_id], "tags.`mlops.trial` != ''")
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]
    (refused,) = [run for run in runs if run.info.status == "FAILED"]
    assert "no-such-solver" in refused.data.tags["mlops.reason"]
    best_run = next(run for run in runs if run.data.metrics.get("tune.log_loss") == found["value"])
    assert [f"tune.fold_{step}" in best_run.data.metrics for step in range(3)] == [True] * 3


def _value(trial: Any) -> float:
    return float(trial.final_measurement.metrics[0].value)


def test_a_search_whose_points_all_fail_says_why(tmp_path: Path, vertex: Any, gcs: str, mlflow_server: str) -> None:
    space = {"solver": {"choices": ["no-such-solver", "nor-this-one"]}}
    call = tuning_call(tmp_path, f"{gcs}/mlops", mlflow_server, {"space": space, "trials": 2})
    backend = backend_of("vertex", GOOGLE)
    handle = backend.submit(call, {})
    until(lambda: backend.status(handle) in TERMINAL, 300)
    assert backend.status(handle) == "failed"
    with pytest.raises(CodeError, match="none of 2 trials could be measured by log_loss; the first one: .*no-such"):
        backend.collect(handle)


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"pruner": "hyperband"}, "no pruner 'hyperband'"),
        ({"as_tasks": 2}, "one job on Vertex AI.*tune.jobs"),
    ],
)
def test_what_vertex_cannot_search_is_told_before_anything_runs(
    tmp_path: Path, tune: dict[str, Any], said: str
) -> None:
    declaration = toy.declare(tmp_path, backend="vertex", google=GOOGLE, tune={**TUNE, **tune})
    (problem,) = problems_of(declaration)
    assert re.search(said, problem)


def test_a_metric_that_is_not_known_beforehand_is_asked_for(tmp_path: Path) -> None:
    params = {"target": "y", "estimator": toy.ESTIMATOR, "space": SPACE}
    call = Call(pipeline="toy", stage="tune", run="r", params=params, store="gs://b/mlops")
    with pytest.raises(DeclarationError, match="tune.metric"):
        tuning.settled(call)
    assert tuning.settled(call.model_copy(update={"params": {**params, "ml_task": "binary"}})).params["metric"]
