"""A tuning as one job of Vertex AI: its service chooses the points, and each is measured by the stages' own code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from airflow_mlops.call.dispatch import keep, stage_module
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import CodeError, DeclarationError, MlopsError, error_of
from airflow_mlops.google.job import OBJECTIVE
from airflow_mlops.spec.metrics import DEFAULT_METRICS, METRICS
from airflow_mlops.spec.space import Choices, Range, grid_size
from airflow_mlops.spec.stages import Tune

JOBS = "hyperparameterTuningJobs"
_ALGORITHMS = {"tpe": "ALGORITHM_UNSPECIFIED", "random": "RANDOM_SEARCH", "grid": "GRID_SEARCH"}
"""Vertex AI's own default learns from the trials before, as ``tpe`` does."""
_FAILED = 2
"""One trial in so many may fail before the job does."""


def is_study(call: Call) -> bool:
    """Whether a Call becomes a tuning job."""
    return call.stage == Tune.stage


def settled(call: Call) -> Call:
    """The Call with its metric named: a tuning job must know beforehand whether more of it is better.

    Raises:
        DeclarationError: when that cannot be told, or Vertex AI has no such search.
    """
    params = Tune.model_validate(call.params)
    metric = params.metric or (DEFAULT_METRICS[params.ml_task][0] if params.ml_task else None)
    problems = []
    if metric is None:
        problems.append("Vertex AI must know which metric is better how before the model is known; try: tune.metric")
    if params.parts > 1:
        problems.append("the trials of a tuning job are no tasks of Airflow; try: tune.jobs instead of tune.as_tasks")
    if params.pruner == "hyperband":
        problems.append("Vertex AI has no pruner 'hyperband'; allowed: none, median")
    if problems:
        raise DeclarationError([f"{call.where}: {problem}" for problem in problems])
    return call.model_copy(update={"params": {**call.params, "metric": metric}})


def job(call: Call, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The ``HyperparameterTuningJob`` of a Call that is settled, with that job for each trial."""
    params = Tune.model_validate(call.params)
    goal = "MAXIMIZE" if METRICS[str(params.metric)].more_is_better else "MINIMIZE"
    study: dict[str, Any] = {
        "metrics": [{"metricId": OBJECTIVE, "goal": goal}],
        "parameters": [_parameter(name, dimension) for name, dimension in params.space.items()],
        "algorithm": _ALGORITHMS[params.sampler],
    }
    if params.pruner == "median":
        study["medianAutomatedStoppingSpec"] = {}
    if params.timeout:
        limit = {"maxDuration": f"{int(params.timeout.total_seconds())}s"}
        study["studyStoppingConfig"] = {"maximumRuntimeConstraint": limit}
    size = grid_size(params.space) if params.sampler == "grid" else None
    trials = min(params.trials, size or params.trials)
    return {
        "studySpec": study,
        "trialJobSpec": spec,
        "maxTrialCount": trials,
        "parallelTrialCount": min(params.jobs, trials),
        "maxFailedTrialCount": max(1, trials // _FAILED),
    }


def _parameter(name: str, dimension: Range | Choices) -> dict[str, Any]:
    if isinstance(dimension, Choices):
        return {"parameterId": name, "categoricalValueSpec": {"values": list(dimension.labels)}}
    low, high = dimension.low, dimension.high
    scale = {"scaleType": "UNIT_LOG_SCALE" if dimension.log else "UNIT_LINEAR_SCALE"}
    if dimension.whole and (dimension.step or 1) == 1:
        return {"parameterId": name, **scale, "integerValueSpec": {"minValue": str(low), "maxValue": str(high)}}
    if dimension.step is not None:
        values = [float(dimension.value(place)) for place in range(dimension.count or 0)]
        return {"parameterId": name, **scale, "discreteValueSpec": {"values": values}}
    return {"parameterId": name, **scale, "doubleValueSpec": {"minValue": float(low), "maxValue": float(high)}}


def failed(call: Call, job: Mapping[str, Any], read: Callable[[str], bytes | None]) -> MlopsError | None:
    """Why a tuning job has failed, by what its trials have left; None where they have left nothing."""
    numbers = [str(trial.get("id", place + 1)) for place, trial in enumerate(job.get("trials", []))]
    said = [json.loads(text) for number in numbers if (text := read(f"outcome-{number}.error.json")) is not None]
    if not said:
        return None
    first = error_of(said[0])
    if not isinstance(first, CodeError):
        return first
    measured = settled(call).params["metric"]
    few = "none" if len(said) == len(numbers) else f"only {len(numbers) - len(said)}"
    return CodeError(
        f"{few} of {len(numbers)} trials could be measured by {measured}; the first one: {first.what}",
        where=call.where,
        fix="correct tune.space, or the code that it names",
    )


def conclude(call: Call, job: Mapping[str, Any], read: Callable[[str], bytes | None]) -> Outcome:
    """The Outcome of a tuning job that is done, as the stage itself would have made it.

    Args:
        call: what was asked.
        job: the job, with its trials.
        read: reads a file that a trial has left.
    """
    trials: list[dict[str, Any]] = []
    for trial in job.get("trials", []):
        number = str(trial.get("id", len(trials) + 1))
        measured = (trial.get("finalMeasurement") or {}).get("metrics") or []
        left, failed = read(f"outcome-{number}.json"), read(f"outcome-{number}.error.json")
        trials.append(
            {
                "point": {each["parameterId"]: each["value"] for each in trial.get("parameters", [])},
                "value": next((each["value"] for each in measured if each.get("metricId") == OBJECTIVE), None),
                "scores": json.loads(left)["scores"] if left else [],
                "reason": json.loads(failed)["what"] if failed else trial.get("infeasibleReason"),
                "started": trial.get("startTime"),
                "ended": trial.get("endTime"),
            }
        )
    metric = settled(call).params["metric"]
    outcome: Outcome = stage_module("trials").conclude(call, metric, Store(call.store), trials)
    return keep(call, outcome)
