"""The few things the product asks of MLflow's tracking server and registry.

Over http the REST API is called directly: ``import mlflow`` costs three to four CPU seconds and 170 MB, which every
registry-only task of every run would pay to do a few requests. Every other tracking URI (``sqlite:``, a folder) goes
through MLflow's own client. Versions are strings everywhere: MLflow gives ``int`` from one store and ``str`` from
another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from airflow_mlops.errors import ModelNotFoundError, RegistryError, RegistryUnreachableError

TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_DEFAULT_TIMEOUT = "30"
_BATCH = 100
_PAGE = 1000
_SERVED = "mlflow-artifacts:"
"""How the URI of artifacts begins that the tracking server serves itself."""
# Which of MLflow's pages an experiment opens with; left alone, it shows those of language models first.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


class Version(NamedTuple):
    """A registered model's version."""

    model: str
    version: str
    source: str
    run_id: str
    tags: dict[str, str]


class Run(NamedTuple):
    """A run, as a search finds it."""

    run_id: str
    status: str
    tags: dict[str, str]


class Logged(NamedTuple):
    """What a run has logged; of each metric the last value."""

    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    artifacts: str
    """The URI that its artifacts lie under."""


class MlflowApi(Protocol):
    """What a registry is asked."""

    def experiment_id(self, name: str) -> str:
        """The experiment's id; it is made when it is not there."""

    def find_run(self, experiment_id: str, tag: str, value: str) -> str | None:
        """The oldest run that has the tag, or None."""

    def find_runs(self, experiment_id: str, tag: str, value: str) -> list[Run]:
        """Every run that has the tag, oldest first."""

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str], *, at: datetime | None = None) -> str:
        """Start a run, now or at a time that has passed; return its id."""

    def end_run(self, run_id: str, status: str, *, at: datetime | None = None) -> None:
        """Set a run's status, as of now or of a time that has passed: ``FINISHED``, ``FAILED`` or ``KILLED``."""

    def log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log numbers, params and tags, in one request where they are few."""

    def logged(self, run_id: str) -> Logged:
        """What a run has logged."""

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """Log a text as an artifact of a run, over what was there.

        Raises:
            RegistryError: when the name is none that every server of MLflow takes and gives back.
        """

    def create_model(self, name: str) -> None:
        """Make the registered model; nothing happens when it is there."""

    def run_of_model(self, model_id: str) -> str:
        """The run that has logged a model ``m-...``.

        Raises:
            ModelNotFoundError: when the model or its run was deleted, or the model was never finished.
        """

    def versions_tagged(self, model: str, tag: str, value: str) -> list[Version]:
        """The versions that have the tag, oldest first."""

    def create_version(self, model: str, source: str, run_id: str, tags: Mapping[str, str]) -> Version:
        """Register a version of a logged model ``models:/m-...``."""

    def version(self, model: str, version: str) -> Version:
        """One version."""

    def tag_version(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        """Tag a version."""

    def describe_version(self, model: str, version: str, text: str) -> None:
        """Set a version's description."""

    def aliases(self, model: str) -> dict[str, str]:
        """The model's aliases and the versions they name; none for an unknown model."""

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        """Let an alias name a version, or remove it."""


def mlflow_api(uri: str) -> MlflowApi:
    """The registry at a tracking URI."""
    return _Rest(uri) if uri.startswith(("http://", "https://")) else _Client(uri)


def without_password(uri: str, where: str, fix: str) -> str:
    """A tracking URI that may stand in Calls, logs and on a server's page.

    Args:
        uri: the URI.
        where: what names it, for the error.
        fix: where a password belongs instead.

    Raises:
        RegistryError: when it holds a password.
    """
    if urlsplit(uri).password:
        raise RegistryError(f"{where} holds a password", fix=fix)
    return uri


