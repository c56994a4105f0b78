"""Where a model errs: calibration and confusion of a classifier, residuals of a regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from airflow_mlops.stages.bootstrap import Floats, Scores
from airflow_mlops.stages.intervals import as_json, mean, rate

_BINS = 10


def calibration(scores: Scores) -> dict[str, Any]:
    """Whether what happens as often as a classifier says it does, as plain JSON.

    Rows are put into ten bins of about equal size by the probability of the positive class; of more than two classes,
    by that of the class predicted, which then is held against being right (Guo, Pleiss, Sun and Weinberger, On
    calibration of modern neural networks, ICML 2017). ``ece`` is the expected calibration error, the bins' mean
    distance weighted by their rows (Naeini, Cooper and Hauskrecht, Obtaining well calibrated probabilities using
    Bayesian binning, AAAI 2015). ``brier`` is the mean squared distance of the probability, summed over classes where
    there are more than two (Brier, Verification of forecasts expressed in terms of probability, 1950).
    """
    probability: Any = scores.probability
    two = probability.shape[1] == 2
    said: Floats = probability[:, 1] if two else probability.max(axis=1)
    happened = scores.truth == 1 if two else scores.truth == scores.prediction
    # Equal probabilities are never parted; so a model that says few different ones has fewer bins.
    edges = np.unique(np.quantile(said, np.linspace(0, 1, _BINS + 1)))
    bin_of = np.clip(np.searchsorted(edges, said, side="right") - 1, 0, max(0, len(edges) - 2))
    frame = pd.DataFrame({"bin": bin_of, "said": said, "happened": happened})
    bins: list[dict[str, Any]] = [
        {
            "rows": len(inside),
            "predicted": float(inside["said"].mean()),
            "observed": as_json(rate(int(inside["happened"].sum()), len(inside))),
        }
        for _, inside in frame.groupby("bin", sort=True)
    ]
    gaps = [abs(each["predicted"] - each["observed"]["value"]) * each["rows"] for each in bins]
    squared = (
        (said - happened) ** 2 if two else ((probability - np.eye(probability.shape[1])[scores.truth]) ** 2).sum(1)
    )
    return {
        "of": "the positive class" if two else "the class predicted",
        "bins": bins,
        "ece": float(sum(gaps) / len(said)),
        "brier": float(np.mean(squared)),
    }


def confusion(scores: Scores, classes: int) -> list[list[int]]:
    """How many rows of each true class (outer) were given each class (inner)."""
    counts: list[list[int]] = sk.confusion_matrix(scores.truth, scores.prediction, labels=range(classes)).tolist()
    return counts


def residuals(scores: Scores) -> dict[str, Any]:
    """True minus predicted: its mean, spread and quantiles, as plain JSON."""
    error = np.asarray(scores.truth - scores.prediction, dtype=float)
    shares = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    return {
        "mean": as_json(mean(error)),
        "standard_deviation": float(error.std(ddof=1)) if len(error) > 1 else 0.0,
        "quantiles": {
            f"{share:g}": float(value) for share, value in zip(shares, np.quantile(error, shares), strict=True)
        },
    }
