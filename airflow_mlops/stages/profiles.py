"""Profiles of artifacts, kept under the digest of the data: what was profiled once is not read again."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, digest_of
from airflow_mlops.drift.collect import profile_batches, profile_files
from airflow_mlops.drift.profile import VERSION, DatasetProfile
from airflow_mlops.drift.reference import with_blocks
from airflow_mlops.errors import DataError
from airflow_mlops.registry.mlflow_api import mlflow_api

log = logging.getLogger(__name__)

PROFILE = "mlops/profile.bin"
"""Where a model's run has its reference."""


def profile_of(data: ArtifactRef, store: Store, time: str | None = None) -> DatasetProfile:
    """The profile of a data set of the store: the kept one, or else it is made and kept.

    It lies among the artifacts under the digest of the data, so it is pruned when they are.
    """
    digest = data.digest.removeprefix("sha256:")
    place = ("artifacts", "profile", digest[:2], f"{digest}.{digest_of([VERSION, time])[7:15]}.bin")
    profile = _kept(store, place)
    if profile is None:
        profile = profile_files([str(store.fetch(data))], time=time)
        _keep(profile.to_bytes(), store, place)
    return profile


def reference_in(run_id: str, registry: str, store: Store, artifact: str = PROFILE) -> DatasetProfile:
    """The reference that a model's run was logged with.

    It is brought here once and kept, for it is asked for with every window.

    Args:
        run_id: the run.
        registry: MLflow's tracking URI.
        store: where it is kept.
        artifact: which of its references. Default: that of its rows.

    Raises:
        ModelNotFoundError: when the run has none.
        RegistryUnreachableError: when it cannot be fetched now.
    """
    name = run_id if artifact == PROFILE else f"{run_id}.{Path(artifact).stem}"
    place = ("artifacts", "profile", "runs", f"{name}.bin")
    profile = _kept(store, place)
    if profile is None:
        with tempfile.TemporaryDirectory() as folder:
            data = mlflow_api(registry).fetch(run_id, artifact, Path(folder)).read_bytes()
        profile = DatasetProfile.from_bytes(data, f"the reference of the run {run_id}")
        _keep(data, store, place)
    return profile


def _kept(store: Store, place: tuple[str, ...]) -> DatasetProfile | None:
    data = store.read_bytes(*place)
    if data is None:
        return None
    try:
        return DatasetProfile.from_bytes(data, store.uri(*place))
    except DataError as error:
        log.warning("%s; it is made anew", error)
        return None


def _keep(data: bytes, store: Store, place: tuple[str, ...]) -> None:
    with store.scratch(".bin") as file:
        file.write_bytes(data)
        store.replace_file(file, *place)


def reference_of(table: pa.Table, columns: tuple[str, ...], time: str | None) -> DatasetProfile:
    """The reference that is kept with a model: these columns, in blocks of time where there is a time column."""
    time = time if time in table.column_names else None
    wanted = [*columns, time] if time else columns
    profile = profile_batches(table.to_batches(), table.schema, wanted, time)
    profile = with_blocks(profile, lambda names: table.select(names).to_batches()).select(columns)
    return replace(profile, others=tuple(name for name in table.column_names if name not in columns))
