"""The plots of a study, drawn without a display: how it went, which params mattered, and what each value came to."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

log = logging.getLogger(__name__)

_LABEL = 24


def draw(study: optuna.Study, metric: str, folder: Path) -> None:
    """Write ``history.png``, ``slices.png`` and, where it can be told, ``importances.png``."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    _history(trials, complete, metric, study.direction == StudyDirection.MAXIMIZE).savefig(
        folder / "history.png", dpi=110
    )
    _slices(complete, metric).savefig(folder / "slices.png", dpi=110)
    importances = _importances(study)
    if importances:
        figure = _figure(5.5, 1.2 + 0.4 * len(importances))
        axes = figure.add_subplot()
        names = list(importances)[::-1]
        axes.barh(names, [importances[name] for name in names])
        axes.set(title="Importance (PED-ANOVA)", xlabel="share of what decides whether a trial is among the best")
        figure.savefig(folder / "importances.png", dpi=110)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _values(complete: list[FrozenTrial]) -> list[float]:
    return [trial.value for trial in complete if trial.value is not None]


def _history(trials: list[FrozenTrial], complete: list[FrozenTrial], metric: str, more_is_better: bool) -> Figure:
    figure = _figure(6.5, 4)
    axes = figure.add_subplot()
    numbers, values = [trial.number for trial in complete], _values(complete)
    axes.scatter(numbers, values, s=14, label="trial")
    best = np.maximum.accumulate(values) if more_is_better else np.minimum.accumulate(values)
    axes.step(numbers, best, where="post", color="tab:red", label="best so far")
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.intermediate_values]
    if pruned:
        reached = [trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned]
        axes.scatter([trial.number for trial in pruned], reached, s=14, marker="x", color="grey", label="pruned")
    failed = [trial.number for trial in trials if trial.state == TrialState.FAIL]
    if failed:
        axes.plot(
            failed, [0.02] * len(failed), "v", color="black", transform=axes.get_xaxis_transform(), label="failed"
        )
    axes.set(title=f"{len(trials)} trials", xlabel="trial", ylabel=f"{metric}, mean over the folds")
    axes.legend()
    return figure


def _slices(complete: list[FrozenTrial], metric: str) -> Figure:
    """What each value of each param came to."""
    names = sorted({name for trial in complete for name in trial.params})
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(3.6 * columns, 3.0 * rows)
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        shown = [trial for trial in complete if name in trial.params]
        dimension: Any = shown[0].distributions[name]
        values = [trial.params[name] for trial in shown]
        if isinstance(dimension, optuna.distributions.CategoricalDistribution):
            values = [str(value)[:_LABEL] for value in values]
            axes.tick_params(axis="x", rotation=30)
        elif dimension.log:
            axes.set_xscale("log")
        axes.scatter(values, _values(shown), c=[trial.number for trial in shown], s=12)
        axes.set(xlabel=name, ylabel=metric if place % columns == 0 else "")
    return figure


def _importances(study: optuna.Study) -> dict[str, float]:
    """The importance of each param, greatest first; none where there are too few different trials to tell."""
    try:
        with warnings.catch_warnings():
            # Where it cannot tell, it warns, and says that all are equal.
            warnings.simplefilter("error", UserWarning)
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError, UserWarning) as error:
        log.info("the importance of the params cannot be told: %s", error)
        return {}
    return {name: value for name, value in found.items() if np.isfinite(value)}
