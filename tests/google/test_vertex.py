"""The backend ``vertex`` against what a cloud does: answers lost, machines taken away, refusals, other versions."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.backends import TERMINAL, Handle, backend_of
from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.code import snapshot
from airflow_mlops.errors import (
    BackendError,
    CloudAccessError,
    CloudError,
    CloudUnreachableError,
    DeclarationError,
    JobFailedError,
    JobLostError,
    MlopsError,
    RuntimeBuildError,
)
from airflow_mlops.google import job as runner
from tests import toy
from tests.loopback.rest import until

GOOGLE: dict[str, Any] = {
    "project": "loopback",
    "region": "us-central1",
    "image": "europe-docker.pkg.dev/loopback/r/stage:1",
}
SECRET = {"MLFLOW_TRACKING_TOKEN": "hunter2-hunter2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
Asking = Callable[..., Call]


@pytest.fixture
def asking(tmp_path: Path, vertex: Any, gcs: str) -> Asking:
    """Makes Calls of a stage that runs these lines in a feature function."""
    store = Store(f"{gcs}/mlops")

    def ask(*lines: str, run: str = "r", stage: str = "prepare") -> Call:
        data = store.put_file(toy.write(toy.rows("2024-01", 50), tmp_path / "rows.parquet"), "dataset")
        body = "\n    ".join([*lines, "return frame"])
        toy.package(tmp_path, "user", f"import os, sys, time\n\ndef build(frame):\n    {body}\n")
        params = {"target": "y", "features": "user.features:build", "split": {"by": "random", "test": 0.5}}
        code = snapshot(["user.features:build"], str(tmp_path), store)
        inputs = {"data": data}
        return Call(pipeline="toy", stage=stage, run=run, inputs=inputs, params=params, code=code, store=store.root)

    return ask


def ended(call: Call, secrets: dict[str, str] | None = None, **options: Any) -> Outcome:
    """Submit, wait and collect."""
    backend = backend_of("vertex", {**GOOGLE, **options})
    handle = backend.submit(call, secrets or {})
    return finished(handle, **options)


def finished(handle: Handle, **options: Any) -> Outcome:
    backend = backend_of("vertex", {**GOOGLE, **options})
    until(lambda: backend.status(handle) in TERMINAL, 120)
    return backend.collect(handle)


def test_an_answer_that_was_lost_leads_to_no_second_job(asking: Asking, vertex: Any) -> None:
    vertex.lose_answer(method="POST", path="customJobs$")
    assert ended(asking()).stage == "prepare"
    assert len(vertex.jobs) == len(vertex.requests("POST", "customJobs$")) == 1


SUBMITS_AND_DIES = """
import os, signal, sys
from airflow_mlops.backends import backend_of
from airflow_mlops.call import Call
call = Call.model_validate_json(open(sys.argv[1]).read())
import json
backend_of("vertex", json.loads(sys.argv[2])).submit(call, {})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_is_killed_after_its_submission_is_followed_by_one_that_finds_it(
    asking: Asking, vertex: Any, tmp_path: Path
) -> None:
    call = asking()
    (tmp_path / "call.json").write_text(call.model_dump_json())
    worker = toy.start(SUBMITS_AND_DIES, str(tmp_path / "call.json"), json.dumps(GOOGLE))
    assert worker.wait(120) == -signal.SIGKILL

    found = backend_of("vertex", GOOGLE).find(call)

    assert found is not None and finished(found).identity == call.identity
    assert len(vertex.jobs) == 1


