"""Rows whose key stood in an earlier row, in bounded memory: the keys' hashes lie on disk, in parts that fit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

_PARTS = 64
_ENTRY = np.dtype([("hash", "<u8"), ("row", "<u8")])
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def repeats(batches: Iterable[pa.RecordBatch], rows: int, folder: Path) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows have a key that an earlier row has, as a boolean array of shape ``(rows,)``. Nulls are equal.

    Memory: a byte a row for the answer, and 16 bytes for each row of one part, of 64. Disk: 16 bytes a row. Keys are
    told apart by 64 bits, so that with n rows the chance that two different keys pass for one is about n^2 / 2^65
    (the birthday bound): 3e-6 for ten million.

    Args:
        batches: the key's columns, batch after batch.
        rows: how many rows they have in all.
        folder: an empty folder for the parts.
    """
    files = [open(folder / f"{part:02d}", "wb") for part in range(_PARTS)]  # noqa: SIM115
    try:
        first = 0
        for batch in batches:
            hashes = key_hashes(batch)
            entries = np.empty(len(hashes), dtype=_ENTRY)
            entries["hash"], entries["row"] = hashes, np.arange(first, first + len(hashes))
            part = (hashes >> np.uint64(58)).astype(np.uint8)
            order = np.argsort(part, kind="stable")
            bounds = np.searchsorted(part[order], np.arange(_PARTS + 1))
            for index, file in enumerate(files):
                file.write(entries[order[bounds[index] : bounds[index + 1]]].tobytes())
            first += len(hashes)
    finally:
        for file in files:
            file.close()
    found = np.zeros(rows, dtype=bool)
    for part_file in sorted(folder.iterdir()):
        entries = np.fromfile(part_file, dtype=_ENTRY)
        part_file.unlink()
        # Stable: of equal hashes the earliest row comes first.
        entries = entries[np.argsort(entries["hash"], kind="stable")]
        again = entries["hash"][1:] == entries["hash"][:-1]
        found[entries["row"][1:][again]] = True
    return found


def key_hashes(batch: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A 64-bit hash of each row, of shape ``(rows,)``; whole numbers count in all their digits."""
    mixed = np.zeros(batch.num_rows, dtype=np.uint64)
    for column in batch.columns:
        null = np.asarray(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False))
        hashes = pd.util.hash_array(_values(column), categorize=False)
        hashes[null] = _MULTIPLIER
        mixed = pd.util.hash_array((mixed * _MULTIPLIER + hashes).astype(np.uint64))
    return mixed


def _values(column: pa.Array) -> np.ndarray[Any, Any]:
    kind = column.type
    if pa.types.is_temporal(kind):
        column = column.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    if pa.types.is_integer(column.type):
        return np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False))
    if pa.types.is_floating(kind):
        # Adding zero makes -0.0 the same as 0.0.
        return np.asarray(column.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False) + 0.0)
    return np.asarray(column.to_pandas().to_numpy(dtype=object))
