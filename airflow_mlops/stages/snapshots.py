"""What was read of a source, window by window: immutable files by content, and small records that say which is which.

    snapshots/PIPELINE/SOURCE/WINDOW/000001.json   a window of a database as it was read after it had settled
    snapshots/PIPELINE/SOURCE/WINDOW/CONTENT.json  a window of files, by the digest of what they held
    snapshots/PIPELINE/runs/CALL.json              what one task of one run was given: its retries get the same

A record is created once and never changed; ``refresh`` adds one with the next number, and the newest counts.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from airflow_mlops.call.store import Store, reaching
from airflow_mlops.call.wire import ArtifactRef, Call, digest_of

log = logging.getLogger(__name__)


class Snapshots:
    """The snapshots of one source of one pipeline.

    Args:
        store: where they are kept.
        call: whose source it is; None keeps no records.
        source: what makes rows of this source's and no other's, without secrets.
    """

    def __init__(self, store: Store, call: Call | None, source: dict[str, Any]) -> None:
        self.store, self.call, self.source = store, call, source
        self._id = digest_of(source)[7:23]

    def of_run(self) -> ArtifactRef | None:
        """What an earlier try of this very task was given."""
        return self._artifact(self.store.read_json(*self._pin())) if self.call else None

    def keep_for_run(self, data: ArtifactRef) -> None:
        """Let later tries of this task get the same."""
        if self.call:
            body = {"pipeline": self.call.pipeline, "run": self.call.run, "artifact": data.model_dump(mode="json")}
            self.store.create_json(body, *self._pin())

    def _pin(self) -> tuple[str, ...]:
        assert self.call is not None  # noqa: S101
        return "snapshots", self.call.pipeline, "runs", f"{self.call.identity}-{self.call.digest[7:15]}.json"

    def newest(self, window: str) -> ArtifactRef | None:
        """The snapshot of a window that counts, by the window's key."""
        if self.call is None:
            return None
        numbers = self.store.names(*self._folder(window))
        return self.by_content(window, numbers[-1].removesuffix(".json")) if numbers else None

    def by_content(self, window: str, name: str) -> ArtifactRef | None:
        """The snapshot of a window under a name: the digest of the files it was read from, or a number."""
        if self.call is None:
            return None
        record = self.store.read_json(*self._folder(window), f"{name}.json")
        found = self._artifact(record)
        if record and found:
            log.info("window %s: %s rows as they were read at %s", window, found.rows, record["read_at"])
        return found

    def keep(self, window: str, data: ArtifactRef, time: str | None, name: str | None = None) -> None:
        """Record what was read; without a name as the newest of its window."""
        if self.call is None:
            return
        taken = self.store.names(*self._folder(window)) if name is None else []
        number = int(taken[-1].removesuffix(".json")) + 1 if taken else 1
        body = {
            "pipeline": self.call.pipeline,
            "run": self.call.run,
            "source": self.source,
            "window": window,
            "artifact": data.model_dump(mode="json"),
            "times": self._times(data, time),
            "read_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # Of two runs that read the same window at once one is first, and the other's own task keeps what it has read.
        self.store.create_json(body, *self._folder(window), f"{name or f'{number:06}'}.json")

    def _times(self, data: ArtifactRef, time: str | None) -> list[str] | None:
        if time is None or not data.rows:
            return None
        low = high = None
        with pq.ParquetFile(self.store.fetch(data), buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(columns=[time]):
                ends = pc.min_max(batch.column(0)).as_py()
                if ends["min"] is not None:
                    low = ends["min"] if low is None else min(low, ends["min"])
                    high = ends["max"] if high is None else max(high, ends["max"])
        return None if low is None or high is None else [low.isoformat(), high.isoformat()]

    def _folder(self, window: str) -> tuple[str, ...]:
        assert self.call is not None  # noqa: S101
        return "snapshots", self.call.pipeline, self._id, window

    def _artifact(self, record: Any) -> ArtifactRef | None:
        if not record:
            return None
        ref = ArtifactRef.model_validate(record["artifact"])
        with reaching(ref.uri):
            fs, path = url_to_fs(ref.uri)
            # One that somebody has removed is read again.
            return ref if fs.exists(path) else None
