"""Monitoring of predictions: a window's scores against those that the model gave its held-out rows.

No label is needed, so a model that says something else than it used to is seen at once, whatever the reason.
"""

from __future__ import annotations

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.drift.collect import profile_batches
from airflow_mlops.drift.decide import decide
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.stages import MonitorPredictions
from airflow_mlops.stages.model_io import read_facts
from airflow_mlops.stages.monitor import past_of, require_form
from airflow_mlops.stages.predictions import REFERENCE, folder_of, predicted, trained_on, watched
from airflow_mlops.stages.profiles import reference_in
from airflow_mlops.stages.verdict import said_of, tell_drift


def run(call: Call, params: MonitorPredictions, store: Store) -> Outcome:
    """Judge the window's predictions; outputs ``verdict`` and, on an alarm, Evidently's ``report``.

    They are held against the version that made them. Where another one serves by now an alarm is only a warning.

    Raises:
        DataNotFoundError: when nothing was predicted for the window.
        ModelNotFoundError: when the version was evaluated before predictions had references.
    """
    registry = ModelRegistry.of(call, store)
    found = predicted(folder_of(params.destination, call, store), call, registry, (params.time,) if params.time else ())
    version, table = found.version, found.table
    columns = params.prediction_drift.columns or watched(table.column_names)
    time = params.time if params.time in table.column_names else None
    current = profile_batches(table.to_batches(), table.schema, (*columns, *((time,) if time else ())), time)
    verdicts = Verdicts(store, call.pipeline, "prediction_drift")
    reference = reference_in(version.run_id, registry.ref.uri, store, REFERENCE)
    rule = params.prediction_drift.model_copy(update={"columns": columns})
    span = (call.window.start, call.window.end) if call.window else None
    past = past_of(verdicts, rule, call.window, params.grain, 1, version.version)
    decision = decide(reference, current.select(columns), rule, past, span)
    require_form(decision)
    status, reasons = decision.status, list(decision.reasons)
    facts = read_facts(registry.api, version.run_id)
    if trained_on(facts, call.window, params.grain):
        status = "insufficient_data"
        reasons.insert(0, f"version {version.version} was trained on this window, so what it says of it is no news")
    elif found.served and status == "drift":
        status = "warn"
        reasons.append(f"version {version.version} has predicted, and champion {found.served} serves now")
    decision = decision._replace(status=status, reasons=tuple(reasons))
    said = said_of(decision, current.rows, version.version)
    return tell_drift(call, store, registry, said, decision, (reference, current))
