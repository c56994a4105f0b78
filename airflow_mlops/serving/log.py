"""The log of served predictions: rows as the monitoring reads them, written whole, never in an answer's way.

A process has one file for each window that it is writing, ``window=KEY/served-WRITER-N.parquet`` beside those of batch
prediction, which is replaced whole at each flush, so a reader sees all of it or none; one that has grown large enough
is left, and the next begun. What was not flushed is lost with the process: the interval is what a crash costs. A file's
worth of rows is written before that. Rows wait in a bounded queue; where the store is too slow or away, rows beyond it
are dropped and counted.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
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
    writer: str
    """What no other process's files are named by: it begins them anew, and must not write over any."""


class PredictionLog:
    """Takes tables at once, and writes them in a thread of its own.

    Args:
        place: where rows go.
        flush: the seconds between two writings, where not a file's worth of rows comes before.
    """

    def __init__(self, place: Place, flush: float) -> None:
        self.place, self.flush = place, flush
        self._waiting: list[pa.Table] = []
        self._open: dict[str, tuple[int, list[pa.Table]]] = {}
        self._lock = threading.Lock()
        self._logged = self._queued = self._dropped = self._fresh = 0
        self._problem: str | None = None
        self._over = False
        self._due = threading.Event()
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
            self._fresh += table.num_rows
            if self._fresh >= FILE_ROWS:
                self._due.set()

    def lose(self, rows: int) -> None:
        """Count rows that cannot even be taken."""
        with self._lock:
            self._dropped += rows

    def stands(self) -> Logged:
        """How many rows were written, wait, and are lost."""
        with self._lock:
            return Logged(self._logged, self._queued, self._dropped, self._problem)

    def close(self) -> None:
        """Write what waits, and end."""
        self._over = True
        self._due.set()
        self._thread.join()

    def _go(self) -> None:
        while True:
            self._due.wait(self.flush)
            self._due.clear()
            over = self._over
            self._write()
            if over:
                return

    def _write(self) -> None:
        with self._lock:
            waiting, self._waiting, self._fresh = self._waiting, [], 0
        if not waiting:
            return
        left, problem = self._sorted(waiting)
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

    def _sorted(self, tables: list[pa.Table]) -> tuple[dict[str, list[pa.Table]], str | None]:
        try:
            return self._by_window(tables), None
        except Exception as error:
            # Kept, they would be in the way of all that comes after them.
            rows = sum(table.num_rows for table in tables)
            with self._lock:
                self._queued -= rows
                self._dropped += rows
            return {}, f"{rows} predictions cannot be logged: {error}"

    def _by_window(self, tables: list[pa.Table]) -> dict[str, list[pa.Table]]:
        table = together(tables)
        at = table["answered_at"].cast(pa.timestamp("us"))
        if self.place.time in table.column_names and pa.types.is_temporal(table[self.place.time].type):
            at = pc.coalesce(table[self.place.time].cast(pa.timestamp("us"), safe=False), at)
        # There are few hours, however many rows, and a window holds whole ones.
        hours = pc.floor_temporal(at, unit="hour")
        of_hour = {hour: self._key(hour) for hour in pc.unique(hours).to_pylist()}
        keys = list(dict.fromkeys(of_hour.values()))
        if len(keys) == 1:
            return {keys[0]: [table]}
        own = {key: pa.array([hour for hour, each in of_hour.items() if each == key], hours.type) for key in keys}
        return {key: [table.filter(pc.is_in(hours, own[key]))] for key in keys}

    def _key(self, hour: datetime) -> str:
        try:
            return window_at(self.place.grain, hour.replace(tzinfo=UTC)).key
        except (ValueError, OverflowError):  # at the ends of the calendar, where no data is
            return window_at(self.place.grain, datetime.now(UTC)).key

    def _write_window(self, key: str, tables: list[pa.Table]) -> None:
        number, before = self._open.get(key, (1, []))
        # One piece: it is written again with the next rows, and a thousand pieces take three times as long.
        table = together([*before, *tables]).combine_chunks()
        stamped = table.append_column("window", pa.array([key] * table.num_rows, pa.string()))
        name = f"{SERVED}{self.place.writer}-{number}.parquet"
        with self.place.store.scratch(".parquet") as file:
            pq.write_table(stamped, file, compression="zstd")
            Store(self.place.folder).replace_file(file, f"window={key}", name)
        full = table.num_rows >= FILE_ROWS
        self._open.pop(key, None)
        self._open[key] = (number + 1, []) if full else (number, [table])
        growing = [each for each, (_, tables) in self._open.items() if tables]
        for each in growing[:-_WINDOWS]:
            self._open[each] = (self._open[each][0] + 1, [])


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables as one: a column that one of them lacks is null there, and one of two types, such as a key, is texts."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        kinds: dict[str, set[pa.DataType]] = {}
        for table in tables:
            for field in table.schema:
                kinds.setdefault(field.name, set()).add(field.type)
        mixed = {name for name, found in kinds.items() if len(found - {pa.null()}) > 1}
        texts = [
            table.cast(
                pa.schema([(each.name, pa.string() if each.name in mixed else each.type) for each in table.schema])
            )
            for table in tables
        ]
        return pa.concat_tables(texts, promote_options="permissive")
