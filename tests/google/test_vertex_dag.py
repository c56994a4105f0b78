"""A pipeline with ``backend: vertex`` in a real Airflow: what runs where, and that no job is lost, doubled or left."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferralTimeout

from airflow_mlops.backends import backend_of
from airflow_mlops.call import Call, Store
from airflow_mlops.registry.ledger import Ledger
from tests import toy
from tests.airflow_fixtures import Airflow, Run
from tests.loopback.rest import until

LOADER = """
from airflow_mlops import load_dags
for dag in load_dags("*.yaml", globals()).values():
    for task in dag.tasks:
        task.poll_interval = 0.2
"""
OWN = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_mlops.operators import ExtractDataOperator
with DAG("{name}.own", schedule=None, default_args={{"retries": 2, "retry_delay": timedelta(0)}}) as dag:
    ExtractDataOperator(
        task_id="extract", source="data/{{window}}.parquet", window="2024-01", grain="month", pipeline="{name}",
        poll_interval=0.2, store="{store}", backend="vertex", backend_options={options!r}, {more}
    )
"""
GOOGLE = {"project": "loopback", "region": "europe-west1", "image": "europe-docker.pkg.dev/loopback/r/stage:1"}


def create_requests(vertex: Any) -> int:
    return len(vertex.requests("POST", "customJobs$"))


def states(vertex: Any) -> dict[str, str]:
    return {job.labels["mlops_stage"]: job.state.name.removeprefix("JOB_STATE_") for job in vertex.jobs.values()}


@pytest.fixture
def own(airflow: Airflow, vertex: Any, gcs: str) -> Any:
    """A team's own DAG of one task on Vertex AI."""
    toy.months(airflow.folder, ("2024-01",), 50)

    def write(more: str = "") -> str:
        text = OWN.format(name=airflow.name, store=f"{gcs}/mlops", options=GOOGLE, more=more)
        airflow.write(text)
        return f"{airflow.name}.own"

    return write


def test_a_train_run_is_what_it_is_locally_and_only_its_heavy_stages_are_jobs(
    airflow: Airflow, vertex: Any, gcs: str, secret_manager: Any
) -> None:
    toy.months(airflow.folder, ("2024-01",))
    google = {**GOOGLE, "bucket": gcs.removeprefix("gs://"), "labels": {"team": "churn"}}
    toy.declare(airflow.folder, airflow.name, backend="vertex", google=google)
    airflow.write(LOADER)

    run = airflow.test("train", "2024-01")

    assert run.state == "success", run.errors
    assert states(vertex) == dict.fromkeys(("prepare", "train", "evaluate"), "SUCCEEDED")
    assert create_requests(vertex) == 3
    store = Store(f"{gcs}/mlops")
    assert [entry.version for entry in Ledger(store, airflow.name).entries()] == ["1"]
    for name, job in vertex.jobs.items():
        assert job.labels["team"] == "churn" and job.labels["mlops_pipeline"] == airflow.name
        assert name.rpartition("/")[2] in run.xcom[job.labels["mlops_stage"], "job_url"]
        assert "INFO airflow_mlops" in vertex.log_of(name)
    assert run.xcom["train", "_link_JobLink"] == run.xcom["train", "job_url"]
    # Nothing is left: no secret was made where there was none to keep, and no folder of a job stays.
    assert secret_manager.asked == [] and store.names("jobs") == []

    local = toy.declare(airflow.folder, airflow.name)
    registry = toy.registry_ref(airflow.world.registry.uri, f"{airflow.name}-local")
    here = toy.run_plan(local, "2024-01", "r", airflow.world.store, registry, until="train")
    for stage in ("prepare", "train"):
        there = run.xcom[stage, "return_value"]["outputs"]
        assert {name: ref.digest for name, ref in here[stage].outputs.items()} == {
            name: ref["digest"] for name, ref in there.items()
        }


