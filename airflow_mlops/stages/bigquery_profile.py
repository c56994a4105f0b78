"""The profile of what a query gives, computed by BigQuery: one statement, of which some kilobytes a column come back.

A number's bin is made of its bits, which GoogleSQL does not give: its exponent is the logarithm's, put right where that
was rounded over a power of two, and its mantissa an exact division. All of it is exact in float64, so the bins are
those of the pass over Arrow batches (`drift.bins`), one by one. Which bins are fine enough is estimated in the same
statement from how many there are at each of a few levels; from there they are joined here, as those of files are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from airflow_mlops.drift.arrow import floats_of, numbers_of
from airflow_mlops.drift.bins import LIMIT, Bins, Floats, edges, within_limit
from airflow_mlops.drift.columns import kind_of
from airflow_mlops.drift.profile import MOST_CATEGORIES, ColumnProfile, DatasetProfile, Looked, most_frequent
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.window import Window
from airflow_mlops.stages.bigquery import BigQuery
from airflow_mlops.stages.bigquery_statement import Field, Statement, quoted, windowed

log = logging.getLogger(__name__)

_FINEST_LINEAR = 45
_LADDER = range(_FINEST_LINEAR, 0, -3)
# How far below the greatest number's exponent that of the bins around 0 may lie.
_BELOW_TOP = (*range(9, 21), 22, 24, 28, 32, 40)
# An estimate of how many different bins there are is off by some per cent.
_SURELY = 2 * LIMIT
_LOOKED = 10_000
_LONGEST = 120


class Columns(NamedTuple):
    """The columns of a query by what is asked of them, each with its number in the query."""

    numbers: list[tuple[int, Field]]
    words: list[tuple[int, Field]]
    times: list[tuple[int, Field]]


def profile(
    database: BigQuery,
    source: SqlSource,
    time: str | None,
    window: Window | None,
    leave_out: Sequence[str] = (),
) -> DatasetProfile:
    """The profile of a window of a source; no row of it is read.

    The first rows, which tell an identifier, are those with the earliest times.

    Args:
        database: where it is.
        source: what is profiled.
        time: the column that says when a row happened.
        window: which of its rows; None takes all.
        leave_out: columns that nobody compares.

    Raises:
        DataError: when it would process more than ``max_bytes``, or BigQuery refuses it.
        SchemaError: when a column is of a type that no model can use.
        SourceUnreachableError: when BigQuery does not answer.
    """
    fields = [each for each in database.fields(source, window) if each.name not in leave_out or each.name == time]
    plain = windowed(source, fields, time, window)
    statement = database.dry(replace(plain, text=_statement(plain, fields, time)))
    database.allow([statement])
    rows = database.rows(database.start(statement), statement)
    found = pa.concat_tables(rows.tables())
    log.info("BigQuery: the profile of %s came in %s bytes", source, f"{rows.bytes:,}")
    return _profile(found, fields, time)


def _columns(fields: Sequence[Field]) -> Columns:
    kinds = [(number, field, kind_of(field.arrow)) for number, field in enumerate(fields)]
    of = {kind: [(n, f) for n, f, each in kinds if each == kind] for kind in ("number", "category", "time")}
    return Columns(of["number"], of["category"], of["time"])


# What is asked


def _statement(plain: Statement, fields: Sequence[Field], time: str | None) -> str:
    columns = _columns(fields)
    parts = [_PART.format(name="whole", number=-1, what="COUNT(*) AS n", source="rows_of_window", end="")]
    shared = [f"rows_of_window AS (\n{plain.text}\n)"]
    order = f"ORDER BY {quoted(time)} LIMIT {_LOOKED}" if time else f"LIMIT {_LOOKED}"
    if columns.numbers or columns.words:
        shared.append(f"first_rows AS (SELECT * FROM rows_of_window {order})")  # noqa: S608
    if columns.numbers:
        shared.append(_NUMBERS.format(values=_values(columns.numbers, "FLOAT64")))
        ladder = "\n".join(
            f"    WHEN APPROX_COUNT_DISTINCT({_key(str(level))}) > {_SURELY} THEN {level}" for level in _LADDER
        )
        shared.append(_BINS.format(ladder=ladder, key=_key("level"), **_joined()))
        parts += [_NUMBER_PART, _BIN_PART]
    if columns.words:
        shared.append(_WORDS.format(values=_values(columns.words, "STRING"), longest=_LONGEST, cut=_LONGEST - 14))
        parts += [_WORD_PART.format(most=MOST_CATEGORIES + 1), _NULLS_PART]
        parts.append(_LOOKED_WORDS.format(values=_values(columns.words, "STRING")))
    integers = [(number, field) for number, field in columns.numbers if field.type == "INTEGER"]
    if integers:
        at = quoted(time) if time else "NULL"
        parts.append(_LOOKED_NUMBERS.format(values=_values(integers, "INT64", at)))
    parts += [_time_part(number, field) for number, field in columns.times]
    return "WITH " + ",\n".join(shared) + "\n" + "\nUNION ALL\n".join(parts)


def _values(columns: Sequence[tuple[int, Field]], kind: str, at: str | None = None) -> str:
    """The columns of a row as an array of numbered values."""
    also = f", {at} AS happened" if at else ""
    return ", ".join(
        f"STRUCT({number} AS number, CAST({quoted(field.name)} AS {kind}) AS value{also})" for number, field in columns
    )


def _key(level: str) -> str:
    return f"IF(below, -1 - (pattern >> {level}), pattern >> {level})"


def _joined() -> dict[str, str]:
    """The coarsest of the next levels at which there are still too many bins, by counting those that there are."""

    def many(steps: str) -> str:
        return f"COUNT(DISTINCT IF(bin < 0, -1 - ({steps}), {steps})) > {LIMIT}"

    shifts = (
        f"    WHEN MAX(level) + {by} <= {_FINEST_LINEAR} AND {many(f'size >> {by}')} THEN {by}" for by in (3, 2, 1)
    )
    below = []
    for each in _BELOW_TOP:
        steps = f"CASE\n{_LINEAR.format(depth='depth', size='size', below=each)} END"
        # The narrowest bins around 0 that there are have the exponent 24.
        at_all = f"MAX(level) = {_FINEST_LINEAR} AND MAX(top) >= {each + 24}"
        below.append(f"    WHEN {at_all} AND {many(steps)} THEN {each}")
    linear = _LINEAR.format(depth="each.depth", size="each.size", below="below")
    return {"shifts": "\n".join(shifts), "below": "\n".join(below), "linear": linear}


def _time_part(number: int, field: Field) -> str:
    name = quoted(field.name)
    micros = {
        "TIMESTAMP": f"UNIX_MICROS({name})",
        "DATETIME": f"UNIX_MICROS(TIMESTAMP({name}))",
        "DATE": f"UNIX_DATE({name}) * 86400000000",
    }[field.type]
    return (
        f"SELECT 'time', {number}, COUNT(*), COUNTIF({name} IS NULL), NULL, NULL, CAST(NULL AS STRING), "  # noqa: S608
        f"CAST(MIN({micros}) AS FLOAT64), CAST(MAX({micros}) AS FLOAT64) FROM rows_of_window"
    )


_PART = (
    "SELECT '{name}' AS part, {number} AS number, {what}, CAST(NULL AS INT64) AS one, CAST(NULL AS INT64) AS two, "
    "CAST(NULL AS INT64) AS three, CAST(NULL AS STRING) AS word, CAST(NULL AS FLOAT64) AS low, "
    "CAST(NULL AS FLOAT64) AS high FROM {source}{end}"
)
# The least normal float64 stands for all below it: its exponent is theirs, and their mantissa is below 1.
_NUMBERS = """numbers AS (
  SELECT each.number, each.value FROM rows_of_window, UNNEST([{values}]) AS each
),
finite AS (
  SELECT number, size, below, IF(near > 1023, 1023, IF(near < -1022, -1022, near)) AS near FROM (
    SELECT number, ABS(value) AS size, value < 0 AS below, CAST(FLOOR(
      LOG(IF(ABS(value) < 2.2250738585072014e-308, 2.2250738585072014e-308, ABS(value)), 2)) AS INT64) AS near
    FROM (SELECT number, IF(IS_NAN(value) OR IS_INF(value), NULL, value) AS value FROM numbers)
    WHERE value IS NOT NULL
  )
),
scaled AS (
  SELECT number, size, below, CASE
    WHEN ratio >= 2.0 AND near < 1023 THEN near + 1
    WHEN ratio < 1.0 AND near > -1022 THEN near - 1
    ELSE near END AS exponent
  FROM (SELECT number, size, below, near, size / POW(2.0, near) AS ratio FROM finite)
),
patterns AS (
  SELECT number, below, ((exponent + 1022) << 52) + CAST(size / POW(2.0, exponent) * 4503599627370496.0 AS INT64)
    AS pattern
  FROM scaled
)"""
_BINS = """levels AS (
  SELECT number, CASE
{ladder}
    ELSE 0 END AS level
  FROM patterns GROUP BY number
),
fine AS (
  SELECT number, level, bin, COUNT(*) AS n, AVG(place) AS place, AVG(place * place) AS square
  FROM (
    SELECT number, level, {key} AS bin,
      CAST(pattern - ((pattern >> level) << level) AS FLOAT64) / POW(2.0, level) AS place
    FROM patterns JOIN levels USING (number)
  ) GROUP BY number, level, bin
),
sized AS (
  SELECT *, MAX(size >> 7) OVER (PARTITION BY number) AS top FROM (
    SELECT *, IF(bin < 0, -1 - bin, bin) AS size FROM fine
  )
),
joined AS (
  SELECT number, MAX(level) AS level, MAX(top) AS top, CASE
{shifts}
    ELSE 0 END AS shift, CASE
{below}
    END AS below,
    ARRAY_AGG(STRUCT(bin, n, place, square, size, top - (size >> 7) AS depth)) AS parts
  FROM (SELECT *, top - (size >> 7) AS depth FROM sized) GROUP BY number
),
placed AS (
  SELECT number, IF(below IS NULL, level + shift, top - below + 22) AS level, each.bin, each.n, each.place, each.square,
    CASE WHEN below IS NULL THEN each.size >> shift
{linear} END AS steps,
    CASE WHEN below IS NULL THEN POW(2.0, -shift)
      WHEN each.depth <= below - 8 THEN 1.0
      WHEN each.depth > 400 THEN 0.0
      ELSE POW(2.0, below - 7 - each.depth) END AS scale,
    CASE WHEN below IS NULL THEN each.size - ((each.size >> shift) << shift)
      WHEN each.depth <= below - 8 THEN 0
      ELSE 128 + (each.size & 127) END AS base,
    below IS NOT NULL AND each.depth > below - 8 AS near
  FROM joined, UNNEST(parts) AS each
),
moved AS (
  SELECT number, level, IF(bin < 0, -1 - steps, steps) AS bin, n, (square - place * place) * scale * scale AS spread,
    (base + place) * scale - IF(near, steps, 0) AS place
  FROM placed
),
bins AS (
  SELECT number, level, bin, SUM(n) AS n, SUM(n * place) / SUM(n) AS place,
    SUM(n * (place * place + spread)) / SUM(n) AS square
  FROM moved GROUP BY number, level, bin
)"""
# The bins of a level that is linear around 0, where a bin is as wide as 2 to the power of `below` less than the
# greatest number's exponent; `depth` is how far a bin's own exponent lies below that. See `drift.bins`.
_LINEAR = """      WHEN {depth} <= {below} - 8 THEN {size} - (top - {below} + 8) * 128 + 256
      WHEN {depth} > {below} THEN 0
      ELSE (128 + ({size} & 127)) >> ({depth} + 7 - {below})"""
_WORDS = """words AS (
  SELECT number, word, COUNT(*) AS n FROM (
    SELECT each.number, IF(CHAR_LENGTH(each.value) > {longest}, CONCAT(SUBSTR(each.value, 1, {cut}), '… ',
      SUBSTR(TO_HEX(SHA256(each.value)), 1, 12)), each.value) AS word
    FROM rows_of_window, UNNEST([{values}]) AS each
  ) GROUP BY number, word
)"""
_NUMBER_PART = (
    "SELECT 'number', number, COUNT(*), COUNTIF(value IS NULL), COUNTIF(IS_NAN(value)), COUNTIF(IS_INF(value)), "
    "NULL, MIN(IF(IS_NAN(value) OR IS_INF(value), NULL, value)), "
    "MAX(IF(IS_NAN(value) OR IS_INF(value), NULL, value)) FROM numbers GROUP BY number"
)
_BIN_PART = "SELECT 'bin', number, n, level, bin, NULL, NULL, place, square FROM bins"
_WORD_PART = (
    "SELECT 'word', number, n, NULL, NULL, NULL, word, NULL, NULL FROM words WHERE word IS NOT NULL "
    "QUALIFY ROW_NUMBER() OVER (PARTITION BY number ORDER BY n DESC, word) <= {most}"
)
_NULLS_PART = "SELECT 'nulls', number, n, NULL, NULL, NULL, NULL, NULL, NULL FROM words WHERE word IS NULL"
_LOOKED_WORDS = (
    "SELECT 'looked', each.number, COUNT(each.value), COUNT(DISTINCT each.value), 0, NULL, NULL, NULL, NULL "
    "FROM first_rows, UNNEST([{values}]) AS each GROUP BY 2"
)
_LOOKED_NUMBERS = (
    "SELECT 'looked', number, COUNT(value), COUNT(DISTINCT value), COUNTIF(value <= earlier), NULL, NULL, NULL, "
    "NULL FROM (SELECT each.number, each.value, LAG(each.value) OVER (PARTITION BY each.number "
    "ORDER BY each.happened, each.value) AS earlier FROM first_rows, UNNEST([{values}]) AS each "
    "WHERE each.value IS NOT NULL) GROUP BY number"
)


# What came back


def _profile(found: pa.Table, fields: Sequence[Field], time: str | None) -> DatasetProfile:
    parts = {part: _part(found, part) for part in ("whole", "number", "bin", "word", "nulls", "looked", "time")}
    rows = int(parts["whole"]["n"][0].as_py())
    columns = {}
    for number, field in enumerate(fields):
        kind = kind_of(field.arrow)
        column = ColumnProfile(field.name, kind, str(field.arrow), rows=rows)
        of = {part: _of(each, number) for part, each in parts.items()}
        if of["looked"].num_rows:
            seen, different, falls = (of["looked"][name][0].as_py() for name in ("n", "one", "two"))
            column = replace(column, looked=Looked(seen, different, kind == "number" and not falls))
        if kind == "number":
            column = _number(column, of["number"], of["bin"])
        elif kind == "category":
            counts, error = most_frequent(
                dict(zip(*(of["word"][name].to_pylist() for name in ("word", "n")), strict=True))
            )
            nulls = of["nulls"]["n"][0].as_py() if of["nulls"].num_rows else 0
            column = replace(column, nulls=nulls, counts=counts, error=error)
        elif kind == "time":
            ends = (of["time"][name][0].as_py() for name in ("low", "high"))
            low, high = (None if end is None else int(end) for end in ends)
            column = replace(column, nulls=of["time"]["one"][0].as_py(), min=low, max=high)
        columns[field.name] = column
    return DatasetProfile(rows, columns, time)


def _part(found: pa.Table, part: str) -> pa.Table:
    import pyarrow.compute as pc

    return found.filter(pc.equal(found["part"], part))


def _of(part: pa.Table, number: int) -> pa.Table:
    import pyarrow.compute as pc

    return part.filter(pc.equal(part["number"], number))


def _number(column: ColumnProfile, said: pa.Table, bins: pa.Table) -> ColumnProfile:
    nulls, nans, infinite, low, high = (
        said[name][0].as_py() if said.num_rows else 0 for name in ("one", "two", "three", "low", "high")
    )
    column = replace(column, nulls=nulls, nans=nans or 0, infinite=infinite or 0)
    if not bins.num_rows:
        return column
    bins = bins.sort_by("two")
    index, count = (numbers_of(bins[name].combine_chunks()) for name in ("two", "n"))
    place, square = (floats_of(bins[name].combine_chunks()) for name in ("low", "high"))
    level = bins["one"][0].as_py()
    # Bins below 0 mirror those above, and there a greater pattern lies lower.
    place, square = np.where(index < 0, 1 - place, place), np.where(index < 0, 1 - 2 * place + square, square)
    if level == 0:
        place, square = np.zeros(len(index)), np.zeros(len(index))
    fine = Bins(level, np.array(index), np.array(count), np.clip(place, 0, 1).astype(np.float32))
    mean, squares = _moments(fine, place, square)
    return replace(column, min=low, max=high, mean=mean, squares=squares, bins=within_limit(fine))


def _moments(bins: Bins, place: Floats, square: Floats) -> tuple[float, float]:
    """The mean and the sum of squared distances from it, by the bins' own moments: nothing overflows on the way."""
    lower, upper = edges(bins.index, bins.level)
    share = bins.count / bins.rows
    with np.errstate(over="ignore", invalid="ignore"):
        means = lower + place * (upper - lower)
        mean = float((means * share).sum())
        within = np.maximum(square - place * place, 0.0) * np.square(upper - lower)
        return mean, float((bins.count * (np.square(means - mean) + within)).sum())
