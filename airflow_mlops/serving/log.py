"""The log of served predictions: rows as the monitoring reads them, written whole, never in an answer's way.

A server has one file for each window that it is writing, ``window=KEY/served-SERVER-VERSION-N.parquet`` beside those of
batch prediction, which is replaced whole at each flush, so a reader sees all of it or none; one that has grown large
enough is left, and the next begun. What was not flushed is lost with the process: the interval is what a crash
costs. Rows wait in a bounded queue; where the store is too slow or away, rows beyond it are dropped and counted.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.store import Store
from airflow_mlops.registry.verdicts import SERVED
from airflow_mlops.serving.frames import Logged
from airflow_mlops.spec.window import Grain, window_at

MOST_WAITING = 200_000
"""How many rows may wait; beyond them rows are dropped."""
FILE_ROWS = 50_000
"""How many rows a file has before the next is begun."""
_WINDOWS = 8
"""How many windows' files may still grow at a time."""


class Place(NamedTuple):
    """Where rows go."""

    store: Store
    """The artifact store, where files are made before they appear."""
    folder: str
    grain: Grain
    time: str | None
    """The column that says in which window a row belongs; None: when it was answered."""
    server: str
    version: str


class PredictionLog:
    """Takes tables at once, and writes them in a thread of its own.

    Args:
        place: where rows go.
        flush: the seconds between two writings.
    """

    def __init__(self, place: Place, flush: float) -> None:
        self.place, self.flush = place, flush
        self._waiting: list[pa.Table] = []
        self._open: dict[str, tuple[int, list[pa.Table]]] = {}
        self._lock = threading.Lock()
        self._logged = self._queued = self._dropped = 0
        self._problem: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go, name="prediction-log", daemon=True)
        self._thread.start()

    def take(self, table: pa.Table) -> None:
        """Let a table be written; returns at once."""
        with self._lock:
            if self._queued + table.num_rows > MOST_WAITING:
                self._dropped += table.num_rows
                return
            self._waiting.append(table)
            self._queued += table.num_rows

    def stands(self) -> Logged:
        """How many rows were written, wait, and are lost."""
        with self._lock:
            return Logged(self._logged, self._queued, self._dropped, self._problem)

    def close(self) -> None:
        """Write what waits, and end."""
        self._over.set()
        self._thread.join()

    def _go(self) -> None:
        while True:
            over = self._over.wait(self.flush)
            self._write()
            if over:
                return

    def _write(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        left = self._by_window(waiting)
        problem = None
        for key in list(left):
            try:
                self._write_window(key, left[key])
            except Exception as error:
                # Whatever the store does, answers go on; the rows wait for it, as many as may.
                problem = f"predictions are not logged: {error}"
                break
            rows = sum(table.num_rows for table in left.pop(key))
            with self._lock:
                self._logged += rows
                self._queued -= rows
        with self._lock:
            self._waiting = [table for tables in left.values() for table in tables] + self._waiting
            self._problem = problem

    def _by_window(self, tables: list[pa.Table]) -> dict[str, list[pa.Table]]:
        found: dict[str, list[pa.Table]] = defaultdict(list)
        for table in tables:
            keys = self._keys(table)
            for key in dict.fromkeys(keys):
                at = pa.array([number for number, each in enumerate(keys) if each == key])
                found[key].append(table if len(at) == table.num_rows else table.take(at))
        return found

    def _keys(self, table: pa.Table) -> list[str]:
        name = self.place.time if self.place.time in table.column_names else "answered_at"
        known: dict[datetime, str] = {}
        keys = []
        for own, answered in zip(table[name].to_pylist(), table["answered_at"].to_pylist(), strict=True):
            at = own if isinstance(own, datetime) else answered
            hour = at.replace(minute=0, second=0, microsecond=0)
            if hour not in known:
                known[hour] = window_at(self.place.grain, at if at.tzinfo else at.replace(tzinfo=UTC)).key
            keys.append(known[hour])
        return keys

    def _write_window(self, key: str, tables: list[pa.Table]) -> None:
        number, before = self._open.get(key, (1, []))
        table = pa.concat_tables([*before, *tables], promote_options="permissive")
        stamped = table.append_column("window", pa.array([key] * table.num_rows, pa.string()))
        name = f"{SERVED}{self.place.server}-{self.place.version}-{number}.parquet"
        with self.place.store.scratch(".parquet") as file:
            pq.write_table(stamped, file, compression="zstd")
            Store(self.place.folder).replace_file(file, f"window={key}", name)
        full = table.num_rows >= FILE_ROWS
        self._open.pop(key, None)
        self._open[key] = (number + 1, []) if full else (number, [table])
        growing = [each for each, (_, tables) in self._open.items() if tables]
        for each in growing[:-_WINDOWS]:
            self._open[each] = (self._open[each][0] + 1, [])
