"""The profile of the rows that monitoring looks at: of the rows as they are read, or made where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from airflow_mlops.call.connection import connection_of
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, digest_of
from airflow_mlops.drift.profile import VERSION, DatasetProfile
from airflow_mlops.errors import DataNotFoundError
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.stages import Monitor
from airflow_mlops.spec.window import Window, last_windows
from airflow_mlops.stages.database import BIGQUERY
from airflow_mlops.stages.extract import extract_parts, identity_of
from airflow_mlops.stages.profiles import profile_of
from airflow_mlops.stages.snapshots import Snapshots


class Watched(NamedTuple):
    """A window, or several that are judged together."""

    profile: DatasetProfile
    digest: str
    """Of what was looked at."""
    parts: list[ArtifactRef]
    """The rows, where they were read."""


def watched(params: Monitor, call: Call, store: Store, others: Sequence[str]) -> Watched:
    """The profile of the windows that a Call judges.

    Of a query of BigQuery no row is read, unless all columns are judged together: BigQuery makes the profile. A window
    that was read already, for a training say, is not asked for again.

    Args:
        params: where the rows are.
        call: whose windows are meant.
        store: where profiles are kept.
        others: columns that nobody compares.

    Raises:
        DataNotFoundError: when there are no rows.
    """
    source = params.source
    if isinstance(source, SqlSource) and not params.data_drift.multivariate:
        connection = connection_of(source.connection)
        if connection.type == BIGQUERY:
            return _there(params, source, call, store, others)
    parts = extract_parts(params.extract, call.window, store, call)
    current = DatasetProfile(0, {}, params.time)
    for part in parts:
        current = current.merge(profile_of(part, store, params.time))
    return Watched(current, parts[0].digest if len(parts) == 1 else digest_of([part.digest for part in parts]), parts)


def _there(params: Monitor, source: SqlSource, call: Call, store: Store, others: Sequence[str]) -> Watched:
    from airflow_mlops.stages.bigquery import BigQuery
    from airflow_mlops.stages.bigquery_profile import profile

    identity = identity_of(params.extract, source)
    read = Snapshots(store, call, identity)
    kept = Snapshots(store, call, {**identity, "profile": VERSION, "without": sorted(others)})
    windows: Sequence[Window | None] = last_windows(params.grain, call.window, params.last) if call.window else [None]
    ref = kept.of_run()
    if ref is None:
        database = BigQuery(connection_of(source.connection), run=f"{call.identity}-{call.digest}")
        current = DatasetProfile(0, {}, params.time)
        now = datetime.now(UTC)
        reuse = params.snapshots == "reuse"
        try:
            for window in windows:
                if reuse and window and (rows := read.newest(window.key)):
                    found = profile_of(rows, store, params.time)
                elif reuse and window and (made := kept.newest(window.key)):
                    found = _load(made, store)
                else:
                    found = profile(database, source, params.time, window, others)
                    if window and now >= window.end + params.settle and found.rows:
                        kept.keep(window.key, _keep(found, store), None)
                current = current.merge(found)
        finally:
            database.close()
        ref = _keep(current, store)
        kept.keep_for_run(ref)
    current = _load(ref, store)
    if not current.rows:
        where = f" in the window {call.window.key}" if call.window else ""
        raise DataNotFoundError(
            f"{source} has no rows{where}", fix="give another window, or wait until its data has arrived"
        )
    return Watched(current, ref.digest, [])


def _keep(profile: DatasetProfile, store: Store) -> ArtifactRef:
    with store.scratch(".bin") as file:
        file.write_bytes(profile.to_bytes())
        return store.put_file(file, "profile", rows=profile.rows)


def _load(ref: ArtifactRef, store: Store) -> DatasetProfile:
    return DatasetProfile.from_bytes(store.fetch(ref).read_bytes(), ref.uri)