@pytest.mark.parametrize("status", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_looks_are_tried_again(asking: Asking, vertex: Any, status: str) -> None:
    call = asking()
    vertex.fail(status, method="GET", path="customJobs")
    assert backend_of("vertex", GOOGLE).find(call) is None
    assert len(vertex.requests("GET")) == 2


def test_a_submission_is_repeated_only_where_it_was_refused_for_load(asking: Asking, vertex: Any) -> None:
    call, backend = asking(), backend_of("vertex", GOOGLE)
    vertex.fail("RESOURCE_EXHAUSTED", method="POST", path="customJobs$")
    handle = backend.submit(call, {})
    assert len(vertex.requests("POST", "customJobs$")) == 2
    backend.cancel(handle)
    vertex.fail("UNAVAILABLE", method="POST", path="customJobs$")
    with pytest.raises(CloudUnreachableError) as caught:
        backend.submit(call, {})
    assert caught.value.retryable and len(vertex.requests("POST", "customJobs$")) == 3
    names = Store(call.store).names("jobs", call.identity)
    assert len(names) == 1, "only the cancelled one's folder stays"


def test_what_was_collected_is_not_done_a_second_time_by_finding_it(asking: Asking) -> None:
    call = asking()
    backend = backend_of("vertex", GOOGLE)
    handle = backend.submit(call, {})
    until(lambda: backend.status(handle) == "done", 120)
    assert backend.find(call) == handle
    backend.collect(handle)
    assert backend.find(call) is None
    assert backend.find(call.model_copy(update={"params": {**call.params, "seed": 1}})) is None


def test_without_airflow_in_an_interpreter_of_its_own_the_module_is_the_runner(asking: Asking, vertex: Any) -> None:
    vertex.cold = True
    call = asking("try:", "    import airflow", "except ImportError as error:", "    print('none:', error)")
    backend = backend_of("vertex", GOOGLE)
    handle = backend.submit(call, {})
    until(lambda: backend.status(handle) == "done", 300)
    assert "none: a job has no Airflow" in list(backend.logs(handle))
    assert backend.collect(handle).stage == "prepare"


def test_a_machine_that_was_taken_away_is_replaced_where_spot_is_declared(
    asking: Asking, vertex: Any, tmp_path: Path
) -> None:
    mark = tmp_path / "begun"
    call = asking(f"mark = {str(mark)!r}", "if not os.path.exists(mark):", "    open(mark, 'w'); time.sleep(60)")
    options = {**GOOGLE, "machine": {"spot": True}}
    backend = backend_of("vertex", options)
    handle = backend.submit(call, {})
    until(mark.exists)
    vertex.preempt(handle.job)
    assert finished(handle).stage == "prepare"
    assert vertex.jobs[handle.job].job_spec.scheduling.strategy.name == "SPOT"


def test_a_job_that_breaks_down_names_its_log_and_is_worth_a_retry(asking: Asking, vertex: Any, tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    call = asking(f"open({str(mark)!r}, 'w'); time.sleep(60)")
    handle = backend_of("vertex", GOOGLE).submit(call, {})
    until(mark.exists)
    vertex.break_down(handle.job)
    with pytest.raises(JobFailedError, match="exited with a non-zero status of -9") as caught:
        finished(handle)
    assert caught.value.retryable and "console.cloud.google.com/logs" in str(caught.value)
    assert Store(call.store).names("jobs") == []


def test_a_job_that_hangs_is_ended_and_says_which_setting(asking: Asking) -> None:
    with pytest.raises(BackendError, match="ran longer than 0:00:01") as caught:
        ended(asking("time.sleep(60)"), timeout=1.0)
    assert not caught.value.retryable and "google.machine.timeout" in str(caught.value)


def test_secrets_are_in_secret_manager_while_the_job_lives_and_nowhere_else(
    asking: Asking, vertex: Any, secret_manager: Any, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    keyless = {"AIRFLOW_CONN_LAKE": json.dumps({"conn_type": "google_cloud_platform", "extra": {"project": "p"}})}
    tell = "'|'.join([os.environ['MLFLOW_TRACKING_TOKEN'][::-1], os.environ['MLFLOW_HTTP_REQUEST_MAX_RETRIES']])"
    call = asking(f"open({str(seen)!r}, 'w').write({tell} + str('AIRFLOW_CONN_LAKE' in os.environ))")
    backend = backend_of("vertex", GOOGLE)
    handle = backend.submit(call, {**SECRET, **keyless})
    (secret,) = secret_manager.secrets.values()
    assert secret.ttl.total_seconds() == 86_400 + 3600 and secret.labels["mlops_call"] == call.identity
    assert [each.location for each in secret.replication.user_managed.replicas] == ["us-central1"]
    until(lambda: backend.status(handle) == "done", 120)
    assert seen.read_text() == "2retnuh-2retnuh|3False"
    assert secret_manager.read == [f"{secret.name}/versions/1"]
    kept = [each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()]
    said = json.dumps([each.body for each in vertex.asked]) + vertex.log_of(handle.job) + handle.model_dump_json()
    assert "hunter2" not in said and not any(b"hunter2" in each for each in kept)
    store = Store(call.store)
    assert not any(b"hunter2" in store.fs.cat_file(path) for path in store.fs.find(store.path))
    backend.collect(handle)
    assert secret_manager.secrets == {}


def test_a_secret_goes_with_a_job_that_is_cancelled_or_was_refused(
    asking: Asking, vertex: Any, secret_manager: Any
) -> None:
    vertex.machines.clear()
    backend = backend_of("vertex", GOOGLE)
    handle = backend.submit(asking(), SECRET)
    assert len(secret_manager.secrets) == 1
    backend.cancel(handle)
    assert secret_manager.secrets == {}
    vertex.fail("PERMISSION_DENIED", "no", method="POST", path="customJobs$")
    with pytest.raises(CloudAccessError):
        backend.submit(asking(run="other"), SECRET)
    assert secret_manager.secrets == {}


def test_an_image_of_another_version_is_refused_with_the_command_that_builds_it_anew(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "holds", lambda: "airflow-mlops 9.9 on Python 3.99")
    with pytest.raises(RuntimeBuildError) as caught:
        ended(asking())
    said = str(caught.value)
    assert f"holds airflow-mlops {runner.__version__} on Python {sys.version_info.major}" in said
    assert "the worker is airflow-mlops 9.9 on Python 3.99" in said
    assert "gcloud builds submit --config docker/cloudbuild.yaml" in said and "_PYTHON=3.99" in said
    assert not caught.value.retryable


def test_of_several_machines_the_first_ones_model_counts(
    tmp_path: Path, vertex: Any, gcs: str, mlflow_server: str, asking: Asking
) -> None:
    toy.package(
        tmp_path,
        "spread",
        "import json, os, pathlib\nfrom sklearn.dummy import DummyClassifier\n\n"
        "def fit(rows, target, params):\n"
        "    task = json.loads(os.environ['CLUSTER_SPEC'])['task']\n"
        f"    pathlib.Path({str(tmp_path)!r}, '-'.join(['fit', task['type'], str(task['index'])])).touch()\n"
        "    return DummyClassifier().fit(rows, target)\n",
    )
    declaration = toy.declare(tmp_path, train={"estimator": None, "function": "spread.features:fit"}, task="binary")
    toy.months(tmp_path, ["2024-01"])
    registry = toy.registry_ref(mlflow_server, f"spread-{time.time_ns()}")
    store = f"{gcs}/mlops"
    outcomes = toy.run_plan(declaration, "2024-01", "r", store, registry, until="prepare")
    before = Store(store).fs.find(Store(store).path)
    call = toy.next_call(declaration, "train", outcomes, "2024-01", "r", store, registry)

    outcome = ended(call, machine={"replicas": 3})

    fits = sorted(file.name for file in tmp_path.glob("fit-*"))
    assert fits == ["fit-workerpool0-0", "fit-workerpool1-0", "fit-workerpool1-1"]
    (job,) = vertex.jobs.values()
    assert [pool.replica_count for pool in job.job_spec.worker_pool_specs] == [1, 2]
    made = set(Store(store).fs.find(Store(store).path)) - set(before)
    assert len([path for path in made if "/outcomes/" in path]) == 1, made
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server, mlflow_server)
    experiment = client.get_experiment_by_name(registry.experiment)
    assert len(client.search_logged_models([experiment.experiment_id])) == 1
    assert outcome.outputs["model"].kind == "model"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": None}, r"no image is declared.*gcloud builds submit --config docker/cloudbuild.yaml.*google.image"),
        ({"machine": {"machine_type": "n9-huge-1"}}, r"n9-huge-1.*correct google.machine.machine_type"),
        ({"stages": {"prepare": {"machine_type": "n9-huge-1"}}}, r"correct google.stages.prepare.machine_type"),
        ({"region": "Europe"}, "backend 'vertex': region"),
    ],
)
def test_what_is_declared_wrongly_names_its_setting(asking: Asking, options: dict[str, Any], said: str) -> None:
    with pytest.raises(MlopsError, match=said) as caught:
        ended(asking(), **options)
    assert not caught.value.retryable


