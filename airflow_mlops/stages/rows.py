"""Rows by their content: what tells whether a model has seen a row before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0xD1B54A32D192ED03)


def row_hashes(frame: pd.DataFrame, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A 64-bit hash of each row's values, of shape ``(rows,)``; equal rows have equal hashes, in any run.

    Columns are taken in the order of their names, numbers and booleans as floats, and every null as the same, so that
    neither the order in a file nor what the other rows hold makes a row another one. With n rows the chance that two
    different rows share a hash is about n^2 / 2^65 (the birthday bound): 3e-8 for a million.
    """
    # A seed gives another uniform order of the same rows.
    mixed = _mix(np.full(len(frame), seed, dtype=np.uint64))
    for name in sorted(frame.columns, key=str):
        values = _plain(frame[name])
        hashes = pd.util.hash_array(values)
        hashes[pd.isna(values)] = _NULL
        mixed = _mix(mixed * _MULTIPLIER + hashes)
    return mixed


def _mix(value: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The finalizer of splitmix64: every bit of the input moves every bit of the output."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(value ^ (value >> np.uint64(31)))


def _plain(values: pd.Series[Any]) -> np.ndarray[Any, Any]:
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.infer_dtype(values, skipna=True) == "boolean":
        # Adding zero makes -0.0 the same as 0.0.
        return np.asarray(values.astype("Float64").to_numpy(dtype=float, na_value=np.nan) + 0.0)
    if pd.api.types.is_datetime64_any_dtype(values):
        return values.to_numpy(dtype="datetime64[us]")
    return values.to_numpy(dtype=object)
