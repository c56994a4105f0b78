"""The plots of an evaluation, drawn without a display and without pyplot's global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn import metrics as sk

from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.model_io import Facts

_MAX_POINTS = 5_000


def draw(scores: Scores, facts: Facts, folder: Path) -> None:
    """Write the task's plots as PNG files: ROC, precision-recall and confusion, or predictions and residuals."""
    if facts.task == "regression":
        _regression(scores, folder)
        return
    if facts.task == "binary" and scores.probability is not None:
        _curves(scores, folder)
    _confusion(scores, facts, folder)


def _new(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _curves(scores: Scores, folder: Path) -> None:
    positive = np.asarray(scores.probability)[:, 1]
    wrong, right, _ = sk.roc_curve(scores.truth, positive)
    figure, axes = _new(f"ROC, area {sk.auc(wrong, right):.3f}", "false positive rate", "true positive rate")
    axes.plot(wrong, right)
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    figure.savefig(folder / "roc.png", dpi=110)
    precision, recall, _ = sk.precision_recall_curve(scores.truth, positive)
    area = sk.average_precision_score(scores.truth, positive)
    figure, axes = _new(f"Precision and recall, average precision {area:.3f}", "recall", "precision")
    axes.plot(recall, precision)
    axes.axhline(float(np.mean(scores.truth)), linestyle=":", color="grey")
    axes.set_ylim(0, 1.02)
    figure.savefig(folder / "precision_recall.png", dpi=110)


def _confusion(scores: Scores, facts: Facts, folder: Path) -> None:
    classes = [str(value) for value in facts.classes]
    table = sk.confusion_matrix(scores.truth, scores.prediction, labels=range(len(classes)))
    figure, axes = _new("Confusion", "predicted", "true")
    axes.imshow(table / np.maximum(table.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xticks=range(len(classes)), yticks=range(len(classes)), xticklabels=classes, yticklabels=classes)
    if len(classes) <= 12:
        for row, counts in enumerate(table):
            for column, count in enumerate(counts):
                share = count / max(1, counts.sum())
                axes.text(
                    column, row, f"{count:,}", ha="center", va="center", color="white" if share > 0.5 else "black"
                )
    figure.savefig(folder / "confusion.png", dpi=110)


def _regression(scores: Scores, folder: Path) -> None:
    truth, prediction = scores.truth, scores.prediction
    shown = np.random.default_rng(0).permutation(len(truth))[:_MAX_POINTS]
    figure, axes = _new("Predicted and true", "true", "predicted")
    axes.scatter(truth[shown], prediction[shown], s=5, alpha=0.4)
    ends = [float(truth.min()), float(truth.max())]
    axes.plot(ends, ends, linestyle=":", color="grey")
    figure.savefig(folder / "predictions.png", dpi=110)
    figure, axes = _new("Residuals", "true minus predicted", "rows")
    axes.hist(truth - prediction, bins=50)
    figure.savefig(folder / "residuals.png", dpi=110)
