"""Profiles of artifacts, kept under the digest of the data: what was profiled once is not read again."""

from __future__ import annotations

import logging

import pyarrow as pa

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, digest_of
from airflow_mlops.drift.collect import profile_batches, profile_files
from airflow_mlops.drift.profile import VERSION, DatasetProfile
from airflow_mlops.drift.reference import with_blocks
from airflow_mlops.errors import DataError

log = logging.getLogger(__name__)


def profile_of(data: ArtifactRef, store: Store, time: str | None = None) -> DatasetProfile:
    """The profile of a data set of the store: the kept one, or else it is made and kept.

    It lies among the artifacts under the digest of the data, so it is pruned when they are.
    """
    digest = data.digest.removeprefix("sha256:")
    place = ("artifacts", "profile", digest[:2], f"{digest}.{digest_of([VERSION, time])[7:15]}.bin")
    kept = store.read_bytes(*place)
    if kept is not None:
        try:
            return DatasetProfile.from_bytes(kept, store.uri(*place))
        except DataError as error:
            log.warning("%s; it is made anew", error)
    profile = profile_files([str(store.fetch(data))], time=time)
    with store.scratch(".bin") as file:
        file.write_bytes(profile.to_bytes())
        store.replace_file(file, *place)
    return profile


def reference_of(table: pa.Table, columns: tuple[str, ...], time: str | None) -> DatasetProfile:
    """The reference that is kept with a model: these columns, in blocks of time where there is a time column."""
    time = time if time in table.column_names else None
    wanted = [*columns, time] if time else columns
    profile = profile_batches(table.to_batches(), table.schema, wanted, time)
    return with_blocks(profile, lambda names: table.select(names).to_batches()).select(columns)
