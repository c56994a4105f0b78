"""Where a command finds the store and the registry: where it is told to look, else where Airflow does."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_mlops.backends.local import environment
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.errors import DeclarationError, RegistryError
from airflow_mlops.registry.mlflow_api import without_password
from airflow_mlops.spec import Declaration, load_declarations
from airflow_mlops.spec.environment import VARIABLE
from airflow_mlops.spec.pipeline import Pipeline

ELSEWHERE = "--store URI, or --declaration PIPELINE.yaml [--env NAME] of a pipeline that names google.bucket"
"""Where else a model may be."""
_CONTEXT = "_AIRFLOW_PROCESS_CONTEXT"


def add_store(parser: argparse.ArgumentParser) -> None:
    """Let a command be told the store."""
    parser.add_argument("--store", metavar="URI", help="the artifact store (default: that of Airflow's configuration)")


def add_model_store(parser: argparse.ArgumentParser) -> None:
    """Let a command be told the store of a model, or the declaration that names it."""
    add_store(parser)
    parser.add_argument(
        "--declaration", metavar="PIPELINE.yaml", help="the model's declaration: its google.bucket holds the store"
    )
    add_environment(parser)


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Let a command be told which of the declared environments is meant."""
    parser.add_argument(
        "--env", metavar="NAME", help=f"which of the declared environments (default: ${VARIABLE}, else none)"
    )


def add_registry(parser: argparse.ArgumentParser) -> None:
    """Let a command be told the store and the registry of a model."""
    add_model_store(parser)
    parser.add_argument(
        "--registry",
        metavar="URI",
        help="MLflow's tracking URI (default: $MLFLOW_TRACKING_URI, else Airflow's connection mlflow_default, or that "
        "of --declaration)",
    )


def choose_declaration(file: str, name: str | None, option: str = "--pipeline ") -> Declaration:
    """The pipeline asked for in a YAML file, or the only one there.

    Args:
        file: the file.
        name: the pipeline asked for, if any was.
        option: how it is asked for.

    Raises:
        DeclarationError: when the file is wrong, there is no such pipeline, or there are several to choose from.
    """
    declarations = load_declarations(file)
    names = [declaration.pipeline.name for declaration in declarations]
    if name:
        found = [each for each in declarations if each.pipeline.name == name]
        if not found:
            close = difflib.get_close_matches(name, names, n=1)
            what = f"{file}: has no pipeline {name!r}; allowed: {', '.join(names)}"
            raise DeclarationError([what + (f"; try: {option}{close[0]}" if close else "")])
        return found[0]
    if len(declarations) > 1:
        what = f"{file}: holds {len(names)} pipelines"
        raise DeclarationError([f"{what}; allowed: {', '.join(names)}; try: {option}{names[0]}"])
    return declarations[0]


def declared(options: argparse.Namespace, model: str | None) -> Pipeline | None:
    """The pipeline of a model in the file that a command was told; None where it was told none.

    Raises:
        DeclarationError: when the file is wrong, or has no such pipeline.
    """
    file = getattr(options, "declaration", None)
    return choose_declaration(file, model, "").pipeline if file else None


def store_of(options: argparse.Namespace, model: str | None = None) -> Store:
    """The store that a command was told, that of the model's declaration, or that of Airflow's configuration."""
    if options.store:
        return Store(options.store)
    pipeline = declared(options, model)
    if pipeline and pipeline.google and pipeline.google.store:
        return Store(pipeline.google.store)
    from airflow_mlops.hooks.mlflow import store_root

    return Store(store_root())


def known_models(store: Store) -> list[str]:
    """The models that have a ledger."""
    return store.names("ledger")


def require_model(store: Store, model: str) -> None:
    """See that a model has a ledger.

    Raises:
        RegistryError: when it has none; with the names of those that do.
    """
    known = known_models(store)
    if model not in known:
        raise RegistryError(f"{store.root} has no ledger of {model!r}", allowed=", ".join(known) or None, fix=ELSEWHERE)


def uri_of(options: argparse.Namespace) -> str | None:
    """MLflow's tracking URI as a command was told it, by an option or by MLflow's own variable; None where it was not.

    Raises:
        RegistryError: when it holds a password.
    """
    uri = options.registry or os.environ.get("MLFLOW_TRACKING_URI")
    where = "--registry" if options.registry else "MLFLOW_TRACKING_URI"
    fix = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; name a database through `mlflow server`"
    return without_password(uri, where, fix) if uri else None


@contextmanager
def registry_in(options: argparse.Namespace, model: str) -> Iterator[RegistryRef]:
    """The registry of a model; inside, its credentials are in the environment, where MLflow's clients look."""
    uri = uri_of(options)
    if uri:
        yield RegistryRef(uri=uri, model=model, experiment=model)
        return
    from airflow_mlops.hooks.mlflow import MlflowHook

    pipeline = declared(options, model)
    hook = MlflowHook(pipeline.registry) if pipeline else MlflowHook()
    # Airflow opens its own database only to a process that says it belongs to the servers; this one runs beside them.
    with environment({_CONTEXT: "server"}):
        ref, secrets = hook.registry(model), hook.environment()
    with environment(secrets):
        yield ref
