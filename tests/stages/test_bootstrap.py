"""The bootstrap's metrics are scikit-learn's, for any counts of rows; and its bounds are what they say."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from threadpoolctl import threadpool_info, threadpool_limits

from airflow_mlops.errors import GateError
from airflow_mlops.spec.metrics import METRICS, metrics_of
from airflow_mlops.stages import bootstrap
from airflow_mlops.stages.bootstrap import Scores, compare, measure

Weighted = Callable[[Scores, Any], float]


def positive(scores: Scores) -> Any:
    assert scores.probability is not None
    return scores.probability[:, 1]


def one_versus_rest(scores: Scores, weight: Any) -> float:
    assert scores.probability is not None
    classes = scores.probability.shape[1]
    each = [
        sk.roc_auc_score(scores.truth == index, scores.probability[:, index], sample_weight=weight)
        for index in range(classes)
    ]
    return float(np.mean(each))


def log_loss(scores: Scores, weight: Any) -> float:
    assert scores.probability is not None
    labels = np.arange(scores.probability.shape[1])
    return float(sk.log_loss(scores.truth, scores.probability, sample_weight=weight, labels=labels))


def with_labels(function: Any, **options: Any) -> Weighted:
    return lambda s, w: float(function(s.truth, s.prediction, sample_weight=w, **options))


SKLEARN: dict[str, Weighted] = {
    "roc_auc": lambda s, w: float(sk.roc_auc_score(s.truth, positive(s), sample_weight=w)),
    "average_precision": lambda s, w: float(sk.average_precision_score(s.truth, positive(s), sample_weight=w)),
    "brier": lambda s, w: float(sk.brier_score_loss(s.truth, positive(s), sample_weight=w, pos_label=1)),
    "f1": with_labels(sk.f1_score, zero_division=0),
    "precision": with_labels(sk.precision_score, zero_division=0),
    "recall": with_labels(sk.recall_score, zero_division=0),
    "mcc": with_labels(sk.matthews_corrcoef),
    "log_loss": log_loss,
    "accuracy": with_labels(sk.accuracy_score),
    "balanced_accuracy": with_labels(sk.balanced_accuracy_score),
    "f1_macro": with_labels(sk.f1_score, average="macro", zero_division=0),
    "roc_auc_ovr": one_versus_rest,
    "rmse": with_labels(sk.root_mean_squared_error),
    "mae": with_labels(sk.mean_absolute_error),
    "median_ae": with_labels(sk.median_absolute_error),
    "mape": with_labels(sk.mean_absolute_percentage_error),
    "r2": with_labels(sk.r2_score),
}
CLASSIFIED = [
    *((name, 2) for name in metrics_of("binary")),
    *((name, classes) for name in metrics_of("multiclass") for classes in (3, 5)),
]


def test_every_metric_of_the_product_is_held_against_sklearn() -> None:
    assert set(SKLEARN) == set(METRICS)


@st.composite
def classified(draw: st.DrawFn, classes: int) -> tuple[Scores, np.ndarray[Any, Any]]:
    """Few distinct probabilities, so there are ties; rare classes; counts from none to many."""
    rows = draw(st.integers(1, 40))
    truth = np.array(draw(st.lists(st.sampled_from([0] * 3 + list(range(classes))), min_size=rows, max_size=rows)))
    cells = draw(st.lists(st.integers(0, 4), min_size=rows * classes, max_size=rows * classes))
    raw = np.array(cells, dtype=float).reshape(rows, classes) + 1e-9
    probability = raw / raw.sum(axis=1, keepdims=True)
    counts = np.array(draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)), dtype=float)
    if not counts.any():
        counts[0] = 1.0
    return Scores(truth, probability.argmax(axis=1), probability), counts


def drawn(scores: Scores, counts: np.ndarray[Any, Any]) -> Scores:
    """The rows of a draw, each as often as it counts."""
    index = np.repeat(np.arange(len(counts)), counts.astype(int))
    return Scores(
        scores.truth[index],
        scores.prediction[index],
        None if scores.probability is None else scores.probability[index],
    )


def expected(name: str, scores: Scores, weight: Any = None) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return SKLEARN[name](scores, weight)
        except ValueError:
            return float("nan")


@pytest.mark.parametrize(("name", "classes"), CLASSIFIED)
@given(data=st.data())
def test_a_metric_of_classes_is_sklearns_on_the_rows_drawn(name: str, classes: int, data: st.DataObject) -> None:
    scores, counts = data.draw(classified(classes))
    found, wanted = measure(name, scores)(counts), expected(name, drawn(scores, counts))
    if name in ("roc_auc", "roc_auc_ovr", "average_precision") and not np.isfinite(found):
        # scikit-learn says 0 where we say that there is nothing to rank.
        assert len(np.unique(drawn(scores, counts).truth)) < classes
        return
    assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("name", "classes"), CLASSIFIED)
@given(data=st.data())
def test_a_metric_of_classes_is_sklearns_with_weights(name: str, classes: int, data: st.DataObject) -> None:
    scores, counts = data.draw(classified(classes))
    counts = counts + 1
    found = measure(name, scores)(counts)
    if np.isfinite(found):
        assert found == pytest.approx(expected(name, scores, counts), abs=1e-9)


@pytest.mark.parametrize("name", metrics_of("regression"))
@given(data=st.data())
def test_a_metric_of_numbers_is_sklearns(name: str, data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 30))
    numbers = st.lists(st.integers(-50, 50).map(lambda n: n / 8), min_size=rows, max_size=rows)
    scores = Scores(np.array(data.draw(numbers)), np.array(data.draw(numbers)))
    counts = np.array(data.draw(st.lists(st.integers(1, 3), min_size=rows, max_size=rows)), dtype=float)
    found = measure(name, scores)(counts)
    if name == "r2" and len(set(scores.truth)) == 1:
        assert not np.isfinite(found)
        return
    assert found == pytest.approx(expected(name, scores, counts), rel=1e-9, abs=1e-9)
    assert found == pytest.approx(expected(name, drawn(scores, counts)), rel=1e-9, abs=1e-9)


def noisy(rows: int, noise: float, seed: int = 0) -> Scores:
    """A model of a coin that the truth weighs; more noise makes a worse one."""
    random = np.random.default_rng(1)
    truth = random.integers(0, 2, rows)
    signal = truth + np.random.default_rng(seed + 2).normal(0, noise, rows)
    chance = 1 / (1 + np.exp(-(signal - 0.5) * 4))
    return Scores(truth, (chance > 0.5).astype(int), np.column_stack([1 - chance, chance]))


def gate(name: str, challenger: Scores, champion: Scores, **options: Any) -> Any:
    return compare(name, challenger, champion, **{"confidence": 0.95, "resamples": 300, "seed": 0, **options})


@pytest.mark.parametrize("name", metrics_of("binary"))
def test_a_better_model_gains_whichever_way_is_better(name: str) -> None:
    good, bad = noisy(2000, 0.3), noisy(2000, 1.5)
    better, worse = gate(name, good, bad), gate(name, bad, good)
    assert better.gain > 0 and better.lower > 0
    assert worse.gain == pytest.approx(-better.gain) and worse.upper < 0
    assert better.lower <= better.gain <= better.upper


def test_a_model_gains_nothing_against_itself() -> None:
    same = gate("roc_auc", noisy(500, 0.5), noisy(500, 0.5))
    assert (same.gain, same.lower, same.upper) == (0.0, 0.0, 0.0)


def test_the_bound_is_the_normal_one_for_a_mean() -> None:
    """For a mean of differences, the percentile bound must agree with the textbook's standard error."""
    good, bad = noisy(4000, 0.6), noisy(4000, 0.8)
    found = gate("brier", good, bad, resamples=4000)
    difference = (positive(bad) - bad.truth) ** 2 - (positive(good) - good.truth) ** 2
    error = difference.std() / np.sqrt(len(difference))
    assert found.lower == pytest.approx(difference.mean() - 1.645 * error, abs=0.1 * error)


