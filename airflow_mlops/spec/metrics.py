"""The metrics the product knows: which task each belongs to and which way is better. No ML is imported here."""

from __future__ import annotations

from typing import Literal, NamedTuple

Task = Literal["binary", "multiclass", "regression"]
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


class Metric(NamedTuple):
    """What a metric needs to be declared: its tasks, whether more is better, and what it is computed from."""

    tasks: tuple[Task, ...]
    more_is_better: bool
    needs: Literal["label", "probability"]


_CLASSES: tuple[Task, ...] = ("binary", "multiclass")

METRICS: dict[str, Metric] = {
    "roc_auc": Metric(("binary",), True, "probability"),
    "average_precision": Metric(("binary",), True, "probability"),
    "brier": Metric(("binary",), False, "probability"),
    "f1": Metric(("binary",), True, "label"),
    "precision": Metric(("binary",), True, "label"),
    "recall": Metric(("binary",), True, "label"),
    "mcc": Metric(_CLASSES, True, "label"),
    "log_loss": Metric(_CLASSES, False, "probability"),
    "accuracy": Metric(_CLASSES, True, "label"),
    "balanced_accuracy": Metric(_CLASSES, True, "label"),
    "f1_macro": Metric(("multiclass",), True, "label"),
    "roc_auc_ovr": Metric(("multiclass",), True, "probability"),
    "rmse": Metric(("regression",), False, "label"),
    "mae": Metric(("regression",), False, "label"),
    "median_ae": Metric(("regression",), False, "label"),
    "mape": Metric(("regression",), False, "label"),
    "r2": Metric(("regression",), True, "label"),
}

FAIRNESS: dict[str, tuple[Task, ...]] = {
    "selection_rate_difference": ("binary",),
    "tpr_difference": ("binary",),
    "fpr_difference": ("binary",),
    "accuracy_difference": _CLASSES,
    "mae_difference": ("regression",),
    "mean_error_difference": ("regression",),
}
"""The differences between the values of a column, and the tasks that have them; less is better. They are defined, with
their sources, in `airflow_mlops.stages.fairness`."""

_FAIRNESS_PREFIX = "fairness."

DEFAULT_METRICS: dict[Task, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "log_loss", "accuracy"),
    "multiclass": ("balanced_accuracy", "accuracy", "f1_macro", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}
"""What is evaluated where nothing is declared; the first one is the primary metric, which the gate compares."""


def fairness_limit(name: str) -> tuple[str, str] | None:
    """The column and the difference that a gate's ``fairness.COLUMN.DIFFERENCE`` names; None for any other name."""
    if not name.startswith(_FAIRNESS_PREFIX):
        return None
    column, _, difference = name.removeprefix(_FAIRNESS_PREFIX).rpartition(".")
    return column, difference


def metrics_of(task: Task) -> list[str]:
    """Name the metrics that a task has."""
    return [name for name, metric in METRICS.items() if task in metric.tasks]
