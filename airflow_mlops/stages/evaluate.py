"""Evaluation: the model on held-out rows, whole and by slice, and the champion on the very same rows."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome
from airflow_mlops.errors import GateError
from airflow_mlops.registry.mlflow_api import MlflowApi, Version
from airflow_mlops.registry.models import CARD_TAG, MODEL_DIGEST_TAG, ModelRegistry
from airflow_mlops.spec.stages import Evaluate
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.card import log_card
from airflow_mlops.stages.diagnostics import calibration, confusion, residuals
from airflow_mlops.stages.fairness import differences
from airflow_mlops.stages.importance import importance
from airflow_mlops.stages.intervals import intervals
from airflow_mlops.stages.model_io import DECLARATION, INPUTS, ROWS, Facts, Model, loaded, read_facts
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.predictions import log_reference
from airflow_mlops.stages.rows import row_hashes
from airflow_mlops.stages.scoring import encode, evaluate, metric_names, score
from airflow_mlops.stages.slices import measured, slices_of
from airflow_mlops.stages.tables import read_table, require_columns, to_frame, write_table

log = logging.getLogger(__name__)

_LONGEST_KEY = 250


def run(call: Call, params: Evaluate, store: Store) -> Outcome:
    """Score the rows of ``test``; output ``evaluation``, a JSON of all that was measured, and on what.

    The model card is logged to the MLflow run beside the plots; what differs from run to run stands there only.
    """
    table = read_table(call.input("test"), store)
    registry = ModelRegistry.of(call, store)
    run_id = registry.run_of_model(call.input("model").uri)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        facts = read_facts(registry.api, run_id)
        if facts.model_digest != call.input("model").digest:
            raise GateError("the model is not the one that its run has logged", fix="rerun the training")
        require_columns(table.column_names, {facts.target: "the target"})
        for field in ("slices", "fairness"):
            require_columns(table.column_names, dict.fromkeys(getattr(params, field), f"evaluate.{field}"))
        truth = encode(to_frame(table.select([facts.target]))[facts.target], facts)
        with loaded(facts, folder / "model", registry.api) as model:
            scores = score(model, table, truth)
            names = metric_names(params, facts, probabilities=model.gives_probabilities)
            values = {name: evaluate(name, scores) for name in names}
            found = _measure(model, table, scores, names, params)
            evidence = _evidence(registry.api, call, store, model, run_id, folder)
            log_reference(
                registry.api, run_id, facts, scores, table, params.time, probabilities=model.gives_probabilities
            )
        scored = _columns("challenger", scores)
        champion = _champion(registry)
        already = champion is not None and champion.tags.get(MODEL_DIGEST_TAG) == facts.model_digest
        if champion is not None and already:
            log.info("the model is champion %s already; there is nothing to compare", champion.version)
            champion = None
        if champion is not None and params.versus_champion:
            scored |= champion_scores(registry.api, champion, facts, table, truth, folder)
        predictions = write_table(pa.table({"truth": pa.array(truth), **scored}), store, "predictions")
        body = {
            "task": facts.task,
            "classes": list(facts.classes),
            "primary": names[0],
            "metrics": values,
            **found,
            "rows": table.num_rows,
            "model": facts.model_digest,
            "champion": champion.version if champion else None,
            "predictions": predictions.digest,
            "evidence": evidence,
        }
        body["plots"] = _plots(registry.api, body, scores, store, folder / "plots", run_id) if params.plots else {}
    evaluation = store.put_json(body, "evaluation")
    registry.api.log(run_id, metrics={f"test.{name}": value for name, value in _logged(body).items()})
    # As the gate will read it, so that both write the same card.
    read = store.fetch_json(evaluation)
    version = _version(registry, facts)
    card = version.tags.get(CARD_TAG) if version else None
    if not (already and card and registry.find_run(call) is None):
        card = log_card(call, store, registry, read, run_id=run_id, version=version.version if version else None)
    return outcome_of(
        call,
        outputs={"evaluation": evaluation, "predictions": predictions},
        metrics={**values, "test_rows": float(table.num_rows)},
        info={
            "run_id": run_id,
            "champion": champion.version if champion else None,
            "mlflow_url": registry.run_url(run_id),
            "card_url": card,
        },
    )


def _measure(model: Model, table: pa.Table, scores: Scores, names: Sequence[str], params: Evaluate) -> dict[str, Any]:
    """All that is measured beside the metrics themselves."""
    facts = model.facts
    regression = facts.task == "regression"
    columns = tuple(dict.fromkeys((*params.slices, *params.fairness)))
    parts = {column: slices_of(table[column]) for column in columns}
    return {
        "intervals": intervals(names, scores),
        "slices": {
            column: measured(each, scores, names, min_rows=params.min_rows, residuals=regression)
            for column, each in parts.items()
        },
        "fairness": {
            column: differences(facts.task, parts[column], scores, min_rows=params.min_rows)
            for column in params.fairness
        },
        "calibration": calibration(scores) if model.gives_probabilities else None,
        "confusion": None if regression else confusion(scores, len(facts.classes)),
        "residuals": residuals(scores) if regression else None,
        "importance": importance(model, table, scores.truth, names[0], params.importance_rows)
        if params.importance_rows
        else None,
    }


def _evidence(api: MlflowApi, call: Call, store: Store, model: Model, run_id: str, folder: Path) -> dict[str, Any]:
    """What the model was made of, the same for equal content whatever the run, for the model card."""
    made = json.loads(api.fetch(run_id, INPUTS, folder).read_bytes())
    declaration = ""
    if made.get("declared"):  # and not trained by a team's own DAG
        declaration = api.fetch(run_id, DECLARATION, folder).read_text(encoding="utf-8")
    report = store.fetch_json(call.inputs["report"]) if "report" in call.inputs else {}
    return {
        "declaration": declaration,
        "target": model.facts.target,
        "columns": model.facts.columns,
        "window": model.facts.window,
        "inputs": {name: {"digest": ref["digest"], "rows": ref["rows"]} for name, ref in made["inputs"].items()},
        "test": {"digest": call.input("test").digest, "rows": call.input("test").rows},
        "code": made["code"]["digest"] if made["code"] else None,
        "requirements": list(model.requirements),
        "python": model.python,
        "warnings": [finding["what"] for finding in report.get("findings", ())],
    }


def _plots(
    api: MlflowApi, body: dict[str, Any], scores: Scores, store: Store, folder: Path, run_id: str
) -> dict[str, str]:
    """Draw the plots, log them to the run, and keep them for the model card; their digests by name."""
    from airflow_mlops.stages.plots import draw

    folder.mkdir()
    draw(body, scores, folder)
    files = sorted(folder.iterdir())
    for file in files:
        api.log_file(run_id, f"plots/{file.name}", file)
    return {file.stem: _kept(file, store).digest for file in files}


def _kept(file: Path, store: Store) -> ArtifactRef:
    with store.scratch(file.suffix) as copy:
        shutil.copyfile(file, copy)
        return store.put_file(copy, "plot")


def _version(registry: ModelRegistry, facts: Facts) -> Version | None:
    """The model's version, where it is registered already."""
    found = registry.api.versions_tagged(registry.ref.model, MODEL_DIGEST_TAG, facts.model_digest)
    return found[0] if found else None


