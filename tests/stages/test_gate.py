"""Evaluation and the gate: true metrics, a fair comparison, and a no that changes nothing."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from sklearn import metrics as sk

from airflow_mlops.call import ArtifactRef, Outcome, Store, Verdict
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import DataError, GateError, SchemaError
from airflow_mlops.registry import Request, Requests
from airflow_mlops.spec.metrics import DEFAULT_METRICS, metrics_of
from airflow_mlops.spec.stages import ValidateModel
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.scoring import evaluate
from airflow_mlops.stages.tables import read_table
from airflow_mlops.stages.validate_model import judge
from tests import toy
from tests.toy import Trained, World

RANDOM = {"split": {"by": "random", "test": 0.4}}
EASY = {"versus_champion": {"min_rows": 50, "resamples": 200}}
WEAK = {"model_params": {"C": 1e-6}}


def evaluation_of(outcomes: dict[str, Outcome], world: World) -> tuple[dict[str, Any], pa.Table]:
    store = Store(world.store)
    evaluation = store.fetch_json(outcomes["evaluate"].outputs["evaluation"])
    return evaluation, read_table(store.ref("predictions", evaluation["predictions"], ".parquet"), store)


def ids(ref: ArtifactRef, world: World) -> set[str]:
    return set(read_table(ref, Store(world.store))["id"].to_pylist())


def train(world: World, run_id: str = "a", month: str = "2024-01", **sections: Any) -> dict[str, Outcome]:
    declaration = toy.declare(world.folder, **{"prepare": RANDOM, "validate_model": EASY, **sections})
    return toy.run_plan(declaration, month, run_id, world.store, world.registry)


@pytest.fixture(scope="module")
def january(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """January's model and its evaluation, made once."""
    folder = tmp_path_factory.mktemp("january")
    toy.months(folder, ("2024-01",))
    registry = toy.registry_ref(mlflow_server, f"january-{uuid.uuid4().hex[:10]}")
    return toy.train(World(folder, str(folder / "store"), registry), "2024-01", prepare=RANDOM, validate_model=EASY)


@pytest.fixture
def first(world: World, january: Trained) -> dict[str, Outcome]:
    """January's model is the champion."""
    toy.months(world.folder)
    return toy.adopt(world, january, toy.declare(world.folder, prepare=RANDOM, validate_model=EASY))


def test_metrics_and_slices_are_sklearns_on_the_held_out_rows(world: World) -> None:
    toy.months(world.folder, count=1000)
    names = list(metrics_of("binary"))
    outcomes = train(world, evaluate={"metrics": names, "slices": ["region", "member"], "plots": True})
    evaluation, table = evaluation_of(outcomes, world)
    test = read_table(outcomes["prepare"].outputs["test"], Store(world.store))
    truth, chance = test["y"].to_numpy(), table["challenger.probability.1"].to_numpy()
    assert (table["truth"].to_numpy() == truth).all()
    assert evaluation["metrics"]["roc_auc"] == pytest.approx(sk.roc_auc_score(truth, chance))
    assert evaluation["metrics"]["log_loss"] == pytest.approx(sk.log_loss(truth, chance))
    assert evaluation["metrics"]["f1"] == pytest.approx(sk.f1_score(truth, chance > 0.5))
    assert list(evaluation["metrics"]) and set(evaluation["metrics"]) == set(names)
    assert outcomes["evaluate"].metrics == {**evaluation["metrics"], "test_rows": float(len(truth))}
    north = np.array(test["region"].to_pylist()) == "north"
    slices = {column: {each["value"]: each for each in found} for column, found in evaluation["slices"].items()}
    measured = slices["region"]["north"]
    assert measured["rows"] == north.sum()
    area = measured["metrics"]["roc_auc"]
    assert area["value"] == pytest.approx(sk.roc_auc_score(truth[north], chance[north]))
    assert area["low"] < area["value"] < area["high"]
    assert set(slices["member"]) == {"True", "False"}
    # A value of a few rows is counted and not measured, and nulls are a value.
    few = slices["region"]["no value"]
    assert (few["kind"], few["rows"], few["metrics"]) == ("null", test["region"].null_count, {})
    assert few["note"] == "fewer than 30 rows"
    assert 0 < test["region"].null_count < 30


