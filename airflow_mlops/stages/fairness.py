"""Fairness: by how much a model treats the values of a column differently, and how sure that is.

Each difference is between the value with the most and the value with the least of a rate or a mean, with an interval.
Where there are more than two values, the interval is widened by Bonferroni's correction for the choice among all pairs.
An interval that holds 0 says that the difference may be chance.

- ``selection_rate_difference``: of the share predicted positive; demographic parity (Dwork, Hardt, Pitassi, Reingold
  and Zemel, Fairness through awareness, ITCS 2012), as in Agarwal, Beygelzimer, Dudík, Langford and Wallach, A
  reductions approach to fair classification, ICML 2018.
- ``tpr_difference``: of the share of positives that are found; equal opportunity (Hardt, Price and Srebro, Equality of
  opportunity in supervised learning, NeurIPS 2016).
- ``fpr_difference``: of the share of negatives called positive; with the one before, equalized odds (the same paper).
- ``accuracy_difference``: of the share predicted right; overall accuracy equality (Berk, Heidari, Jabbari, Kearns and
  Roth, Fairness in criminal justice risk assessments, Sociological Methods & Research 50, 2021).
- ``mae_difference``: of the mean absolute error; the groups' losses of Agarwal, Dudík and Wu, Fair regression, ICML
  2019.
- ``mean_error_difference``: of the mean of true minus predicted; balanced residuals (Calders, Karim, Kamiran, Ali and
  Zhang, Controlling attribute effect in linear regression, ICDM 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from airflow_mlops.spec.metrics import FAIRNESS, Task
from airflow_mlops.stages.bootstrap import Scores, part_of
from airflow_mlops.stages.intervals import CONFIDENCE, Estimate, as_json, difference, mean, rate
from airflow_mlops.stages.slices import Slice


def differences(task: Task, parts: Sequence[Slice], scores: Scores, *, min_rows: int) -> dict[str, Any]:
    """Every difference that the task has, as plain JSON by its name.

    Values whose rate has fewer than ``min_rows`` rows under it are named under ``left_out``; ``value`` is None where
    fewer than two values are left. Rows of rarer values together are no group and are left out.
    """
    groups = [(part.value, part_of(scores, part.rows)) for part in parts if part.kind != "other"]
    return {name: _difference(name, groups, min_rows) for name, tasks in FAIRNESS.items() if task in tasks}


def _difference(name: str, groups: Sequence[tuple[str, Scores]], min_rows: int) -> dict[str, Any]:
    large = [(value, inside) for value, inside in groups if len(_values(name, inside)) >= min_rows]
    found = {value: _estimate(name, inside) for value, inside in large}
    entry: dict[str, Any] = {
        "groups": {value: as_json(each) for value, each in found.items()},
        "left_out": [value for value, _ in groups if value not in found],
    }
    if len(found) < 2:
        return {**entry, **as_json(Estimate(0.0)), "value": None}
    most = max(found, key=lambda value: found[value].value)
    # Of equal values another one than the most is the least.
    least = min((value for value in found if value != most), key=lambda value: found[value].value)
    pairs = len(found) * (len(found) - 1) / 2
    confidence = 1 - (1 - CONFIDENCE) / pairs
    by_value = dict(large)
    gap = difference(_estimate(name, by_value[most], confidence), _estimate(name, by_value[least], confidence))
    return {**entry, **as_json(gap), "most": most, "least": least}


def _values(name: str, scores: Scores) -> np.ndarray[Any, Any]:
    """What the rate or mean is taken of, one value a row that counts."""
    truth, said = scores.truth, scores.prediction
    if name == "selection_rate_difference":
        return np.asarray(said == 1)
    if name == "tpr_difference":
        return np.asarray(said[truth == 1] == 1)
    if name == "fpr_difference":
        return np.asarray(said[truth == 0] == 1)
    if name == "accuracy_difference":
        return np.asarray(said == truth)
    error = np.asarray(truth - said, dtype=float)
    return np.abs(error) if name == "mae_difference" else error


def _estimate(name: str, scores: Scores, confidence: float = CONFIDENCE) -> Estimate:
    values = _values(name, scores)
    if values.dtype == bool:
        return rate(int(values.sum()), len(values), confidence)
    return mean(values, confidence)