def test_a_store_that_jobs_cannot_reach_is_refused(asking: Asking, tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="cannot reach the store .*google.bucket"):
        ended(asking().model_copy(update={"store": str(tmp_path)}))


@pytest.mark.parametrize(
    ("status", "words", "said"),
    [
        (
            "PERMISSION_DENIED",
            "Permission 'aiplatform.customJobs.create' denied on resource '//aiplatform.googleapis.com/projects/p'",
            "projects add-iam-policy-binding loopback .* --role roles/aiplatform.user.*google_cloud_default",
        ),
        (
            "PERMISSION_DENIED",
            "You do not have permission to act as service_account: runner@loopback.iam.gserviceaccount.com",
            "--role roles/iam.serviceAccountUser",
        ),
        ("INVALID_ARGUMENT", "Unable to parse image URI", "correct google.image"),
    ],
)
def test_what_google_refuses_says_what_to_do(asking: Asking, vertex: Any, status: str, words: str, said: str) -> None:
    vertex.fail(status, words, method="POST", path="customJobs$")
    with pytest.raises(CloudError, match=said) as caught:
        ended(asking())
    assert not caught.value.retryable and "stage 'prepare'" in str(caught.value) and words in str(caught.value)


def test_a_quota_that_is_used_up_says_where_to_ask_for_more(asking: Asking, vertex: Any) -> None:
    words = "The following quotas are exceeded: CustomModelTrainingCPUsPerProjectPerRegion"
    vertex.fail("RESOURCE_EXHAUSTED", words, times=9, method="POST", path="customJobs$")
    with pytest.raises(CloudUnreachableError, match="quotas are exceeded.*iam-admin/quotas.project=loopback") as caught:
        ended(asking())
    assert caught.value.retryable


def test_a_bucket_elsewhere_is_told(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "airflow_mlops"):
        handle = backend_of("vertex", {**GOOGLE, "region": "europe-west1"}).submit(asking(), {})
    assert "lies in us-central1, the job runs in europe-west1" in caplog.text
    with pytest.raises(JobLostError):
        backend_of("vertex", GOOGLE).collect(handle.model_copy(update={"job": handle.job + "9"}))


def test_a_log_that_may_not_be_read_is_named(asking: Asking, vertex: Any) -> None:
    call = asking("print('a word')")
    backend = backend_of("vertex", GOOGLE)
    handle = backend.submit(call, {})
    until(lambda: backend.status(handle) == "done", 120)
    assert "a word" in list(backend.logs(handle))
    vertex.fail("PERMISSION_DENIED", "Permission 'logging.logEntries.list' denied", path="entries:list")
    (line,) = backend.logs(handle)
    assert "roles/logging.viewer" in line and str(handle.log_url) in line
