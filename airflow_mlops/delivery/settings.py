"""``deploy.yaml``: which environments there are, where their DAGs lie, and which Airflow runs them."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.base import Duration, Section
from airflow_mlops.spec.load import describe, read_documents, validate

FILE = "deploy.yaml"
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$")]


def _without_secrets(address: str, instead: str) -> str:
    """An address that anybody may read; only a user of SSH says nothing that is secret."""
    parts = urlsplit(address)
    if parts.password or (parts.username and parts.scheme in ("http", "https")):
        raise ValueError(f"an address here holds no user and no password: {instead}")
    return address


class GitBundle(Section):
    """A repository that a Git DAG bundle of Airflow, or a git-sync, reads."""

    repo: str = Field(min_length=1, examples=["git@example.org:team/dags.git"])
    """Its address, as ``git clone`` takes it; who may push is Git's own affair."""
    branch: str = Field("main", min_length=1)
    """The branch, which must be there."""
    path: str = Field("", pattern=r"^([\w-][\w.-]*/?)*$")
    """The folder of the DAGs in it. Default: the root."""

    @field_validator("repo")
    @classmethod
    def _no_secrets(cls, value: str) -> str:
        return _without_secrets(value, "Git has credential helpers and keys")


class Smoke(Section):
    """A DAG run that must succeed before a release counts as deployed."""

    dag: str
    """The DAG, or a pipeline, whose training it is then."""
    params: dict[str, Any] = {}
    """The run's params, such as ``{window: 2024-01, promote: false}``."""


class Target(Section):
    """One environment: exactly one of ``dags``, ``git`` and ``gcs``, and the Airflow that reads it."""

    dags: str | None = Field(None, min_length=1, examples=["/opt/airflow/dags"])
    """The folder of a local DAG bundle, relative to ``deploy.yaml``."""
    git: GitBundle | None = None
    """Instead, a Git repository."""
    gcs: str | None = Field(None, pattern=r"^gs://[^/]+(/.*)?$", examples=["gs://europe-west1-prod-bucket/dags"])
    """Instead, a folder in a bucket, as Cloud Composer has one."""
    airflow: str = Field(pattern=r"^https?://", examples=["https://airflow.example.org"])
    """The address of Airflow. Who asks is said by the variables ``AIRFLOW_API_TOKEN``, or ``AIRFLOW_API_USER`` and
    ``AIRFLOW_API_PASSWORD``; those that end in the environment's name (``AIRFLOW_API_TOKEN_PROD``) come first. One that
    ends in ``_FILE`` names a file that holds it."""
    bundle: str | None = None
    """Airflow's name of the DAG bundle. Default: where no DAG of an earlier release tells it, all of them are
    asked to look again."""
    smoke: tuple[Smoke, ...] = ()
    """The runs that must succeed before a release counts as deployed."""
    unpause: bool = True
    """Whether DAGs that are new to this Airflow are unpaused when they are deployed; known ones stay as they are."""
    timeout: Duration = timedelta(minutes=10)
    """How long Airflow may take to load a release and to end its smoke runs, before what ran before is put back."""

    @field_validator("airflow")
    @classmethod
    def _no_secrets(cls, value: str) -> str:
        return _without_secrets(value, "AIRFLOW_API_USER and AIRFLOW_API_PASSWORD are for it")

    @field_validator("smoke", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, (str, dict)):
            value = [value]
        return (
            [{"dag": each} if isinstance(each, str) else each for each in value] if isinstance(value, list) else value
        )

    @model_validator(mode="after")
    def _one_place(self) -> Target:
        if sum(each is not None for each in (self.dags, self.git, self.gcs)) != 1:
            raise ValueError("give exactly one of 'dags', 'git' and 'gcs'")
        return self


class Settings(Section):
    """Where pipelines are delivered to. It holds no secrets."""

    environments: dict[Name, Target] = Field(min_length=1)
    """The environments by their names, which are those that declarations overlay."""


def read_settings(file: str | os.PathLike[str]) -> Settings:
    """Read ``deploy.yaml``; local folders come out absolute.

    Raises:
        DeclarationError: with one line for every mistake.
    """
    if not os.path.exists(file):
        fix = "--config FILE; docs/howto/deliver.md shows one, and airflow-mlops init writes one"
        raise DeclarationError([f"{file}: there is no such file, which says what environments there are; try: {fix}"])
    documents = read_documents(os.fspath(file))
    if len(documents) != 1:
        raise DeclarationError([f"{file}: holds {len(documents)} documents; allowed: one, with 'environments:'"])
    settings = validate(Settings, documents[0])
    base = Path(file).absolute().parent
    targets = {
        name: target.model_copy(update={"dags": target.dags and os.path.normpath(base / target.dags)})
        for name, target in settings.environments.items()
    }
    return settings.model_copy(update={"environments": targets})


def target_of(file: str | os.PathLike[str], environment: str) -> Target:
    """One environment of ``deploy.yaml``.

    Raises:
        DeclarationError: when there is none of that name.
    """
    settings = read_settings(file)
    if environment not in settings.environments:
        document = read_documents(os.fspath(file))[0]
        what = f"there is no environment {environment!r}"
        allowed = ", ".join(settings.environments)
        raise DeclarationError([describe(document, None, ("environments",), what, allowed=allowed)])
    return settings.environments[environment]