def test_the_run_shows_metrics_plots_and_the_verdict(world: World) -> None:
    import mlflow

    toy.months(world.folder, count=1000)
    outcomes = train(world, evaluate={"slices": "region", "plots": True})
    client = mlflow.MlflowClient(world.registry.uri)
    found = client.get_run(outcomes["train"].info["run_id"])
    assert found.data.metrics["test.roc_auc"] == outcomes["evaluate"].metrics["roc_auc"]
    assert "test.roc_auc.region.north" in found.data.metrics
    assert found.data.tags["mlops.verdict"] == "ok"
    names = {file.path for file in client.list_artifacts(found.info.run_id, "plots")}
    drawn = {"roc", "precision_recall", "confusion", "calibration", "slices", "importance"}
    assert names == {f"plots/{name}.png" for name in drawn}


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_are_measured_by_their_own_metrics(world: World, task: str) -> None:
    table = toy.rows("2024-01", 600)
    amount = table["amount"].to_numpy()
    target = (
        pa.array(amount * 2)
        if task == "regression"
        else pa.array(np.array(["a", "b", "c"])[np.digitize(amount, [-0.5, 0.5])])
    )
    toy.write(table.set_column(6, "y", target), world.folder / "data" / "2024-01.parquet")
    estimator = "sklearn.linear_model.Ridge" if task == "regression" else toy.ESTIMATOR
    outcomes = train(world, train={"estimator": estimator}, evaluate={"plots": True})
    assert set(DEFAULT_METRICS[task]) < set(outcomes["evaluate"].metrics)  # type: ignore[index]
    assert outcomes["evaluate"].metrics["r2" if task == "regression" else "accuracy"] > 0.8
    weak = {"alpha": 500.0} if task == "regression" else {"C": 0.001}
    again = train(world, "b", train={"estimator": estimator, "params": weak})
    assert again["validate_model"].verdict.status == "rejected"


def test_retraining_on_the_same_window_tests_on_rows_that_neither_has_seen(
    world: World, first: dict[str, Outcome]
) -> None:
    second = train(world, "b", train={"params": {"C": 0.5}})
    assert ids(first["prepare"].outputs["test"], world) == ids(second["prepare"].outputs["test"], world)
    _, table = evaluation_of(second, world)
    assert not any(table["champion.seen"].to_pylist())


def test_rows_that_the_champion_was_trained_on_are_left_out(world: World, first: dict[str, Outcome]) -> None:
    by_time = {"prepare": {"split": {"by": "time", "test": 0.7}}, "train": {"windows": {"last": 2}}}
    second = train(world, "b", "2024-02", **by_time)
    evaluation, table = evaluation_of(second, world)
    known = ids(first["prepare"].outputs["train"], world)
    test = read_table(second["prepare"].outputs["test"], Store(world.store))["id"].to_pylist()
    seen = [name in known for name in test]
    assert table["champion.seen"].to_pylist() == seen and 0 < sum(seen) < len(seen)
    decision = Store(world.store).fetch_json(second["validate_model"].outputs["decision"])
    assert decision["comparison"]["rows"] == len(seen) - sum(seen)
    assert evaluation["rows"] == len(test)


def test_a_group_the_champion_knows_is_left_out_whole(world: World) -> None:
    for month in ("2024-01", "2024-02"):
        groups = pa.array([f"g{index % 40}" for index in range(400)])
        toy.write(toy.rows(month).append_column("g", groups), world.folder / "data" / f"{month}.parquet")
    grouped = {"prepare": {"split": {"by": "group", "group": "g", "test": 0.5}}}
    train(world, **grouped)
    second = train(world, "b", "2024-02", prepare={"split": {"by": "group", "group": "g", "test": 0.5}})
    _, table = evaluation_of(second, world)
    assert not any(table["champion.seen"].to_pylist())
    third = train(world, "c", "2024-02", prepare={"split": {"by": "group", "group": "g", "test": 0.9}})
    test = read_table(third["prepare"].outputs["test"], Store(world.store))["g"].to_pylist()
    _, table = evaluation_of(third, world)
    flags: dict[str, set[bool]] = {}
    for group, seen in zip(test, table["champion.seen"].to_pylist(), strict=True):
        flags.setdefault(group, set()).add(seen)
    assert all(len(each) == 1 for each in flags.values()) and {True} in flags.values() and {False} in flags.values()


