"""``airflow-mlops drift``: one comparison from the shell, without Airflow and (but for ``--html``) Evidently."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from pydantic import ValidationError

from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.source import files_of
from airflow_mlops.call.store import reaching
from airflow_mlops.errors import DataError, DataNotFoundError, DeclarationError, MlopsError
from airflow_mlops.spec.pipeline import DriftRule

if TYPE_CHECKING:
    from airflow_mlops.drift.decide import Decision
    from airflow_mlops.drift.profile import DatasetProfile

EXIT = {"ok": 0, "warn": 3, "drift": 3, "insufficient_data": 4}
"""The exit code of each status; bad input is 2."""
_PROFILE = b"airflow-mlops profile "


def drift(options: argparse.Namespace) -> int:
    """Compare two data sets, print what was found, and say it by the exit code."""
    try:
        rule = _rule(options)
        reference = _profile_of(options.reference, options.columns, options.time, blocks=True)
        current = _profile_of(options.current, options.columns, options.time)
        decision: Decision = import_module("airflow_mlops.drift.decide").decide(reference, current, rule)
        if options.save_profile:
            with _writing(options.save_profile) as file:
                file.write_bytes(current.to_bytes())
        if options.html:
            with _writing(options.html) as file:
                import_module("airflow_mlops.drift.report").write_html(reference, current, decision, file)
    except MlopsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(_as_json(decision, reference, current), indent=1) if options.json else _as_text(decision))
    return EXIT[decision.status]


def _rule(options: argparse.Namespace) -> DriftRule:
    given = {"false_alarm_rate": options.false_alarm_rate, "min_rows": options.min_rows, "columns": options.columns}
    try:
        return DriftRule.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        said = (f"--{'-'.join(str(each['loc'][0]).split('_'))}: {each['msg']}" for each in error.errors())
        raise DeclarationError(list(said)) from error


def _profile_of(
    source: str, columns: Sequence[str] | None, time: str | None, *, blocks: bool = False
) -> DatasetProfile:
    """The profile of a source, or the one that lies there.

    Args:
        source: a Parquet or CSV file, a folder of them, a pattern with ``*``, or a saved profile; any fsspec URI.
        columns: these columns only. Default: all.
        time: the column that says when a row happened.
        blocks: whether its rows are counted by blocks of time as well.
    """
    collect, profiles = import_module("airflow_mlops.drift.collect"), import_module("airflow_mlops.drift.profile")
    files = files_of(source, None)
    if not files:
        raise DataNotFoundError(
            f"there is no data at {source}",
            allowed="a Parquet or CSV file, a folder of them, a pattern with *, or a saved profile",
        )
    saved = [each for each in (_saved(file) for file in files) if each is not None]
    if saved and len(saved) < len(files):
        raise DataError(f"{source} holds profiles and data", fix="give one of them")
    if saved:
        whole: DatasetProfile = profiles.DatasetProfile(0, {}, time)
        for file, data in zip(files, saved, strict=True):
            profile = profiles.DatasetProfile.from_bytes(data, file)
            whole = replace(whole, time=profile.time).merge(profile)
        return whole.select(tuple(columns)) if columns else whole
    wanted = tuple(columns or ())
    if all(_is_csv(file) for file in files):
        inputs = [stage_module("files").FileInput(file) for file in files]
        whole = profiles.DatasetProfile(0, {}, time)
        for each in inputs:
            whole = collect.profile_batches(each.tables(), each.schema, wanted, time, after=whole)

        def rows(names: list[str]) -> Iterator[Any]:
            return (table for each in inputs for table in each.tables())
    else:
        whole = collect.profile_files(files, wanted, time)

        def rows(names: list[str]) -> Iterator[Any]:
            found: Iterator[Any] = collect.read_files(files, names)
            return found

    if time is not None and time not in whole.columns:
        raise DataError(f"{source} has no column {time!r}", allowed=", ".join(whole.columns), fix="correct --time")
    return import_module("airflow_mlops.drift.reference").with_blocks(whole, rows) if blocks else whole


def _is_csv(file: str) -> bool:
    return file.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def _saved(file: str) -> bytes | None:
    """The bytes of a file that is a profile."""
    with reaching(file), fsspec.open(file, "rb") as opened:
        if opened.read(len(_PROFILE)) != _PROFILE:
            return None
        opened.seek(0)
        return bytes(opened.read())


@contextmanager
def _writing(name: str) -> Iterator[Path]:
    """A file that appears whole or not at all."""
    target = Path(name)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, target)
    except OSError as error:
        raise DataError(f"{name} cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def _as_json(decision: Decision, reference: DatasetProfile, current: DatasetProfile) -> dict[str, Any]:
    """The verdict as plain JSON values: what is not finite is null."""
    return {
        "status": decision.status,
        "reasons": list(decision.reasons),
        "rows": {"reference": reference.rows, "current": current.rows},
        "threshold": decision.threshold,
        "null": decision.null,
        "columns": [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in column._asdict().items()
            }
            for column in decision.columns
        ],
    }


def _as_text(decision: Decision) -> str:
    """A line on the whole, and one on every column."""
    lines = [f"{decision.status}: {decision.reasons[0]}"]
    order = {"broken": 0, "moved": 1, "steady": 2, "not_judged": 3}
    columns = sorted(decision.columns, key=lambda column: order[column.word])
    lines += [f"  {column.word.replace('_', ' '):<10}  {column.note}" for column in columns]
    return "\n".join([*lines, f"  (chance: {decision.null})"] if decision.null else lines)
