"""Vertex AI's models, endpoints and batch prediction, with Cloud Monitoring's counts of what endpoints answer.

Containers are processes: what a model's container spec says is started here, with the variables that Vertex AI sets,
and requests are really answered by it. A process is kept for the next deployment of the very same container and files.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from google.cloud import aiplatform_v1 as T
from google.cloud import monitoring_v3 as M
from google.protobuf.json_format import MessageToDict

from tests import forked
from tests.conftest import free_port
from tests.loopback.gcs import PROJECT, client_environment
from tests.loopback.rest import Asked, RefusedError, Reply, RestService, route

NUMBER = "424242"
"""The number of the project, by which Google names resources in its answers."""
REGION = "europe-west1"
PARENT = f"projects/{NUMBER}/locations/{REGION}"
_MODEL = "projects/*/locations/*/models/*"
_ENDPOINT = "projects/*/locations/*/endpoints/*"
_ALIAS = re.compile(r"-?[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")
_MACHINE = re.compile(r"(n1|n2|e2|c2|a2|g2)-[a-z]+-\d+g?")


class Answered(NamedTuple):
    """A request that a deployed model has answered."""

    endpoint: str
    deployed: str
    code: int
    milliseconds: float
    at: datetime


class Container:
    """A serving container, as a process."""

    def __init__(self, spec: T.ModelContainerSpec, files: str, environment: dict[str, str]) -> None:
        port = spec.ports[0].container_port
        self.port, self.predict = free_port(), spec.predict_route
        own = {"AIP_HTTP_PORT": str(self.port), "AIP_STORAGE_URI": files, "AIP_MODE": "PREDICTION"}
        own |= {"AIP_PREDICT_ROUTE": spec.predict_route, "AIP_HEALTH_ROUTE": spec.health_route}
        command = [re.sub(r"\$\((\w+)\)", lambda found: own[found[1]], each) for each in (*spec.command, *spec.args)]
        # In a container it is the container's own network.
        command = ["127.0.0.1" if each == "0.0.0.0" else each for each in command]
        assert port and command[0] == "python"
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self.process = forked.Process(
            [sys.executable, *command[1:]],
            env={**environment, **own},
            stdout=subprocess.DEVNULL,
            stderr=self.said,
        )
        self.health = spec.health_route

    def up(self, seconds: float = 120.0) -> bool:
        """Wait until it says that it is healthy."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self.ask("GET", self.health)[0] == 200:
                    return True
            except OSError:
                time.sleep(0.05)
        return False

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.said.close()


