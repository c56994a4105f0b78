"""Arrow arrays as numpy's and back, without pandas.

Arrow's own ``to_numpy`` and ``pa.array`` import it, which is half of the time that a comparison from the shell takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def numbers_of(values: pa.Array) -> npt.NDArray[Any]:
    """Integers or floats without nulls, of shape ``(len(values),)``; not copied, and not to be written to."""
    letter = "f" if pa.types.is_floating(values.type) else "i" if pa.types.is_signed_integer(values.type) else "u"
    dtype = np.dtype(f"{letter}{values.type.bit_width // 8}")
    data = values.buffers()[1]
    if data is None or not len(values):
        return np.zeros(0, dtype)
    return np.frombuffer(data, dtype, len(values), values.offset * dtype.itemsize)


def present(values: pa.Array) -> npt.NDArray[np.bool_]:
    """Where values are not null, of shape ``(len(values),)``."""
    return numbers_of(values.is_valid().cast(pa.uint8())).view(np.bool_)


def floats_of(values: pa.Array) -> npt.NDArray[np.float64]:
    """Numbers of any type as float64, with NaN for null, of shape ``(len(values),)``."""
    values = values.cast(pa.float64(), safe=False)
    if not values.null_count:
        return numbers_of(values)
    found = np.full(len(values), np.nan)
    found[present(values)] = numbers_of(values.drop_null())
    return found


def array_of(numbers: npt.NDArray[Any]) -> pa.Array:
    """Numbers without nulls as an Arrow array; not copied."""
    numbers = np.ascontiguousarray(numbers)
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])
