"""Rows by their content: what tells whether a model has seen a row before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def row_hashes(frame: pd.DataFrame, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A 64-bit hash of each row's values, of shape ``(rows,)``; equal rows have equal hashes, in any run.

    Columns are taken in the order of their names, and numbers as floats, so that neither the order in a file nor a null
    that turns integers into floats makes a row another one. With n rows the
    chance that two different rows share a hash is about n^2 / 2^65 (the birthday bound): 3e-8 for a million.
    """
    ordered = pd.DataFrame({name: _plain(frame[name]) for name in sorted(frame.columns, key=str)})
    hashes = np.asarray(pd.util.hash_pandas_object(ordered, index=False).to_numpy(), dtype=np.uint64)
    # A seed gives another uniform order of the same rows (a splitmix64 step).
    mixed = hashes + np.uint64(seed) * _MULTIPLIER
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _plain(values: pd.Series[Any]) -> pd.Series[Any]:
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        # Adding zero makes -0.0 the same as 0.0.
        return pd.Series(values.to_numpy(dtype=float, na_value=np.nan) + 0.0)
    if pd.api.types.is_datetime64_any_dtype(values):
        return pd.Series(values.to_numpy(dtype="datetime64[us]"))
    return values.astype(object)
