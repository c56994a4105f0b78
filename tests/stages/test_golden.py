"""Golden rows: what training saw, as a client asks for it, and what counts as the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from airflow_mlops.deployments import Answer
from airflow_mlops.registry.mlflow_api import mlflow_api
from airflow_mlops.stages.golden import GOLDEN, Golden, differences, read_golden
from airflow_mlops.stages.model_io import loaded, raw_rows, read_facts
from airflow_mlops.stages.tables import read_table
from tests import toy
from tests.toy import World


def test_training_keeps_rows_with_what_the_fitted_model_said(world: World, tmp_path: Path) -> None:
    import pyarrow as pa

    from airflow_mlops.call import Store

    toy.months(world.folder)
    outcomes = toy.run_plan(toy.declare(world.folder), "2024-01", "a", world.store, world.registry, until="train")
    run_id = outcomes["train"].info["run_id"]
    api = mlflow_api(world.registry.uri)
    golden = read_golden(api.fetch(run_id, GOLDEN, tmp_path))
    facts = read_facts(api, run_id)
    train = read_table(outcomes["prepare"].outputs["train"], Store(world.store))
    with loaded(facts, tmp_path / "model", api) as model:
        frame = raw_rows(train, facts)
        said = model.probability(frame)[:, 1]
    assert len(golden.rows) == 50 and set(golden.columns) == set(facts.columns)
    # As JSON they are what a client sends: no NaN, no time that JSON does not know.
    assert json.loads(json.dumps(golden.rows, allow_nan=False)) == golden.rows
    assert None in {row[golden.columns.index("age")] for row in golden.rows}
    assert golden.probabilities["1"][0] == pytest.approx(said[0])
    assert golden.probabilities["1"][-1] == pytest.approx(said[-1])
    assert isinstance(train, pa.Table)


OWN = Golden(["x"], [[1.0], [2.0]], [0, 1], {"0": [0.9, 0.2], "1": [0.1, 0.8]})


def answer(predictions: list[object], **probabilities: list[float]) -> Answer:
    return Answer("1", predictions, {name.removeprefix("p"): value for name, value in probabilities.items()}, 0.0)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (answer([0, 1], p0=[0.9, 0.2], p1=[0.1, 0.8]), []),
        (answer([0, 1], p0=[0.9, 0.2 + 1e-9], p1=[0.1, 0.8]), []),
        (answer([1, 1], p0=[0.9, 0.2], p1=[0.1, 0.8]), ["1 of 2 golden rows get another label than in training"]),
        (answer([0, 1], p0=[0.9, 0.2]), ["the probability of class 1 is missing from the answer"]),
        (
            answer([0, 1], p0=[0.9, 0.2], p1=[0.1, 0.7]),
            ["a probability of class 1 is 0.1 away from what training saw"],
        ),
        (
            answer([0, 1], p0=[0.9, 0.2], p1=[0.1, math.nan]),
            ["a probability of class 1 is inf away from what training saw"],
        ),
    ],
)
def test_a_difference_beyond_the_tolerance_is_told(said: Answer, told: list[str]) -> None:
    assert differences(OWN, said, 1e-6, regression=False) == told


@pytest.mark.parametrize(("said", "same"), [(1e6 + 0.5, True), (1e6 + 2.0, False), (None, False), ("x", False)])
def test_numbers_beyond_one_are_compared_by_their_share(said: object, same: bool) -> None:
    own = Golden(["x"], [[1.0]], [1e6], {})
    assert (differences(own, Answer("1", [said], {}, 0.0), 1e-6, regression=True) == []) is same
