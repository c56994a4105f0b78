"""Rows against the champion's training: nothing to compare with, schema skew, value skew, and how many there are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.window import parse_key
from airflow_mlops.stages.tables import write_table
from tests import toy
from tests.toy import World

SCHEMA: dict[str, Any] = {"columns": {"amount": {"type": "number"}}, "extra_columns": "allow"}


@pytest.fixture(scope="module")
def trained(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A champion of January."""
    folder = tmp_path_factory.mktemp("trained")
    world = World(folder, str(folder / "store"), toy.registry_ref(mlflow_server, f"skew-{folder.name}"))
    toy.months(folder, ["2024-01"])
    toy.run_plan(toy.declare(folder, "skewed"), "2024-01", "train", world.store, world.registry)
    yield world


def validated(world: World, table: pa.Table, **body: Any) -> Outcome:
    params = {"schema": {**SCHEMA, **body}, "target": "y", "time": "at"}
    return run(
        Call(
            pipeline="skewed",
            stage="validate_data",
            run="v",
            window=parse_key("month", "2024-02"),
            inputs={"data": write_table(table, Store(world.store))},
            params=params,
            store=world.store,
            registry=world.registry,
        )
    )


def test_before_the_first_champion_there_is_nothing_to_compare_with(mlflow_server: str, tmp_path: Path) -> None:
    world = World(tmp_path, str(tmp_path / "store"), toy.registry_ref(mlflow_server, f"none-{tmp_path.name}"))
    outcome = validated(world, toy.rows("2024-02"), skew={"on_skew": "retrain"}, volume={})
    assert outcome.verdict.status == "ok"
    assert outcome.verdict.reasons == ("there is no champion yet, so the rows were compared with nothing",)
    assert outcome.info == {}


def test_rows_like_the_champions_pass(trained: World) -> None:
    outcome = validated(trained, toy.rows("2024-02"), skew={"on_skew": "retrain"}, volume={})
    assert (outcome.verdict.status, outcome.verdict.reasons) == ("ok", ())
    assert outcome.info["champion"] == "1" and "skew" not in outcome.info


@pytest.mark.parametrize(("on_skew", "asks"), [("warn", None), ("retrain", "retrain")])
def test_values_that_moved_warn_and_ask_where_they_should(trained: World, on_skew: str, asks: str | None) -> None:
    outcome = validated(trained, toy.rows("2024-02", shift=1.5), skew={"on_skew": on_skew})
    assert outcome.verdict.status == "warn"
    (reason,) = outcome.verdict.reasons
    assert reason.startswith("against the champion's training, amount moved by 1.")
    assert outcome.info.get("skew") == asks
    assert validated(trained, toy.rows("2024-02", shift=1.5), skew={"min_effect": 5}).verdict.status == "ok"


def test_few_rows_are_not_compared(trained: World) -> None:
    outcome = validated(trained, toy.rows("2024-02", 100, shift=1.5), skew={})
    assert outcome.verdict.status == "ok"
    assert "the values were not compared: 100 rows" in outcome.verdict.reasons[0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda table: table.drop_columns(["region"]), "the column 'region' is missing, and the champion takes it"),
        (
            lambda table: table.set_column(4, "region", pa.array([1] * len(table))),
            "the column 'region' holds int64, and the champion was trained on string",
        ),
    ],
)
def test_columns_that_changed_stop(trained: World, change: Any, what: str) -> None:
    with pytest.raises(SchemaError, match=what):
        validated(trained, change(toy.rows("2024-02")), skew={})


def test_the_number_of_rows_is_held_against_the_champions(trained: World) -> None:
    with pytest.raises(SchemaError, match=r"100 rows per window are 0.25 times the 400 of the champion's training"):
        validated(trained, toy.rows("2024-02", 100), volume={})
    assert validated(trained, toy.rows("2024-02", 100), volume={"min_ratio": 0.2}).verdict.status == "ok"
    outcome = validated(trained, toy.rows("2024-02", 1000), volume={"on_violation": "warn"})
    assert outcome.verdict.status == "warn" and "2.50 times" in outcome.verdict.reasons[0]


def test_asking_about_the_champion_brings_no_scikit_learn() -> None:
    code = "import sys, airflow_mlops.stages.skew; print('sklearn' in sys.modules, 'skops' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
