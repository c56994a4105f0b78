"""The stage runs as a job on Vertex AI, by the very runner that other backends use.

A submission has a folder in the store, ``jobs/CALL/JOB``: the Call, then the Outcome or the error. The job is found
again by labels, so that a worker or triggerer that was lost, or an answer that was, never leads to a second one.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from airflow_mlops.backends.base import TERMINAL, Handle, State
from airflow_mlops.backends.google import body, tuning
from airflow_mlops.call.__main__ import error_file
from airflow_mlops.call.dispatch import STAGES
from airflow_mlops.call.store import Store, reaching
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import (
    BackendError,
    CloudError,
    CloudNotFoundError,
    CloudUnreachableError,
    DeclarationError,
    JobCancelledError,
    JobFailedError,
    JobLostError,
    error_of,
)
from airflow_mlops.google import job as runner
from airflow_mlops.google import secrets as secret_manager
from airflow_mlops.google.names import PIPELINE_LABEL, label
from airflow_mlops.google.rest import Rest
from airflow_mlops.spec.google import Google, out_of_reach

log = logging.getLogger(__name__)

_STATES: dict[str, State] = {
    "JOB_STATE_SUCCEEDED": "done",
    "JOB_STATE_PARTIALLY_SUCCEEDED": "done",
    "JOB_STATE_FAILED": "failed",
    "JOB_STATE_EXPIRED": "failed",
    "JOB_STATE_CANCELLING": "cancelled",
    "JOB_STATE_CANCELLED": "cancelled",
}
"""Any other means that it goes on: it waits for a machine, runs, or is moved to another one."""
_OPEN = re.compile(r"MLFLOW_(HTTP_REQUEST_|ENABLE_)")
"""Variables that are settings and no secrets."""
_SLACK = 3600
"""Seconds that a secret outlives the longest that its job may run: machines have to be found first."""
_LINES = 1000
_JOB_ID = re.compile(r"projects/[^/]+/locations/[^/]+/(\w+)/([^/]+)")


@cache
def _rest(service: str, connection: str, region: str | None) -> Rest:
    """One session for all that a process asks: a triggerer looks at hundreds of jobs."""
    return Rest(service, connection, region)


class VertexBackend:
    """Runs Calls as jobs on Vertex AI.

    Args:
        timeout: the most seconds that a job may run, if that is less than its machine's ``timeout``.
        options: the keys of the declaration's section ``google``.

    Raises:
        DeclarationError: when an option is wrong; every one of them is named.
    """

    attached = False

    def __init__(self, timeout: float | None = None, **options: Any) -> None:
        try:
            self.google = Google.model_validate(options)
        except ValidationError as error:
            raise DeclarationError(
                [f"backend 'vertex': {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            ) from error
        self.timeout = timeout
        self.connection = self.google.connection
        self._parent = f"v1/projects/{self.google.project}/locations/{self.google.region}"

    @property
    def _vertex(self) -> Rest:
        return _rest("aiplatform", self.connection, self.google.region)

    @property
    def _secrets(self) -> Rest:
        return _rest(secret_manager.SERVICE, self.connection, None)

    def find(self, call: Call) -> Handle | None:
        """The job of an earlier try, by its labels: the newest that goes on, or is done and was not collected."""
        wanted = {body.CALL_LABEL: call.identity, body.DIGEST_LABEL: body.short(call.digest)}
        condition = " AND ".join(f'labels.{name}="{value}"' for name, value in wanted.items())
        kind = tuning.JOBS if tuning.is_study(call) else "customJobs"
        found = list(self._vertex.pages(f"{self._parent}/{kind}", kind, filter=condition))
        for job in sorted(found, key=lambda each: str(each.get("createTime", "")), reverse=True):
            state = _state(job)
            if state == "running" or (state == "done" and self._read(call, job, "call.json") is not None):
                return self._handle(call, job)
        return None

    def others(self, call: Call) -> Iterator[Handle]:
        """The jobs that go on for other Calls of the same pipeline, with the same store."""
        wanted = [f'labels.{PIPELINE_LABEL}="{label(call.pipeline)}"', *(f'state!="{ended}"' for ended in _STATES)]
        for kind in ("customJobs", tuning.JOBS):
            for job in self._vertex.pages(f"{self._parent}/{kind}", kind, filter=" AND ".join(wanted)):
                identity = str(job["labels"].get(body.CALL_LABEL, "-"))
                told = Store(call.store).read_bytes("jobs", identity, _name_of(job), "call.json")
                with suppress(ValidationError):  # of another version of this package
                    if told is not None and (other := Call.model_validate_json(told)).identity != call.identity:
                        yield self._handle(other, job)

    def submit(self, call: Call, secrets: Mapping[str, str]) -> Handle:
        """Start the job.

        Raises:
            DeclarationError: when no image is declared, or jobs cannot reach the store or the registry.
            BackendError: when the Call has a job that goes on.
            CloudError: when Vertex AI refuses; with what to do.
        """
        if not call.store.startswith("gs://"):
            raise DeclarationError(
                [
                    f"{call.where}: a job on Vertex AI cannot reach the store {call.store}; try: google.bucket, or "
                    "[airflow_mlops] store = gs://BUCKET/mlops"
                ]
            )
        asks = call.registry is not None and STAGES[call.stage].model_validate(call.params).needs_registry
        if asks and call.registry and (problem := out_of_reach(call.registry.uri)):
            raise DeclarationError([f"{call.where}: {problem}"])
        if (there := self.find(call)) is not None and self.status(there) == "running":
            raise BackendError(f"the job {there.job} is there already", fix="find it before submitting")
        name = uuid.uuid4().hex
        folder = Store(call.store).uri("jobs", call.identity, name)
        labels = body.labels_of(self.google, call, name)
        environment = {key: value for key, value in secrets.items() if _OPEN.match(key)}
        hidden = {key: value for key, value in secrets.items() if key not in environment and _is_needed(value)}
        # Everything that can be refused without a trace is, before anything is made.
        spec = body.job_spec(self.google, call, folder, environment, self._seconds(call))
        told = tuning.settled(call) if tuning.is_study(call) else call
        asked = tuning.job(told, spec) if tuning.is_study(call) else {"jobSpec": spec}
        self._warn_of_region(call)
        self._write(call, name, told.model_dump_json(indent=1))
        secret = None
        try:
            if hidden:
                secret = self._keep(name, hidden, labels, self._seconds(call))
                for pool in spec["workerPoolSpecs"]:
                    pool["containerSpec"]["env"].append({"name": runner.SECRET, "value": secret})
            kind = tuning.JOBS if tuning.is_study(call) else "customJobs"
            asked |= {"displayName": body.display_name(call), "labels": labels}
            made = self._vertex.ask("POST", f"{self._parent}/{kind}", asked, again=False)
        except CloudError as error:
            if isinstance(error, CloudUnreachableError) and (late := self._found_again(call)) is not None:
                log.info("%s: the answer was lost, and the job %s is there", call.where, late.job)
                return late
            self._clean(call, name, secret)
            raise self._advised(error, call) from error
        return self._handle(call, made)

    def _seconds(self, call: Call) -> int:
        most = self.google.machine_of(call.stage).timeout.total_seconds()
        return int(max(1, min(most, self.timeout or most)))

    def _keep(self, name: str, values: Mapping[str, str], labels: Mapping[str, str], seconds: int) -> str:
        google = self.google
        return secret_manager.keep(
            self._secrets, google.project, google.region, f"airflow-mlops-{name}", values, seconds + _SLACK, labels
        )

    def _found_again(self, call: Call) -> Handle | None:
        with suppress(CloudError):
            return self.find(call)
        return None

    def status(self, handle: Handle) -> State:
        """Where the job stands: one request, whose answer is one word."""
        if not _JOB_ID.fullmatch(handle.job):
            return "lost"
        try:
            return _state(self._vertex.get(f"v1/{handle.job}", fields="state"))
        except CloudNotFoundError:
            return "lost"

    def logs(self, handle: Handle) -> Iterator[str]:
        """The newest lines that Cloud Logging has of the job, as far as we may read them."""
        match = _JOB_ID.fullmatch(handle.job)
        if match is None:
            return
        try:
            since = self._vertex.get(f"v1/{handle.job}", fields="createTime").get("createTime", "2000-01-01T00:00:00Z")
            told = f'resource.type="ml_job" AND resource.labels.job_id="{match[2]}" AND timestamp>="{since}"'
            query = {
                "resourceNames": [f"projects/{self.google.project}"],
                "filter": told,
                "orderBy": "timestamp desc",
                "pageSize": _LINES,
            }
            found = _rest("logging", self.connection, None).ask("POST", "v2/entries:list", query)
        except CloudError as error:
            yield f"WARNING {__name__}: the job's log cannot be read here: {error}; it is at {handle.log_url}"
            return
        for entry in reversed(found.get("entries", [])):
            text = entry.get("textPayload") or (entry.get("jsonPayload") or {}).get("message", "")
            yield from str(text).rstrip("\n").split("\n")

    def cancel(self, handle: Handle) -> None:
        """Ask for the job's end, and take its secret away."""
        if not _JOB_ID.fullmatch(handle.job):
            return
        with suppress(CloudNotFoundError):
            job = self._vertex.get(f"v1/{handle.job}")
            if _state(job) in TERMINAL:
                return
            try:
                self._vertex.ask("POST", f"v1/{handle.job}:cancel", {})
            except CloudError as error:
                if error.status not in ("FAILED_PRECONDITION", "INVALID_ARGUMENT"):  # so it is when it has ended
                    raise
            if secret := _secret_of(job):
                secret_manager.drop(self._secrets, secret)

    def collect(self, handle: Handle) -> Outcome:
        """The Outcome, or the error the job ended with. What was kept for the job is removed."""
        call = handle.call
        lost = JobLostError(f"the job {handle.job} can no longer be found", where=call.where)
        if not _JOB_ID.fullmatch(handle.job):
            raise lost
        try:
            job = self._vertex.get(f"v1/{handle.job}")
        except CloudNotFoundError:
            raise lost from None
        state = _state(job)
        if state == "running":
            raise BackendError(
                f"the job {handle.job} is still running", where=call.where, fix="ask for its status first"
            )
        outcome = self._came_to(handle, job, state)
        self._clean(call, _name_of(job), _secret_of(job))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _came_to(self, handle: Handle, job: Mapping[str, Any], state: State) -> Outcome | Exception:
        call = handle.call
        if state == "cancelled":
            return JobCancelledError(f"the job {handle.job} was cancelled", where=call.where)
        if state == "failed" and tuning.is_study(call):
            reason = tuning.failed(call, job, lambda name: self._read(call, job, name))
            return reason or self._broken_down(handle, job)
        if state == "failed":
            told = self._read(call, job, error_file("outcome.json"))
            return error_of(json.loads(told)) if told is not None else self._broken_down(handle, job)
        if tuning.is_study(call):
            if (kept := Store(call.store).read_outcome(call)) is not None:
                return kept
            return tuning.conclude(call, job, lambda name: self._read(call, job, name))
        text = self._read(call, job, "outcome.json")
        outcome = Outcome.model_validate_json(text) if text is not None else Store(call.store).read_outcome(call)
        return outcome or JobLostError(f"the outcome of {handle.job} is not in the store", where=call.where)

    def _broken_down(self, handle: Handle, job: Mapping[str, Any]) -> BackendError | CloudError:
        """What became of a job that has said nothing itself."""
        error = job.get("error") or {}
        words, code, where = str(error.get("message") or "no reason is given"), error.get("code"), handle.call.where
        look = f"the job's log tells more: {handle.log_url}"
        if code == 4 or job.get("state") == "JOB_STATE_EXPIRED":
            return BackendError(
                f"the job {handle.job} ran longer than {timedelta(seconds=self._seconds(handle.call))}: {words}",
                where=where,
                fix="raise google.machine.timeout, or the task's execution_timeout",
            )
        if code == 8:
            return CloudUnreachableError(f"the job {handle.job} got no machine: {words}", where=where, fix=self._quota)
        if re.search(r"image", words, re.IGNORECASE) and re.search(r"not found|denied|pull", words, re.IGNORECASE):
            return BackendError(
                f"the job {handle.job} cannot run its image {self.google.image}: {words}",
                where=where,
                fix="correct google.image, and grant the job's account roles/artifactregistry.reader on its repository",
            )
        return JobFailedError(f"the job {handle.job} broke down: {words}", where=where, fix=look)

    @property
    def _quota(self) -> str:
        google = self.google
        return (
            f"ask for more in {google.region}: https://console.cloud.google.com/iam-admin/quotas?project={google.project}"
            ", or declare another google.machine"
        )

    def _advised(self, error: CloudError, call: Call) -> CloudError:
        """The error with where it happened, and which setting it is about."""
        machine = self.google.machine_of(call.stage)
        setting = f"google.stages.{call.stage}" if call.stage in self.google.stages else "google.machine"
        words = error.what.lower()
        if error.status == "INVALID_ARGUMENT" and "accelerator" in words and machine.accelerator:
            error.fix = (
                f"correct {setting}.accelerator: {machine.accelerator.type} does not go with that machine or region"
            )
        elif error.status == "INVALID_ARGUMENT" and "machine" in words:
            error.fix = (
                f"correct {setting}.machine_type, which says {machine.machine_type!r}; what there is: "
                "https://cloud.google.com/vertex-ai/docs/training/configure-compute"
            )
        elif error.status == "INVALID_ARGUMENT" and "image" in words:
            error.fix = f"correct google.image, which says {self.google.image!r}"
        elif error.status == "RESOURCE_EXHAUSTED":
            error.fix = self._quota
        error.at(call.where)
        return error

    def _warn_of_region(self, call: Call) -> None:
        """Say where the bucket lies, if that is elsewhere and we may know it: every read would leave its region."""
        bucket = call.store.removeprefix("gs://").partition("/")[0]
        try:
            location = str(Store(call.store).fs.info(bucket).get("location", "")).lower()
        except Exception as error:  # whether we may ask is another permission, and only advice hangs on it
            log.info("%s: where the bucket %s lies is not known: %s", call.where, bucket, error)
            return
        if "-" in location and location != self.google.region:
            log.warning(
                "%s: the bucket %s lies in %s, the job runs in %s, and its data travels; try: google.region: %s",
                call.where,
                bucket,
                location,
                self.google.region,
                location,
            )

    def _handle(self, call: Call, job: Mapping[str, Any]) -> Handle:
        name, project = str(job["name"]), self.google.project
        identity = name.rpartition("/")[2]
        console = "https://console.cloud.google.com"
        return Handle(
            backend="vertex",
            job=name,
            call=call,
            url=f"{console}/vertex-ai/locations/{self.google.region}/training/{identity}/cpu?project={project}",
            log_url=f"{console}/logs/query;query="
            + quote(f'resource.type="ml_job" resource.labels.job_id="{identity}"', safe="")
            + f"?project={project}",
        )

    def _write(self, call: Call, name: str, text: str) -> None:
        store = Store(call.store)
        with store.scratch(".json") as file:
            file.write_text(text, encoding="utf-8")
            store.replace_file(file, "jobs", call.identity, name, "call.json")

    def _read(self, call: Call, job: Mapping[str, Any], file: str) -> bytes | None:
        return Store(call.store).read_bytes("jobs", call.identity, _name_of(job), file)

    def _clean(self, call: Call, name: str, secret: str | None) -> None:
        """Remove what was kept for a job that is over."""
        if secret:
            secret_manager.drop(self._secrets, secret)
        store = Store(call.store)
        folder = "/".join((store.path, "jobs", call.identity, name))
        with reaching(folder), suppress(FileNotFoundError):
            store.fs.invalidate_cache()
            store.fs.rm(folder, recursive=True)


def _state(job: Mapping[str, Any]) -> State:
    return _STATES.get(str(job.get("state")), "running")


def _name_of(job: Mapping[str, Any]) -> str:
    return str((job.get("labels") or {}).get(body.JOB_LABEL, "-"))


def _secret_of(job: Mapping[str, Any]) -> str | None:
    spec = job.get("jobSpec") or job.get("trialJobSpec") or {}
    pools = spec.get("workerPoolSpecs") or [{}]
    variables = (pools[0].get("containerSpec") or {}).get("env", [])
    return next((each["value"] for each in variables if each["name"] == runner.SECRET), None)


def _is_needed(value: str) -> bool:
    """Whether a variable tells a job anything: a Google connection without a key leaves it to the job's own account."""
    try:
        connection = json.loads(value)
    except ValueError:
        return True
    if not isinstance(connection, dict) or connection.get("conn_type") != "google_cloud_platform":
        return True
    extra = connection.get("extra") or {}
    return bool((json.loads(extra) if isinstance(extra, str) else extra).get("keyfile_dict"))
