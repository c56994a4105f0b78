"""The rows against those the champion was trained on: columns that changed stop, values that moved warn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call
from airflow_mlops.drift.collect import profile_batches
from airflow_mlops.drift.decide import decide
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.data_schema import DataSchema, Skew, Volume
from airflow_mlops.spec.pipeline import DriftRule
from airflow_mlops.spec.stages import ValidateData
from airflow_mlops.stages.model_io import Facts, arrow_type, read_facts, takes
from airflow_mlops.stages.profiles import reference_in
from airflow_mlops.stages.tables import canonical
from airflow_mlops.stages.validate_data import Checked, Result

_VALUES = "the values are like the champion's"


def against_champion(
    call: Call, schema: DataSchema, result: Result, file: Path, params: ValidateData, store: Store
) -> tuple[list[Checked], dict[str, str | None]]:
    """Compare the rows that go on with the champion's training.

    Returns:
        What was found, and for the Outcome's info ``champion`` and, where a retraining is asked for, ``skew``.
    """
    registry = ModelRegistry.of(call, store)
    champion = registry.champion()
    if champion is None:
        said = "there is no champion yet, so the rows were compared with nothing"
        return [Checked("the rows are like the champion's", "not_judged", said)], {}
    checked: list[Checked] = []
    info: dict[str, str | None] = {"champion": champion.version}
    facts = read_facts(registry.api, champion.run_id)
    if schema.volume is not None:
        then = reference_in(champion.run_id, registry.ref.uri, store).rows / facts.windows
        checked.append(_check_volume(schema.volume, result.kept / params.windows, then))
    if schema.skew is not None and result.sample is not None:
        with pq.ParquetFile(file) as parquet:
            columns = list(_check_columns(facts, canonical(parquet.schema_arrow)))
        checked += columns
        if not any(each.verdict == "stop" for each in columns):
            reference = reference_in(champion.run_id, registry.ref.uri, store)
            values = list(_check_values(schema.skew, reference, result.sample))
            checked += values
            if schema.skew.on_skew == "retrain" and any(each.verdict == "warn" for each in values):
                info["skew"] = "retrain"
    return checked, info


def _check_volume(volume: Volume, now: float, then: float) -> Checked:
    ratio = now / then if then else float("inf")
    bounds = [f"at least {volume.min_ratio:g}"] if volume.min_ratio is not None else []
    bounds += [f"at most {volume.max_ratio:g}"] if volume.max_ratio is not None else []
    rule = f"{' and '.join(bounds) or 'any number of'} times the champion's rows per window"
    low = volume.min_ratio is not None and ratio < volume.min_ratio
    high = volume.max_ratio is not None and ratio > volume.max_ratio
    if low or high:
        said = f"{now:,.0f} rows per window are {ratio:.2f} times the {then:,.0f} of the champion's training"
        return Checked(rule, volume.on_violation, said)
    return Checked(rule, "ok")


def _check_columns(facts: Facts, arrow: pa.Schema) -> Iterator[Checked]:
    for name, wanted in facts.columns.items():
        said = ""
        if name not in arrow.names:
            said = f"the column {name!r} is missing, and the champion takes it"
        elif not takes(arrow_type(wanted), arrow.field(name).type):
            said = f"the column {name!r} holds {arrow.field(name).type}, and the champion was trained on {wanted}"
        yield Checked(f"{name} is as in the champion's training", "stop" if said else "ok", said, (name,))


def _check_values(skew: Skew, reference: DatasetProfile, sample: pa.Table) -> Iterator[Checked]:
    rule = DriftRule.model_validate(skew.model_dump(exclude={"on_skew"}))
    rule = rule.model_copy(update={"columns": rule.columns or tuple(reference.columns)})
    decision = decide(reference, profile_batches(sample.to_batches(), sample.schema, rule.columns), rule)
    if decision.status == "insufficient_data":
        yield Checked(_VALUES, "not_judged", f"the values were not compared: {decision.reasons[0]}")
        return
    for column in decision.columns:
        title = f"the values of {column.column} are like the champion's"
        if column.word == "moved":
            yield Checked(title, "warn", f"against the champion's training, {column.note}", (column.column,))
        elif column.word == "steady":
            yield Checked(title, "ok", "", (column.column,))
        else:
            yield Checked(title, "not_judged", "", (column.column,))
