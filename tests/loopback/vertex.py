"""Vertex AI's jobs, and Cloud Logging of what they say. A job really runs its command, as a process of this machine.

Images are ignored, machines are not there, and points of a search are drawn at random. Filters are understood in
the two forms that are asked.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
import threading
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from google.cloud.aiplatform_v1 import types as T
from google.cloud.logging_v2.types import ListLogEntriesRequest
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status

from tests.conftest import QUIET
from tests.loopback.processes import Job, kill, start
from tests.loopback.rest import RefusedError, RestService, route

ACCOUNT = json.dumps({"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}})
"""What acts for nobody in particular."""
MACHINES = frozenset({"n2-standard-4", "n1-standard-4", "a2-highgpu-1g"})
_ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
_DEADLINE = 4


class _Job:
    """What runs of a job: its processes and its log."""

    def __init__(self) -> None:
        self.processes: list[Job] = []
        self.folder = Path(tempfile.mkdtemp(prefix="vertex-job-"))
        self.cancelled = self.preempted = False


class VertexService(RestService):
    """``customJobs`` and ``hyperparameterTuningJobs``, on the paths that Google's clients ask."""

    def __init__(self) -> None:
        super().__init__()
        self._guard = threading.RLock()
        self._numbers = count(4_000_000_000)
        self.environment: dict[str, str] = {}
        """What a job finds on its machine: where services are, and who it is."""
        self.forget()

    def forget(self) -> None:
        """Begin anew: no jobs, no faults."""
        super().forget()
        with self._guard:
            for job in getattr(self, "_at", {}).values():
                for process in job.processes:
                    kill(process)
                shutil.rmtree(job.folder, ignore_errors=True)
            self.jobs: dict[str, Any] = {}
            """Every job by its name, as Google's own message."""
            self._at: dict[str, _Job] = {}
            self.machines = threading.Event()
            """Whether there are machines; without any, jobs wait."""
            self.machines.set()
            self.cold = False
            """Whether each job starts an interpreter of its own."""

    def log_of(self, name: str) -> str:
        """What the processes of a job have said."""
        return "".join(file.read_text() for file in sorted(self._at[name].folder.rglob("log")))

    def preempt(self, name: str) -> None:
        """Take the machine of a job away, once it runs."""
        job = self._at[name]
        job.preempted = True
        for process in list(job.processes):
            kill(process)

    def break_down(self, name: str) -> None:
        """Let the process of a job end without a word."""
        for process in list(self._at[name].processes):
            kill(process)

    @route("POST", "v1/{parent=projects/*/locations/*}/customJobs", T.CreateCustomJobRequest, "custom_job")
    def create_custom_job(self, asked: Any) -> Any:
        self._check(asked.custom_job.job_spec)
        return self._begin(asked.parent, "customJobs", asked.custom_job, self._run_custom)

    @route("GET", "v1/{parent=projects/*/locations/*}/customJobs", T.ListCustomJobsRequest)
    def list_custom_jobs(self, asked: Any) -> Any:
        return T.ListCustomJobsResponse(custom_jobs=self._filtered(asked, "customJobs"))

    @route("GET", "v1/{name=projects/*/locations/*/customJobs/*}", T.GetCustomJobRequest)
    def get_custom_job(self, asked: Any) -> Any:
        return self._job(asked.name)

    @route("POST", "v1/{name=projects/*/locations/*/customJobs/*}:cancel", T.CancelCustomJobRequest, "*")
    def cancel_custom_job(self, asked: Any) -> Any:
        return self._cancel(asked.name)

    @route(
        "POST",
        "v1/{parent=projects/*/locations/*}/hyperparameterTuningJobs",
        T.CreateHyperparameterTuningJobRequest,
        "hyperparameter_tuning_job",
    )
    def create_tuning_job(self, asked: Any) -> Any:
        job = asked.hyperparameter_tuning_job
        self._check(job.trial_job_spec)
        if not job.max_trial_count or not job.parallel_trial_count or not job.study_spec.metrics:
            raise RefusedError("INVALID_ARGUMENT", "a tuning job needs metrics and its numbers of trials")
        grid = job.study_spec.algorithm == T.StudySpec.Algorithm.GRID_SEARCH
        if grid and any("double_value_spec" in each for each in job.study_spec.parameters):
            raise RefusedError("INVALID_ARGUMENT", "GRID_SEARCH takes no DOUBLE parameter")
        return self._begin(asked.parent, "hyperparameterTuningJobs", job, self._run_study)

    @route("GET", "v1/{parent=projects/*/locations/*}/hyperparameterTuningJobs", T.ListHyperparameterTuningJobsRequest)
    def list_tuning_jobs(self, asked: Any) -> Any:
        found = self._filtered(asked, "hyperparameterTuningJobs")
        return T.ListHyperparameterTuningJobsResponse(hyperparameter_tuning_jobs=found)

    @route("GET", "v1/{name=projects/*/locations/*/hyperparameterTuningJobs/*}", T.GetHyperparameterTuningJobRequest)
    def get_tuning_job(self, asked: Any) -> Any:
        return self._job(asked.name)

    @route(
        "POST",
        "v1/{name=projects/*/locations/*/hyperparameterTuningJobs/*}:cancel",
        T.CancelHyperparameterTuningJobRequest,
        "*",
    )
    def cancel_tuning_job(self, asked: Any) -> Any:
        return self._cancel(asked.name)

    @route("POST", "v2/entries:list", ListLogEntriesRequest, "*")
    def list_entries(self, asked: Any) -> Any:
        number = re.search(r'resource\.labels\.job_id="(\w+)"', asked.filter)
        assert number is not None and asked.resource_names and asked.order_by == "timestamp desc"
        names = [name for name in self._at if name.endswith(f"/{number[1]}")]
        lines = self.log_of(names[0]).splitlines() if names else []
        entries = [{"jsonPayload": {"message": line + "\n"}, "severity": "ERROR"} for line in lines]
        return {"entries": entries[::-1][: asked.page_size]}

    def _check(self, spec: Any) -> None:
        pools = spec.worker_pool_specs
        if not pools or pools[0].replica_count != 1:
            raise RefusedError("INVALID_ARGUMENT", "worker_pool_specs[0].replica_count must be 1")
        for pool in pools:
            if pool.machine_spec.machine_type not in MACHINES:
                raise RefusedError(
                    "INVALID_ARGUMENT", f"Machine type {pool.machine_spec.machine_type!r} is not supported."
                )

    def _begin(self, parent: str, kind: str, job: Any, run: Any) -> Any:
        with self._guard:
            # No two tests' jobs are of one name: what one test has left waiting must not end another one's.
            job.name = f"{parent}/{kind}/{next(self._numbers)}"
            job.state, job.create_time = T.JobState.JOB_STATE_PENDING, datetime.now(UTC)
            self.jobs[job.name], self._at[job.name] = job, _Job()
        threading.Thread(target=self._work, args=(job, self._at[job.name], run), daemon=True).start()
        return job

    def _work(self, job: Any, at: _Job, run: Any) -> None:
        machines = self.machines
        while not machines.wait(0.05):
            if at.cancelled:
                break
        if not at.cancelled:
            with self._guard:
                job.state, job.start_time = T.JobState.JOB_STATE_RUNNING, datetime.now(UTC)
            error = run(job, at)
            with self._guard:
                job.end_time = datetime.now(UTC)
                if not at.cancelled:
                    if error:
                        job.error = error
                    job.state = T.JobState.JOB_STATE_FAILED if error else T.JobState.JOB_STATE_SUCCEEDED
        if at.cancelled:
            with self._guard:
                job.state = T.JobState.JOB_STATE_CANCELLED

    def _run_custom(self, job: Any, at: _Job) -> Status | None:
        return self._run_pools(job.job_spec, at, at.folder, [], {"CLOUD_ML_JOB_ID": job.name.rpartition("/")[2]})

    def _run_pools(self, spec: Any, at: _Job, folder: Path, point: list[str], told: dict[str, str]) -> Status | None:
        """Run every replica, again where the machine was taken away and the job may; the error it ends with."""
        places = [
            (pool, index) for pool, each in enumerate(spec.worker_pool_specs) for index in range(each.replica_count)
        ]
        cluster: dict[str, list[str]] = {}
        for pool, index in places:
            cluster.setdefault(f"workerpool{pool}", []).append(f"host-{pool}-{index}:2222")
        until = time.monotonic() + (spec.scheduling.timeout.total_seconds() or 7 * 86_400)
        while True:
            started = []
            for pool, index in places:
                container = spec.worker_pool_specs[pool].container_spec
                at_place = folder / f"{pool}-{index}"
                at_place.mkdir(parents=True, exist_ok=True)
                task = {"cluster": cluster, "task": {"type": f"workerpool{pool}", "index": index}}
                environment = {
                    **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")},
                    **QUIET,
                    **self.environment,
                    "TMPDIR": str(at_place),
                    "CLUSTER_SPEC": json.dumps(task),
                    **told,
                    **{each.name: each.value for each in container.env},
                }
                command = [*container.command, *container.args, *point]
                started.append(start(command, environment, at_place, cold=self.cold))
            at.processes += started
            for process in started:
                while process.poll() is None:
                    if time.monotonic() > until or at.cancelled:
                        kill(process)
                        process.wait(10)
                        break
                    time.sleep(0.02)
            if at.cancelled:
                return None
            if time.monotonic() > until:
                return Status(code=_DEADLINE, message="The job timed out.")
            if at.preempted:
                at.preempted = False
                if spec.scheduling.restart_job_on_worker_restart:
                    continue
                return Status(code=10, message="The machine of workerpool0-0 was preempted.")
            failed = [place for place, process in zip(places, started, strict=True) if process.returncode]
            if failed:
                pool, index = failed[0]
                code = started[places.index(failed[0])].returncode
                words = f"The replica workerpool{pool}-{index} exited with a non-zero status of {code}."
                return Status(code=3, message=words)
            return None

    def _run_study(self, job: Any, at: _Job) -> Status | None:
        """One trial after another, at points drawn at random."""
        draw = random.Random(1)
        failed = 0
        for number in range(1, job.max_trial_count + 1):
            point = {each.parameter_id: _draw(each, draw, number - 1) for each in job.study_spec.parameters}
            trial = T.Trial(id=str(number), state=T.Trial.State.ACTIVE, start_time=datetime.now(UTC))
            trial.parameters = [T.Trial.Parameter(parameter_id=name, value=value) for name, value in point.items()]
            folder = at.folder / f"trial-{number}"
            folder.mkdir()
            report = folder / "metrics" / "output.metrics"
            told = {"CLOUD_ML_TRIAL_ID": str(number), "CLOUD_ML_HP_METRIC_FILE": str(report)}
            arguments = [f"--{name}={value}" for name, value in point.items()]
            error = self._run_pools(job.trial_job_spec, at, folder, arguments, told)
            if at.cancelled:
                return None
            trial.end_time = datetime.now(UTC)
            trial.state = T.Trial.State.INFEASIBLE if error else T.Trial.State.SUCCEEDED
            if error:
                failed += 1
            else:
                said = json.loads(report.read_text().splitlines()[-1])
                (metric,) = job.study_spec.metrics
                measured = T.Measurement.Metric(metric_id=metric.metric_id, value=float(said[metric.metric_id]))
                trial.final_measurement = T.Measurement(step_count=int(said["global_step"]), metrics=[measured])
            with self._guard:
                job.trials = [*job.trials, trial]
            if failed > max(job.max_failed_trial_count, 0):
                return Status(code=3, message=f"{failed} trials have failed.")
        return None

    def _job(self, name: str) -> Any:
        if name not in self.jobs:
            raise RefusedError("NOT_FOUND", f"The resource {name} is not found.")
        return self.jobs[name]

    def _filtered(self, asked: Any, kind: str) -> list[Any]:
        with self._guard:
            found = [job for name, job in self.jobs.items() if name.startswith(f"{asked.parent}/{kind}/")]
        for condition in asked.filter.split(" AND ") if asked.filter else ():
            label = re.fullmatch(r'labels\.(\w+)="([\w-]*)"', condition)
            state = re.fullmatch(r'state!="(JOB_STATE_[A-Z_]+)"', condition)
            if label is None and (state is None or state[1] not in T.JobState.__members__):
                raise RefusedError("INVALID_ARGUMENT", f"the stand-in does not understand the filter {condition!r}")
            if label:
                found = [job for job in found if job.labels.get(label[1]) == label[2]]
            elif state:
                found = [job for job in found if job.state.name != state[1]]
        return found

    def _cancel(self, name: str) -> None:
        job, at = self._job(name), self._at[name]
        with self._guard:
            if MessageToDict(type(job).pb(job))["state"].removeprefix("JOB_STATE_") in _ENDED:
                raise RefusedError("FAILED_PRECONDITION", f"{name} has ended and cannot be cancelled.")
            at.cancelled, job.state = True, T.JobState.JOB_STATE_CANCELLING


def _draw(parameter: Any, draw: random.Random, number: int) -> Any:
    """A value of a parameter, as Google writes it: numbers as numbers, categories as text."""
    kind = T.StudySpec.ParameterSpec.pb(parameter).WhichOneof("parameter_value_spec")
    spec = getattr(parameter, kind)
    if kind == "double_value_spec":
        return draw.uniform(spec.min_value, spec.max_value)
    if kind == "integer_value_spec":
        return draw.randint(spec.min_value, spec.max_value)
    return list(spec.values)[number % len(spec.values)]