@contextmanager
def pointed_at(uri: str) -> Iterator[None]:
    """Let MLflow's module-level functions speak to one registry."""
    import mlflow

    point: Any = mlflow  # None unsets, whatever the annotations say
    # What was never set must stay unset: written down, MLflow's default would become a database in the working folder.
    tracking = point.get_tracking_uri() if point.tracking.is_tracking_uri_set() else None
    registry = os.environ.get("MLFLOW_REGISTRY_URI")
    point.set_tracking_uri(uri)
    point.set_registry_uri(uri)
    try:
        yield
    finally:
        point.set_tracking_uri(tracking)
        point.set_registry_uri(registry)
        if registry is None:
            os.environ.pop("MLFLOW_REGISTRY_URI", None)


def _millis(at: datetime | None = None) -> int:
    """A time, or now, as MLflow counts it."""
    return int((at.timestamp() if at else time.time()) * 1000)


def _filter_value(value: str) -> str:
    """Quote a value for MLflow's filters, which know two kinds of quotes and no way to escape either."""
    if "'" in value and '"' in value:
        raise RegistryError(f"{value!r} holds both kinds of quotes, and MLflow cannot look for it")
    return f'"{value}"' if "'" in value else f"'{value}'"


def _tagged_versions(model: str, tag: str, value: str) -> str:
    return f'name = {_filter_value(model)} and tags."{tag}" = {_filter_value(value)}'


def _usable(model_id: str, status: str, run_id: str, lifecycle: str) -> str:
    if not status.endswith("READY"):
        raise ModelNotFoundError(f"the logged model {model_id} was never finished")
    if lifecycle != "active":
        raise ModelNotFoundError(f"the run {run_id} of the logged model {model_id} was deleted")
    return run_id


