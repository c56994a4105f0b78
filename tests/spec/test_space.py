"""The search space: what is a range, what are choices, and what is neither."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from airflow_mlops.cli.lint import lint
from airflow_mlops.spec.space import Choices, Range, Space, grid_point, grid_size
from tests import toy
from tests.spec.generated import choices, ranges, spaces, steps

SPACE: TypeAdapter[dict[str, Range | Choices]] = TypeAdapter(Space)


def one(value: Any) -> Range | Choices:
    return SPACE.validate_python({"x": value})["x"]


@given(spaces)
def test_a_space_crosses_the_wire_unchanged(value: dict[str, Any]) -> None:
    space = SPACE.validate_python(value)
    assert repr(SPACE.validate_json(SPACE.dump_json(space))) == repr(space)


@given(ranges)
def test_a_range_keeps_its_ends_and_their_kind(value: dict[str, Any]) -> None:
    found = one(value)
    assert isinstance(found, Range)
    assert (found.low, found.high, found.log) == (value["low"], value["high"], value["log"])
    assert found.whole == (isinstance(value["low"], int) and isinstance(value["high"], int))
    assert (found.count is None) == (not found.whole)


@given(ranges)
def test_a_range_the_wrong_way_round_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"low .* is above high .*; try: \{low: "):
        one({**value, "low": value["high"], "high": value["low"]})


@given(steps)
def test_steps_lead_from_low_to_high(value: dict[str, Any]) -> None:
    found = one(value)
    assert isinstance(found, Range) and found.count is not None
    said = [found.value(index) for index in range(found.count)]
    assert (said[0], said[-1]) == (value["low"], value["high"])
    assert {after - before for before, after in itertools.pairwise(said)} == {value["step"]}
    assert all(isinstance(each, int) for each in said)


@given(choices)
def test_choices_are_told_apart_by_what_they_are(value: dict[str, Any]) -> None:
    found = one(value)
    assert isinstance(found, Choices)
    assert repr(list(found.choices)) == repr(value["choices"])
    assert len(set(found.labels)) == found.count == len(value["choices"])


@given(st.dictionaries(st.sampled_from("abc"), steps.filter(lambda s: s["high"] - s["low"] < 8) | choices, min_size=1))
def test_a_grid_has_every_point_once(value: dict[str, Any]) -> None:
    space = SPACE.validate_python(value)
    size = grid_size(space)
    assert size is not None
    points = {tuple(sorted(grid_point(space, index).items())) for index in range(size)}
    assert len(points) == size
    for name, dimension in space.items():
        assert {dict(point)[name] for point in points} == set(range(dimension.count or 0))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"low": 3, "high": 3}, "low and high are both 3; try: write the one value under train.params"),
        ({"low": 0, "high": 1.0, "log": True}, "a logarithmic range cannot start at 0"),
        ({"low": 1, "high": 8, "log": True, "step": 1}, "a logarithmic range has no step"),
        ({"low": 0.0, "high": 1.0, "step": 0.3}, "steps of 0.3 do not lead from 0.0 to 1.0"),
        ({"low": 0, "high": 10, "step": -1}, "steps of -1 do not lead"),
        ({"low": 0.0, "high": float("inf")}, "has no end"),
        ({"low": True, "high": 3}, "Input should be a valid integer"),
        ({"choices": ["a"]}, "at least 2 items"),
        ({"choices": [1, [float("inf")]]}, "a choice is no finite number"),
        ({"choices": ["a", "b", "a"]}, 'the choice "a" stands twice'),
    ],
)
def test_what_is_no_dimension_says_why(value: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        one(value)


def test_one_and_true_are_two_choices() -> None:
    assert one({"choices": [1, True, 1.0]}).count == 3


SOUND = {"C": {"low": 0.1, "high": 1.0}}


@pytest.mark.parametrize(
    ("tune", "line", "said"),
    [
        ({"space": {"C": {"low": 9, "high": 2}}}, "C:", "tune.space.C: low 9 is above high 2; try: {low: 2, high: 9}"),
        (
            {"sampler": "tpee", "space": SOUND},
            "sampler:",
            "tune.sampler is 'tpee'; allowed: 'tpe', 'random' or 'grid'; try: tpe",
        ),
        (
            {"pruner": "medain", "space": SOUND},
            "pruner:",
            "is 'medain'; allowed: 'none', 'median' or 'hyperband'; try: median",
        ),
        ({"space": {"C": {"low": 1, "high": 2, "lg": True}}}, "lg:", "unknown key 'lg'; allowed: low, high, log, step"),
        ({"space": {"C": {"choices": [1, 2], "log": True}}}, "log:", "unknown key 'log'; allowed: choices"),
        ({"space": {}}, "space:", "tune.space is {}; allowed: 1 or more"),
        ({"space": {"C": {"choices": [1]}}}, "choices:", "tune.space.C.choices is [1]; allowed: 2 or more"),
        ({"space": {"C": [1, 2]}}, "C:", "tune.space.C: a list is no range; try: {choices: [1, 2]}"),
        ({"space": {"C": 1}}, "C:", "tune.space.C: 1 leaves nothing to search; try: write it under train.params"),
        ({"sampler": "grid", "space": SOUND}, "C:", "a grid over 'C' would have no end; try: give the range a step"),
        ({"space": SOUND, "metric": "auc"}, "metric:", "there is no metric 'auc'; allowed: roc_auc"),
        ({"space": SOUND, "metric": "rmse"}, "metric:", "a classifier has no metric 'rmse'"),
        ({"space": SOUND, "trials": 3, "as_tasks": 4}, "as_tasks:", "3 trials are too few for 4 tasks"),
        ({"space": {"c": {"low": 1, "high": 2}}}, "c:", "LogisticRegression has no parameter 'c'; allowed: C"),
    ],
)
def test_lint_names_the_line_of_a_mistake(tmp_path: Path, tune: dict[str, Any], line: str, said: str) -> None:
    file = tmp_path / "toy.yaml"
    body = {"name": "toy", "data": {"source": "a.parquet", "target": "y"}, "train": {"estimator": toy.ESTIMATOR}}
    file.write_text(yaml.safe_dump({**body, "tune": tune}, sort_keys=False))
    number = 1 + next(n for n, text in enumerate(file.read_text().splitlines()) if text.strip().startswith(line))
    (problem,) = lint([str(file)])
    assert problem.startswith(f"{file}:{number}: pipeline 'toy', stage 'tune': ")
    assert said in problem


def test_a_function_must_be_told_its_metric(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def fit(X, y, params): ...\n")
    toy.declare(tmp_path, train={"estimator": None, "function": "own:fit"}, tune={"space": SOUND})
    (problem,) = lint([str(tmp_path / "toy.yaml")])
    assert problem.endswith(
        "stage 'tune': a function does not say what its model predicts, and so by which metric; try: tune.metric"
    )
