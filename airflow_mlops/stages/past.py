"""What history answers a replay: a model of the past on later rows, against another one, and against its reference.

The stages themselves are run by `airflow_mlops run`'s plan; here is what only a replay asks, with the stages' own
functions. Nothing here writes to a registry.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from airflow_mlops.call.key import components_of, key_of
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Verdict
from airflow_mlops.errors import DataError, GateError
from airflow_mlops.registry.mlflow_api import Version, mlflow_api
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.stages import Evaluate, Extract, Monitor, ValidateModel
from airflow_mlops.spec.window import Window
from airflow_mlops.stages.evaluate import champion_scores
from airflow_mlops.stages.evidently_preset import preset, warm
from airflow_mlops.stages.extract import extract
from airflow_mlops.stages.model_io import loaded, read_facts
from airflow_mlops.stages.monitor import compare
from airflow_mlops.stages.scoring import encode, evaluate, score
from airflow_mlops.stages.tables import read_table, to_frame
from airflow_mlops.stages.validate_model import judge

log = logging.getLogger(__name__)

_KEPT = "replay"


class Model(NamedTuple):
    """A model that was trained for a replay, and what its training has left in the replay's store and registry."""

    call: Call
    """Any Call of its run: it names the store, the registry and the window."""
    run_id: str
    """The MLflow run that has logged it."""
    model: ArtifactRef
    test: ArtifactRef
    """Its held-out rows."""
    rows: ArtifactRef
    """The rows that its reference was made of."""
    evaluation: dict[str, Any]
    """What its evaluation found."""


def model_of(call: Call, outputs: dict[str, dict[str, ArtifactRef]], store: Store) -> Model:
    """A model from what the stages of its plan have put out."""
    registry = ModelRegistry.of(call, store)
    model = outputs["train"]["model"]
    return Model(
        call,
        registry.run_of_model(model.uri),
        model,
        outputs["prepare"]["test"],
        outputs["validate_data"]["data"],
        store.fetch_json(outputs["evaluate"]["evaluation"]),
    )


def metric_of(model: Model, params: Extract, window: Window, metric: str, store: Store) -> float | None:
    """A metric of a model on all rows of a later window; None where it is not defined there.

    Kept by the content of the model and of the rows.
    """
    ref = extract(params, window, store, model.call)
    asked = model.call.model_copy(update={"stage": "replay", "inputs": {"model": model.model, "data": ref}})
    place = (_KEPT, "metric", f"{key_of(components_of(asked, Evaluate(metrics=(metric,)), store))}.json")
    kept = store.read_json(*place)
    if kept is None:
        try:
            kept = {"value": _metric(model, ref, metric, store)}
        except (DataError, GateError) as error:
            log.warning("%s: the model of %s has no %s: %s", window.key, _known(model), metric, error)
            kept = {"value": None}
        store.create_json(kept, *place)
    value: float | None = kept["value"]
    return value


def _known(model: Model) -> str:
    return model.call.window.key if model.call.window else "all rows"


def _uri(model: Model) -> str:
    assert model.call.registry is not None  # noqa: S101 - each was trained into one
    return model.call.registry.uri


def _metric(model: Model, ref: ArtifactRef, metric: str, store: Store) -> float:
    table = read_table(ref, store)
    api = mlflow_api(_uri(model))
    facts = read_facts(api, model.run_id)
    with tempfile.TemporaryDirectory() as scratch:
        truth = encode(to_frame(table.select([facts.target]))[facts.target], facts)
        with loaded(facts, Path(scratch), api) as it:
            return evaluate(metric, score(it, table, truth))


def gate_of(new: Model, champion: Model, params: ValidateModel, store: Store) -> Verdict:
    """What the gate says of a model against a champion, on the model's held-out rows that the champion has not seen."""
    evaluation = {**new.evaluation, "champion": _known(champion)}
    if new.model.digest == champion.model.digest:
        return judge(evaluation, pa.table, params, already=True)[0]
    asked = new.call.model_copy(
        update={"stage": "replay", "inputs": {"model": new.model, "champion": champion.model, "test": new.test}}
    )
    place = (_KEPT, "gate", f"{key_of(components_of(asked, params, store))}.json")
    kept = store.read_json(*place)
    if kept is None:
        verdict = judge(evaluation, lambda: _both(new, champion, store), params)[0]
        kept = verdict.model_dump(mode="json")
        store.create_json(kept, *place)
    return Verdict.model_validate(kept)


def _both(new: Model, champion: Model, store: Store) -> pa.Table:
    """The held-out rows as the evaluation would have scored them for both."""
    scored = read_table(store.ref("predictions", new.evaluation["predictions"], ".parquet"), store)
    table = read_table(new.test, store)
    api = mlflow_api(_uri(champion))
    facts = read_facts(api, new.run_id)
    with tempfile.TemporaryDirectory() as scratch:
        truth = encode(to_frame(table.select([facts.target]))[facts.target], facts)
        for name, column in champion_scores(api, _version(champion), facts, table, truth, Path(scratch)).items():
            scored = scored.append_column(name, column)
    return scored


class Said(NamedTuple):
    """What a replay has said of windows, by their keys; `monitor.past_of` reads it as it reads the verdicts kept."""

    verdicts: dict[str, dict[str, Any]]

    def windows(self) -> list[str]:
        """The keys of the windows judged, sorted."""
        return sorted(self.verdicts)

    def of_window(self, key: str) -> list[dict[str, Any]]:
        """The one verdict on a window."""
        return [self.verdicts[key]]


def drift_of(model: Model, params: Monitor, window: Window, said: Said, store: Store) -> dict[str, Any]:
    """The verdict of monitoring on a window if this model were the champion.

    Raises:
        MlopsError: as monitoring does.
    """
    call = model.call.model_copy(update={"stage": "monitor", "window": window})
    return compare(call, params, _version(model), _uri(model), said, store).said


def _version(model: Model) -> Version:
    return Version(_known(model), _known(model), model.model.uri, model.run_id, {})


class Evidently:
    """Evidently's default preset in a process of its own, which ends with this; its verdicts are kept by content."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def verdict(self, model: Model, params: Extract, window: Window, store: Store) -> dict[str, Any]:
        """``{"drift", "share", "columns", "cpu", "failed"}`` of a window against the rows of a model's reference."""
        ref = extract(params, window, store, model.call)
        columns = list(read_facts(mlflow_api(_uri(model)), model.run_id).watched)
        asked = model.call.model_copy(update={"stage": "replay", "inputs": {"reference": model.rows, "data": ref}})
        components = {**components_of(asked, Evaluate(metrics=tuple(columns)), store), "asked": "evidently"}
        place = (_KEPT, "evidently", f"{key_of(components)}.json")
        kept: dict[str, Any] | None = store.read_json(*place)
        if kept is None:
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, context, initializer=warm)
            try:
                kept = self._pool.submit(preset, str(store.fetch(model.rows)), str(store.fetch(ref)), columns).result()
            except BrokenProcessPool:
                self._pool = None
                return {"drift": False, "share": None, "columns": [], "cpu": 0.0, "failed": "its process broke down"}
            store.create_json(kept, *place)
        return kept

    def close(self) -> None:
        """End its process."""
        if self._pool is not None:
            self._pool.shutdown()