def test_more_confidence_asks_for_more() -> None:
    good, bad = noisy(500, 0.6), noisy(500, 0.8)
    assert gate("roc_auc", good, bad, confidence=0.99).lower < gate("roc_auc", good, bad, confidence=0.9).lower


def test_equal_seeds_give_equal_bounds() -> None:
    good, bad = noisy(500, 0.6), noisy(500, 0.8)
    assert gate("f1", good, bad) == gate("f1", good, bad)
    assert gate("f1", good, bad).lower != gate("f1", good, bad, seed=1).lower


def test_draws_take_one_thread_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS would start as many as there are cores for each draw: fifteen times the CPU for the same result."""
    found: set[int] = set()

    def counting(metric: str, scores: Scores) -> bootstrap.Measure:
        of_counts = measure(metric, scores)

        def measured(counts: bootstrap.Floats) -> float:
            found.update(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas")
            return of_counts(counts)

        return measured

    with threadpool_limits(2):
        monkeypatch.setattr(bootstrap, "measure", counting)
        good, bad = noisy(500, 0.6), noisy(500, 0.8)
        gate("roc_auc", good, bad, resamples=3)
    # The metrics of the rows themselves come before the draws, with as many as there are.
    assert found == {1, 2}


def test_models_that_are_equally_good_rarely_pass() -> None:
    passed = sum(gate("roc_auc", noisy(300, 1, seed), noisy(300, 1, seed + 100)).lower > 0 for seed in range(40))
    assert passed <= 7


@pytest.mark.parametrize("classes", [[0] * 50, [0] * 399 + [1]])
def test_a_class_that_is_too_rare_is_no_decision(classes: list[int]) -> None:
    scores = noisy(len(classes), 0.5)._replace(truth=np.array(classes))
    with pytest.raises(GateError, match="is not defined on these"):
        gate("roc_auc", scores, scores)


def test_a_metric_of_probabilities_needs_some() -> None:
    with pytest.raises(GateError, match="needs probabilities"):
        measure("roc_auc", Scores(np.array([0, 1]), np.array([0, 1])))