class _Rest:
    def __init__(self, uri: str) -> None:
        import requests

        self.base = uri.rstrip("/")
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
        import requests

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
            # Artifacts are answered with nothing.
            value: dict[str, Any] = answer.json() if answer.content else {}
            return value
        try:
            problem = answer.json()
        except ValueError:
            problem = {}
        code, text = problem.get("error_code", str(answer.status_code)), problem.get("message", answer.text[:200])
        if code in accept:
            return {}
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
                "POST", "experiments/create", accept=("RESOURCE_ALREADY_EXISTS",), name=name, tags=_pairs(_KIND)
            )
            if made:
                return str(made["experiment_id"])
            found = self._ask("GET", "experiments/get-by-name", experiment_name=name)
        experiment = found["experiment"]
        if experiment.get("lifecycle_stage") == "deleted":
            raise _deleted(name, experiment["experiment_id"])
        return str(experiment["experiment_id"])

    def find_run(self, experiment_id: str, tag: str, value: str) -> str | None:
        answer = self._ask(
            "POST",
            "runs/search",
            experiment_ids=[experiment_id],
            filter=f'tags."{tag}" = {_filter_value(value)}',
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        runs = answer.get("runs", [])
        return str(runs[0]["info"]["run_id"]) if runs else None

    def find_runs(self, experiment_id: str, tag: str, value: str) -> list[Run]:
        found: list[Run] = []
        page: dict[str, Any] = {}
        while True:
            answer = self._ask(
                "POST",
                "runs/search",
                experiment_ids=[experiment_id],
                filter=f'tags."{tag}" = {_filter_value(value)}',
                order_by=["attributes.start_time ASC"],
                max_results=_PAGE,
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
            start_time=_millis(at),
            tags=_pairs(tags),
        )
        return str(answer["run"]["info"]["run_id"])

    def end_run(self, run_id: str, status: str, *, at: datetime | None = None) -> None:
        self._ask("POST", "runs/update", run_id=run_id, status=status, end_time=_millis(at))

    def log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        now = _millis()
        measured = [{"key": key, "value": value, "timestamp": now, "step": 0} for key, value in (metrics or {}).items()]
        for batch in _batches(metrics=measured, params=_pairs(params or {}), tags=_pairs(tags or {})):
            self._ask("POST", "runs/log-batch", run_id=run_id, **batch)

    def logged(self, run_id: str) -> Logged:
        found = self._ask("GET", "runs/get", run_id=run_id)["run"]
        data = found["data"]
        params, tags = ({each["key"]: each["value"] for each in data.get(kind, [])} for kind in ("params", "tags"))
        metrics = {each["key"]: float(each["value"]) for each in data.get("metrics", [])}
        return Logged(params, tags, metrics, str(found["info"].get("artifact_uri", "")))

    def log_text(self, run_id: str, name: str, text: str) -> None:
        from urllib.parse import quote

        _require_plain(name)
        folder = self.logged(run_id).artifacts
        if not folder.startswith(f"{_SERVED}/"):
            # Artifacts that the server does not serve itself need MLflow's client and its file systems.
            _Client(self.base).log_text(run_id, name, text)
            return
        path = quote(f"{folder.removeprefix(_SERVED).strip('/')}/{name}")
        self._send("PUT", f"{self.base}/api/2.0/mlflow-artifacts/artifacts/{path}", name, data=text.encode())

    def create_model(self, name: str) -> None:
        self._ask("POST", "registered-models/create", accept=("RESOURCE_ALREADY_EXISTS",), name=name)

    def run_of_model(self, model_id: str) -> str:
        found = self._ask("GET", f"logged-models/{model_id}")["model"]["info"]
        run_id = str(found.get("source_run_id", ""))
        run = self._ask("GET", "runs/get", run_id=run_id)["run"]["info"]
        return _usable(model_id, str(found.get("status", "")), run_id, str(run["lifecycle_stage"]))

    def versions_tagged(self, model: str, tag: str, value: str) -> list[Version]:
        answer = self._ask("GET", "model-versions/search", filter=_tagged_versions(model, tag, value), max_results=100)
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


def _deleted(name: str, experiment_id: str) -> RegistryError:
    fix = f"restore it: mlflow experiments restore --experiment-id {experiment_id}"
    return RegistryError(f"the experiment {name!r} was deleted in MLflow", fix=fix)


def _batches(**lists: list[Any]) -> Iterator[dict[str, Any]]:
    """Part what is to be logged into pieces that MLflow takes at once."""
    start = 0
    while start == 0 or any(len(values) > start for values in lists.values()):
        yield {name: values[start : start + _BATCH] for name, values in lists.items()}
        start += _BATCH


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _rest_version(value: Mapping[str, Any]) -> Version:
    tags = {each["key"]: each["value"] for each in value.get("tags", [])}
    return Version(value["name"], str(value["version"]), value.get("source", ""), value.get("run_id", ""), tags)


class _Client:
    """MLflow's own client, for tracking URIs that have no server."""

    def __init__(self, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self.uri = uri
        try:
            self.client = MlflowClient(uri, uri)
        except Exception as error:
            raise RegistryError(f"the tracking URI {uri} cannot be used: {error}") from error

    def _ask(self, question: str, *arguments: Any, accept: tuple[str, ...] = (), **options: Any) -> Any:
        """Call a method of the client. Error codes in ``accept`` give None instead of an error."""
        from mlflow.exceptions import MlflowException

        try:
            # To resolve models:/m-... the client asks whatever registry the process points at, not its own.
            with pointed_at(self.uri):
                return getattr(self.client, question)(*arguments, **options)
        except MlflowException as error:
            if error.error_code in accept:
                return None
            what = f"MLflow at {self.uri}: {error.message}"
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise ModelNotFoundError(what) from error
            if error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
                raise RegistryUnreachableError(what) from error
            raise RegistryError(what) from error

    def experiment_id(self, name: str) -> str:
        found = self._ask("get_experiment_by_name", name)
        if found is None:
            # Left alone, MLflow would put artifacts under whatever folder the process happens to run in.
            beside = None
            if self.uri.startswith("sqlite:///"):
                beside = str(Path(self.uri.removeprefix("sqlite:///")).absolute().parent / "mlflow-artifacts")
            exists = ("RESOURCE_ALREADY_EXISTS",)
            made = self._ask("create_experiment", name, accept=exists, artifact_location=beside, tags=_KIND)
            return str(made if made is not None else self._ask("get_experiment_by_name", name).experiment_id)
        if found.lifecycle_stage == "deleted":
            raise _deleted(name, found.experiment_id)
        return str(found.experiment_id)

    def find_run(self, experiment_id: str, tag: str, value: str) -> str | None:
        runs = self._ask(
            "search_runs",
            [experiment_id],
            f'tags."{tag}" = {_filter_value(value)}',
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        return str(runs[0].info.run_id) if runs else None

    def find_runs(self, experiment_id: str, tag: str, value: str) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            page = self._ask(
                "search_runs",
                [experiment_id],
                f'tags."{tag}" = {_filter_value(value)}',
                order_by=["attributes.start_time ASC"],
                max_results=_PAGE,
                page_token=token,
            )
            found += [Run(str(run.info.run_id), run.info.status, dict(run.data.tags)) for run in page]
            token = page.token
            if not token:
                return found

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str], *, at: datetime | None = None) -> str:
        made = self._ask("create_run", experiment_id, start_time=_millis(at), run_name=name, tags=dict(tags))
        return str(made.info.run_id)

    def end_run(self, run_id: str, status: str, *, at: datetime | None = None) -> None:
        self._ask("set_terminated", run_id, status, _millis(at))

    def log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = _millis()
        for batch in _batches(
            metrics=[Metric(key, value, now, 0) for key, value in (metrics or {}).items()],
            params=[Param(key, value) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        ):
            self._ask("log_batch", run_id, **batch)

    def logged(self, run_id: str) -> Logged:
        found = self._ask("get_run", run_id)
        data = found.data
        return Logged(dict(data.params), dict(data.tags), dict(data.metrics), str(found.info.artifact_uri))

    def log_text(self, run_id: str, name: str, text: str) -> None:
        _require_plain(name)
        try:
            self._ask("log_text", run_id, text, name)
        except OSError as error:
            raise RegistryUnreachableError(f"MLflow at {self.uri} takes no artifacts: {error}") from error

    def create_model(self, name: str) -> None:
        self._ask("create_registered_model", name, accept=("RESOURCE_ALREADY_EXISTS",))

    def run_of_model(self, model_id: str) -> str:
        found = self._ask("get_logged_model", model_id)
        run_id = str(found.source_run_id or "")
        run = self._ask("get_run", run_id).info
        return _usable(model_id, str(found.status), run_id, str(run.lifecycle_stage))

    def versions_tagged(self, model: str, tag: str, value: str) -> list[Version]:
        found = self._ask("search_model_versions", _tagged_versions(model, tag, value))
        return sorted((_client_version(each) for each in found), key=lambda v: int(v.version))

    def create_version(self, model: str, source: str, run_id: str, tags: Mapping[str, str]) -> Version:
        model_id = source.removeprefix("models:/")
        made = self._ask("create_model_version", model, source, run_id=run_id, tags=dict(tags), model_id=model_id)
        return _client_version(made)

    def version(self, model: str, version: str) -> Version:
        return _client_version(self._ask("get_model_version", model, version))

    def tag_version(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._ask("set_model_version_tag", model, version, key, value)

    def describe_version(self, model: str, version: str, text: str) -> None:
        self._ask("update_model_version", model, version, description=text)

    def aliases(self, model: str) -> dict[str, str]:
        found = self._ask("search_registered_models", f"name = {_filter_value(model)}")
        return {alias: str(version) for alias, version in found[0].aliases.items()} if found else {}

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        if version is None:
            self._ask("delete_registered_model_alias", model, alias, accept=("RESOURCE_DOES_NOT_EXIST",))
        else:
            self._ask("set_registered_model_alias", model, alias, version)


def _require_plain(name: str) -> None:
    """Refuse what MLflow's server refuses as a path, and what it would decode to another one."""
    parts = name.split("/")
    if any(mark in name for mark in "#?%\\") or not name.isprintable() or {"", ".", ".."} & set(parts):
        raise RegistryError(
            f"an artifact cannot be named {name!r}", allowed=r"FOLDER/FILE, relative and without # ? % \ in it"
        )


def _client_version(value: Any) -> Version:
    return Version(value.name, str(value.version), value.source or "", value.run_id or "", dict(value.tags))
