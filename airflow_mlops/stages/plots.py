"""The plots of an evaluation, drawn without a display and without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn import metrics as sk

from airflow_mlops.stages.bootstrap import Scores

_MAX_POINTS = 5_000
_MAX_CURVES = 8
_MAX_CELLS = 12
_MAX_BARS = 20
_MAX_SLICES = 40


def draw(body: Mapping[str, Any], scores: Scores, folder: Path) -> None:
    """Write an evaluation's plots as PNG files.

    Args:
        body: the evaluation's own JSON.
        scores: what the model says of the held-out rows.
        folder: where to write.
    """
    if body["task"] == "regression":
        _predictions(scores, folder)
        _residuals(scores, folder)
    else:
        classes = [str(value) for value in body["classes"]]
        if body["calibration"] is not None:
            _curves(scores, classes, folder)
            _calibration(body["calibration"], folder)
        _confusion(body["confusion"], classes, folder)
    _slices(body, folder)
    _importance(body["importance"], folder)


def _new(title: str, x: str, y: str, height: float = 4.0) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Over the whole figure: names at the left may leave little room above the axes.
    figure.suptitle(title, fontsize=11)
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, folder: Path, name: str) -> None:
    figure.savefig(folder / f"{name}.png", dpi=110)


def _short(text: str, most: int = 28) -> str:
    # A dollar sign would begin a formula.
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.replace("$", r"\$")


def _curves(scores: Scores, classes: list[str], folder: Path) -> None:
    """ROC, precision and recall: of the positive class, or of each of the commonest classes against the rest."""
    probability: Any = scores.probability
    present = [index for index in range(len(classes)) if 0 < np.sum(scores.truth == index) < len(scores.truth)]
    if len(classes) == 2:
        present = [index for index in present if index == 1]
    present = sorted(sorted(present, key=lambda index: -np.sum(scores.truth == index))[:_MAX_CURVES])
    if not present:
        return
    one = len(classes) == 2
    roc, roc_axes = _new("ROC", "false positive rate", "true positive rate")
    recalled, recall_axes = _new("Precision and recall", "recall", "precision")
    for index in present:
        truth, said = scores.truth == index, probability[:, index]
        wrong, right, _ = sk.roc_curve(truth, said)
        name = "" if one else f"{_short(classes[index], 16)}, "
        roc_axes.plot(wrong, right, label=f"{name}area {sk.auc(wrong, right):.3f}")
        precision, recall, _ = sk.precision_recall_curve(truth, said)
        area = sk.average_precision_score(truth, said)
        (line,) = recall_axes.plot(recall, precision, label=f"{name}average {area:.3f}")
        recall_axes.axhline(
            float(np.mean(truth)), linestyle=":", color="grey" if one else line.get_color(), linewidth=1
        )
    roc_axes.plot([0, 1], [0, 1], linestyle=":", color="grey", linewidth=1)
    recall_axes.set_ylim(0, 1.02)
    for figure, axes, name in ((roc, roc_axes, "roc"), (recalled, recall_axes, "precision_recall")):
        axes.legend(frameon=False, fontsize=8)
        _save(figure, folder, name)


def _calibration(found: Mapping[str, Any], folder: Path) -> None:
    figure, axes = _new(
        f"Calibration, expected error {found['ece']:.3f}", "predicted probability", "share that happened"
    )
    predicted = [each["predicted"] for each in found["bins"]]
    observed = [each["observed"]["value"] for each in found["bins"]]
    low = [each["observed"]["value"] - each["observed"]["low"] for each in found["bins"]]
    high = [each["observed"]["high"] - each["observed"]["value"] for each in found["bins"]]
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey", linewidth=1)
    axes.errorbar(predicted, observed, yerr=np.maximum([low, high], 0), fmt="o-", markersize=4, capsize=2)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _save(figure, folder, "calibration")


def _confusion(counts: list[list[int]], classes: list[str], folder: Path) -> None:
    table = np.array(counts)
    figure, axes = _new("Confusion", "predicted", "true")
    axes.imshow(table / np.maximum(table.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _MAX_CELLS:
        shown = [_short(name, 14) for name in classes]
        axes.set(xticks=range(len(classes)), yticks=range(len(classes)), xticklabels=shown, yticklabels=shown)
        axes.tick_params(axis="x", rotation=45 if max(map(len, shown)) > 6 else 0)
        for row, line in enumerate(table):
            for column, count in enumerate(line):
                dark = count / max(1, line.sum()) > 0.5
                axes.text(column, row, f"{count:,}", ha="center", va="center", color="white" if dark else "black")
    _save(figure, folder, "confusion")


def _some(count: int) -> Any:
    return np.random.default_rng(0).permutation(count)[:_MAX_POINTS]


def _predictions(scores: Scores, folder: Path) -> None:
    shown = _some(len(scores.truth))
    figure, axes = _new("Predicted and true", "true", "predicted")
    axes.scatter(scores.truth[shown], scores.prediction[shown], s=5, alpha=0.4)
    ends = [float(scores.truth.min()), float(scores.truth.max())]
    axes.plot(ends, ends, linestyle=":", color="grey")
    _save(figure, folder, "predictions")


def _residuals(scores: Scores, folder: Path) -> None:
    error = scores.truth - scores.prediction
    figure, axes = _new("Residuals", "true minus predicted", "rows")
    axes.hist(error, bins=50)
    _save(figure, folder, "residuals")
    shown = _some(len(error))
    figure, axes = _new("Residuals by prediction", "predicted", "true minus predicted")
    axes.scatter(scores.prediction[shown], error[shown], s=5, alpha=0.4)
    axes.axhline(0, linestyle=":", color="grey")
    _save(figure, folder, "residuals_by_prediction")


def _slices(body: Mapping[str, Any], folder: Path) -> None:
    """The primary metric of every slice with its interval, against the whole."""
    primary = body["primary"]
    found = [
        (f"{column} = {entry['value']}", entry["rows"], entry["metrics"][primary])
        for column, entries in body["slices"].items()
        for entry in entries
        if primary in entry["metrics"]
    ][:_MAX_SLICES]
    if not found:
        return
    figure, axes = _new(f"{primary} by slice", primary, "", height=1.2 + 0.24 * len(found))
    axes.axvline(body["metrics"][primary], linestyle=":", color="grey", linewidth=1)
    for place, (_, _, each) in enumerate(found):
        if each["low"] is not None:
            axes.plot([each["low"], each["high"]], [place, place], color="C0", linewidth=1.5)
        axes.plot([each["value"]], [place], "o", color="C0", markersize=4)
    names = [f"{_short(name)} ({rows:,})" for name, rows, _ in found]
    axes.set(yticks=range(len(found)), yticklabels=names, ylim=(len(found) - 0.4, -0.6))
    axes.tick_params(axis="y", labelsize=8)
    _save(figure, folder, "slices")


def _importance(found: Mapping[str, Any] | None, folder: Path) -> None:
    if found is None or "problem" in found:
        return
    shown = found["columns"][:_MAX_BARS]
    figure, axes = _new("Permutation importance", f"loss of {found['metric']}", "", height=1.2 + 0.24 * len(shown))
    places = range(len(shown))
    axes.barh(places, [each["mean"] for each in shown], xerr=[each["deviation"] for each in shown], height=0.6)
    axes.set(yticks=places, yticklabels=[_short(each["column"]) for each in shown], ylim=(len(shown) - 0.4, -0.6))
    axes.tick_params(axis="y", labelsize=8)
    _save(figure, folder, "importance")
