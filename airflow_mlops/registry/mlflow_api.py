"""The few things the product asks of MLflow's tracking server and registry.

Over http the REST API is called directly: ``import mlflow`` costs three to four CPU seconds and 170 MB, which every
task that only asks the registry or reads a model would pay, and every process that serves one. Every other tracking URI
(``sqlite:``, a folder) goes through MLflow's own client. Versions are strings everywhere: MLflow gives ``int`` from one
store and ``str`` from another.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from airflow_mlops.errors import ModelNotFoundError, RegistryError

TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_BATCH = 100
PAGE = 1000
# Which of MLflow's pages an experiment opens with; left alone, it shows those of language models first.
KIND = {"mlflow.experimentKind": "custom_model_development"}


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

    def log_file(self, run_id: str, name: str, file: Path) -> None:
        """Log a file as an artifact of a run, over what was there.

        Raises:
            RegistryError: when the name is none that every server of MLflow takes and gives back.
        """

    def fetch(self, run_id: str, name: str, target: Path) -> Path:
        """Bring an artifact of a run, a file, into a folder here; return where it is.

        Raises:
            ModelNotFoundError: when the run has none of this name.
            RegistryUnreachableError: when it cannot be fetched now.
        """

    def fetch_model(self, source: str, target: Path) -> Path:
        """Bring the files of a logged model ``models:/m-...`` into a folder here; return the folder.

        Raises:
            ModelNotFoundError: when it is gone.
            RegistryUnreachableError: when it cannot be fetched now.
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
    if uri.startswith(("http://", "https://")):
        from airflow_mlops.registry.mlflow_rest import MlflowRest

        return MlflowRest(uri)
    from airflow_mlops.registry.mlflow_client import OwnClient

    return OwnClient(uri)


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

    # MLflow writes its log lines to standard error, where Airflow takes each of them for an error.
    own = logging.getLogger("mlflow")
    own.handlers.clear()
    own.propagate = True
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


def millis(at: datetime | None = None) -> int:
    """A time, or now, as MLflow counts it."""
    return int((at.timestamp() if at else time.time()) * 1000)


def filter_value(value: str) -> str:
    """Quote a value for MLflow's filters, which know two kinds of quotes and no way to escape either."""
    if "'" in value and '"' in value:
        raise RegistryError(f"{value!r} holds both kinds of quotes, and MLflow cannot look for it")
    return f'"{value}"' if "'" in value else f"'{value}'"


def tagged_versions(model: str, tag: str, value: str) -> str:
    """The filter for a model's versions that have a tag."""
    return f'name = {filter_value(model)} and tags."{tag}" = {filter_value(value)}'


def usable(model_id: str, status: str, run_id: str, lifecycle: str) -> str:
    """The run of a logged model.

    Raises:
        ModelNotFoundError: when the model was never finished, or its run was deleted.
    """
    if not status.endswith("READY"):
        raise ModelNotFoundError(f"the logged model {model_id} was never finished")
    if lifecycle != "active":
        raise ModelNotFoundError(f"the run {run_id} of the logged model {model_id} was deleted")
    return run_id


def deleted(name: str, experiment_id: str) -> RegistryError:
    """The error about an experiment that somebody has deleted."""
    fix = f"restore it: mlflow experiments restore --experiment-id {experiment_id}"
    return RegistryError(f"the experiment {name!r} was deleted in MLflow", fix=fix)


def batches(**lists: list[Any]) -> Iterator[dict[str, Any]]:
    """Part what is to be logged into pieces that MLflow takes at once."""
    start = 0
    while start == 0 or any(len(values) > start for values in lists.values()):
        yield {name: values[start : start + _BATCH] for name, values in lists.items()}
        start += _BATCH


def require_plain(name: str) -> None:
    """Refuse the name of an artifact that MLflow's server refuses as a path, or would decode to another one.

    Raises:
        RegistryError: when it is one.
    """
    parts = name.split("/")
    if any(mark in name for mark in "#?%\\") or not name.isprintable() or {"", ".", ".."} & set(parts):
        raise RegistryError(
            f"an artifact cannot be named {name!r}", allowed=r"FOLDER/FILE, relative and without # ? % \ in it"
        )


def gone(what: str) -> ModelNotFoundError:
    """The error about files that MLflow does not have."""
    return ModelNotFoundError(
        f"{what} is not there: it was removed, or never made by airflow_mlops",
        fix="train a model with a pipeline, and let it be promoted",
    )
