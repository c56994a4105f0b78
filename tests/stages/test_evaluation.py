"""What an evaluation measures: intervals that cover, slices that lose no row, honest differences and importances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from airflow_mlops.spec.metrics import FAIRNESS
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.diagnostics import calibration, confusion, residuals
from airflow_mlops.stages.fairness import differences
from airflow_mlops.stages.importance import BUDGET, REPEATS, importance
from airflow_mlops.stages.intervals import Estimate, difference, intervals, mean, rate
from airflow_mlops.stages.model_io import Facts, Model
from airflow_mlops.stages.slices import Slice, measured, slices_of


def coin(rows: int, seed: int, skill: float = 1.0) -> Scores:
    """A calibrated model of a coin: what it says happens as often as it says."""
    random = np.random.default_rng(seed)
    chance = 1 / (1 + np.exp(-skill * random.normal(size=rows)))
    truth = (random.random(rows) < chance).astype(np.int64)
    return Scores(truth, (chance > 0.5).astype(np.int64), np.column_stack([1 - chance, chance]))


# Intervals


@pytest.mark.parametrize("name", ["accuracy", "recall", "roc_auc", "log_loss", "f1"])
def test_an_interval_of_95_percent_covers_the_truth_that_often(name: str) -> None:
    """Of 100 samples 88 must cover: at a coverage of 95% fewer come once in 200 times, at 80% nearly always."""
    far = coin(400_000, 10_000)
    area = _metric(name, far)
    covered = 0
    for seed in range(100):
        bounds = intervals([name], coin(250, seed))[name]
        assert bounds is not None
        covered += bounds[0] <= area <= bounds[1]
    assert covered >= 88


def _metric(name: str, scores: Scores) -> float:
    from airflow_mlops.stages.scoring import evaluate

    return evaluate(name, scores)


def test_intervals_of_numbers_cover_as_well() -> None:
    random = np.random.default_rng(0)
    covered = {"rmse": 0, "mae": 0}
    for _ in range(100):
        truth = random.normal(size=200)
        said = truth + random.normal(size=200)
        found = intervals(list(covered), Scores(truth, said))
        for name, true in (("rmse", 1.0), ("mae", np.sqrt(2 / np.pi))):
            bounds = found[name]
            assert bounds is not None
            covered[name] += bounds[0] <= true <= bounds[1]
    assert min(covered.values()) >= 88


def test_a_rate_of_all_rows_is_still_not_certain() -> None:
    found = rate(30, 30)
    assert found.value == 1 and found.low == pytest.approx(0.886, abs=0.001)
    assert intervals(["accuracy"], Scores(np.ones(30), np.ones(30), np.eye(2)[np.ones(30, int)]))["accuracy"]


def test_rows_that_tell_no_interval_give_none() -> None:
    perfect = coin(50, 0)._replace(probability=np.eye(2)[coin(50, 0).truth])
    assert intervals(["roc_auc"], perfect) == {"roc_auc": None}
    one_class = coin(50, 0)._replace(truth=np.zeros(50, np.int64))
    assert intervals(["roc_auc", "recall"], one_class) == {"roc_auc": None, "recall": None}
    assert mean(np.array([1.0])) == Estimate(1.0) and mean(np.ones(5)) == Estimate(1.0)


def test_equal_rows_have_equal_intervals_whatever_stands_beside_them() -> None:
    alone = intervals(["roc_auc"], coin(200, 1))
    assert intervals(["log_loss", "accuracy", "roc_auc"], coin(200, 1))["roc_auc"] == alone["roc_auc"]


def test_the_difference_of_two_rates_is_newcombes() -> None:
    """The example of his paper: 56 of 70 against 48 of 80, 0.2 with the interval 0.0524 to 0.3339."""
    found = difference(rate(56, 70), rate(48, 80))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


# Slices


values = st.one_of(
    st.lists(st.none() | st.sampled_from(["a", "b", "null", "other values", "$x$"]), max_size=60).map(pa.array),
    st.lists(st.none() | st.text(max_size=3), max_size=80).map(lambda each: pa.array(each, pa.string())),
    st.lists(st.none() | st.integers(-(2**40), 2**40), max_size=80).map(lambda each: pa.array(each, pa.int64())),
    st.lists(st.none() | st.floats(), max_size=80).map(lambda each: pa.array(each, pa.float64())),
    st.lists(st.none() | st.booleans(), max_size=30).map(lambda each: pa.array(each, pa.bool_())),
    st.lists(st.none() | st.datetimes(pd.Timestamp("1900-01-01"), pd.Timestamp("2200-01-01")), max_size=60).map(
        lambda each: pa.array(each, pa.timestamp("us"))
    ),
    st.lists(st.none() | st.dates(), max_size=60).map(lambda each: pa.array(each, pa.date32())),
    st.lists(st.none() | st.lists(st.integers(0, 2), max_size=2), max_size=30).map(
        lambda each: pa.array(each, pa.list_(pa.int64()))
    ),
)


@given(values)
def test_every_row_is_in_one_slice_and_no_value_is_two(array: pa.Array) -> None:
    parts = slices_of(pa.chunked_array([array]), most=5)
    rows = np.sort(np.concatenate([part.rows for part in parts])) if parts else np.array([], int)
    assert rows.tolist() == list(range(len(array)))
    assert len(parts) <= 7
    assert all(len(part.rows) for part in parts)
    assert [part.kind for part in parts].count("null") <= 1


def test_the_commonest_values_stay_and_the_rest_are_one() -> None:
    column = pa.chunked_array([pa.array(["rare"] + ["a"] * 9 + ["b"] * 5 + ["rarer", None])])
    found = [(part.value, part.kind, len(part.rows)) for part in slices_of(column, most=2)]
    assert found == [("a", "value", 9), ("b", "value", 5), ("no value", "null", 1), ("2 other values", "other", 2)]


def test_many_numbers_are_parted_at_their_quartiles() -> None:
    parts = slices_of(pa.chunked_array([pa.array([*range(100), None])]))
    assert [(part.value, part.kind) for part in parts] == [
        ("0 to below 25", "range"),
        ("25 to below 50", "range"),
        ("50 to below 75", "range"),
        ("75 to 99", "range"),
        ("no value", "null"),
    ]


def test_whole_numbers_with_nulls_read_as_whole() -> None:
    parts = slices_of(pa.chunked_array([pa.array([3, 3, None, 10])]))
    assert [part.value for part in parts] == ["3", "10", "no value"]


def test_a_column_of_nulls_is_one_slice() -> None:
    for kind in (pa.null(), pa.string(), pa.float64()):
        (part,) = slices_of(pa.chunked_array([pa.nulls(7, kind)]))
        assert (part.value, part.kind, len(part.rows)) == ("no value", "null", 7)


def test_a_slice_says_what_it_cannot_tell() -> None:
    scores = coin(100, 0)
    scores.truth[:40] = 1
    parts = [Slice("one class", "value", np.arange(40)), Slice("few", "value", np.arange(40, 69))]
    one_class, few = measured(parts, scores, ["roc_auc", "accuracy"], min_rows=30)
    assert set(one_class["metrics"]) == {"accuracy"} and "one class" in one_class["undefined"]["roc_auc"]
    assert (few["rows"], few["metrics"], few["note"]) == (29, {}, "fewer than 30 rows")


# Fairness


def parts_of(*sizes: int) -> list[Slice]:
    ends = np.cumsum([0, *sizes])
    return [Slice(str(index), "value", np.arange(*ends[index : index + 2])) for index in range(len(sizes))]


def twice(scores: Scores) -> Scores:
    probability = None if scores.probability is None else np.tile(scores.probability, (2, 1))
    return Scores(np.tile(scores.truth, 2), np.tile(scores.prediction, 2), probability)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_identical_groups_do_not_differ(task: Any) -> None:
    scores = coin(300, 0) if task != "regression" else Scores(np.arange(300.0), np.arange(300.0) ** 0.9)
    found = differences(task, parts_of(300, 300), twice(scores), min_rows=30)
    assert list(found) == [name for name, tasks in FAIRNESS.items() if task in tasks]
    for each in found.values():
        assert each["value"] == 0 and each["low"] < 0 < each["high"]


def test_a_difference_is_what_its_definition_says() -> None:
    truth = np.array([1] * 100 + [0] * 100 + [1] * 100 + [0] * 100)
    said = np.array([1] * 90 + [0] * 10 + [1] * 20 + [0] * 80 + [1] * 60 + [0] * 40 + [1] * 30 + [0] * 70)
    found = differences("binary", parts_of(200, 200), Scores(truth, said), min_rows=30)
    assert {name: each["value"] for name, each in found.items()} == pytest.approx(
        {
            "selection_rate_difference": 0.55 - 0.45,
            "tpr_difference": 0.9 - 0.6,
            "fpr_difference": 0.3 - 0.2,
            "accuracy_difference": 0.85 - 0.65,
        }
    )
    assert (found["tpr_difference"]["most"], found["fpr_difference"]["most"]) == ("0", "1")
    assert found["tpr_difference"]["low"] > 0 > found["fpr_difference"]["low"]


def test_a_difference_of_numbers_has_a_sign_only_in_its_names() -> None:
    truth, said = np.zeros(200), np.concatenate([np.full(100, -1.0), np.full(100, 3.0)]) + np.linspace(-1, 1, 200)
    found = differences("regression", parts_of(100, 100), Scores(truth, said), min_rows=30)
    assert found["mean_error_difference"]["most"] == "0"
    assert found["mean_error_difference"]["value"] > 3


def test_groups_too_small_to_tell_are_named_and_not_compared() -> None:
    scores = coin(130, 0)
    scores.truth[:60] = np.r_[np.ones(5, int), np.zeros(55, int)]
    found = differences("binary", parts_of(60, 60, 10), scores, min_rows=20)
    assert found["tpr_difference"]["value"] is None
    assert found["tpr_difference"]["left_out"] == ["0", "2"]
    assert found["selection_rate_difference"]["value"] is not None
    assert found["selection_rate_difference"]["left_out"] == ["2"]


def test_of_many_equal_groups_the_farthest_are_rarely_called_different() -> None:
    """Six groups of one coin: without the correction for 15 pairs, more than a third would be."""
    called = sum(
        differences("binary", parts_of(*[200] * 6), coin(1200, seed), min_rows=30)["selection_rate_difference"]["low"]
        > 0
        for seed in range(60)
    )
    assert called <= 8


# Calibration, confusion, residuals


def test_a_calibrated_model_has_a_small_error_and_a_sure_one_a_great_one() -> None:
    good = calibration(coin(20_000, 0))
    assert good["ece"] < 0.015 and len(good["bins"]) == 10
    assert sum(each["observed"]["low"] <= each["predicted"] <= each["observed"]["high"] for each in good["bins"]) >= 7
    scores = coin(20_000, 0)
    bold = np.clip((scores.probability[:, 1] - 0.5) * 3 + 0.5, 0, 1)  # type: ignore[index]
    assert calibration(scores._replace(probability=np.column_stack([1 - bold, bold])))["ece"] > 0.1


@given(st.integers(1, 60), st.integers(2, 4), st.data())
def test_calibration_counts_every_row(rows: int, classes: int, data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.integers(0, 3), min_size=rows * classes, max_size=rows * classes))
    raw = np.array(cells, float).reshape(rows, classes) + 1e-9
    probability = raw / raw.sum(axis=1, keepdims=True)
    truth = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    found = calibration(Scores(truth, probability.argmax(axis=1), probability))
    assert sum(each["rows"] for each in found["bins"]) == rows
    assert 0 <= found["ece"] <= 1 and 0 <= found["brier"] <= 2
    counts = confusion(Scores(truth, probability.argmax(axis=1), probability), classes)
    assert np.sum(counts) == rows and np.shape(counts) == (classes, classes)


def test_residuals_are_true_minus_predicted() -> None:
    found = residuals(Scores(np.arange(100.0), np.arange(100.0) - 2 + np.tile([-1.0, 1.0], 50)))
    assert found["mean"]["value"] == 2 and found["mean"]["low"] < 2 < found["mean"]["high"]
    assert found["quantiles"]["0.5"] == pytest.approx(2)


# Importance


def a_model(columns: dict[str, str], estimator: Any, task: Any = "binary") -> Model:
    facts = Facts(task=task, target="y", columns=columns, watched=tuple(columns), classes=(0, 1), hash_columns=())
    return Model(estimator, facts, None)  # type: ignore[arg-type]


def fitted(rows: int = 3000) -> tuple[Model, pa.Table, Any]:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({name: random.normal(size=rows) for name in ("much", "little", "idle")})
    truth = (random.random(rows) < 1 / (1 + np.exp(-3 * frame["much"] - frame["little"]))).astype(int).to_numpy()
    estimator = make_pipeline(FunctionTransformer(), StandardScaler(), LogisticRegression()).fit(frame, truth)
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    return a_model(dict.fromkeys(frame.columns, "double"), estimator), table, truth


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss"])
def test_a_column_matters_as_much_as_the_model_uses_it(metric: str) -> None:
    model, table, truth = fitted()
    found = importance(model, table, truth, metric, 2000)
    by_name = {each["column"]: each["mean"] for each in found["columns"]}
    assert list(by_name) == ["much", "little", "idle"]
    assert by_name["much"] > 5 * by_name["little"] > 0
    assert abs(by_name["idle"]) < 0.002
    assert (found["rows"], found["repeats"], found["metric"]) == (2000, REPEATS, metric)
    assert importance(model, table, truth, metric, 2000) == found


def test_importances_are_sklearns_within_their_spread() -> None:
    model, table, truth = fitted()
    ours = {each["column"]: each for each in importance(model, table, truth, "roc_auc", 3000)["columns"]}
    theirs = permutation_importance(
        model.estimator, table.to_pandas(), truth, scoring="roc_auc", n_repeats=REPEATS, random_state=1
    )
    for name, each in zip(table.column_names, theirs.importances_mean, strict=True):
        assert ours[name]["mean"] == pytest.approx(each, abs=0.01)


def test_more_columns_are_looked_at_on_fewer_rows_and_keep_their_types() -> None:
    count = 200
    names = [f"c{index}" for index in range(count)]
    table = pa.table({name: pa.array(["a", None] * 1500) for name in names})
    asked = []

    class Watch:
        def predict_proba(self, rows: pd.DataFrame) -> Any:
            asked.append(len(rows))
            assert list(rows.columns) == names
            assert set(rows.dtypes) == set(table.slice(0, 2).to_pandas().dtypes)
            chance = (rows["c7"] == "a").to_numpy(dtype=float)
            return np.column_stack([1 - chance, chance])

    truth = np.tile([1, 0], 1500)
    found = importance(a_model(dict.fromkeys(names, "string"), Watch()), table, truth, "accuracy", 1000)
    assert found["rows"] == BUDGET // (REPEATS * count)
    assert sum(asked) <= BUDGET + found["rows"]
    assert found["columns"][0]["column"] == "c7" and found["columns"][0]["mean"] == pytest.approx(0.5, abs=0.1)
    assert {each["mean"] for each in found["columns"][1:]} == {0.0}


def test_a_model_that_refuses_shuffled_rows_is_no_failure() -> None:
    class Picky:
        def predict_proba(self, rows: pd.DataFrame) -> Any:
            if not (rows["a"] == rows["b"]).all():
                raise ValueError("a must be b")
            return np.full((len(rows), 2), 0.5)

    table = pa.table({"a": np.arange(50.0), "b": np.arange(50.0)})
    found = importance(a_model({"a": "double", "b": "double"}, Picky()), table, np.tile([0, 1], 25), "accuracy", 50)
    assert "ValueError: a must be b" in found["problem"]


def test_one_class_among_the_rows_looked_at_is_told() -> None:
    model, table, truth = fitted(200)
    found = importance(model, table, np.zeros_like(truth), "roc_auc", 100)
    assert found["problem"] == "roc_auc is not defined on the 100 rows looked at"
