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
from airflow_mlops.registry.mlflow_api import Version, mlflow_api

FACTS = "mlops/model.json"
"""What is known about a model, among the artifacts of its run."""
KNOWN = "model.json"
MODEL = "model"
_FOLDER = "models"


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
        api = mlflow_api(uri)
        with tempfile.TemporaryDirectory() as scratch:
            known = api.fetch(version.run_id, FACTS, Path(scratch, "k"))
            model = api.fetch_model(version.source, Path(scratch, MODEL))
            for file in sorted(each for each in model.rglob("*") if each.is_file()):
                store.replace_file(file, *place, MODEL, *file.relative_to(model).parts)
            store.replace_file(known, *place, KNOWN)
    return store.uri(*place)


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