@pytest.mark.usefixtures("first")
def test_too_few_new_rows_decide_nothing_and_promote_nothing(world: World) -> None:
    before = toy.state_of(world)
    outcomes = train(world, "b", "2024-02", validate_model={})
    assert outcomes["validate_model"].verdict.status == "insufficient_data"
    assert "fewer than 200" in outcomes["validate_model"].verdict.reasons[0]
    assert "promote" not in outcomes
    after = toy.state_of(world)
    assert after["aliases"] == before["aliases"] == {"champion": "1"}
    assert [entry.kind for entry in after["ledger"]] == ["promotion", "rejection"]


def test_a_better_challenger_takes_the_champions_place(world: World) -> None:
    toy.months(world.folder, count=1500)
    train(world, prepare={**RANDOM}, data={"drop": ["amount"]})
    outcomes = train(world, "b", "2024-02")
    verdict = outcomes["validate_model"].verdict
    assert verdict.status == "ok" and "of champion 1 on" in verdict.reasons[0]
    assert outcomes["validate_model"].metrics["gain"] > outcomes["validate_model"].metrics["lower"] > 0
    assert toy.state_of(world)["aliases"] == {"champion": "2", "previous": "1"}


def test_a_worse_challenger_changes_nothing_but_the_ledger(world: World) -> None:
    toy.months(world.folder, count=1500)
    train(world)
    requests = Requests(Store(world.store), world.registry.model)
    requests.open(Request(model=world.registry.model, champion="1", reason="drift", trigger="drift"))
    (wish,) = requests.claim("b", lambda run: True)
    before = toy.state_of(world)
    outcomes = train(world, "b", "2024-02", data={"drop": ["amount"]})
    assert outcomes["validate_model"].verdict.status == "rejected" and "promote" not in outcomes
    after = toy.state_of(world)
    assert after["aliases"] == before["aliases"] and after["files"] == before["files"]
    entry = after["ledger"][-1]
    assert (entry.kind, entry.version, entry.champion_after, entry.requests) == ("rejection", "2", "1", (wish.id,))
    assert entry.reasons == outcomes["validate_model"].verdict.reasons
    assert [recorded.state for recorded in requests.all()] == ["done"]
    assert [version.tags.get("mlops.verdict") for version in after["versions"]] == ["ok", "rejected"]


@pytest.mark.parametrize(
    ("gate", "said"), [({"min": {"roc_auc": 0.99}}, "below 0.99"), ({"max": {"log_loss": 0.01}}, "above 0.01")]
)
def test_a_first_model_outside_the_limits_is_rejected_however_often(
    world: World, january: Trained, gate: dict[str, Any], said: str
) -> None:
    declaration = toy.declare(world.folder, prepare=RANDOM, validate_model=gate)
    outcomes = toy.adopt(world, january, declaration, until="validate_model")
    assert outcomes["validate_model"].verdict.status == "rejected"
    assert said in outcomes["validate_model"].verdict.reasons[0]
    before = toy.state_of(world)
    assert before["aliases"] == {} and len(before["ledger"]) == 1
    again = toy.next_call(declaration, "validate_model", outcomes, "2024-01", "2024-01", world.store, world.registry)
    assert run(again).digest == outcomes["validate_model"].digest
    assert toy.state_of(world) == before


def test_champion_and_challenger_are_scored_with_their_own_code_of_the_same_name(world: World) -> None:
    toy.months(world.folder)
    source = "def build(frame):\n    return frame[['{}']].fillna(0.0)\n"
    own = {"prepare": {**RANDOM, "features": "same_name.features:build"}}
    toy.package(world.folder, "same_name", source.format("amount"))
    train(world, **own)
    toy.package(world.folder, "same_name", source.format("age"))
    second = train(world, "b", "2024-02", **own)
    _, table = evaluation_of(second, world)
    test = read_table(second["prepare"].outputs["test"], Store(world.store))
    for who, column in (("champion", "amount"), ("challenger", "age")):
        raw = test[column].to_pandas().fillna(0.0)
        rank = stats.spearmanr(raw, table[f"{who}.probability.1"].to_numpy()).statistic
        assert abs(rank) == pytest.approx(1), who


