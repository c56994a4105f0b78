"""MLflow's tracking server, asked over its REST API."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from airflow_mlops.errors import ModelNotFoundError, RegistryError, RegistryUnreachableError
from airflow_mlops.registry.mlflow_api import (
    KIND,
    PAGE,
    TIMEOUT_VARIABLE,
    Logged,
    MlflowApi,
    Run,
    Version,
    batches,
    deleted,
    filter_value,
    gone,
    millis,
    require_plain,
    tagged_versions,
    usable,
)

_DEFAULT_TIMEOUT = "30"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "404")
_PIECE = 1 << 20
_SERVED = "mlflow-artifacts:"
"""How the URI of artifacts begins that the tracking server serves itself."""


class MlflowRest:
    """The registry of a tracking server, over its REST API."""

    def __init__(self, uri: str) -> None:
        self.base = uri.rstrip("/")
        self._roots: dict[str, str | None] = {}
        self.session = requests.Session()
        # Proxies of the environment are honoured except for loopback, which requests does not exempt by itself.
        if "://127.0.0.1" in self.base or "://localhost" in self.base:
            self.session.trust_env = False
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        if token:
            self.session.headers["Authorization"] = f"Bearer {token}"
        elif user:
            self.session.auth = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
        self.timeout = float(os.environ.get(TIMEOUT_VARIABLE, _DEFAULT_TIMEOUT))

    def _ask(self, method: str, endpoint: str, accept: tuple[str, ...] = (), **body: Any) -> dict[str, Any]:
        """Do one request. Error codes in ``accept`` give an empty answer instead of an error."""
        url = f"{self.base}/api/2.0/mlflow/{endpoint}"
        return self._send(method, url, endpoint, accept, **{"params" if method == "GET" else "json": body})

    def _send(
        self, method: str, url: str, endpoint: str, accept: tuple[str, ...] = (), **content: Any
    ) -> dict[str, Any]:
        answer = self._answer(method, url, endpoint, accept, **content)
        # Artifacts are answered with nothing.
        value: dict[str, Any] = answer.json() if answer is not None and answer.content else {}
        return value

    def _answer(
        self, method: str, url: str, endpoint: str, accept: tuple[str, ...] = (), **content: Any
    ) -> requests.Response | None:
        try:
            answer = self.session.request(method, url, timeout=self.timeout, **content)
        except requests.exceptions.InvalidJSONError as error:
            raise RegistryError(f"{endpoint} cannot be asked of MLflow: {error}") from error
        except requests.RequestException as error:
            raise RegistryUnreachableError(
                f"MLflow at {self.base} does not answer: {type(error).__name__}",
                fix="start the server, or correct the connection's host",
            ) from error
        if answer.ok:
            return answer
        try:
            problem = answer.json()
        except ValueError:
            problem = {}
        code, text = problem.get("error_code", str(answer.status_code)), problem.get("message", answer.text[:200])
        if code in accept:
            return None
        if answer.status_code in (401, 403):
            raise RegistryError(
                f"MLflow at {self.base} refuses the credentials (HTTP {answer.status_code})",
                fix="correct login and password of the connection",
            )
        if answer.status_code >= 500 or answer.status_code == 429:
            raise RegistryUnreachableError(f"MLflow at {self.base} failed on {endpoint}: {code}: {text}")
        if code == "RESOURCE_DOES_NOT_EXIST":
            raise ModelNotFoundError(f"MLflow at {self.base}: {text}")
        # A run keeps the params it has logged; only a resumed run with another declaration meets this.
        fix = "start a new run: what has not changed is not done again" if "Changing param values" in text else None
        raise RegistryError(f"MLflow at {self.base} refused {endpoint}: {code}: {text}", fix=fix)

    def experiment_id(self, name: str) -> str:
        missing = ("RESOURCE_DOES_NOT_EXIST",)
        found = self._ask("GET", "experiments/get-by-name", accept=missing, experiment_name=name)
        if not found:
            made = self._ask(
                "POST", "experiments/create", accept=("RESOURCE_ALREADY_EXISTS",), name=name, tags=_pairs(KIND)
            )
            if made:
                return str(made["experiment_id"])
            found = self._ask("GET", "experiments/get-by-name", experiment_name=name)
        experiment = found["experiment"]
        if experiment.get("lifecycle_stage") == "deleted":
            raise deleted(name, experiment["experiment_id"])
        return str(experiment["experiment_id"])

    def find_run(self, experiment_id: str, tag: str, value: str) -> str | None:
        answer = self._ask(
            "POST",
            "runs/search",
            experiment_ids=[experiment_id],
            filter=f'tags."{tag}" = {filter_value(value)}',
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        runs = answer.get("runs", [])
        return self._seen(runs[0]["info"]) if runs else None

    def find_runs(self, experiment_id: str, tag: str, value: str) -> list[Run]:
        found: list[Run] = []
        page: dict[str, Any] = {}
        while True:
            answer = self._ask(
                "POST",
                "runs/search",
                experiment_ids=[experiment_id],
                filter=f'tags."{tag}" = {filter_value(value)}',
                order_by=["attributes.start_time ASC"],
                max_results=PAGE,
                **page,
            )
            for run in answer.get("runs", []):
                tags = {each["key"]: each["value"] for each in run["data"].get("tags", [])}
                found.append(Run(str(run["info"]["run_id"]), run["info"]["status"], tags))
            if not answer.get("next_page_token"):
                return found
            page = {"page_token": answer["next_page_token"]}

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str], *, at: datetime | None = None) -> str:
        answer = self._ask(
            "POST",
            "runs/create",
            experiment_id=experiment_id,
            run_name=name,
            start_time=millis(at),
            tags=_pairs(tags),
        )
        return self._seen(answer["run"]["info"])

    def end_run(self, run_id: str, status: str, *, at: datetime | None = None) -> None:
        self._ask("POST", "runs/update", run_id=run_id, status=status, end_time=millis(at))

    def log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        now = millis()
        measured = [{"key": key, "value": value, "timestamp": now, "step": 0} for key, value in (metrics or {}).items()]
        for batch in batches(metrics=measured, params=_pairs(params or {}), tags=_pairs(tags or {})):
            self._ask("POST", "runs/log-batch", run_id=run_id, **batch)

    def logged(self, run_id: str) -> Logged:
        found = self._ask("GET", "runs/get", run_id=run_id)["run"]
        self._seen(found["info"])
        data = found["data"]
        params, tags = ({each["key"]: each["value"] for each in data.get(kind, [])} for kind in ("params", "tags"))
        metrics = {each["key"]: float(each["value"]) for each in data.get("metrics", [])}
        return Logged(params, tags, metrics, str(found["info"].get("artifact_uri", "")))

    def log_text(self, run_id: str, name: str, text: str) -> None:
        require_plain(name)
        root = self._root(run_id)
        if root is None:
            self._own.log_text(run_id, name, text)
        else:
            self._send("PUT", self._artifact(f"{root}/{name}"), name, data=text.encode())

    def log_file(self, run_id: str, name: str, file: Path) -> None:
        require_plain(name)
        root = self._root(run_id)
        if root is None:
            self._own.log_file(run_id, name, file)
        else:
            with file.open("rb") as content:
                self._send("PUT", self._artifact(f"{root}/{name}"), name, data=content)

    def fetch(self, run_id: str, name: str, target: Path) -> Path:
        root = self._root(run_id)
        if root is None:
            return self._own.fetch(run_id, name, target)
        return self._bring(f"{root}/{name}", target / name.rpartition("/")[2], f"the artifact {name} of run {run_id}")

    def fetch_model(self, source: str, target: Path) -> Path:
        what = f"the model {source}"
        try:
            found = self._ask("GET", f"logged-models/{source.removeprefix('models:/')}")
        except ModelNotFoundError as error:
            raise gone(what) from error
        root = _served(str(found["model"]["info"]["artifact_uri"]))
        if root is None:
            return self._own.fetch_model(source, target)
        if not self._bring_folder(root, target, what):
            raise gone(what)
        return target

    def _root(self, run_id: str) -> str | None:
        """Where a run's artifacts are on the server; None where it does not serve them."""
        if run_id not in self._roots:
            self.logged(run_id)
        return self._roots[run_id]

    def _seen(self, info: Mapping[str, Any]) -> str:
        """Remember where a run's artifacts are, which never changes; return its id."""
        run_id = str(info["run_id"])
        self._roots[run_id] = _served(str(info.get("artifact_uri", "")))
        return run_id

    def _bring_folder(self, path: str, target: Path, what: str) -> int:
        """Bring what lies under a path here; return how many files there are."""
        url = f"{self.base}/api/2.0/mlflow-artifacts/artifacts"
        count = 0
        for each in self._send("GET", url, what, params={"path": path}).get("files", []):
            name = each["path"].rpartition("/")[2]
            if name in ("", ".", ".."):
                raise RegistryError(f"{what}: MLflow names a file of it {each['path']!r}, and no file can be called so")
            if each.get("is_dir"):
                count += self._bring_folder(f"{path}/{name}", target / name, what)
            else:
                self._bring(f"{path}/{name}", target / name, what)
                count += 1
        return count

    def _bring(self, path: str, file: Path, what: str) -> Path:
        answer = self._answer("GET", self._artifact(path), what, accept=_MISSING, stream=True)
        if answer is None:
            raise gone(what)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with answer, file.open("wb") as out:
                for piece in answer.iter_content(_PIECE):
                    out.write(piece)
        except requests.RequestException as error:
            raise RegistryUnreachableError(f"{what} cannot be fetched: {error}") from error
        return file

    def _artifact(self, path: str) -> str:
        return f"{self.base}/api/2.0/mlflow-artifacts/artifacts/{quote(path)}"

    @property
    def _own(self) -> MlflowApi:
        """Whoever reaches artifacts that the server does not serve itself: MLflow's client and its file systems."""
        from airflow_mlops.registry.mlflow_client import OwnClient

        return OwnClient(self.base)

    def create_model(self, name: str) -> None:
        self._ask("POST", "registered-models/create", accept=("RESOURCE_ALREADY_EXISTS",), name=name)

    def run_of_model(self, model_id: str) -> str:
        found = self._ask("GET", f"logged-models/{model_id}")["model"]["info"]
        run = self._ask("GET", "runs/get", run_id=str(found.get("source_run_id", "")))["run"]["info"]
        return usable(model_id, str(found.get("status", "")), self._seen(run), str(run["lifecycle_stage"]))

    def versions_tagged(self, model: str, tag: str, value: str) -> list[Version]:
        answer = self._ask("GET", "model-versions/search", filter=tagged_versions(model, tag, value), max_results=100)
        return sorted((_rest_version(each) for each in answer.get("model_versions", [])), key=lambda v: int(v.version))

    def create_version(self, model: str, source: str, run_id: str, tags: Mapping[str, str]) -> Version:
        answer = self._ask(
            "POST",
            "model-versions/create",
            name=model,
            source=source,
            run_id=run_id,
            model_id=source.removeprefix("models:/"),
            tags=_pairs(tags),
        )
        return _rest_version(answer["model_version"])

    def version(self, model: str, version: str) -> Version:
        answer = self._ask("GET", "model-versions/get", name=model, version=version)
        return _rest_version(answer["model_version"])

    def tag_version(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._ask("POST", "model-versions/set-tag", name=model, version=version, key=key, value=value)

    def describe_version(self, model: str, version: str, text: str) -> None:
        self._ask("PATCH", "model-versions/update", name=model, version=version, description=text)

    def aliases(self, model: str) -> dict[str, str]:
        answer = self._ask("GET", "registered-models/get", accept=("RESOURCE_DOES_NOT_EXIST",), name=model)
        found = answer.get("registered_model", {}).get("aliases", [])
        return {each["alias"]: str(each["version"]) for each in found}

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        if version is None:
            missing = ("RESOURCE_DOES_NOT_EXIST",)
            self._ask("DELETE", "registered-models/alias", accept=missing, name=model, alias=alias)
        else:
            self._ask("POST", "registered-models/alias", name=model, alias=alias, version=version)


def _served(uri: str) -> str | None:
    """The path of artifacts that the tracking server itself serves; None where it does not."""
    path = uri.removeprefix(_SERVED)
    # With two slashes it names another server.
    return path.strip("/") if uri.startswith(_SERVED) and not path.startswith("//") else None


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _rest_version(value: Mapping[str, Any]) -> Version:
    tags = {each["key"]: each["value"] for each in value.get("tags", [])}
    return Version(value["name"], str(value["version"]), value.get("source", ""), value.get("run_id", ""), tags)