def test_a_retry_finds_the_job_again_and_links_stand_while_it_waits(own: Any, airflow: Airflow, vertex: Any) -> None:
    dag_id = own()
    vertex.machines.clear()
    waiting = airflow.run(dag_id, triggers=False)
    assert waiting.states == {"extract": "deferred"}
    number = next(iter(vertex.jobs)).rpartition("/")[2]
    assert f"/training/{number}/" in waiting.xcom["extract", "job_url"]
    assert number in waiting.xcom["extract", "job_log_url"]
    assert len(json.dumps(list(waiting.xcom.values()))) < 1000

    # The triggerer is gone, and somebody clears the task: the same Call has the same job.
    vertex.machines.set()
    run = airflow.clear(dag_id, waiting.run_id, "extract")

    assert (run.state, create_requests(vertex)) == ("success", 1)
    assert run.xcom["extract", "return_value"]["outputs"]["data"]["rows"] == 50


def test_a_submission_that_is_refused_for_now_is_tried_again(own: Any, airflow: Airflow, vertex: Any) -> None:
    dag_id = own()
    vertex.fail("UNAVAILABLE", method="POST", path="customJobs$")

    run = airflow.test(dag_id)

    assert (run.state, run.tries) == ("success", {"extract": 2})
    assert "UNAVAILABLE" in str(run.error("extract")) or "injected" in str(run.error("extract"))
    assert len(vertex.jobs) == 1


@pytest.fixture
def _signals() -> Any:
    """What a task does on SIGTERM is undone afterwards: here it shares its process with the tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_signals")
def test_a_task_that_is_ended_cancels_its_job(own: Any, airflow: Airflow, vertex: Any) -> None:
    vertex.machines.clear()
    assert airflow.run(own(), triggers=False).states == {"extract": "deferred"}
    signal.raise_signal(signal.SIGTERM)
    until(lambda: states(vertex) == {"extract": "CANCELLED"})


def test_a_task_whose_time_is_over_cancels_its_job(own: Any, airflow: Airflow, vertex: Any) -> None:
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    dag_id = own("execution_timeout=timedelta(seconds=5), retries=0")
    vertex.machines.clear()
    waiting = airflow.run(dag_id, triggers=False)
    assert waiting.states == {"extract": "deferred"}, waiting.errors
    (job,) = vertex.jobs.values()
    assert job.job_spec.scheduling.timeout.total_seconds() == 5, "Vertex AI itself ends what nobody ends"
    time.sleep(5.1)
    SchedulerJobRunner(job=Job()).check_trigger_timeouts()

    run = airflow.resume(dag_id, waiting, "extract")

    assert run.states == {"extract": "failed"}
    assert isinstance(run.error("extract"), TaskDeferralTimeout)
    until(lambda: states(vertex) == {"extract": "CANCELLED"})


class Triggerer:
    """A real triggerer: its supervisor is driven here, and its triggers run in its own process."""

    def __init__(self) -> None:
        from airflow.jobs.job import Job
        from airflow.jobs.triggerer_job_runner import TriggererJobRunner, TriggerRunnerSupervisor
        from airflow.utils.session import create_session

        job = Job()
        TriggererJobRunner(job, capacity=10)
        with create_session() as session:
            session.add(job)
            session.commit()
            session.refresh(job)
            session.expunge(job)
        self.supervisor = TriggerRunnerSupervisor.start(job=job, capacity=10)

    def until(self, condition: Any, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it never came to it"
            self.supervisor.run_once()

    def close(self) -> None:
        self.supervisor.kill(signal.SIGKILL)


@pytest.fixture
def triggerer(airflow_home: Any) -> Any:
    made: list[Triggerer] = []

    def start() -> Triggerer:
        made.append(Triggerer())
        return made[-1]

    yield start
    for each in made:
        each.close()


def deleted(dag_id: str, run: Run) -> None:
    """Delete a run, as the API does."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        session.delete(session.scalars(select(DagRun).filter_by(dag_id=dag_id, run_id=run.run_id)).one())


