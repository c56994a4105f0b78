"""The model card: the run's own evidence, with the version, before and after the gate has spoken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.call import Outcome, Store
from airflow_mlops.call.dispatch import run
from airflow_mlops.registry.models import CARD, CARD_TAG
from tests import toy
from tests.toy import World

RANDOM = {"split": {"by": "random", "test": 0.4}}
EASY = {"versus_champion": {"min_rows": 50, "resamples": 200}}
SAID = "Who leaves? <script>alert(1)</script> **soon**"


def with_sex(world: World, count: int = 1000, **columns: Any) -> None:
    for key in toy.MONTHS:
        table = toy.rows(key, count)
        sex = np.random.default_rng(1).choice(["f", "m"], count)
        table = table.append_column("sex", pa.array(sex))
        for name, made in columns.items():
            table = table.append_column(name, made)
        toy.write(table, world.folder / "data" / f"{key}.parquet")


def train(world: World, run_id: str = "a", until: str | None = None, **sections: Any) -> dict[str, Outcome]:
    declaration = toy.declare(world.folder, **{"prepare": RANDOM, "validate_model": EASY, **sections})
    return toy.run_plan(declaration, "2024-01", run_id, world.store, world.registry, until=until)


def card(outcomes: dict[str, Outcome], world: World, name: str = CARD) -> str:
    client = mlflow.MlflowClient(world.registry.uri)
    return Path(client.download_artifacts(outcomes["train"].info["run_id"], name)).read_text(encoding="utf-8")


def test_a_version_has_a_card_of_its_evidence(world: World) -> None:
    with_sex(world)
    sections = {
        "description": SAID,
        "owner": "growth",
        "evaluate": {"plots": True, "slices": "region", "fairness": "sex"},
        "validate_model": {**EASY, "min": {"roc_auc": 0.6}, "max": {"fairness.sex.tpr_difference": 0.5}},
    }
    outcomes = train(world, **sections)
    text, page = card(outcomes, world, "model_card.md"), card(outcomes, world)
    evaluation = Store(world.store).fetch_json(outcomes["evaluate"].outputs["evaluation"])
    low, high = evaluation["intervals"]["roc_auc"]
    area = f"{evaluation['metrics']['roc_auc']:.4f}"
    for told in (
        f"| roc\\_auc (more is better, primary) | {area} | \\[{low:.4f}, {high:.4f}\\] |",
        "growth",
        "**passed** There is no champion yet",
        "| fairness.sex.tpr\\_difference |",
        "| tpr\\_difference |",
        outcomes["prepare"].outputs["train"].digest,
        outcomes["prepare"].outputs["test"].digest,
        outcomes["extract"].outputs["data"].digest,
        outcomes["train"].outputs["model"].digest,
        outcomes["evaluate"].outputs["evaluation"].digest,
        "scikit-learn==",
        "| amount | double |",
        "Too few rows to be measured, in region: no value",
        "![Calibration](plots/calibration.png)",
        f"/#/experiments/{_experiment(world)}/runs/{outcomes['train'].info['run_id']}>)",
    ):
        assert told in text, told
    assert page.count("data:image/png;base64,") == 6
    assert "<script" not in page and "&lt;script&gt;" in page
    assert len(page) < 500_000

    registry = toy.registry_of(world.store, world.registry)
    version = registry.api.version(world.registry.model, "1")
    url = outcomes["evaluate"].info["card_url"]
    assert version.tags[CARD_TAG] == url == outcomes["promote"].info["card_url"]
    assert url.endswith(f"/artifacts/{CARD}")
    (entry,) = registry.ledger.entries()
    assert entry.card == url


def _experiment(world: World) -> str:
    return toy.registry_of(world.store, world.registry).api.experiment_id(world.registry.experiment)


def test_it_is_there_before_the_gate_and_says_so(world: World) -> None:
    with_sex(world)
    outcomes = train(world, until="evaluate")
    assert "**not judged yet**" in card(outcomes, world, "model_card.md")
    version = toy.registry_of(world.store, world.registry).api.version(world.registry.model, "1")
    assert version.tags[CARD_TAG] == outcomes["evaluate"].info["card_url"]


def test_a_rejected_model_has_a_card_with_the_reason(world: World) -> None:
    with_sex(world)
    train(world)
    outcomes = train(world, "b", train={"params": {"C": 1e-6}})
    text = card(outcomes, world, "model_card.md")
    assert "**rejected** Roc\\_auc" in text and "Compared with champion 1 on" in text
    entry = toy.registry_of(world.store, world.registry).ledger.entries()[-1]
    assert (entry.kind, entry.card) == ("rejection", outcomes["validate_model"].info["card_url"])


def test_a_retry_writes_the_same_card_and_the_same_outcome(world: World) -> None:
    with_sex(world)
    sections = {"evaluate": {"plots": True, "slices": ["region", "age"], "fairness": "sex"}}
    for stage in ("evaluate", "validate_model"):
        outcomes = train(world, until=stage, **sections)
        before = card(outcomes, world)
        declaration = toy.declare(world.folder, **{"prepare": RANDOM, "validate_model": EASY, **sections})
        again = run(toy.next_call(declaration, stage, outcomes, "2024-01", "a", world.store, world.registry))
        assert again.digest == outcomes[stage].digest
        assert card(outcomes, world) == before


def test_a_fairness_limit_rejects_and_one_that_cannot_be_told_decides_nothing(world: World) -> None:
    rare = pa.array(["x"] * 985 + ["y"] * 15)
    with_sex(world, rare=rare)
    limits = {"validate_model": {**EASY, "max": {"fairness.sex.selection_rate_difference": 1e-9}}}
    outcomes = train(world, evaluate={"fairness": "sex"}, **limits)
    verdict = outcomes["validate_model"].verdict
    assert verdict.status == "rejected" and "fairness.sex.selection_rate_difference" in verdict.reasons[0]
    assert "promote" not in outcomes

    limits = {"validate_model": {**EASY, "max": {"fairness.rare.tpr_difference": 0.5}}}
    outcomes = train(world, "b", evaluate={"fairness": "rare"}, **limits)
    verdict = outcomes["validate_model"].verdict
    assert verdict.status == "insufficient_data"
    assert verdict.reasons == ("fewer than two values have enough rows to tell fairness.rare.tpr_difference",)
    assert "fewer than two values have enough rows" in card(outcomes, world, "model_card.md")


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_have_cards_too(world: World, task: str) -> None:
    table = toy.rows("2024-01", 900)
    amount = table["amount"].to_numpy() + np.random.default_rng(0).normal(size=900)
    target = amount * 2 if task == "regression" else np.array(["a", "b", "c"])[np.digitize(amount, [-0.5, 0.5])]
    # A column of nulls alone is a slice of its own.
    table = table.set_column(6, "y", pa.array(target)).append_column("empty", pa.nulls(900, pa.string()))
    toy.write(table, world.folder / "data" / "2024-01.parquet")
    estimator = "sklearn.linear_model.Ridge" if task == "regression" else toy.ESTIMATOR
    evaluate = {"plots": True, "slices": ["region", "empty"], "fairness": "member"}
    outcomes = train(world, train={"estimator": estimator}, evaluate=evaluate)
    text = card(outcomes, world, "model_card.md")
    drawn = (
        ("predictions", "residuals", "residuals_by_prediction")
        if task == "regression"
        else ("roc", "precision_recall", "confusion", "calibration")
    )
    for name in (*drawn, "slices", "importance"):
        assert f"(plots/{name}.png)" in text
    assert ("mean\\_error" in text) == (task == "regression")
    assert "| no value |" in text


def test_a_model_without_probabilities_has_no_calibration_and_says_so(world: World) -> None:
    with_sex(world)
    outcomes = train(world, train={"estimator": "sklearn.svm.LinearSVC"}, evaluate={"plots": True})
    text = card(outcomes, world, "model_card.md")
    assert "The model gives no probabilities, so its calibration is not known." in text
    assert "plots/roc.png" not in text and "plots/confusion.png" in text


def test_a_class_that_is_not_among_the_held_out_rows_is_no_failure(world: World) -> None:
    table = toy.rows("2024-01", 600)
    kinds = np.array(["a", "b"], dtype=object)[np.arange(600) % 2]
    kinds[:100:3] = "old"  # the split by time holds out the newest rows
    toy.write(table.set_column(6, "y", pa.array(kinds)), world.folder / "data" / "2024-01.parquet")
    outcomes = train(world, prepare={}, evaluate={"plots": True, "metrics": ["accuracy", "log_loss"]})
    evaluation = Store(world.store).fetch_json(outcomes["evaluate"].outputs["evaluation"])
    assert sum(evaluation["confusion"][evaluation["classes"].index("old")]) == 0
    assert "plots/roc.png" in card(outcomes, world, "model_card.md")


def test_nothing_is_drawn_or_shuffled_where_it_is_not_asked_for(world: World) -> None:
    with_sex(world)
    outcomes = train(world, evaluate={"plots": False, "importance_rows": 0})
    text = card(outcomes, world, "model_card.md")
    assert "![" not in text and "Permutation importance was not asked for." in text
    assert "data:image" not in card(outcomes, world)
