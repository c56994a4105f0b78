"""From YAML files to a DAG file's globals, where Airflow finds them."""

from __future__ import annotations

import glob
import inspect
import os
from collections.abc import MutableMapping
from typing import Any

from airflow.sdk import DAG

from airflow_mlops.errors import DeclarationError
from airflow_mlops.factory.build import build_dags
from airflow_mlops.spec.fleet import folded
from airflow_mlops.spec.load import load_declarations
from airflow_mlops.spec.wiring import check_all, problems_of


def calling_folder() -> str:
    """The folder of the file that called the caller."""
    frame = inspect.currentframe()
    for _ in range(2):
        if frame is not None and frame.f_back is not None:
            frame = frame.f_back
    return os.path.dirname(os.path.abspath(frame.f_code.co_filename)) if frame else os.getcwd()


def load_dags(pattern: str, namespace: MutableMapping[str, Any], base: str | None = None) -> dict[str, DAG]:
    """Make the DAGs of every pipeline that a glob finds, and put them where Airflow looks.

    Args:
        pattern: a file or glob, relative to the calling file; ``**`` goes down folders.
        namespace: the DAG file's ``globals()``.
        base: the folder that the pattern starts from. Default: the calling file's.

    Returns:
        The DAGs by their ids.

    Raises:
        DeclarationError: with one line for every mistake in any of the files, when none is found, or when a name is
            used twice. Airflow shows it as the file's import error.
    """
    folder = base or calling_folder()
    files = sorted(glob.glob(os.path.join(folder, pattern), recursive=True))
    if not files:
        raise DeclarationError([f"{os.path.join(folder, pattern)}: no such file; try: a path relative to the DAG file"])
    declarations, problems = [], []
    for file in files:
        try:
            declarations += load_declarations(file)
        except DeclarationError as error:
            problems += error.problems
    problems += folded((declaration.pipeline.name, problems_of(declaration)) for declaration in declarations)
    problems += check_all(declarations)
    if problems:
        raise DeclarationError(problems)
    dags: dict[str, DAG] = {}
    for declaration in declarations:
        dags |= build_dags(declaration.pipeline, declaration.base)
    namespace.update(dags)
    return dags
