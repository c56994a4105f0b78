"""From a release to a DAG file's globals: what the pointer of an environment calls."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_mlops.backends.local import environment as variables
from airflow_mlops.delivery.bundle import NOT_WHOLE, Manifest, laid
from airflow_mlops.errors import DeclarationError, DeliveryError
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
        DeclarationError: when the release is not there as it was built, is wrong, or this Airflow is another
            environment.
    """
    root = Path(calling_folder(), folder)
    where = f"release {root.name}"
    configured = configured_environment()
    if configured and configured != environment:
        what = f"{where} was deployed to {environment!r}, and this Airflow is {configured!r}"
        raise DeclarationError([f"{what} by [airflow_mlops] environment; try: correct one of the two"])
    try:
        manifest = _whole(root)
    except DeliveryError as error:
        what = f"{where} {NOT_WHOLE}: {error.what}"
        fix = "wait for the next synchronisation of this Airflow's DAG bundle, or deploy it again"
        raise DeclarationError([f"{what}; try: {fix}"]) from error
    try:
        with variables({VARIABLE: environment}):
            dags = _dags(str(root), manifest)
    except Exception as error:
        raise DeclarationError([f"{where}: {type(error).__name__}: {error}"]) from error
    if broken := [str(dag.description) for dag in dags.values() if "broken" in dag.tags]:
        raise DeclarationError([f"{where}: {each}" for each in broken])
    for dag in dags.values():
        dag.tags.add(f"release:{root.name}")
    namespace.update(dags)
    return dags


def _whole(root: Path) -> Manifest:
    """The manifest of a release, each of whose files is there as it was built.

    Raises:
        DeliveryError: when one is not: what synchronises folders may bring the pointer first.
    """

    def read(path: str) -> bytes | None:
        try:
            return (root / path).read_bytes()
        except FileNotFoundError:
            return None

    manifest = laid(read, str(root)).manifest
    if manifest.release != root.name:
        raise DeliveryError(f"{root} holds the release {manifest.release}")
    return manifest


def _dags(root: str, manifest: Manifest) -> dict[str, DAG]:
    dags: dict[str, DAG] = {}
    if not manifest.dags:
        for declaration in manifest.declarations:
            dags |= load_dags(declaration, {}, base=root)
    for file in manifest.dags:
        # What lies beside a DAG file is found, as it is in a DAGs folder.
        sys.path.insert(0, os.path.dirname(os.path.join(root, file)))
        made = runpy.run_path(os.path.join(root, file), run_name=os.path.splitext(os.path.basename(file))[0])
        dags |= {each.dag_id: each for each in made.values() if isinstance(each, DAG)}
    return dags