def _logged(body: Mapping[str, Any]) -> dict[str, float]:
    """What MLflow shows as metrics, by keys that it takes."""
    found: dict[str, float] = dict(body["metrics"])
    for name, bounds in body["intervals"].items():
        if bounds:
            found |= {f"{name}.low": bounds[0], f"{name}.high": bounds[1]}
    for column, entries in body["slices"].items():
        for entry in entries:
            found |= {f"{name}.{column}.{entry['value']}": each["value"] for name, each in entry["metrics"].items()}
    for column, differing in body["fairness"].items():
        found |= {
            f"fairness.{column}.{name}": each["value"] for name, each in differing.items() if each["value"] is not None
        }
    if body["calibration"]:
        found["ece"] = body["calibration"]["ece"]
    return {_safe(name): value for name, value in found.items()}


def _safe(text: str) -> str:
    """A name that MLflow takes as part of a metric's key."""
    safe = "".join(character if character.isalnum() or character in "-_. /" else "_" for character in text)
    return safe[: _LONGEST_KEY - len("test.")]


def _columns(who: str, scores: Scores) -> dict[str, pa.Array]:
    """Scores as columns: the prediction, and a probability a class."""
    columns = {f"{who}.prediction": pa.array(scores.prediction)}
    if scores.probability is not None:
        for index in range(scores.probability.shape[1]):
            columns[f"{who}.probability.{index}"] = pa.array(np.ascontiguousarray(scores.probability[:, index]))
    return columns


def _champion(registry: ModelRegistry) -> Version | None:
    champion = registry.champion()
    if champion is None:
        log.info("%r has no champion yet; the absolute limits alone decide", registry.ref.model)
    return champion


def champion_scores(
    api: MlflowApi, champion: Version, facts: Facts, table: pa.Table, truth: np.ndarray[Any, Any], scratch: Path
) -> dict[str, pa.Array]:
    """Let the champion score the rows, and say of each row whether the champion was trained on it."""
    theirs = read_facts(api, champion.run_id)
    if (theirs.task, theirs.classes) != (facts.task, facts.classes):
        raise GateError(
            f"champion {champion.version} answers another question: {theirs.task} with classes {list(theirs.classes)}, "
            f"not {facts.task} with {list(facts.classes)}",
            fix="give the pipeline another name, or set validate_model.versus_champion: null once",
        )
    with loaded(theirs, scratch / "champion_model", api) as model:
        columns = _columns("champion", score(model, table, truth))
    trained_on = pq.read_table(api.fetch(champion.run_id, ROWS, scratch / "champion"))["hash"].to_numpy()
    require_columns(table.column_names, dict.fromkeys(theirs.hash_columns, "the champion was trained with it"))
    seen = np.isin(row_hashes(to_frame(table.select(list(theirs.hash_columns)))), trained_on)
    return {**columns, "champion.seen": pa.array(seen)}
