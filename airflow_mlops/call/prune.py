"""Pruning: entries of the cache that are old go, and then the artifacts that nothing names any more.

What is still needed is told by text alone: an artifact stays whose digest stands anywhere in the JSON of the store that
stays (the ledger, requests, verdicts, outcomes, entries, and JSON artifacts that stay themselves). So a new kind of
record protects what it names without a word here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from fsspec.core import url_to_fs

from airflow_mlops.call.cache import CACHED, FOLDER, entries
from airflow_mlops.call.store import Store, age_of, reaching
from airflow_mlops.call.wire import Outcome

GRACE = timedelta(days=1)
"""Artifacts and outcomes younger than this always stay: a run may have made them and not named them yet."""

_DIGEST = re.compile(rb"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"([0-9a-f]{64})\b")
_REMADE = re.compile(r"/(runs/[0-9a-f-]+|[0-9a-f]{32})\.json$")
_ALWAYS = frozenset({"code"})
"""Kinds of artifacts that stay: only a running task may know a code snapshot, and they are small."""


class Pruned(NamedTuple):
    """What was removed, or would be."""

    entries: int
    """Entries of the cache."""
    records: int
    """Records that nothing needs: outcomes of runs that have ended, and snapshots of files, which can be read again."""
    artifacts: int
    """Artifacts."""
    size: int
    """The artifacts' bytes."""


class _File(NamedTuple):
    path: str
    size: int
    at: float


def prune(store: Store, older_than: timedelta, pipeline: str | None = None, *, dry_run: bool = False) -> Pruned:
    """Remove entries older than a limit, and the artifacts that only they and as old outcomes name.

    Outcomes of stages that change the registry stay, and so do those of a run in which anything is younger than the
    limit: it may go on. Snapshots of a database stay, for nobody can read them again. Artifacts are looked at before
    what names them is read, so one that is named meanwhile stays.

    Args:
        store: the store.
        older_than: the age from which on an entry goes; outcomes and artifacts go after a day at least.
        pipeline: remove the entries of this pipeline only.
        dry_run: only say what would go.
    """
    now = datetime.now(UTC)
    limit, settled = (now - older_than), (now - max(older_than, GRACE)).timestamp()
    old_entries = [
        store.uri(FOLDER, entry.pipeline, stage, f"{entry.key}.json")
        for stage, entry in entries(store, pipeline)
        if entry.at <= limit
    ]
    candidates = [file for file in _files(store, "artifacts") if file.at <= settled and _kind(file) not in _ALWAYS]
    old_records = _outcomes(store, settled) | _snapshots(store, settled)
    gone = {_path(uri) for uri in old_entries} | old_records
    needed = _needed(store, gone, settled)
    artifacts = [file for file in candidates if (found := _NAME.search(file.path)) and found[1] not in needed]
    if not dry_run:
        for path in (*gone, *(file.path for file in artifacts)):
            _remove(store, path)
    return Pruned(len(old_entries), len(old_records), len(artifacts), sum(file.size for file in artifacts))


def _path(uri: str) -> str:
    return str(url_to_fs(uri)[1])


def _remove(store: Store, path: str) -> None:
    with reaching(path):
        if store.fs.exists(path):
            store.fs.rm_file(path)


def _files(store: Store, *parts: str) -> Iterator[_File]:
    place = "/".join((store.path, *parts))
    with reaching(place):
        store.fs.invalidate_cache()
        if not store.fs.exists(place):
            return
        for path, info in store.fs.find(place, detail=True).items():
            yield _File(path, int(info.get("size") or 0), age_of(info))


def _kind(file: _File) -> str:
    return file.path.rsplit("/", 3)[1]


def _outcomes(store: Store, settled: float) -> set[str]:
    """The outcomes that may go: of stages that are cached, in runs where nothing is young."""
    found: dict[str, list[tuple[_File, Outcome]]] = {}
    for file in _files(store, "outcomes"):
        value = store.read_json("outcomes", file.path.rsplit("/", 1)[1])
        outcome = Outcome.model_validate(value) if value else None
        if outcome is not None:
            found.setdefault(outcome.run or file.path, []).append((file, outcome))
    return {
        file.path
        for run in found.values()
        if all(file.at <= settled for file, _ in run)
        for file, outcome in run
        if outcome.stage in CACHED
    }


def _snapshots(store: Store, settled: float) -> set[str]:
    """Old records of what was read: of files, and what one task was given for its retries."""
    return {file.path for file in _files(store, "snapshots") if file.at <= settled and _REMADE.search(file.path)}


def _needed(store: Store, gone: set[str], settled: float) -> set[str]:
    """The digests that stand in the JSON that stays, and in the JSON artifacts that are young or named there."""
    needed: set[str] = set()
    inside: dict[str, str] = {}
    for file in _files(store):
        below = file.path.removeprefix(store.path).lstrip("/")
        if not file.path.endswith(".json") or below.startswith("scratch/") or file.path in gone:
            continue
        if below.startswith("artifacts/") and file.at <= settled:
            found = _NAME.search(file.path)
            if found:
                inside[found[1]] = file.path
        else:
            needed |= _digests(store, file.path)
    todo = set(needed)
    while todo:
        digest = todo.pop()
        if digest in inside:
            named = _digests(store, inside.pop(digest)) - needed
            needed |= named
            todo |= named
    return needed


def _digests(store: Store, path: str) -> set[str]:
    with reaching(path):
        return {found.decode() for found in _DIGEST.findall(store.fs.cat_file(path))}
