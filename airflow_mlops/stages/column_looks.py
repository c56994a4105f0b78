"""What a table's columns look like, for somebody who writes its first declaration."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from airflow_mlops.stages.tables import canonical, type_of

_TIME = r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]|\s*$)"
_SAMPLE = 100


class Look(NamedTuple):
    """A column at a glance."""

    type: str | None
    """A type of the data schema; None where it has no word for it."""
    nulls: bool
    distinct: int
    """How many values there are, nulls left out."""
    unique: bool
    """Another value in every row, and no null."""
    time_as_text: bool
    """Texts that read like times."""


def looks(table: pa.Table) -> dict[str, Look]:
    """Look at every column of a table."""
    table = table.cast(canonical(table.schema))
    return {name: _look(table[name]) for name in table.column_names}


def _look(values: pa.ChunkedArray) -> Look:
    kind = type_of(values.type)
    known = values.drop_null()
    distinct = pc.count_distinct(known).as_py() if kind else 0
    sample = known.slice(0, _SAMPLE)
    matches = pc.match_substring_regex(sample, _TIME) if kind == "string" and len(sample) else None
    return Look(
        type=kind,
        nulls=values.null_count > 0,
        distinct=distinct,
        unique=len(values) > 1 and distinct == len(values),
        time_as_text=matches is not None and pc.all(matches).as_py(),
    )
