"""A dataset in a few numbers a column: what a model's reference looked like, readable years later."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

VERSION = 1
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_TOP = 50


def profile(table: pa.Table) -> dict[str, Any]:
    """Profile a table.

    Returns:
        Plain JSON: ``version``, ``rows`` and for each column its type, nulls (NaN included), and either mean, standard
        deviation, extremes and quantiles of the finite values, or the counts of the 50 most frequent values.
    """
    columns = {name: _column(table[name]) for name in table.column_names}
    return {"version": VERSION, "rows": table.num_rows, "columns": columns}


def _column(values: pa.ChunkedArray) -> dict[str, Any]:
    facts: dict[str, Any] = {"type": str(values.type), "nulls": values.null_count}
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        if pa.types.is_floating(values.type):
            facts["nulls"] += pc.sum(pc.is_nan(values)).as_py() or 0
            facts["infinite"] = pc.sum(pc.is_inf(values)).as_py() or 0
            values = values.filter(pc.is_finite(values))
        if len(values) > values.null_count:
            facts |= {"mean": pc.mean(values).as_py(), "std": pc.stddev(values).as_py(), **pc.min_max(values).as_py()}
            facts["quantiles"] = dict(
                zip(map(str, _QUANTILES), pc.quantile(values, list(_QUANTILES)).to_pylist(), strict=True)
            )
    elif pa.types.is_string(values.type) or pa.types.is_boolean(values.type):
        counts = sorted(
            ((pair["counts"], str(pair["values"])) for pair in pc.value_counts(values.drop_null()).to_pylist()),
            key=lambda pair: (-pair[0], pair[1]),
        )
        facts |= {"distinct": len(counts), "top": {value: count for count, value in counts[:_TOP]}}
    return facts