def test_a_run_that_is_deleted_cancels_its_job(own: Any, airflow: Airflow, vertex: Any, triggerer: Any) -> None:
    dag_id = own()
    vertex.machines.clear()
    waiting = airflow.run(dag_id, triggers=False)
    running = triggerer()
    # It has looked at the job: one word is asked for.
    running.until(lambda: len([each for each in vertex.asked if each.query == {"fields": "state"}]) > 2)
    deleted(dag_id, waiting)
    running.until(lambda: states(vertex) == {"extract": "CANCELLED"})


def test_a_job_that_nobody_waits_for_is_ended_by_the_next_run(
    own: Any, airflow: Airflow, vertex: Any, gcs: str
) -> None:
    """No triggerer ran when its run was deleted; a run that goes on, and one of the shell, keep their jobs."""
    dag_id = own()
    vertex.machines.clear()
    gone, going = airflow.run(dag_id, triggers=False), airflow.run(dag_id, triggers=False)
    assert (gone.states, going.states) == ({"extract": "deferred"}, {"extract": "deferred"})
    backend = backend_of("vertex", GOOGLE)
    asking = Call(pipeline=airflow.name, stage="train", run="r", store=f"{gcs}/mlops")
    first, _ = backend.others(asking)  # type: ignore[attr-defined]
    backend.submit(first.call.model_copy(update={"run": "cli/20240101"}), {})
    deleted(dag_id, gone)

    airflow.run(dag_id, triggers=False)

    # Those of the run that is gone, of that which goes on, of the shell, and of the last one.
    ended, *others = vertex.jobs.values()
    until(lambda: ended.state.name == "JOB_STATE_CANCELLED")
    assert [job.state.name for job in others] == ["JOB_STATE_PENDING"] * 3


def test_a_run_starts_its_job_though_others_cannot_be_looked_for(own: Any, airflow: Airflow, vertex: Any) -> None:
    vertex.fail("PERMISSION_DENIED", times=1, method="GET", path="hyperparameterTuningJobs$")
    assert airflow.test(own()).state == "success"
    assert vertex.requests("GET", "hyperparameterTuningJobs$")


def test_a_trigger_that_is_let_in_no_more_leaves_its_job_to_be_waited_for(
    own: Any, airflow: Airflow, vertex: Any, triggerer: Any
) -> None:
    dag_id = own()
    vertex.machines.clear()
    waiting = airflow.run(dag_id, triggers=False)
    (name,) = vertex.jobs
    vertex.fail("UNAUTHENTICATED", times=2, method="GET", path=name)
    running = triggerer()
    running.until(lambda: airflow.look(_run(dag_id, waiting)).states != {"extract": "deferred"})

    assert airflow.resume(dag_id, waiting, "extract").states == {"extract": "deferred"}, "the worker was let in"

    vertex.machines.set()
    running.until(lambda: airflow.look(_run(dag_id, waiting)).states != {"extract": "deferred"})
    run = airflow.resume(dag_id, waiting, "extract")
    assert (run.state, create_requests(vertex)) == ("success", 1)


def test_a_triggerer_rides_out_what_passes_and_another_takes_over(
    own: Any, airflow: Airflow, vertex: Any, triggerer: Any
) -> None:
    dag_id = own()
    vertex.machines.clear()
    waiting = airflow.run(dag_id, triggers=False)
    vertex.fail("RESOURCE_EXHAUSTED", times=5, method="GET", path="customJobs/")
    first = triggerer()
    first.until(lambda: len(vertex.requests("GET", "customJobs/")) > 7)
    first.close()
    vertex.machines.set()
    second = triggerer()
    until(lambda: states(vertex) == {"extract": "SUCCEEDED"})
    second.until(lambda: airflow.look(_run(dag_id, waiting)).states != {"extract": "deferred"})

    run = airflow.resume(dag_id, waiting, "extract")

    assert (run.state, create_requests(vertex)) == ("success", 1)


def _run(dag_id: str, run: Run) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(dag_id=dag_id, run_id=run.run_id)
