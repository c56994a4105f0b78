"""Training: what is logged is all that is needed to use the model, and what cannot be trained says why."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.code import snapshot
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import CodeError, DataError, MlopsError, SchemaError
from airflow_mlops.registry.mlflow_api import mlflow_api, pointed_at
from airflow_mlops.stages.model_io import Facts, loaded, raw_rows, read_facts
from airflow_mlops.stages.tables import write_table
from tests import toy
from tests.forked import printed
from tests.toy import World

USER_CODE = """
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression

def build(frame):
    return frame[["amount"]].assign(north=(frame["region"] == "north").astype(float))

class Clip(BaseEstimator, TransformerMixin):
    def __init__(self, at=2.0):
        self.at = at
    def fit(self, X, y=None):
        self.seen_ = len(X)
        return self
    def transform(self, X):
        return np.clip(np.asarray(X, dtype=float), -self.at, self.at)

def scaler():
    return Clip()

def fit(X, y, params):
    assert list(X.columns) == ["amount", "north"]
    return LogisticRegression(**params).fit(X, y)

def nothing(X, y, params):
    return "no model"

class Plain:
    def predict(self, X):
        return np.zeros(len(X))

class Mean(BaseEstimator):
    def fit(self, X, y):
        self.mean_ = float(np.mean(y))
        return self
    def predict(self, X):
        return np.full(len(X), self.mean_)

class Said(Mean):
    def __init__(self, what=None):
        self.what = what
    def predict(self, X):
        return self.what[:] if self.what else 1 / 0

def short(X, y, params):
    return Said([1]).fit(X, y)

def broken(X, y, params):
    return Said().fit(X, y)

def plain(X, y, params):
    return Plain()

def mean(X, y, params):
    return Mean().fit(X, y)

def local(X, y, params):
    class Local(Mean):
        pass
    return Local().fit(X, y)

def not_a_transformer():
    return 7
