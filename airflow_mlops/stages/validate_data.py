"""Data validation: rows are held against the reviewed schema. Hard rules stop the run, soft ones warn.

The snapshot is read in batches, so memory does not grow with it, but for two bytes a row at most: which rows repeat a
key, and which are set aside. Without a schema only Arrow is loaded.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.store import VALIDATIONS, Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Verdict
from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.base import format_duration
from airflow_mlops.spec.data_schema import DataSchema, Freshness
from airflow_mlops.spec.stages import ValidateData
from airflow_mlops.spec.window import Window
from airflow_mlops.stages.column_facts import ColumnFacts
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.tables import ROW_GROUP, canonical, holds, type_of, write_tables
from airflow_mlops.stages.validation_report import as_html, as_json

BATCH_ROWS = ROW_GROUP
SAMPLE_ROWS = 50_000
ROW, REASONS = "_row", "_reasons"
_TOLD = 12
_BUFFER = 1 << 16
"""Bytes of a column that are read at a time."""

Word = Literal["ok", "warn", "quarantine", "stop", "not_judged"]


class Checked(NamedTuple):
    """One rule: what was found, and what that does."""

    rule: str
    verdict: Word
    said: str = ""
    columns: tuple[str, ...] = ()
    broken: int | None = None
    examples: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()


class Result(NamedTuple):
    """What validation found in a file."""

    rows: int
    kept: int
    checked: list[Checked]
    columns: dict[str, dict[str, Any]]
    aside: Any
    """Which rows are set aside, as a boolean array of shape ``(rows,)``; None where none may be."""
    sample: pa.Table | None
    """Some of the rows that go on, the same whatever the batches were."""


def run(call: Call, params: ValidateData, store: Store) -> Outcome:
    """Check the rows.

    Outputs ``data``, the rows that go on (the input itself where none is set aside), ``report`` (JSON), ``page`` (the
    same to read) and, where rows are set aside, ``quarantine``: these rows, with their number in ``_row`` and the rules
    they break in ``_reasons``.

    Raises:
        SchemaError: when a hard rule is broken; it names all of them.
    """
    source = call.input("data")
    file = store.fetch(source)
    schema = params.data_schema if isinstance(params.data_schema, DataSchema) else None
    with store.scratch(".parquet") as bad:
        result = validate(file, schema, target=params.target, time=params.time, window=call.window, bad=bad)
        info: dict[str, str | None] = {}
        if schema is not None and schema.needs_champion:
            # What is imported next needs the memory that the batches have left behind.
            pa.default_memory_pool().release_unused()
            from airflow_mlops.stages.skew import against_champion

            compared, info = against_champion(call, schema, result, file, params, store)
            result.checked.extend(compared)
        outputs = _report(call, schema, result, store)
        hard = [each.said for each in result.checked if each.verdict == "stop"]
        if hard:
            raise SchemaError(
                "; ".join(hard),
                fix="mend the data at its source, or review the schema (airflow-mlops schema infer); "
                f"the whole report: {outputs['page'].uri}",
            )
        outputs["data"] = source
        if result.kept < result.rows:
            outputs["quarantine"] = store.put_file(bad, "quarantine", rows=result.rows - result.kept)
            outputs["data"] = _keep(file, result.aside, store)
    soft = [each.said for each in result.checked if each.said]
    told = soft if len(soft) <= _TOLD else [*soft[:_TOLD], f"and {len(soft) - _TOLD} more, in the report"]
    warns = any(each.verdict in ("warn", "quarantine") for each in result.checked)
    return outcome_of(
        call,
        outputs=outputs,
        metrics={
            "warnings": float(sum(each.verdict == "warn" for each in result.checked)),
            "rows": float(result.kept),
            "quarantined": float(result.rows - result.kept),
        },
        verdict=Verdict(status="warn" if warns else "ok", reasons=tuple(told)),
        info=info,
    )


def _report(call: Call, schema: DataSchema | None, result: Result, store: Store) -> dict[str, ArtifactRef]:
    """Keep the report by its content, and where the link of the task finds it, also when the run stops here."""
    report = as_json(result, schema)
    with store.scratch(".html") as page:
        page.write_text(as_html(report, call), encoding="utf-8")
        kept = store.put_file(page, "report")
    with store.scratch(".json") as pointer:
        pointer.write_text(json.dumps({"run": call.run, "page": kept.model_dump(mode="json")}), encoding="utf-8")
        store.replace_file(pointer, VALIDATIONS, f"{call.identity}.json")
    return {"report": store.put_json(report, "report"), "page": kept}


def validate(
    file: Path,
    schema: DataSchema | None,
    *,
    target: str | None = None,
    time: str | None = None,
    window: Window | None = None,
    bad: Path | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Result:
    """Hold the rows of a Parquet file against a schema; without one only target, time and infinities are looked at.

    Args:
        file: the rows.
        schema: the reviewed schema.
        target: the column to predict; it must be there, with no nulls.
        time: the time column; it must be there and hold times.
        window: the run's window, for freshness.
        bad: where the rows go that are set aside.
        batch_rows: how many rows are looked at together; it changes nothing in what is found.
    """
    import numpy as np

    with ExitStack() as stack:
        parquet = stack.enter_context(_open(file))
        arrow = canonical(parquet.schema_arrow)
        total = parquet.metadata.num_rows
        checked = list(check_columns(arrow, schema, target, time))
        facts = {name: ColumnFacts(arrow.field(name).type) for name in arrow.names}
        rules, repeated = None, None
        if schema is not None:
            from airflow_mlops.stages.row_rules import RowRules

            rules = RowRules(schema, arrow, target)
            if schema.unique and all(name in arrow.names for name in schema.unique):
                from airflow_mlops.stages.repeats import repeats

                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=bad.parent if bad else None)))
                repeated = repeats(_batches(parquet, arrow, batch_rows, list(schema.unique)), total, folder)
        quarantine = schema.quarantine if schema else None
        aside = np.zeros(total, dtype=bool) if quarantine else None
        writer = stack.enter_context(_Quarantine(bad, arrow, quarantine.max_share * total)) if quarantine else None
        sampled = _sample_of(schema, total)
        pieces = []
        first = 0
        for batch in _batches(parquet, arrow, batch_rows):
            end = first + batch.num_rows
            if rules is not None:
                broken = list(rules.broken(batch, first, None if repeated is None else repeated[first:end]))
                if aside is not None and writer is not None:
                    out = [(rule.reason, mask) for rule, mask in broken if rule.severity == "quarantine"]
                    for _, mask in out:
                        aside[first:end] |= mask
                    writer.add(batch, first, aside[first:end], out)
            good = batch
            if aside is not None and aside[first:end].any():
                good = batch.filter(pa.array(~aside[first:end]))
            for name, found in facts.items():
                found.add(good.column(name))
            if sampled is not None:
                chosen = sampled[(sampled >= first) & (sampled < end)]
                if aside is not None:
                    chosen = chosen[~aside[chosen]]
                pieces.append(batch.take(pa.array(chosen - first)))
            first = end
    if first != total:
        raise SchemaError(f"the file says it has {total} rows, and {first} can be read", fix="extract the data again")
    gone = int(aside.sum()) if aside is not None else 0
    kept = total - gone
    if rules is not None:
        checked += [judged(rule, total) for rule in rules.rules]
        checked += [Checked(title, "not_judged") for title in rules.unjudged]
    if quarantine is not None:
        checked.append(check_share(gone, total, quarantine.max_share))
    checked += check_whole(facts, schema, kept, target, window)
    sample = pa.Table.from_batches(pieces, arrow) if sampled is not None else None
    return Result(total, kept, checked, {name: found.facts() for name, found in facts.items()}, aside, sample)


def _batches(
    parquet: pq.ParquetFile, arrow: pa.Schema, size: int, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    for batch in parquet.iter_batches(size, columns=columns):
        yield batch.cast(pa.schema([arrow.field(name) for name in batch.schema.names]))


def _sample_of(schema: DataSchema | None, rows: int) -> Any:
    """The numbers of the rows that are compared with the reference, in their order; None where none is."""
    if schema is None or schema.skew is None:
        return None
    import numpy as np

    return np.sort(np.random.default_rng(0).choice(rows, min(rows, SAMPLE_ROWS), replace=False))


class _Quarantine:
    """Writes rows that are set aside, up to the limit: beyond it the run stops, and nobody needs the file."""

    def __init__(self, file: Path | None, arrow: pa.Schema, most: float) -> None:
        taken = [name for name in (ROW, REASONS) if name in arrow.names]
        if taken:
            raise SchemaError(f"the column {taken[0]!r} has a name that the quarantine needs", fix="rename it")
        self._file, self._most, self._count = file, most, 0
        self._schema = arrow.append(pa.field(ROW, pa.int64())).append(pa.field(REASONS, pa.string()))
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Quarantine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, batch: pa.RecordBatch, first: int, aside: Any, broken: list[tuple[str, Any]]) -> None:
        """Write the rows of a batch that are set aside, each with all its reasons."""
        where = aside.nonzero()[0]
        self._count += len(where)
        if self._file is None or not len(where) or self._count > self._most:
            return
        reasons = ["; ".join(reason for reason, mask in broken if mask[row]) for row in where]
        taken = batch.take(pa.array(where))
        columns = [*taken.columns, pa.array(where + first, pa.int64()), pa.array(reasons, pa.string())]
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))


def _keep(file: Path, aside: Any, store: Store) -> ArtifactRef:
    """Write the rows that go on as a dataset of their own."""
    with _open(file) as parquet:
        arrow = canonical(parquet.schema_arrow)

        def good() -> Iterator[pa.Table]:
            first = 0
            for batch in _batches(parquet, arrow, BATCH_ROWS):
                yield pa.Table.from_batches([batch.filter(pa.array(~aside[first : first + batch.num_rows]))])
                first += batch.num_rows

        return write_tables(good(), arrow, store)


def _open(file: Path) -> pq.ParquetFile:
    # By default Arrow would hold a whole row group, or read the whole file ahead.
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)


def check_columns(
    arrow: pa.Schema, schema: DataSchema | None, target: str | None, time: str | None
) -> Iterator[Checked]:
    """What the columns' names and types show, before any row is read."""
    names = arrow.names
    if target is not None:
        said = "" if target in names else f"the target {target!r} is missing; there are {', '.join(names)}"
        yield Checked(f"the target {target} is there", "stop" if said else "ok", said, (target,))
    if time is not None:
        said = ""
        if time not in names or type_of(arrow.field(time).type) not in ("timestamp", "date"):
            found = f"holds {arrow.field(time).type}" if time in names else "is missing"
            said = f"the time column {time!r} {found}"
        yield Checked(f"{time} holds times", "stop" if said else "ok", said, (time,))
    if schema is None:
        return
    for name, column in schema.columns.items():
        said = ""
        if name not in names:
            if column.required and name != target:
                said = f"the column {name!r} is missing"
        elif not holds(arrow.field(name).type, column.type):
            said = f"the column {name!r} holds {arrow.field(name).type}, not {column.type}"
        yield Checked(f"{name} is a column of type {column.type}", "stop" if said else "ok", said, (name,))
    if schema.extra_columns != "allow":
        extra = [name for name in names if name not in schema.columns]
        for name in extra:
            said = f"the column {name!r} is not in the schema"
            yield Checked("no column but the schema's", schema.extra_columns, said, (name,))
        if not extra:
            yield Checked("no column but the schema's", "ok")