class VertexModels(RestService):
    """Models, endpoints, batch prediction jobs and what Cloud Monitoring counts of them."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__()
        self.environment = environment
        self.containers: dict[str, Container] = {}
        self.lock = threading.RLock()
        self.empty()

    def empty(self) -> None:
        """Forget everything but the processes."""
        self.forget()
        self.models: dict[str, list[T.Model]] = {}
        self.endpoints: dict[str, T.Endpoint] = {}
        self.jobs: dict[str, T.BatchPredictionJob] = {}
        self.operations: dict[str, dict[str, Any]] = {}
        self.answered: list[Answered] = []
        self.reserved: set[str] = set()
        """The names of what is being made."""
        self.failing: list[tuple[str, int, str]] = []
        self.seconds = 0.0
        """How long an operation takes at least."""
        self.number = 7_000_000_000

    def end(self) -> None:
        """End every process."""
        for each in self.containers.values():
            each.end()

    def fail_operation(self, kind: str, message: str, code: int = 13) -> None:
        """Let the next operation of a kind (``upload``, ``deployModel``, ...) fail."""
        self.failing.append((kind, code, message))

    # ------------------------------------------------------------------ operations

    def _begin(self, kind: str, resource: str, deed: Callable[[], Any]) -> dict[str, Any]:
        self.number += 1
        name = f"{resource}/operations/{self.number}"
        fault = next((each for each in self.failing if each[0] == kind), None)
        if fault:
            self.failing.remove(fault)
        operation = self.operations[name] = {"name": name, "done": False}

        def go() -> None:
            time.sleep(self.seconds)
            try:
                if fault:
                    raise RefusedError("INTERNAL", fault[2])
                made = deed()
                with self.lock:
                    operation["response"] = {} if made is None else MessageToDict(type(made).pb(made))
            except RefusedError as error:
                operation["error"] = {"code": fault[1] if fault else 9, "message": error.message}
            finally:
                operation["done"] = True
                self.reserved -= {resource, _last(resource)}

        thread = threading.Thread(target=go, daemon=True)
        thread.start()
        if not self.seconds:
            thread.join(2)
        return dict(operation)

    @route("GET", "v1/{name=projects/*/locations/*/**/operations/*}")
    def get_operation(self, asked: Asked, name: str) -> Any:
        found = self.operations.get(_numbered(name))
        if found is None:
            raise RefusedError("NOT_FOUND", f"Operation {name} is not found.")
        return dict(found)

    @route("GET", "v1/{name=projects/*/locations/*/models/*}/operations")
    def model_operations(self, asked: Asked, name: str) -> Any:
        self._versions(name)
        return self._operations_of(name)

    @route("GET", "v1/{name=projects/*/locations/*/endpoints/*}/operations")
    def endpoint_operations(self, asked: Asked, name: str) -> Any:
        self._endpoint(name)
        return self._operations_of(name)

    def _operations_of(self, name: str) -> Any:
        prefix = f"{_numbered(name)}/operations/"
        return {"operations": [dict(each) for key, each in self.operations.items() if key.startswith(prefix)]}

    # ------------------------------------------------------------------ models

    def _versions(self, name: str) -> list[T.Model]:
        found = self.models.get(_last(name).partition("@")[0])
        if not found:
            raise RefusedError("NOT_FOUND", f"The Model {name} is not found.")
        return found

    def version(self, name: str) -> T.Model:
        """The version that a name with ``@`` names; without, the default one."""
        wanted = name.partition("@")[2] or "default"
        for each in self._versions(name):
            if each.version_id == wanted or wanted in each.version_aliases:
                return each
        raise RefusedError("NOT_FOUND", f"The Model version {name} is not found.")

    @route("POST", "v1/{parent=projects/*/locations/*}/models:upload", T.UploadModelRequest, "*")
    def upload(self, request: T.UploadModelRequest) -> Any:
        model = request.model
        if not model.display_name or not model.container_spec.image_uri:
            raise RefusedError("INVALID_ARGUMENT", "display_name and container_spec.image_uri are required.")
        if not model.artifact_uri.startswith("gs://"):
            raise RefusedError("INVALID_ARGUMENT", "artifact_uri must be a Cloud Storage directory.")
        _check_labels(model.labels)
        with self.lock:
            if request.parent_model:
                name = _last(request.parent_model)
                self._versions(name)
            else:
                name = request.model_id or str(self.number)
                if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,62}", name):
                    raise RefusedError("INVALID_ARGUMENT", f"Invalid model ID {name!r}.")
                if name in self.models or name in self.reserved:
                    raise RefusedError("ALREADY_EXISTS", f"Model {name} already exists.")
                self.reserved.add(name)
        resource = f"{PARENT}/models/{name}"

        def deed() -> Any:
            with self.lock:
                versions = self.models.setdefault(name, [])
                model.name, model.version_id = resource, str(len(versions) + 1)
                model.create_time = datetime.now(UTC)
                model.version_aliases = [*model.version_aliases, *([] if versions else ["default"])]
                versions.append(model)
            return T.UploadModelResponse(model=resource, model_version_id=model.version_id)

        return self._begin("upload", resource, deed)

    @route("GET", f"v1/{{name={_MODEL}}}", T.GetModelRequest)
    def get_model(self, request: T.GetModelRequest) -> Any:
        return self.version(request.name)

    @route("GET", f"v1/{{name={_MODEL}}}:listVersions", T.ListModelVersionsRequest)
    def list_versions(self, request: T.ListModelVersionsRequest) -> Any:
        found = self._versions(request.name)
        # Pages of two, newest first, so that whoever reads the first page only is caught.
        start = int(request.page_token or 0)
        page = list(reversed(found))[start : start + 2]
        more = str(start + 2) if start + 2 < len(found) else ""
        return T.ListModelVersionsResponse(models=page, next_page_token=more)

    @route("POST", f"v1/{{name={_MODEL}}}:mergeVersionAliases", T.MergeVersionAliasesRequest, "*")
    def merge_aliases(self, request: T.MergeVersionAliasesRequest) -> Any:
        model = self.version(request.name)
        with self.lock:
            for alias in request.version_aliases:
                if not _ALIAS.fullmatch(alias):
                    raise RefusedError("INVALID_ARGUMENT", f"Invalid alias {alias!r}.")
                if alias == "-default":
                    raise RefusedError("INVALID_ARGUMENT", "The alias default cannot be removed.")
                for each in self._versions(request.name):
                    plain = alias.removeprefix("-")
                    if plain in each.version_aliases and (alias == plain or each is model):
                        each.version_aliases = [other for other in each.version_aliases if other != plain]
                if not alias.startswith("-"):
                    model.version_aliases = [*model.version_aliases, alias]
        return model

    @route("PATCH", f"v1/{{model.name={_MODEL}}}", T.UpdateModelRequest, "model")
    def update_model(self, request: T.UpdateModelRequest) -> Any:
        model = self.version(request.model.name)
        if list(request.update_mask.paths) != ["labels"]:
            raise RefusedError("INVALID_ARGUMENT", "the stand-in updates labels only")
        _check_labels(request.model.labels)
        model.labels = request.model.labels
        return model

    @route("DELETE", f"v1/{{name={_MODEL}}}:deleteVersion", T.DeleteModelVersionRequest)
    def delete_version(self, request: T.DeleteModelVersionRequest) -> Any:
        model = self.version(request.name)
        if "default" in model.version_aliases:
            raise RefusedError("INVALID_ARGUMENT", "The default version cannot be deleted.")
        return self._begin("deleteVersion", model.name, lambda: self.models[_last(model.name)].remove(model))

    # ------------------------------------------------------------------ endpoints

    def _endpoint(self, name: str) -> T.Endpoint:
        found = self.endpoints.get(_last(name))
        if found is None:
            raise RefusedError("NOT_FOUND", f"Endpoint `{name}` not found.")
        return found

    def _changed(self, endpoint: T.Endpoint) -> None:
        self.number += 1
        endpoint.etag = f"etag-{self.number}"

    @route("POST", "v1/{parent=projects/*/locations/*}/endpoints", T.CreateEndpointRequest, "endpoint")
    def create_endpoint(self, request: T.CreateEndpointRequest) -> Any:
        name, endpoint = request.endpoint_id, request.endpoint
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,61}[a-z0-9]", name) or not endpoint.display_name:
            raise RefusedError("INVALID_ARGUMENT", f"Invalid endpoint ID {name!r}, or no display name.")
        _check_labels(endpoint.labels)
        with self.lock:
            endpoint.name = f"{PARENT}/endpoints/{name}"
            if name in self.endpoints or endpoint.name in self.reserved:
                raise RefusedError("ALREADY_EXISTS", f"Endpoint {name} already exists.")
            self.reserved.add(endpoint.name)
            endpoint.create_time = datetime.now(UTC)
            self._changed(endpoint)

            def deed() -> Any:
                return self.endpoints.setdefault(name, endpoint)

        return self._begin("createEndpoint", endpoint.name, deed)

    @route("GET", f"v1/{{name={_ENDPOINT}}}", T.GetEndpointRequest)
    def get_endpoint(self, request: T.GetEndpointRequest) -> Any:
        return self._endpoint(request.name)

    @route("DELETE", f"v1/{{name={_ENDPOINT}}}", T.DeleteEndpointRequest)
    def delete_endpoint(self, request: T.DeleteEndpointRequest) -> Any:
        endpoint = self._endpoint(request.name)
        return self._begin("deleteEndpoint", endpoint.name, lambda: self.endpoints.pop(_last(endpoint.name)) and None)

    @route("PATCH", f"v1/{{endpoint.name={_ENDPOINT}}}", T.UpdateEndpointRequest, "endpoint")
    def update_endpoint(self, request: T.UpdateEndpointRequest) -> Any:
        new = request.endpoint
        with self.lock:
            endpoint = self._endpoint(new.name)
            if new.etag and new.etag != endpoint.etag:
                raise RefusedError("ABORTED", "The etag of the endpoint has changed.")
            for path in request.update_mask.paths:
                if path == "traffic_split":
                    known = {each.id for each in endpoint.deployed_models}
                    if set(new.traffic_split) - known or sum(new.traffic_split.values()) != 100:
                        raise RefusedError(
                            "INVALID_ARGUMENT", "traffic_split must name deployed models and sum to 100."
                        )
                    endpoint.traffic_split = new.traffic_split
                elif path == "labels":
                    _check_labels(new.labels)
                    endpoint.labels = new.labels
                else:
                    raise RefusedError("INVALID_ARGUMENT", f"update_mask: {path}")
            self._changed(endpoint)
            return endpoint

    @route("POST", f"v1/{{endpoint={_ENDPOINT}}}:deployModel", T.DeployModelRequest, "*")
    def deploy_model(self, request: T.DeployModelRequest) -> Any:
        endpoint, deployed = self._endpoint(request.endpoint), request.deployed_model
        model = self.version(deployed.model)
        machine = deployed.dedicated_resources.machine_spec.machine_type
        if not _MACHINE.fullmatch(machine):
            raise RefusedError("INVALID_ARGUMENT", f'Machine type "{machine}" is not supported.')
        if request.traffic_split and sum(request.traffic_split.values()) != 100:
            raise RefusedError("INVALID_ARGUMENT", "traffic_split must sum to 100.")

        def deed() -> Any:
            self.container(model)
            with self.lock:
                self.number += 1
                deployed.id, deployed.model = deployed.id or str(self.number), model.name
                deployed.model_version_id, deployed.create_time = model.version_id, datetime.now(UTC)
                endpoint.deployed_models = [*endpoint.deployed_models, deployed]
                if request.traffic_split:
                    split = {deployed.id if each == "0" else each: n for each, n in request.traffic_split.items()}
                    endpoint.traffic_split = split
                self._changed(endpoint)
            return T.DeployModelResponse(deployed_model=deployed)

        return self._begin("deployModel", endpoint.name, deed)

    def container(self, model: T.Model) -> Container:
        """The process that serves a version."""
        spec = model.container_spec
        # Folders go by the digest of what is in them, in whatever bucket.
        key = json.dumps([list(spec.command), list(spec.args), _last(model.artifact_uri)])
        with self.lock:
            found = self.containers.get(key)
            if found is None or found.process.poll() is not None:
                found = self.containers[key] = Container(spec, model.artifact_uri, self.environment)
        if not found.up():
            found.end()
            del self.containers[key]
            raise RefusedError(
                "FAILED_PRECONDITION", "Model server exited unexpectedly. Model server logs can be found at"
            )
        return found

    @route("POST", f"v1/{{endpoint={_ENDPOINT}}}:undeployModel", T.UndeployModelRequest, "*")
    def undeploy_model(self, request: T.UndeployModelRequest) -> Any:
        endpoint = self._endpoint(request.endpoint)
        with self.lock:
            gone = next((each for each in endpoint.deployed_models if each.id == request.deployed_model_id), None)
            if gone is None:
                raise RefusedError("NOT_FOUND", f"DeployedModel {request.deployed_model_id} is not found.")
            if endpoint.traffic_split.get(gone.id) and len(endpoint.deployed_models) > 1:
                raise RefusedError("FAILED_PRECONDITION", "The DeployedModel has traffic: set the traffic split first.")

        def deed() -> Any:
            with self.lock:
                endpoint.deployed_models = [each for each in endpoint.deployed_models if each.id != gone.id]
                endpoint.traffic_split = {k: n for k, n in endpoint.traffic_split.items() if k != gone.id}
                self._changed(endpoint)
            return T.UndeployModelResponse()

        return self._begin("undeployModel", endpoint.name, deed)

    # ------------------------------------------------------------------ prediction

    def _asked(self, name: str, body: Any) -> tuple[T.DeployedModel, int, bytes]:
        endpoint = self._endpoint(name)
        with self.lock:
            self.number += 1
            turn, chosen = (self.number * 37) % 100, None
            for each in endpoint.deployed_models:
                turn -= endpoint.traffic_split.get(each.id, 0)
                if turn < 0:
                    chosen = each
                    break
        if chosen is None:
            raise RefusedError("FAILED_PRECONDITION", f"Endpoint {name} doesn't have traffic_split.")
        container = self.container(self.version(f"{chosen.model}@{chosen.model_version_id}"))
        started = time.perf_counter()
        status, text = container.ask("POST", container.predict, body)
        took = (time.perf_counter() - started) * 1000
        self.answered.append(Answered(_last(name), chosen.id, status, took, datetime.now(UTC)))
        return chosen, status, text

    @route("POST", f"v1/{{endpoint={_ENDPOINT}}}:rawPredict")
    def raw_predict(self, asked: Asked, endpoint: str) -> Any:
        chosen, status, text = self._asked(endpoint, asked.body)
        headers = {"X-Vertex-AI-Endpoint-Id": _last(endpoint), "X-Vertex-AI-Deployed-Model-Id": chosen.id}
        return Reply(json.loads(text), status, headers)

    @route("POST", f"v1/{{endpoint={_ENDPOINT}}}:predict", T.PredictRequest, "*")
    def predict(self, request: T.PredictRequest) -> Any:
        said = MessageToDict(type(request).pb(request))
        body = {"instances": said["instances"], **({"parameters": said["parameters"]} if "parameters" in said else {})}
        chosen, status, text = self._asked(request.endpoint, body)
        if status != 200:
            raise RefusedError("INVALID_ARGUMENT" if status < 500 else "INTERNAL", text.decode())
        return {
            "predictions": json.loads(text)["predictions"],
            "deployedModelId": chosen.id,
            "model": chosen.model,
            "modelVersionId": chosen.model_version_id,
        }

    @route("GET", "v3/{name=projects/*}/timeSeries", M.ListTimeSeriesRequest)
    def time_series(self, request: M.ListTimeSeriesRequest) -> Any:
        kinds = re.findall(r'metric\.type = "aiplatform\.googleapis\.com/prediction/online/(\w+)"', request.filter)
        found = re.search(r'resource\.labels\.endpoint_id = "([^"]+)"', request.filter)
        whole = request.interval.end_time - request.interval.start_time
        if len(kinds) != 1 or found is None:
            raise RefusedError("INVALID_ARGUMENT", "The filter must specify a single metric type.")
        if request.aggregation.alignment_period.total_seconds() < 60 or whole.total_seconds() < 0:
            raise RefusedError("INVALID_ARGUMENT", "The alignment period must be 60 s at least.")
        asked = [
            each
            for each in self.answered
            if each.endpoint == found[1] and request.interval.start_time <= each.at <= request.interval.end_time
        ]
        groups: dict[tuple[tuple[str, str], ...], list[Answered]] = {}
        for each in asked:
            labels = {"deployed_model_id": each.deployed, "response_code": f"{each.code // 100}xx"}
            by = [name.rpartition(".")[2] for name in request.aggregation.group_by_fields]
            groups.setdefault(tuple((name, labels[name]) for name in by), []).append(each)
        series = []
        for key, each in groups.items():
            if kinds[0] == "response_count":
                value: dict[str, Any] = {"int64Value": str(len(each))}
            elif 'metric.labels.latency_type = "total"' in request.filter:
                times = sorted(one.milliseconds for one in each)
                value = {"doubleValue": times[min(len(times) - 1, len(times) * 99 // 100)]}
            else:
                raise RefusedError("INVALID_ARGUMENT", f"no metric {kinds[0]}")
            point = {"interval": {"endTime": request.interval.end_time.isoformat()}, "value": value}
            series.append({"metric": {"labels": dict(key)}, "points": [point]})
        return {"timeSeries": series}

    # ------------------------------------------------------------------ batch prediction

    @route(
        "POST",
        "v1/{parent=projects/*/locations/*}/batchPredictionJobs",
        T.CreateBatchPredictionJobRequest,
        "batch_prediction_job",
    )
    def create_job(self, request: T.CreateBatchPredictionJobRequest) -> Any:
        job = request.batch_prediction_job
        model = self.version(job.model)
        _check_labels(job.labels)
        if not _MACHINE.fullmatch(job.dedicated_resources.machine_spec.machine_type):
            raise RefusedError("INVALID_ARGUMENT", "dedicated_resources are required for a custom container.")
        if job.input_config.instances_format != "jsonl" or job.output_config.predictions_format != "jsonl":
            raise RefusedError("INVALID_ARGUMENT", "the stand-in reads and writes jsonl only")
        with self.lock:
            self.number += 1
            job.name = f"{PARENT}/batchPredictionJobs/{self.number}"
            job.create_time, job.state = datetime.now(UTC), T.JobState.JOB_STATE_RUNNING
            self.jobs[str(self.number)] = job
        threading.Thread(target=self._predict_all, args=(job, model), daemon=True).start()
        return job

    @route("GET", "v1/{name=projects/*/locations/*/batchPredictionJobs/*}", T.GetBatchPredictionJobRequest)
    def get_job(self, request: T.GetBatchPredictionJobRequest) -> Any:
        if _last(request.name) not in self.jobs:
            raise RefusedError("NOT_FOUND", f"{request.name} is not found.")
        return self.jobs[_last(request.name)]

    @route("GET", "v1/{parent=projects/*/locations/*}/batchPredictionJobs", T.ListBatchPredictionJobsRequest)
    def list_jobs(self, request: T.ListBatchPredictionJobsRequest) -> Any:
        wanted = re.fullmatch(r'labels\.([a-z_]+)="([a-z0-9_-]+)"', request.filter)
        if wanted is None:
            raise RefusedError("INVALID_ARGUMENT", f"filter: {request.filter!r}")
        found = [each for each in self.jobs.values() if each.labels.get(wanted[1]) == wanted[2]]
        return T.ListBatchPredictionJobsResponse(batch_prediction_jobs=found)

    def _predict_all(self, job: T.BatchPredictionJob, model: T.Model) -> None:
        # Imported when the variables are set that it reads.
        import gcsfs

        try:
            container = self.container(model)
            fs = gcsfs.GCSFileSystem(project=PROJECT, token="anon")
            rows = [
                json.loads(line)
                for uri in job.input_config.gcs_source.uris
                for line in fs.cat_file(uri).decode().splitlines()
            ]
            key, folder = job.instance_config.key_field, job.output_config.gcs_destination.output_uri_prefix
            folder = f"{folder.rstrip('/')}/prediction-{_last(model.name)}-{_last(job.name)}"
            said: list[str] = []
            wrong: list[str] = []
            parameters = MessageToDict(type(job).pb(job)).get("modelParameters")
            for start in range(0, len(rows), 64):
                part = rows[start : start + 64]
                sent = [{name: each for name, each in row.items() if name != key} for row in part]
                status, text = container.ask(
                    "POST", container.predict, {"instances": sent, **({"parameters": parameters} if parameters else {})}
                )
                if status != 200:
                    wrong += [json.dumps({"key": row[key], "error": {"message": text.decode()}}) for row in part]
                    continue
                pairs = zip(part, json.loads(text)["predictions"], strict=True)
                said += [json.dumps({"key": row[key], "prediction": each}) for row, each in pairs]
            # In no order, in several files.
            for number in (0, 1):
                lines = said[number::2][::-1]
                fs.pipe_file(f"{folder}/prediction.results-0000{number}-of-00002", "\n".join(lines).encode())
            fs.pipe_file(f"{folder}/prediction.errors_stats-00000-of-00001", "\n".join(wrong).encode())
            job.output_info.gcs_output_directory = folder
            job.completion_stats = {"successful_count": len(said), "failed_count": len(wrong)}
            time.sleep(self.seconds)
            job.state = T.JobState.JOB_STATE_SUCCEEDED
        except Exception as error:
            job.error = {"code": 13, "message": str(error)}
            job.state = T.JobState.JOB_STATE_FAILED


def _numbered(name: str) -> str:
    """A name as answers have it, with the project's number."""
    return re.sub(r"^projects/[^/]+", f"projects/{NUMBER}", name)


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _check_labels(labels: Any) -> None:
    for key, value in labels.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
            raise RefusedError("INVALID_ARGUMENT", f"Invalid label {key}={value}.")


@pytest.fixture(scope="module")
def vertex_models_server(gcs_server: str) -> Iterator[VertexModels]:
    """The stand-in and its containers for the tests of one file; a test takes `vertex_models`."""
    environment = {**os.environ, **client_environment(gcs_server)}
    service = VertexModels(environment)
    try:
        with service:
            yield service
    finally:
        service.end()


@pytest.fixture
def vertex_models(
    vertex_models_server: VertexModels, gcs: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VertexModels]:
    """Vertex AI with no model and no endpoint, which Google's addresses lead to; its bucket is that of `gcs`."""
    vertex_models_server.empty()
    for service in ("AIPLATFORM", "MONITORING"):
        monkeypatch.setenv(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service}", vertex_models_server.url)
    monkeypatch.setenv(
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", '{"conn_type": "google_cloud_platform", "extra": {"is_anonymous": true}}'
    )
    yield vertex_models_server