"""
ELSEWHERE = """
import json, sys
import mlflow, pandas as pd
from airflow_mlops.call import Call
from airflow_mlops.call.dispatch import run
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
said = model.predict(pd.read_parquet(sys.argv[3]))
again = run(Call.model_validate_json(sys.argv[4]))
print(json.dumps([said.tolist(), again.outputs["model"].digest]))
"""


def call_of(world: World, table: pa.Table, run_id: str = "r", **params: Any) -> Call:
    store = Store(world.store)
    named = [params[name] for name in ("features", "preprocess", "function") if name in params]
    way = {} if "function" in params else {"estimator": toy.ESTIMATOR}
    return Call(
        pipeline="toy",
        stage="train",
        run=run_id,
        window=toy.month("2024-01"),
        inputs={"train": write_table(table, store)},
        params={"target": "y", "exclude": ["id", "at"], **way, **params},
        code=snapshot(named, str(world.folder), store) if named else None,
        store=world.store,
        registry=world.registry,
    )


def files_of(outcome: Outcome, world: World) -> dict[str, Path]:
    with pointed_at(world.registry.uri):
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=outcome.outputs["model"].uri))
    return {file.name: file for file in folder.rglob("*") if file.is_file()}


def facts_of(outcome: Outcome, world: World) -> Facts:
    return read_facts(mlflow_api(world.registry.uri), outcome.info["run_id"])


def pyfunc_says(outcome: Outcome, world: World, table: pa.Table) -> Any:
    facts = facts_of(outcome, world)
    with pointed_at(world.registry.uri):
        return mlflow.pyfunc.load_model(outcome.outputs["model"].uri).predict(raw_rows(table, facts))


@pytest.mark.parametrize(
    ("estimator", "params", "task"),
    [
        ("linear_model.LogisticRegression", {}, "binary"),
        ("ensemble.HistGradientBoostingClassifier", {"max_iter": 5, "categorical_features": [2]}, "binary"),
        ("ensemble.RandomForestClassifier", {"n_estimators": 5}, "binary"),
        ("ensemble.HistGradientBoostingRegressor", {"max_iter": 5}, "regression"),
        ("ensemble.RandomForestRegressor", {"n_estimators": 5}, "regression"),
    ],
)
def test_a_model_is_logged_without_a_pickle_and_takes_raw_rows(
    world: World, estimator: str, params: dict[str, Any], task: str
) -> None:
    table = toy.rows("2024-01")
    outcome = run(call_of(world, table, estimator=f"sklearn.{estimator}", model_params=params))
    files = files_of(outcome, world)
    assert "model.skops" in files
    assert not [name for name in files if Path(name).suffix in (".pkl", ".pickle", ".joblib")]
    said = pyfunc_says(outcome, world, table)
    truth = table["y"].to_numpy()
    assert np.corrcoef(said, truth)[0, 1] > 0.4
    facts = facts_of(outcome, world)
    assert (facts.task, outcome.info["task"]) == (task, task)
    assert facts.classes == ((0, 1) if task == "binary" else ())
    assert list(facts.columns) == ["amount", "age", "region", "member"] == list(facts.watched)


@pytest.mark.parametrize("kind", ["text", "boolean"])
def test_classes_may_be_texts_or_booleans(world: World, kind: str) -> None:
    table = toy.rows("2024-01")
    labels = table["y"].to_pylist()
    classes: list[Any] = ["high", "low", "middle"] if kind == "text" else [False, True]
    target = [classes[(label + (index % 2 if kind == "text" else 0))] for index, label in enumerate(labels)]
    table = table.set_column(table.column_names.index("y"), "y", pa.array(target))
    outcome = run(call_of(world, table))
    facts = facts_of(outcome, world)
    assert (facts.task, facts.classes) == ("multiclass" if kind == "text" else "binary", tuple(classes))
    assert set(np.asarray(pyfunc_says(outcome, world, table)).tolist()) <= set(classes)


def test_a_model_of_the_users_own_code_works_in_a_process_that_does_not_have_it(world: World) -> None:
    toy.package(world.folder / "code", "own_code", USER_CODE)
    inside = world._replace(folder=world.folder / "code")
    table = toy.rows("2024-01")
    call = call_of(inside, table, features="own_code.features:build", preprocess="own_code.features:scaler")
    outcome = run(call)
    assert not [name for name in files_of(outcome, world) if name.endswith(".pkl")]
    rows = toy.write(toy.rows("2024-02", 50).drop_columns(["y"]), world.folder / "rows.parquet")
    elsewhere = world.folder / "elsewhere"
    elsewhere.mkdir()
    said, digest = printed(
        ELSEWHERE,
        world.registry.uri,
        outcome.outputs["model"].uri,
        str(rows),
        call.model_copy(update={"run": "another", "cache": False}).model_dump_json(),
        cwd=elsewhere,
    )
    assert said == np.asarray(pyfunc_says(outcome, world, toy.rows("2024-02", 50))).tolist()
    # Equal rows, code and params give an equal model, in whatever process.
    assert digest == outcome.outputs["model"].digest


def test_other_rows_params_or_code_give_another_digest(world: World) -> None:
    toy.package(world.folder, "two_ways", USER_CODE)
    table = toy.rows("2024-01")
    calls = [
        call_of(world, table, "a"),
        call_of(world, table.slice(1), "b"),
        call_of(world, table, "c", model_params={"C": 0.5}),
        call_of(world, table, "d", features="two_ways.features:build"),
    ]
    assert len({run(call).outputs["model"].digest for call in calls}) == 4
    assert run(call_of(world, table, "e")).outputs["model"].digest == run(calls[0]).outputs["model"].digest


def test_a_function_may_train_the_model(world: World) -> None:
    toy.package(world.folder, "by_function", USER_CODE)
    table = toy.rows("2024-01")
    features = {"features": "by_function.features:build"}
    outcome = run(call_of(world, table, function="by_function.features:fit", model_params={"C": 0.1}, **features))
    assert np.corrcoef(pyfunc_says(outcome, world, table), table["y"].to_numpy())[0, 1] > 0.4


def test_a_model_class_of_the_users_own_may_leave_the_task_to_the_declaration(world: World) -> None:
    toy.package(world.folder, "own_model", USER_CODE)
    table = toy.rows("2024-01")
    outcome = run(call_of(world, table, function="own_model.features:mean", ml_task="regression"))
    says = pyfunc_says(outcome, world, table)
    assert says.tolist() == pytest.approx([np.mean(table["y"].to_numpy())] * 400)


def test_a_retry_trains_nothing_again(world: World) -> None:
    call = call_of(world, toy.rows("2024-01"))
    assert run(call) == run(call)
    with pointed_at(world.registry.uri):
        runs = mlflow.MlflowClient().search_runs([_experiment(world)])
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    assert runs[0].data.metrics["train_rows"] == 400
    assert runs[0].data.params["estimator"] == toy.ESTIMATOR


def _experiment(world: World) -> str:
    return toy.registry_of(world.store, world.registry).api.experiment_id(world.registry.experiment)


def test_the_default_preprocessing_takes_texts_booleans_dates_times_and_nulls(world: World) -> None:
    count = 120
    table = pa.table(
        {
            "number": pa.array([index % 7 if index % 5 else None for index in range(count)], pa.float64()),
            "whole": pa.array([index % 3 if index % 4 else None for index in range(count)], pa.int64()),
            "text": pa.array(["abc"[index % 3] if index % 6 else None for index in range(count)]),
            "flag": pa.array([index % 2 == 0 for index in range(count)]),
            "maybe": pa.array([index % 2 == 0 if index % 3 else None for index in range(count)]),
            "day": pa.array([date(2024, 1, 1 + index % 28) for index in range(count)]),
            "at": pa.array([datetime(2024, 1, 1 + index % 28) for index in range(count)], pa.timestamp("us")),
            "nothing": pa.nulls(count, pa.float64()),
            "y": pa.array([int(index % 7 > 3) for index in range(count)]),
        }
    )
    outcome = run(call_of(world, table, exclude=[]))
    assert outcome.metrics["features"] > 8
    said = pyfunc_says(outcome, world, table)
    assert np.mean(said == table["y"].to_numpy()) > 0.7
    # Rows of a later window: no nulls, new texts, and another column empty.
    later = table.slice(0, 3)
    later = later.set_column(2, "text", pa.array(["a", "new", "b"]))
    later = later.set_column(4, "maybe", pa.array([True, False, True]))
    later = later.set_column(0, "number", pa.nulls(3))
    assert len(pyfunc_says(outcome, world, later)) == 3


def test_what_serving_sees_is_what_training_saw(world: World) -> None:
    """A boolean column with nulls is objects in pandas, and one without is not."""
    values = [True, False, None, True] * 50
    table = pa.table({"maybe": values, "y": [int(value is True) for value in values]})
    outcome = run(call_of(world, table, exclude=[]))
    says = pyfunc_says(outcome, world, pa.table({"maybe": [True, False]}))
    assert np.asarray(says).tolist() == [1, 0]


def untrainable(world: World, said: str, error: type[MlopsError], table: pa.Table | None = None, **params: Any) -> None:
    with pytest.raises(error, match=said) as caught:
        run(call_of(world, toy.rows("2024-01") if table is None else table, **params))
    assert type(caught.value) is error and not caught.value.retryable
    assert "pipeline 'toy', stage 'train'" in str(caught.value)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"model_params": {"c": 1}}, r"LogisticRegression has no parameter 'c'; allowed: .*max_iter"),
        ({"model_params": {"C": -1}}, "LogisticRegression raised InvalidParameterError.*'C'"),
        ({"estimator": "sklearn.linear_model.LogisticRegresion"}, "try: sklearn.linear_model.LogisticRegression"),
        ({"estimator": "sklearn.nothing.Here"}, "cannot be imported: ModuleNotFoundError"),
        ({"estimator": "sklearn.base.clone"}, "is no estimator class"),
        ({"features": "faulty.features:build", "function": "faulty.features:nothing"}, "gives str; allowed: a fitted"),
        ({"function": "faulty.features:plain"}, "Plain is no scikit-learn estimator; try: let it inherit"),
        (
            {"function": "faulty.features:mean"},
            "Mean does not say whether it .*; try: declare task",
        ),
        ({"function": "faulty.features:mean", "ml_task": "binary"}, "Mean has no classes_"),
        ({"preprocess": "faulty.features:not_a_transformer"}, "gives int; allowed: an unfitted transformer"),
        (
            {"function": "faulty.features:short", "ml_task": "regression"},
            "predict of Said gives 1 predictions for 5 rows; allowed: one prediction for each row",
        ),
        (
            {"function": "faulty.features:broken", "ml_task": "regression"},
            "predict of Said raised ZeroDivisionError: division by zero",
        ),
        (
            {"function": "faulty.features:local", "ml_task": "regression"},
            "written with skops: .*at the top of",
        ),
        ({"function": "faulty.features:fit"}, "faulty.features:fit raised AssertionError"),
    ],
)
def test_code_that_does_not_train_is_named(world: World, params: dict[str, Any], said: str) -> None:
    toy.package(world.folder, "faulty", USER_CODE)
    untrainable(world, said, CodeError, **params)


def test_a_target_that_cannot_be_learned_is_told(world: World) -> None:
    table = toy.rows("2024-01")
    place = table.column_names.index("y")
    untrainable(world, "no column 'y'", SchemaError, table.drop_columns(["y"]))
    one_class = table.set_column(place, "y", pa.array([1] * 400))
    untrainable(world, "has one class only, 1, in all 400 training rows", DataError, one_class)
    nulls = table.set_column(place, "y", pa.array([None, *[1, 0, 1] * 133]))
    untrainable(world, "'y' has 1 nulls", DataError, nulls)
    untrainable(world, "declared 'regression', but model and target say 'binary'", DataError, ml_task="regression")


def test_rows_that_cannot_be_learned_from_are_told(world: World) -> None:
    table = toy.rows("2024-01")
    place = table.column_names.index("amount")
    infinite = table.set_column(place, "amount", pa.array([float("inf"), *[1.0] * 399]))
    untrainable(world, "infinity.*replace infinite values", CodeError, infinite)
    untrainable(world, "no column is left", DataError, table.select(["id", "y"]))
    untrainable(world, "none of the columns at is a number", DataError, table.select(["at", "y"]), exclude=[])


def test_what_failed_has_left_nothing(world: World) -> None:
    toy.months(world.folder)
    before = toy.state_of(world)
    untrainable(world, "has no parameter", CodeError, model_params={"c": 1})
    assert toy.state_of(world) == before
    assert Store(world.store).names("outcomes") == []


def test_a_model_that_was_changed_after_training_is_not_loaded(world: World) -> None:
    outcome = run(call_of(world, toy.rows("2024-01")))
    facts = facts_of(outcome, world)
    tampered = facts.model_copy(update={"model_digest": "sha256:0"})
    with (
        pytest.raises(MlopsError, match="is not the one that was trained"),
        loaded(tampered, world.folder / "model", mlflow_api(world.registry.uri)),
    ):
        pass


def test_a_pickled_model_is_the_users_choice(world: World) -> None:
    outcome = run(call_of(world, toy.rows("2024-01"), serialization="cloudpickle"))
    assert "model.pkl" in files_of(outcome, world)
    facts = facts_of(outcome, world)
    with loaded(facts, world.folder / "model", mlflow_api(world.registry.uri)) as model:
        assert len(model.predict(raw_rows(toy.rows("2024-02", 9), facts))) == 9
