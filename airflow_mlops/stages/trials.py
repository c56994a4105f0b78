"""The trials of a search that another service leads: each measures one point, and at the end they make one Outcome.

What a trial is measured on, and what comes of a study, is the tuning stage's own code; only the points come from
elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from airflow_mlops.call.code import code_scope, unpack
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import CodeError, GateError
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.metrics import METRICS
from airflow_mlops.spec.space import Choices, Range
from airflow_mlops.spec.stages import Tune
from airflow_mlops.stages.study import decode, study_id
from airflow_mlops.stages.tables import read_table
from airflow_mlops.stages.tune import Diary, concluded, folds_of, measure_fold

log = logging.getLogger(__name__)


def measure(call: Call, point: Mapping[str, str]) -> dict[str, Any]:
    """Measure one point on every fold.

    Args:
        call: of the tuning stage; its metric is named.
        point: the values, as texts.

    Returns:
        ``value``, the mean over the folds, and ``scores``, one for each fold; or ``reason``, why there is none.

    Raises:
        CodeError: when not this point of the space is wrong, but what was declared.
    """
    store, params = Store(call.store), Tune.model_validate(call.params)
    if params.metric not in METRICS:
        raise GateError(f"there is no metric {params.metric!r}", allowed=", ".join(METRICS))
    values = {name: _value(params.space[name], text) for name, text in point.items()}
    with code_scope(unpack(call.code, store) if call.code else None):
        folds, classes = folds_of(read_table(call.input("train"), store), params, params.metric)
        scores: list[float] = []
        try:
            for fold in folds:
                scores.append(measure_fold(fold, params, values, params.metric, classes))
        except (CodeError, GateError) as error:
            if isinstance(error, CodeError) and error.__cause__ is None:
                raise
            return {"reason": error.what[:1000]}
    log.info("%s %.6g with %s", params.metric, np.mean(scores), values)
    return {"value": float(np.mean(scores)), "scores": scores}


def _value(dimension: Range | Choices, text: str) -> Any:
    """A value of a dimension from its text; of numbers the one that is nearest, for they come as decimals."""
    if isinstance(dimension, Choices):
        return dimension.choices[dimension.labels.index(text)]
    number = float(text)
    if dimension.step is not None or dimension.whole:
        place = round((number - dimension.low) / (dimension.step or 1))
        return dimension.value(min(max(place, 0), (dimension.count or 1) - 1))
    return min(max(number, float(dimension.low)), float(dimension.high))


def conclude(call: Call, metric: str, store: Store, found: Sequence[Mapping[str, Any]]) -> Outcome:
    """What the trials came to, as the Outcome of the tuning stage.

    Args:
        call: of the tuning stage.
        metric: what was measured.
        store: the artifact store.
        found: of each trial ``point`` (texts or numbers by param), ``value`` or None, ``scores``, ``reason``,
            ``started`` and ``ended``.
    """
    params = Tune.model_validate(call.params)
    study = _Ended(call, params, metric, found)
    diary = Diary(ModelRegistry.of(call, store), call, study, metric)
    diary.catch_up(study.trials())
    return concluded(call, study, metric, store, diary)


class _Ended:
    """A study that is over, as what writes and draws studies looks at one."""

    def __init__(self, call: Call, params: Tune, metric: str, found: Sequence[Mapping[str, Any]]) -> None:
        self.id, self._space = study_id(call, params), params.space
        direction = StudyDirection.MAXIMIZE if METRICS[metric].more_is_better else StudyDirection.MINIMIZE
        self._study = optuna.create_study(direction=direction)
        for trial in found:
            self._study.add_trial(self._frozen(trial))

    def _frozen(self, trial: Mapping[str, Any]) -> FrozenTrial:
        point = {name: (self._space[name], str(text)) for name, text in trial["point"].items()}
        # As in a study of our own, a choice stands there as its text.
        shown = {
            name: text if isinstance(each, Choices) else _value(each, text) for name, (each, text) in point.items()
        }
        means = {step: float(np.mean(trial["scores"][: step + 1])) for step in range(len(trial["scores"]))}
        made = create_trial(
            state=TrialState.COMPLETE if trial["value"] is not None else TrialState.FAIL,
            value=trial["value"],
            params=shown,
            distributions={name: _distribution(each) for name, (each, _) in point.items()},
            intermediate_values=means,
            user_attrs={"reason": str(trial["reason"])} if trial.get("reason") else {},
        )
        made.datetime_start, made.datetime_complete = _at(trial.get("started")), _at(trial.get("ended"))
        return made

    def open(self) -> optuna.Study:
        """The study as Optuna knows it."""
        return self._study

    def trials(self) -> list[FrozenTrial]:
        """All of its trials."""
        return self._study.get_trials(deepcopy=False)

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """A trial's params as the model gets them."""
        return {name: decode(self._space[name], value) for name, value in trial.params.items()}


def _distribution(dimension: Range | Choices) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.labels)
    if dimension.whole:
        step = int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def _at(text: str | None) -> datetime:
    """A time as Optuna keeps it: of this machine's zone, without saying so."""
    return datetime.fromisoformat(text).astimezone().replace(tzinfo=None) if text else datetime.now()
