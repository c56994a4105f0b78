"""A column in a few plain numbers, gathered batch after batch in bounded memory."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from airflow_mlops.stages.tables import type_of

_MOST_DISTINCT = 1000


class ColumnFacts:
    """What is known of a column after the batches that were seen."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind, self.word = kind, type_of(kind)
        self.rows = self.nulls = self.infinite = 0
        self.low: Any = None
        self.high: Any = None
        self._distinct: set[Any] | None = set() if self.word == "string" else None

    def add(self, values: pa.Array) -> None:
        """Take the values of one batch."""
        self.rows += len(values)
        self.nulls += values.null_count
        if pa.types.is_floating(self.kind):
            finite = pc.is_finite(values)
            if not pc.all(finite, min_count=0).as_py():
                self.nulls += pc.sum(pc.is_nan(values)).as_py() or 0
                self.infinite += pc.sum(pc.is_inf(values)).as_py() or 0
                values = values.filter(finite)
        if self.word in ("integer", "number", "timestamp", "date"):
            bounds = pc.min_max(values).as_py()
            if bounds["min"] is not None:
                self.low = bounds["min"] if self.low is None else min(self.low, bounds["min"])
                self.high = bounds["max"] if self.high is None else max(self.high, bounds["max"])
        elif self._distinct is not None and len(self._distinct) <= _MOST_DISTINCT:
            self._distinct.update(pc.unique(values.drop_null()).slice(0, _MOST_DISTINCT + 1).to_pylist())

    def facts(self) -> dict[str, Any]:
        """Plain JSON: the type, nulls (NaN among them), and bounds or the number of distinct texts (up to 1000)."""
        found: dict[str, Any] = {"type": str(self.kind), "nulls": self.nulls}
        if pa.types.is_floating(self.kind):
            found["infinite"] = self.infinite
        if self.word in ("integer", "number"):
            found |= {"min": _number(self.low), "max": _number(self.high)}
        elif self.word in ("timestamp", "date"):
            found |= {"min": _text(self.low), "max": _text(self.high)}
        elif self._distinct is not None:
            count = len(self._distinct)
            found["distinct"] = count if count <= _MOST_DISTINCT else f"more than {_MOST_DISTINCT}"
        return found


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
