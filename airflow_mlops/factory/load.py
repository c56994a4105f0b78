"""From YAML files to a DAG file's globals, where Airflow finds them."""

from __future__ import annotations

import glob
import inspect
import logging
import os
import re
from collections.abc import Iterable, MutableMapping
from typing import Any

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.configuration import conf

from airflow_mlops.errors import DeclarationError
from airflow_mlops.factory.build import build_dags
from airflow_mlops.spec.fleet import folded
from airflow_mlops.spec.load import Declaration, load_declarations
from airflow_mlops.spec.wiring import check_all, problems_of

log = logging.getLogger(__name__)


def calling_folder() -> str:
    """The folder of the file that called the caller."""
    frame = inspect.currentframe()
    for _ in range(2):
        if frame is not None and frame.f_back is not None:
            frame = frame.f_back
    return os.path.dirname(os.path.abspath(frame.f_code.co_filename)) if frame else os.getcwd()


def configured_environment() -> str:
    """The environment that this Airflow is, by ``[airflow_mlops] environment``; empty where it does not say."""
    return str(conf.get("airflow_mlops", "environment", fallback=""))


def load_dags(pattern: str, namespace: MutableMapping[str, Any], base: str | None = None) -> dict[str, DAG]:
    """Make the DAGs of every pipeline that a glob finds, and put them where Airflow looks.

    A file with mistakes takes no other file's DAGs with it: it becomes a DAG ``FILE.broken`` that tells them, and the
    log has them too.

    Args:
        pattern: a file or glob, relative to the calling file; ``**`` goes down folders.
        namespace: the DAG file's ``globals()``.
        base: the folder that the pattern starts from. Default: the calling file's.

    Returns:
        The DAGs by their ids.

    Raises:
        DeclarationError: with one line for every mistake, when no file is right or none is found. Airflow shows it as
            the DAG file's import error.
    """
    folder = os.path.normpath(os.path.join(base or calling_folder(), pattern))
    files = sorted(glob.glob(folder, recursive=True))
    if not files:
        raise DeclarationError([f"{folder}: no such file; try: a path relative to the DAG file"])
    good: list[Declaration] = []
    broken: dict[str, list[str]] = {}
    for file in files:
        try:
            found = load_declarations(file, configured_environment())
        except DeclarationError as error:
            broken[file] = list(error.problems)
            continue
        problems = folded((each.pipeline.name, problems_of(each)) for each in found)
        # A name that an earlier file has taken is this file's mistake.
        problems += check_all([*good, *found])
        if problems:
            broken[file] = problems
        else:
            good += found
    if not good:
        raise DeclarationError([problem for problems in broken.values() for problem in problems])
    dags: dict[str, DAG] = {}
    for declaration in good:
        dags |= build_dags(declaration.pipeline, declaration.base)
    for file, problems in broken.items():
        log.error("%s makes no DAGs:\n%s", file, "\n".join(problems))
        dag = _broken_dag(file, problems, dags)
        dags[dag.dag_id] = dag
    namespace.update(dags)
    return dags


class _BrokenDeclaration(BaseOperator):
    """Fails with the mistakes of a declaration."""

    ui_color = "#fecaca"

    def __init__(self, *, problems: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.problems = problems

    def execute(self, context: Any) -> None:
        """Tell the mistakes."""
        raise DeclarationError(self.problems)


def _broken_dag(file: str, problems: list[str], taken: Iterable[str]) -> DAG:
    stem = re.sub(r"[^\w-]", "_", os.path.splitext(os.path.basename(file))[0])
    others = sum(name == f"{stem}.broken" or name.startswith(f"{stem}.broken_") for name in taken)
    dag = DAG(
        dag_id=f"{stem}.broken{f'_{others + 1}' if others else ''}",
        schedule=None,
        description=problems[0],
        doc_md=f"## {os.path.basename(file)} makes no DAGs\n\n"
        + "\n".join(f"- `{problem}`" for problem in problems)
        + "\n\n`airflow-mlops lint` tells the same, and more.\n",
        tags={"mlops", "broken"},
    )
    _BrokenDeclaration(task_id="declaration", dag=dag, problems=problems, retries=0)
    return dag