def failing(world: World, said: str, error: type[Exception], run_id: str = "b", **sections: Any) -> None:
    before = toy.state_of(world)
    with pytest.raises(error, match=said):
        train(world, run_id, **sections)
    after = toy.state_of(world)
    assert (after["aliases"], after["ledger"], after["files"]) == (before["aliases"], before["ledger"], before["files"])


def test_a_gate_that_cannot_be_computed_is_an_error_not_a_no(world: World) -> None:
    toy.months(world.folder)
    failing(
        world,
        "asks for 'f1', which was not evaluated; allowed: .*roc_auc",
        GateError,
        validate_model={"min": {"f1": 0.5}},
    )
    failing(
        world,
        "asks for 'rmse', which binary does not have; allowed: .*roc_auc",
        GateError,
        "c",
        evaluate={"metrics": "rmse"},
    )
    failing(world, r"no column 'colour' \(evaluate.slices\)", SchemaError, "d", evaluate={"slices": "colour"})
    one_class = toy.rows("2024-01").to_pandas()
    one_class.loc[300:, "y"] = 1
    toy.write(pa.Table.from_pandas(one_class, toy.rows("2024-01", 1).schema), world.folder / "data" / "2024-01.parquet")
    failing(world, "'roc_auc' is not defined on the 80 held-out rows: they have one class", GateError, "e", prepare={})


@pytest.mark.usefixtures("first")
def test_a_champion_that_answers_another_question_is_not_compared(world: World) -> None:
    failing(world, "champion 1 answers another question", GateError, train={"estimator": "sklearn.linear_model.Ridge"})


def test_a_class_that_training_never_saw_is_told(world: World) -> None:
    table = toy.rows("2024-01")
    target = [*table["y"].to_pylist()[:-1], 7]
    toy.write(table.set_column(6, "y", pa.array(target)), world.folder / "data" / "2024-01.parquet")
    failing(world, "classes that training never saw: 7; allowed: 0, 1", DataError, prepare={})


def test_a_challenger_of_another_run_is_not_judged(world: World, first: dict[str, Outcome]) -> None:
    declaration = toy.declare(world.folder, prepare=RANDOM)
    call = toy.next_call(declaration, "evaluate", first, "2024-01", "a", world.store, world.registry)
    other = call.input("model").model_copy(update={"digest": "sha256:0"})
    with pytest.raises(GateError, match="is not the one that its run has logged"):
        run(call.model_copy(update={"inputs": {**call.inputs, "model": other}}))


# The decision alone, from scored rows.


def scored(
    rows: int, champion_noise: float | None, challenger_noise: float = 0.5, seen: int = 0
) -> tuple[dict[str, Any], pa.Table]:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, rows)
    columns: dict[str, Any] = {"truth": truth}
    for who, noise in (("challenger", challenger_noise), ("champion", champion_noise)):
        if noise is not None:
            chance = 1 / (1 + np.exp(-(truth - 0.5 + random.normal(0, noise, rows))))
            columns |= {
                f"{who}.prediction": (chance > 0.5).astype(int),
                f"{who}.probability.0": 1 - chance,
                f"{who}.probability.1": chance,
            }
    if champion_noise is not None:
        columns["champion.seen"] = np.arange(rows) < seen
    area = sk.roc_auc_score(truth, columns["challenger.probability.1"])
    body = {"task": "binary", "primary": "roc_auc", "metrics": {"roc_auc": area}, "champion": "1"}
    return {**body, "champion": None if champion_noise is None else "1"}, pa.table(columns)


def verdict_of(evaluation: tuple[dict[str, Any], pa.Table], **gate: Any) -> Verdict:
    body, table = evaluation
    return judge(body, lambda: table, ValidateModel.model_validate(gate))[0]


def test_without_a_champion_the_limits_decide() -> None:
    assert verdict_of(scored(300, None)).reasons == ("there is no champion yet, and no absolute limit is declared",)
    assert verdict_of(scored(300, None), min={"roc_auc": 0.5}).status == "ok"
    assert verdict_of(scored(300, None), min={"roc_auc": 0.999}).status == "rejected"


def test_every_limit_that_is_broken_is_named() -> None:
    verdict = verdict_of(scored(300, None), min={"roc_auc": 0.999}, max={"roc_auc": 0.1})
    assert verdict.status == "rejected" and len(verdict.reasons) == 2


