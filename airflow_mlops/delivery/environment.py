"""An environment as a release meets it: where its releases lie, and whether a bundle can run there at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_mlops.delivery.bundle import Bundle
from airflow_mlops.delivery.gcs_place import GcsPlace
from airflow_mlops.delivery.git_place import GitPlace
from airflow_mlops.delivery.places import Place, StorePlace
from airflow_mlops.delivery.settings import Target
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.load import Declaration, load_declarations
from airflow_mlops.spec.wiring import check_all, problems_of


def place_of(target: Target) -> Place:
    """Where an environment's releases lie."""
    if target.git:
        return GitPlace(target.git.repo, target.git.branch, target.git.path)
    return GcsPlace(target.gcs) if target.gcs else StorePlace(str(target.dags))


@contextmanager
def laid_out(bundle: Bundle) -> Iterator[Path]:
    """A bundle as a release is: a folder with its files and the code beside the declarations."""
    with tempfile.TemporaryDirectory(prefix="airflow-mlops-") as folder:
        for path, content in bundle.unpacked().items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        yield Path(folder)


def declarations_in(bundle: Bundle, environment: str) -> list[Declaration]:
    """The pipelines of a bundle as they are in an environment.

    Raises:
        DeclarationError: with one line for every mistake, also where a pipeline knows no such environment, or names
            data that would be looked for inside the release.
    """
    found: list[Declaration] = []
    problems: list[str] = []
    with laid_out(bundle) as folder:
        for path in bundle.manifest.declarations:
            try:
                found += load_declarations(folder / path, environment)
            except DeclarationError as error:
                problems += error.problems
        for each in found:
            problems += [*problems_of(each), *beside_the_code(each, environment)]
        problems += check_all(found)
        if problems:
            raise DeclarationError([problem.replace(f"{folder}{os.sep}", "") for problem in problems])
    return found


def beside_the_code(declaration: Declaration, environment: str) -> Iterator[str]:
    """Data and interpreters that a release would look for in its own folder, where there are none.

    Args:
        declaration: a pipeline as it is in the environment.
        environment: the environment's name; empty: whichever it may be.
    """
    pipeline = declaration.pipeline
    performance = pipeline.monitor.performance
    for path, place in {
        ("data", "source"): pipeline.data.source,
        ("monitor", "performance", "labels"): performance.labels if performance else None,
        ("predict", "output"): pipeline.predict.output,
        ("runtime", "python"): pipeline.runtime.python if pipeline.runtime else None,
    }.items():
        if isinstance(place, str) and not (os.path.isabs(place) or "://" in place):
            name = ".".join(path)
            yield declaration.problem(
                path,
                f"{name} is {place!r}, relative to the declaration, and a release holds none of it",
                fix="an absolute path or a URI" + (f", in environments.{environment}.{name}" if environment else ""),
            )
