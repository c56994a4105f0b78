"""Labels joined to predictions: what counts, what is left out and said, and how sure the loss is that follows."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.stages import MonitorPerformance
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.intervals import Estimate, intervals
from airflow_mlops.stages.labels import Joined, join
from airflow_mlops.stages.model_io import Facts
from airflow_mlops.stages.monitor_performance import judge
from airflow_mlops.stages.scoring import evaluate


def facts(task: Any = "binary", classes: tuple[Any, ...] = (0, 1)) -> Facts:
    return Facts(task=task, target="y", columns={}, watched=(), classes=classes, hash_columns=())


BINARY = facts()
NUMBERS = facts("regression", ())
COLOURS = facts("multiclass", ("blue", "green", "red"))
SAID = pa.table({"id": ["a", "b", "c", "d"], "prediction": [0, 1, 1, 0], "probability": [0.1, 0.9, 0.6, 0.4]})


def joined(labels: dict[str, Any], said: pa.Table = SAID, what: Facts = BINARY, key: tuple[str, ...] = ("id",)) -> Any:
    return join(said, pa.table(labels), key, what)


def test_labels_find_their_predictions_in_whatever_order_they_come() -> None:
    found = joined({"id": ["d", "a", "c"], "y": [1, 0, 1]})
    assert found.scores.truth.tolist() == [0, 1, 1]
    assert found.scores.probability[:, 1].tolist() == [0.1, 0.6, 0.4]
    assert found.scores.prediction.tolist() == [0, 1, 0]
    assert (found.predictions, found.notes) == (4, ())


def test_numbers_are_joined_to_numbers() -> None:
    said = pa.table({"id": [1, 2, 3, 4], "prediction": [1.5, 2.5, 3.5, 4.5]})
    found = joined({"id": [4, 1, 3], "y": [Decimal("4.0"), Decimal("1.0"), None]}, said, NUMBERS)
    assert found.scores.probability is None
    assert found.scores.truth.tolist() == [1.0, 4.0] and found.scores.prediction.tolist() == [1.5, 4.5]
    assert found.notes == ()
    odd = joined({"id": [1, 2], "y": ["1.25", "many"]}, said, NUMBERS)
    assert odd.scores.truth.tolist() == [1.25]
    assert odd.notes == ("1 labels that are no numbers are left out",)


def test_classes_are_joined_in_the_order_of_the_models_probabilities() -> None:
    said = pa.table(
        {
            "id": ["a", "b", "c"],
            "prediction": ["red", "green", "blue"],
            "probability.blue": [0.1, 0.2, 0.8],
            "probability.green": [0.2, 0.7, 0.1],
            "probability.red": [0.7, 0.1, 0.1],
        }
    )
    labels = {"id": ["a", "b", "c"], "y": ["red", "purple", "green"]}
    found = joined(labels, said, COLOURS)
    assert found.scores.truth.tolist() == [2, 1] and found.scores.prediction.tolist() == [2, 0]
    assert found.scores.probability.tolist() == [[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]
    assert found.notes == (
        "1 labels of classes that the model does not know (purple; it knows blue, green, red) are left out",
    )
    # A model without probabilities is taken at its word.
    found = joined(labels, said.select(["id", "prediction"]), COLOURS)
    assert found.scores.prediction.tolist() == [2, 0]
    assert found.scores.probability.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_keys_that_name_several_predictions_or_labels_are_left_out_and_counted() -> None:
    said = pa.table({"id": ["a", "a", "b", "c", None], "prediction": [0, 1, 1, 0, 0], "probability": [0.5] * 5})
    found = joined({"id": ["a", "b", "b", "c", "c", None], "y": [0, 1, 1, 0, 1, 1]}, said)
    # b is labelled twice, and both times the same.
    assert found.scores.truth.tolist() == [1]
    assert found.predictions == 5
    assert found.notes == (
        "1 predictions without a key are left out",
        "2 predictions that share a key are left out",
        "1 labels without a key are left out",
        "2 labels that contradict another are left out",
        "1 labels are for rows never predicted in this window",
    )


def test_a_key_of_two_columns_and_of_another_type() -> None:
    said = pa.table({"shop": ["x", "x", "y"], "n": pa.array([1, 2, 1], pa.int32()), "prediction": [0, 1, 1]})
    labels = {"n": pa.array([1, 1], pa.int64()), "shop": pa.array(["y", "x"]).dictionary_encode(), "y": [True, False]}
    found = joined(labels, said, key=("shop", "n"))
    assert found.scores.truth.tolist() == [0, 1] and found.scores.prediction.tolist() == [0, 1]
    with pytest.raises(SchemaError, match=r"the key 'n' holds string in the labels and int32 in the predictions.*one"):
        joined({**labels, "n": ["one", "two"]}, said, key=("shop", "n"))


@pytest.mark.parametrize(
    ("labels", "said", "what"),
    [
        ({"key": ["a"], "y": [1]}, SAID, "of the labels, the data has no column 'id'"),
        ({"id": ["a"], "y": [1]}, SAID.drop_columns(["id"]), "of the predictions, the data has no column 'id'"),
    ],
)
def test_a_missing_key_is_said_with_the_side_that_misses_it(labels: Any, said: pa.Table, what: str) -> None:
    with pytest.raises(SchemaError, match=what):
        joined(labels, said)


KEYS = st.sampled_from(["a", "b", "c", "d", "e", None])


@settings(max_examples=100, deadline=None)
@given(
    said=st.lists(st.tuples(KEYS, st.sampled_from([0.1, 0.5, 0.9])), max_size=8),
    labels=st.lists(st.tuples(KEYS, st.sampled_from([0, 1, 1, 7, None])), max_size=8),
)
def test_a_prediction_counts_when_one_known_label_is_meant_for_it_alone(said: Any, labels: Any) -> None:
    keys, chances = pa.array([key for key, _ in said], pa.string()), pa.array([chance for _, chance in said], "double")
    answers = pa.array([int(chance > 0.5) for _, chance in said], pa.int64())
    table = pa.table({"id": keys, "prediction": answers, "probability": chances})
    named, truth = pa.array([key for key, _ in labels], pa.string()), pa.array([y for _, y in labels], pa.int64())
    found = join(table, pa.table({"id": named, "y": truth}), ["id"], BINARY)

    once = Counter(key for key, _ in said)
    meant = {key: {y for k, y in labels if k == key and y is not None} for key, _ in labels}
    wanted = [
        (next(iter(meant[key])), probability)
        for key, probability in said
        if key is not None and once[key] == 1 and len(meant.get(key, ())) == 1 and meant[key] <= {0, 1}
    ]
    assert found.predictions == len(said)
    assert found.scores.probability is not None
    assert list(zip(found.scores.truth.tolist(), found.scores.probability[:, 1].tolist(), strict=True)) == wanted


def scores_of(random: np.random.Generator, task: str, rows: int) -> Scores:
    """What one model says of rows, and what is true: the same model, other rows each time."""
    signal = random.normal(size=rows)
    if task == "regression":
        return Scores(signal + random.standard_t(5, size=rows), signal)
    chance = 1 / (1 + np.exp(-1.5 * signal))
    truth = (random.random(rows) < chance).astype(int)
    return Scores(truth, (chance > 0.5).astype(int), np.column_stack([1 - chance, chance]))


def estimate(metric: str, scores: Scores, confidence: float) -> Estimate:
    low, high = intervals([metric], scores, confidence)[metric] or (None, None)
    return Estimate(evaluate(metric, scores), low, high)


@pytest.mark.parametrize(("metric", "repeats"), [("accuracy", 400), ("log_loss", 400), ("rmse", 400), ("roc_auc", 120)])
def test_the_interval_covers_the_loss_as_often_as_it_says(metric: str, repeats: int) -> None:
    """A model that has not changed has lost nothing: 90% of the intervals hold 0, and 5% lie above it."""
    random, confidence = np.random.default_rng(20), 0.9
    task = "regression" if metric == "rmse" else "binary"
    params = MonitorPerformance(labels="x", key=("id",), target="y", drop=0, confidence=confidence, min_labels=200)
    covered = above = 0
    for _ in range(repeats):
        promoted = estimate(metric, scores_of(random, task, 700), confidence)
        now = scores_of(random, task, 300)
        measured, status, _ = judge(Joined(now, 300, ()), metric, promoted, params, BINARY)
        assert measured.loss_interval is not None
        low, high = measured.loss_interval
        covered += low <= 0 <= high
        above += status == "drift"
    # Three standard errors of a share.
    error = 3 * (confidence * (1 - confidence) / repeats) ** 0.5
    assert confidence - error < covered / repeats < confidence + error + 0.02
    assert above / repeats < 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5


def test_a_loss_counts_only_when_all_of_its_interval_is_above_the_limit() -> None:
    random = np.random.default_rng(1)
    params = MonitorPerformance(labels="x", key=("id",), target="y", drop=0.1)
    now = scores_of(random, "binary", 400)
    value = evaluate("accuracy", now)

    def status(promoted: float) -> str:
        measured, said, (reason,) = judge(
            Joined(now, 500, ()), "accuracy", Estimate(promoted, promoted, promoted), params, BINARY
        )
        assert measured.loss == pytest.approx(promoted - value)
        assert "400 labels of 500 predictions" in reason
        return said

    assert [status(value + more) for more in (-0.2, 0.0, 0.1, 0.12, 0.2)] == ["ok", "ok", "ok", "ok", "drift"]


def test_of_a_metric_in_the_targets_unit_the_drop_is_a_share() -> None:
    random = np.random.default_rng(1)
    params = MonitorPerformance(labels="x", key=("id",), target="y", drop=0.5)
    for scale in (1.0, 1000.0):
        now = scores_of(random, "regression", 400)
        scaled = Scores(now.truth * scale, now.prediction * scale)
        value = evaluate("rmse", scaled)
        for promoted, said in ((value / 1.4, "ok"), (value / 2.5, "drift")):
            known = Estimate(promoted, promoted, promoted)
            measured, status, _ = judge(Joined(scaled, 400, ()), "rmse", known, params, NUMBERS)
            assert (measured.limit, status) == (pytest.approx(promoted / 2), said)


@pytest.mark.parametrize(
    ("truth", "metric", "what"),
    [
        ([0, 1] * 30, "roc_auc", "60 labels of 900 predictions have come; at least 100 are needed"),
        ([0] * 120, "roc_auc", "120 labels of 900 predictions have come, and roc_auc is not defined on them"),
        ([0] * 118 + [1, 1], "roc_auc", "only 2 of them are of the rarest class"),
    ],
)
def test_until_enough_labels_are_in_nothing_is_decided(truth: list[int], metric: str, what: str) -> None:
    params = MonitorPerformance(labels="x", key=("id",), target="y", min_labels=100)
    chance = np.linspace(0.1, 0.9, len(truth))
    scores = Scores(np.array(truth), (chance > 0.5).astype(int), np.column_stack([1 - chance, chance]))
    measured, status, (reason,) = judge(Joined(scores, 900, ()), metric, Estimate(0.99, 0.98, 1.0), params, BINARY)
    assert status == "insufficient_data"
    assert what in reason
    assert (measured.labels, measured.value) == (len(truth), None)
