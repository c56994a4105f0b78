"""A model's files where something else can read them that has no MLflow: under the store, by the model's digest.

``models/DIGEST/model/`` is the folder that was logged, and ``models/DIGEST/model.json`` what must be known to use it,
written last: where that is, all is there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec.core import url_to_fs

from airflow_mlops.call.store import Store, reaching
from airflow_mlops.errors import ModelNotFoundError, RegistryUnreachableError
from airflow_mlops.registry.mlflow_api import Version, pointed_at

FACTS = "mlops/model.json"
"""What is known about a model, among the artifacts of its run."""
KNOWN = "model.json"
MODEL = "model"
_FOLDER = "models"
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "does not exist", "No such", "404 Client Error", "ensure that the path")
"""In what words MLflow's stores say that an artifact is not there."""


def fetched(what: str, target: Path, **where: str) -> Path:
    """Bring artifacts of MLflow here, by the arguments of its ``download_artifacts``.

    Raises:
        ModelNotFoundError: when there are none.
        RegistryUnreachableError: when they cannot be fetched now.
    """
    import mlflow

    try:
        return Path(mlflow.artifacts.download_artifacts(dst_path=str(target), **where))
    except (OSError, mlflow.exceptions.MlflowException) as error:
        text = str(error)
        if isinstance(error, FileNotFoundError) or any(sign in text for sign in _NOT_THERE):
            raise ModelNotFoundError(
                f"{what} is not there: it was removed, or never made by airflow_mlops",
                fix="train a model with a pipeline, and let it be promoted",
            ) from error
        raise RegistryUnreachableError(f"{what} cannot be fetched: {text}") from error


def publish(uri: str, version: Version, digest: str, store: Store) -> str:
    """Put the files of a version into a store, once; return the folder's URI.

    Args:
        uri: MLflow's tracking URI.
        version: the version.
        digest: the digest of its model.
        store: where to.
    """
    place = (_FOLDER, digest.removeprefix("sha256:"))
    if store.read_bytes(*place, KNOWN) is None:
        with tempfile.TemporaryDirectory() as scratch, pointed_at(uri):
            known = fetched(f"what is known of version {version.version}", Path(scratch, "k"), **_of_run(version))
            model = fetched(f"the model {version.source}", Path(scratch, MODEL), artifact_uri=version.source)
            for file in sorted(each for each in model.rglob("*") if each.is_file()):
                store.replace_file(file, *place, MODEL, *file.relative_to(model).parts)
            store.replace_file(known, *place, KNOWN)
    return store.uri(*place)


def _of_run(version: Version) -> dict[str, str]:
    return {"run_id": version.run_id, "artifact_path": FACTS}


@contextmanager
def files_of(uri: str) -> Iterator[Path]:
    """What `publish` has put somewhere, as a local folder for as long as the scope lasts.

    Raises:
        StoreError: when it is not there.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        with reaching(uri):
            fs, path = url_to_fs(uri.rstrip("/"))
            root = fs._strip_protocol(path)
            for name in (f"{root}/{KNOWN}", *fs.find(f"{root}/{MODEL}")):
                local = folder / name.removeprefix(root).lstrip("/")
                local.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(name, str(local))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
