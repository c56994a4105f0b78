"""MLflow's own client, for tracking URIs that have no server, and for artifacts that the server does not serve."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from airflow_mlops.errors import ModelNotFoundError, RegistryError, RegistryUnreachableError
from airflow_mlops.registry.mlflow_api import (
    KIND,
    PAGE,
    Logged,
    Run,
    Version,
    batches,
    deleted,
    filter_value,
    gone,
    millis,
    pointed_at,
    require_plain,
    tagged_versions,
    usable,
)

_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "does not exist", "No such", "404 Client Error", "ensure that the path")
"""In what words MLflow's stores say that an artifact is not there."""


class OwnClient:
    """MLflow's own client, for tracking URIs that have no server."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self.client = MlflowClient(uri, uri)
        except Exception as error:
            raise RegistryError(f"the tracking URI {uri} cannot be used: {error}") from error

    def _ask(self, question: str, *arguments: Any, accept: tuple[str, ...] = (), **options: Any) -> Any:
        """Call a method of the client. Error codes in ``accept`` give None instead of an error."""
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
            made = self._ask("create_experiment", name, accept=exists, artifact_location=beside, tags=KIND)
            return str(made if made is not None else self._ask("get_experiment_by_name", name).experiment_id)
        if found.lifecycle_stage == "deleted":
            raise deleted(name, found.experiment_id)
        return str(found.experiment_id)

    def find_run(self, experiment_id: str, tag: str, value: str) -> str | None:
        runs = self._ask(
            "search_runs",
            [experiment_id],
            f'tags."{tag}" = {filter_value(value)}',
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
                f'tags."{tag}" = {filter_value(value)}',
                order_by=["attributes.start_time ASC"],
                max_results=PAGE,
                page_token=token,
            )
            found += [Run(str(run.info.run_id), run.info.status, dict(run.data.tags)) for run in page]
            token = page.token
            if not token:
                return found

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str], *, at: datetime | None = None) -> str:
        made = self._ask("create_run", experiment_id, start_time=millis(at), run_name=name, tags=dict(tags))
        return str(made.info.run_id)

    def end_run(self, run_id: str, status: str, *, at: datetime | None = None) -> None:
        self._ask("set_terminated", run_id, status, millis(at))

    def log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        now = millis()
        for batch in batches(
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
        require_plain(name)
        try:
            self._ask("log_text", run_id, text, name)
        except OSError as error:
            raise RegistryUnreachableError(f"MLflow at {self.uri} takes no artifacts: {error}") from error

    def log_file(self, run_id: str, name: str, file: Path) -> None:
        require_plain(name)
        folder, _, base = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            named = file if file.name == base else shutil.copyfile(file, Path(scratch, base))
            try:
                self._ask("log_artifact", run_id, str(named), folder or None)
            except OSError as error:
                raise RegistryUnreachableError(f"MLflow at {self.uri} takes no artifacts: {error}") from error

    def fetch(self, run_id: str, name: str, target: Path) -> Path:
        return self._fetched(f"the artifact {name} of run {run_id}", target, run_id=run_id, artifact_path=name)

    def fetch_model(self, source: str, target: Path) -> Path:
        return self._fetched(f"the model {source}", target, artifact_uri=source)

    def _fetched(self, what: str, target: Path, **where: str) -> Path:
        try:
            with pointed_at(self.uri):
                return Path(mlflow.artifacts.download_artifacts(dst_path=str(target), **where))
        except (OSError, MlflowException) as error:
            text, code = str(error), getattr(error, "error_code", "")
            if isinstance(error, FileNotFoundError) or any(sign in f"{code} {text}" for sign in _NOT_THERE):
                raise gone(what) from error
            raise RegistryUnreachableError(f"{what} cannot be fetched: {text}") from error

    def create_model(self, name: str) -> None:
        self._ask("create_registered_model", name, accept=("RESOURCE_ALREADY_EXISTS",))

    def run_of_model(self, model_id: str) -> str:
        found = self._ask("get_logged_model", model_id)
        run_id = str(found.source_run_id or "")
        run = self._ask("get_run", run_id).info
        return usable(model_id, str(found.status), run_id, str(run.lifecycle_stage))

    def versions_tagged(self, model: str, tag: str, value: str) -> list[Version]:
        found = self._ask("search_model_versions", tagged_versions(model, tag, value))
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
        found = self._ask("search_registered_models", f"name = {filter_value(model)}")
        return {alias: str(version) for alias, version in found[0].aliases.items()} if found else {}

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        if version is None:
            self._ask("delete_registered_model_alias", model, alias, accept=("RESOURCE_DOES_NOT_EXIST",))
        else:
            self._ask("set_registered_model_alias", model, alias, version)


def _client_version(value: Any) -> Version:
    return Version(value.name, str(value.version), value.source or "", value.run_id or "", dict(value.tags))