def judged(rule: Any, rows: int) -> Checked:
    """A rule about single rows, after all of them were looked at."""
    verdict: Word = rule.severity if rule.broken else "ok"
    said = rule.text(rows) if rule.broken else ""
    return Checked(rule.rule, verdict, said, rule.columns, rule.broken, tuple(rule.examples), tuple(rule.rows))


def check_share(gone: int, rows: int, most: float) -> Checked:
    """Whether no more rows are set aside than may be."""
    rule = f"at most {most:.2%} of the rows are set aside"
    if gone > most * rows:
        said = f"{gone} of {rows} rows ({gone / rows:.2%}) would be set aside; at most {most:.2%} may be"
        return Checked(rule, "stop", said, broken=gone)
    return Checked(rule, "ok", f"{gone} of {rows} rows are set aside" if gone else "", broken=gone)


def check_whole(
    facts: dict[str, ColumnFacts], schema: DataSchema | None, kept: int, target: str | None, window: Window | None
) -> Iterator[Checked]:
    """What only all rows together show, of those that go on."""
    if schema is None:
        if target in facts:
            nulls = facts[target].nulls
            said = f"the target {target!r} has {nulls} nulls" if nulls else ""
            yield Checked(f"{target} is not null", "stop" if said else "ok", said, (target,), nulls)
        for name, found in facts.items():
            if pa.types.is_floating(found.kind):
                said = f"the column {name!r} has {found.infinite} infinite values" if found.infinite else ""
                yield Checked(f"{name} is finite", "stop" if said else "ok", said, (name,), found.infinite)
        return
    said = f"{kept} rows are fewer than the {schema.min_rows} the schema asks for" if kept < schema.min_rows else ""
    if schema.max_rows is not None and kept > schema.max_rows:
        said = f"{kept} rows are more than the {schema.max_rows} the schema allows"
    most = f" and at most {schema.max_rows}" if schema.max_rows else ""
    yield Checked(f"at least {schema.min_rows}{most} rows", "stop" if said else "ok", said)
    for name, column in schema.columns.items():
        if name in facts and 0 < column.max_null_fraction < 1 and name != target:
            nulls, limit = facts[name].nulls, column.max_null_fraction
            said = ""
            if nulls > limit * kept:
                said = f"{nulls / kept:.2%} of the column {name!r} are nulls; at most {limit:.2%} may be"
            yield Checked(f"at most {limit:.2%} of {name} are nulls", "stop" if said else "ok", said, (name,), nulls)
    if schema.freshness is not None and schema.freshness.column in facts:
        yield _check_freshness(facts[schema.freshness.column], schema.freshness, window)


def _check_freshness(found: ColumnFacts, fresh: Freshness, window: Window | None) -> Checked:
    within = format_duration(fresh.within)
    rule = f"the newest {fresh.column} is within {within} of the window's end"
    if found.word not in ("timestamp", "date"):
        return Checked(rule, "not_judged", "", (fresh.column,))
    if window is None:
        said = f"the freshness of {fresh.column!r} was not judged: the run has no window"
        return Checked(rule, "not_judged", said, (fresh.column,))
    newest = instant(found.high)
    if newest is None or window.end - newest > fresh.within:
        at = newest.isoformat(" ", "seconds") if newest else "nowhere: it has no value"
        end = window.end.isoformat(" ", "seconds")
        said = f"the newest {fresh.column!r} is at {at}, more than {within} before the window's end at {end}"
        return Checked(rule, fresh.on_violation, said, (fresh.column,))
    return Checked(rule, "ok", "", (fresh.column,))


def instant(value: Any) -> datetime | None:
    """A time as UTC; a day lasts until its end."""
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC) + timedelta(days=1)
    return None
