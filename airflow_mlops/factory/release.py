"""From a release to a DAG file's globals: what the pointer of an environment calls."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import MutableMapping
from typing import Any

from airflow.sdk import DAG

from airflow_mlops.backends.local import environment as variables
from airflow_mlops.errors import DeclarationError
from airflow_mlops.factory.load import calling_folder, configured_environment, load_dags
from airflow_mlops.spec.environment import VARIABLE


def load_release(folder: str, environment: str, namespace: MutableMapping[str, Any]) -> dict[str, DAG]:
    """Make the DAGs of a release, each tagged ``release:...``: by the tag one sees what Airflow has loaded.

    Unlike `load_dags` this is all or nothing: one wrong declaration, and Airflow shows an import error.

    Args:
        folder: the release, relative to the calling file.
        environment: the environment that it was deployed to.
        namespace: the DAG file's ``globals()``.

    Returns:
        The DAGs by their ids.

    Raises:
        DeclarationError: when the release is not there, is wrong, or this Airflow is another environment.
    """
    root = os.path.join(calling_folder(), folder)
    where = f"release {os.path.basename(folder)}"
    configured = configured_environment()
    if configured and configured != environment:
        what = f"{where} was deployed to {environment!r}, and this Airflow is {configured!r}"
        raise DeclarationError([f"{what} by [airflow_mlops] environment; try: correct one of the two"])
    try:
        with open(os.path.join(root, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
    except FileNotFoundError as error:
        raise DeclarationError([f"{where} is not in {root} (yet); it comes with the next synchronisation"]) from error
    try:
        with variables({VARIABLE: environment}):
            dags = _dags(root, manifest)
    except Exception as error:
        raise DeclarationError([f"{where}: {type(error).__name__}: {error}"]) from error
    if broken := [str(dag.description) for dag in dags.values() if "broken" in dag.tags]:
        raise DeclarationError([f"{where}: {each}" for each in broken])
    for dag in dags.values():
        dag.tags.add(f"release:{os.path.basename(folder)}")
    namespace.update(dags)
    return dags


def _dags(root: str, manifest: dict[str, Any]) -> dict[str, DAG]:
    dags: dict[str, DAG] = {}
    if not manifest["dags"]:
        for declaration in manifest["declarations"]:
            dags |= load_dags(declaration, {}, base=root)
    for file in manifest["dags"]:
        # What lies beside a DAG file is found, as it is in a DAGs folder.
        sys.path.insert(0, os.path.dirname(os.path.join(root, file)))
        made = runpy.run_path(os.path.join(root, file), run_name=os.path.splitext(os.path.basename(file))[0])
        dags |= {each.dag_id: each for each in made.values() if isinstance(each, DAG)}
    return dags