def test_a_champion_that_is_better_or_as_good_stays() -> None:
    assert verdict_of(scored(1000, 1.5)).status == "ok"
    assert verdict_of(scored(1000, 0.2)).status == "rejected"
    evaluation, table = scored(1000, 0.5)
    for name in ("prediction", "probability.0", "probability.1"):
        index = table.column_names.index(f"champion.{name}")
        table = table.set_column(index, f"champion.{name}", table[f"challenger.{name}"])
    assert verdict_of((evaluation, table)).status == "rejected"
    assert verdict_of((evaluation, table), versus_champion={"margin": 0.01}).status == "ok"


def test_a_gain_that_may_be_chance_is_no_gain() -> None:
    body, table = scored(250, 0.65)
    verdict, comparison = judge(body, lambda: table, ValidateModel())
    assert comparison is not None and comparison.lower < 0 < comparison.gain
    assert verdict.status == "rejected"


def test_a_margin_lets_a_slightly_worse_one_pass_and_no_more() -> None:
    worse = scored(3000, 0.5, 0.55)
    assert verdict_of(worse).status == "rejected"
    assert verdict_of(worse, versus_champion={"margin": 0.1}).status == "ok"
    assert verdict_of(scored(3000, 0.5, 3.0), versus_champion={"margin": 0.1}).status == "rejected"


def test_only_rows_new_to_the_champion_count() -> None:
    assert verdict_of(scored(1000, 1.5, seen=800)).status == "ok"
    verdict = verdict_of(scored(1000, 1.5, seen=801))
    assert verdict.status == "insufficient_data" and "only 199 of 1000 held-out rows" in verdict.reasons[0]


def test_limits_come_before_the_comparison_and_may_be_all_there_is() -> None:
    assert verdict_of(scored(1000, 1.5), min={"roc_auc": 0.9999}).status == "rejected"
    alone = verdict_of(scored(1000, 0.2), versus_champion=None)
    assert alone.status == "ok" and "no comparison with the champion is declared" in alone.reasons[0]


def test_a_metric_the_task_does_not_have_is_no_decision() -> None:
    with pytest.raises(GateError, match="asks for 'rmse', which was not evaluated"):
        verdict_of(scored(1000, 0.5), versus_champion={"metric": "rmse"})


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_a_metric_is_not_defined_on_a_target_that_does_not_vary() -> None:
    same = Scores(np.ones(10), np.ones(10))
    with pytest.raises(GateError, match="they have no spread"):
        evaluate("r2", Scores(np.array([1.0]), np.array([1.0])))
    assert evaluate("rmse", same) == 0


def test_a_classifier_without_probabilities_is_measured_on_its_labels(world: World) -> None:
    toy.months(world.folder)
    train = {"estimator": "sklearn.svm.LinearSVC"}
    outcomes = toy.run_plan(toy.declare(world.folder, train=train), "2024-01", "first", world.store, world.registry)
    assert set(outcomes["evaluate"].metrics) == {"accuracy", "test_rows"}

    asked = toy.declare(world.folder, train=train, evaluate={"metrics": ["roc_auc"]})
    with pytest.raises(GateError, match=r"labels without probabilities.*allowed: .*accuracy"):
        toy.run_plan(asked, "2024-01", "second", world.store, world.registry)


def test_a_verdict_that_only_claims_to_have_beaten_the_champion_cannot_promote(world: World) -> None:
    """The bootstrap is run once more on the rows that the evaluation has scored."""
    toy.months(world.folder, count=1000)
    train(world)
    worse = train(world, "b", "2024-02", train={"params": {"C": 1e-6}})
    assert worse["validate_model"].verdict.status == "rejected"
    store = Store(world.store)
    decision = store.fetch_json(worse["validate_model"].outputs["decision"])
    claimed = store.put_json({**decision, "status": "ok", "reasons": ["it is far better"]}, "decision")
    declaration = toy.declare(world.folder, **{"prepare": RANDOM, "validate_model": EASY})
    call = toy.next_call(declaration, "promote", worse, "2024-02", "b", world.store, world.registry)
    before = toy.state_of(world)
    with pytest.raises(GateError, match="put to the same evidence once more, says no: roc_auc"):
        run(call.model_copy(update={"inputs": {**call.inputs, "decision": claimed}}))
    assert toy.state_of(world) == before
