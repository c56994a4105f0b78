"""Tuning: a study that survives its workers, on folds that are fair, with a run in MLflow for every trial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.code import snapshot
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import CodeError, DataError, StoreError
from airflow_mlops.registry.mlflow_api import mlflow_api
from airflow_mlops.spec.stages import Tune
from airflow_mlops.stages.tables import write_table
from airflow_mlops.stages.tune import TRIAL_TAG, fold_rows
from tests import forked, toy
from tests.toy import World

SPACE = {"C": {"low": 0.001, "high": 10.0, "log": True}, "fit_intercept": {"choices": [True, False]}}
TRIALS = 14
# A process that kills itself in the Nth call of a step; the last one leaves half a line in the journal.
KILLED = """
import os, signal, sys
import optuna
from airflow_mlops.call import Call
from airflow_mlops.call.dispatch import run
from airflow_mlops.registry import mlflow_rest
from airflow_mlops.stages import study, tune

owner, name = {
    "begun": (study.TuningStudy, "suggest"),
    "measured": (optuna.Study, "tell"),
    "ended": (tune.Diary, "write"),
    "half written": (mlflow_rest.MlflowRest, "end_run"),
    "torn": (os, "fsync"),
}[sys.argv[2]]
original, left = getattr(owner, name), int(sys.argv[3])

def count_down(*arguments, **options):
    global left
    left -= 1
    if left == 0:
        if name == "fsync":
            os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size - 9)
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(owner, name, count_down)
run(Call.model_validate_json(sys.argv[1]))
"""
FUNCTION = """
from sklearn.linear_model import LogisticRegression

def fit(X, y, params):
    if params["C"] > 5:
        raise ValueError("C is too great for this function")
    return LogisticRegression(**params).fit(X, y)
"""


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return toy.rows("2024-01", 600)


@pytest.fixture
def tuning(world: World, rows: pa.Table) -> Any:
    """Makes Calls that tune the toy model."""
    store = Store(world.store)

    def make(run_id: str = "r", **params: Any) -> Call:
        way = {} if "function" in params else {"estimator": toy.ESTIMATOR}
        code = snapshot([params["function"]], str(world.folder), store) if "function" in params else None
        given = {"target": "y", "exclude": ["id", "at"], "space": SPACE, "trials": TRIALS, **way, **params}
        return Call(
            pipeline="toy",
            stage="tune",
            run=run_id,
            inputs={"train": write_table(rows, store)},
            params=given,
            code=code,
            store=world.store,
            registry=world.registry,
        )

    return make


def trials_of(world: World) -> Iterator[list[FrozenTrial]]:
    """The trials of every study in the store."""
    for journal in Path(world.store, "studies", "toy").glob("*.journal"):
        storage = JournalStorage(JournalFileBackend(str(journal)))
        yield optuna.load_study(study_name="study", storage=storage).trials


def found(outcome: Outcome) -> Any:
    return json.loads(Path(outcome.outputs["tuned"].uri).read_text())


def written(world: World) -> list[Any]:
    """MLflow's runs of trials, oldest first."""
    from mlflow import MlflowClient

    client = MlflowClient(world.registry.uri)
    experiment = mlflow_api(world.registry.uri).experiment_id(world.registry.experiment)
    runs = client.search_runs([experiment], f"tags.`{TRIAL_TAG}` != ''", order_by=["attributes.start_time ASC"])
    return list(runs)


@pytest.mark.parametrize(
    "kills",
    [
        [("begun", 3), ("measured", 2), ("torn", 20)],
        [("ended", 4), ("half written", 3)],
    ],
)
def test_a_study_whose_workers_are_killed_loses_no_trial_and_doubles_none(
    world: World, tuning: Any, kills: list[tuple[str, int]]
) -> None:
    call = tuning("killed")
    for step, count in kills:
        forked.killed(KILLED, call.model_dump_json(), step, str(count))
    outcome = run(call)

    (trials,) = trials_of(world)
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert outcome.metrics["trials"] == TRIALS
    runs = written(world)
    assert sorted(int(each.data.tags[TRIAL_TAG]) for each in runs) == list(range(TRIALS))
    assert {each.info.status for each in runs} == {"FINISHED"}
    for each in runs:
        trial = trials[int(each.data.tags[TRIAL_TAG])]
        assert each.data.metrics["tune.roc_auc"] == trial.value
        assert each.data.tags["mlflow.parentRunId"] == outcome.info["run_id"]
        assert float(each.data.params["model.C"]) == trial.params["C"]

    # It has gone the very way that it would have gone undisturbed.
    again = run(tuning("undisturbed").model_copy(update={"cache": False}))
    assert again.outputs["tuned"].digest == outcome.outputs["tuned"].digest
    first, second = trials_of(world)
    assert [(trial.params, trial.value) for trial in first] == [(trial.params, trial.value) for trial in second]


def test_what_is_best_is_told_with_plots_and_once(world: World, tuning: Any) -> None:
    from mlflow import MlflowClient

    outcome = run(tuning())
    best = found(outcome)
    (trials,) = trials_of(world)
    values = [trial.value or 0.0 for trial in trials]
    assert best["value"] == max(values) == outcome.metrics["roc_auc"]
    assert best["params"]["C"] == trials[best["trial"]].params["C"]
    assert isinstance(best["params"]["fit_intercept"], bool)
    client = MlflowClient(world.registry.uri)
    parent = outcome.info["run_id"]
    shown = {file.path for file in client.list_artifacts(parent, "tune")}
    assert shown == {"tune/history.png", "tune/importances.png", "tune/slices.png"}
    assert client.get_run(parent).data.metrics["tune.roc_auc"] == best["value"]
    # A retry after the end finds the outcome; one whose outcome is gone finds the study.
    assert run(tuning()) == outcome
    next(Path(world.store, "outcomes").glob("*.json")).unlink()
    assert run(tuning()).digest == outcome.digest
    assert len(written(world)) == TRIALS


def test_parts_share_one_study_and_the_last_task_tells(world: World, tuning: Any) -> None:
    for part in (1, 0):
        outcome = run(tuning(f"dag/r/{part}", parts=2, part=part, study="dag/r", trials=7))
        assert (outcome.outputs, outcome.metrics["trials"]) == ({}, [3, 4][part])
    before = next(iter(trials_of(world)))
    outcome = run(tuning("dag/r", parts=2, trials=7))
    (trials,) = trials_of(world)
    assert [trial.number for trial in trials] == list(range(7))
    assert [trial.params for trial in trials] == [trial.params for trial in before]
    assert [trial.user_attrs["part"] for trial in trials] == [1] * 4 + [0] * 3
    assert found(outcome)["trials"] == 7
    runs = written(world)
    assert len(runs) == 7 and {each.data.tags["mlflow.parentRunId"] for each in runs} == {outcome.info["run_id"]}


def test_trials_run_at_once_and_none_is_lost(world: World, tuning: Any) -> None:
    outcome = run(tuning(jobs=2, trials=9))
    (trials,) = trials_of(world)
    assert [trial.number for trial in trials] == list(range(9)) and outcome.metrics["trials"] == 9
    begun = [trial.datetime_start for trial in trials]
    ended = [trial.datetime_complete for trial in trials]
    assert any(end > start for end, start in zip(ended, begun[1:], strict=False) if end and start)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_seed_decides_what_is_tried(world: World, tuning: Any, sampler: str) -> None:
    one, two = (run(tuning(name, sampler=sampler, trials=4)) for name in ("one", "two"))
    other = run(tuning("other", sampler=sampler, trials=4, seed=1))
    assert one.digest == two.digest
    assert found(other)["params"]["C"] != found(one)["params"]["C"]


def test_a_grid_is_tried_to_its_end(world: World, tuning: Any) -> None:
    space = {"C": {"low": 1, "high": 3}, "fit_intercept": {"choices": [True, False]}}
    assert found(run(tuning(sampler="grid", space=space)))["trials"] == 6
    (trials,) = trials_of(world)
    assert {(trial.params["C"], trial.params["fit_intercept"]) for trial in trials} == {
        (c, each) for c in (1, 2, 3) for each in ("true", "false")
    }


@pytest.mark.parametrize(("pruner", "folds"), [("median", 4), ("hyperband", 8)])
def test_a_pruner_ends_poor_trials_early(world: World, tuning: Any, pruner: str, folds: int) -> None:
    outcome = run(tuning(pruner=pruner, folds=folds, trials=16))
    (trials,) = trials_of(world)
    states = [trial.state.name for trial in trials]
    assert outcome.metrics["pruned"] == states.count("PRUNED") > 0
    assert {len(trial.intermediate_values) for trial in trials if trial.state.name == "COMPLETE"} == {folds}
    assert all(len(trial.intermediate_values) < folds for trial in trials if trial.state.name == "PRUNED")
    assert {each.info.status for each in written(world)} == {"FINISHED", "KILLED"}


def test_a_trial_that_fails_is_told_and_the_study_goes_on(world: World, tuning: Any) -> None:
    (world.folder / "own.py").write_text(FUNCTION)
    own = {"function": "own:fit", "metric": "accuracy", "sampler": "grid", "drop": ["region", "age"]}
    outcome = run(tuning(**own, space={"C": {"low": 4, "high": 6}}))
    assert (outcome.metrics["failed"], outcome.metrics["trials"]) == (1, 3)
    (failed,) = [each for each in written(world) if each.info.status == "FAILED"]
    assert "C is too great for this function" in failed.data.tags["mlops.reason"]
    with pytest.raises(
        CodeError, match="none of 3 trials could be measured by accuracy; the first one: own:fit raised"
    ):
        run(tuning(**own, space={"C": {"low": 6, "high": 8}}))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"space": {"c": {"low": 1, "high": 2}}}, "LogisticRegression has no parameter 'c'; allowed: penalty, C"),
        ({"estimator": "sklearn.svm.LinearSVC", "metric": "roc_auc"}, "LinearSVC gives labels without probabilities"),
    ],
)
def test_what_no_trial_could_ever_do_ends_the_study_at_once(
    world: World, tuning: Any, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(CodeError, match=said):
        run(tuning(**params))
    (trials,) = trials_of(world)
    assert len(trials) == 1


def test_a_classifier_without_probabilities_is_measured_on_its_labels(world: World, tuning: Any) -> None:
    outcome = run(tuning(estimator="sklearn.svm.LinearSVC", trials=2))
    assert found(outcome)["metric"] == "accuracy"


def test_a_study_without_time_says_so(tuning: Any) -> None:
    outcome = run(tuning(timeout="0s"))
    assert outcome.metrics["trials"] == 1


def test_training_takes_what_was_found(world: World) -> None:
    toy.months(world.folder, ["2024-01"], 500)
    made = toy.declare(
        world.folder,
        train={"params": {"max_iter": 150, "C": 3.0}},
        tune={"trials": 3, "space": {"C": {"low": 0.01, "high": 1.0}}},
    )
    outcomes = toy.run_plan(made, "2024-01", "r", world.store, world.registry)
    from mlflow import MlflowClient

    logged = MlflowClient(world.registry.uri).get_run(outcomes["train"].info["run_id"]).data.params
    assert float(logged["model.C"]) == found(outcomes["tune"])["params"]["C"] < 1
    assert logged["model.max_iter"] == "150"
    assert outcomes["promote"].info["version"] == "1"


def params_of(**more: Any) -> Tune:
    return Tune.model_validate({"target": "y", "estimator": toy.ESTIMATOR, "space": SPACE, **more})


def test_folds_by_time_look_at_no_later_row(rows: pa.Table) -> None:
    at = rows["at"].to_numpy()
    seen = np.zeros(len(at), dtype=bool)
    for fitted, held in fold_rows(rows, params_of(time="at", folds=4), None):
        assert at[fitted].max() < at[held].min()
        assert not seen[held].any()
        seen[held] = True
    assert seen.sum() >= 0.79 * len(at)


def test_folds_by_group_keep_groups_whole(rows: pa.Table) -> None:
    groups = pa.array([f"g{index % 37}" for index in range(rows.num_rows)])
    table = rows.append_column("shop", groups)
    held = []
    for fitted, out in fold_rows(table, params_of(group="shop"), rows["y"].to_numpy()):
        inside, outside = set(groups.take(pa.array(fitted)).to_pylist()), set(groups.take(pa.array(out)).to_pylist())
        assert not inside & outside
        held += out.tolist()
    assert sorted(held) == list(range(table.num_rows))


def test_folds_by_hash_keep_equal_rows_together_and_classes_in_equal_shares(rows: pa.Table) -> None:
    table = pa.concat_tables([rows, rows])
    truth = table["y"].to_numpy()
    for fitted, held in fold_rows(table, params_of(folds=5), truth):
        assert not {each % rows.num_rows for each in fitted} & {each % rows.num_rows for each in held}
        assert abs(truth[held].mean() - truth.mean()) < 0.01


def test_folds_that_cannot_be_made_say_so(rows: pa.Table) -> None:
    table = rows.append_column("shop", pa.array(["same"] * rows.num_rows))
    with pytest.raises(DataError, match="600 training rows do not make 3 folds by 'shop'; try: fewer tune.folds"):
        fold_rows(table, params_of(group="shop"), None)


def test_a_study_beside_a_remote_store_goes_on_from_its_copy(tmp_path: Path) -> None:
    from airflow_mlops.call.store import cache_folder
    from airflow_mlops.stages.study import TuningStudy

    call = Call(pipeline="toy", stage="tune", run=str(tmp_path), store=f"memory://{tmp_path.name}")
    store = Store(call.store)
    first = TuningStudy(call, params_of(), store, "roc_auc")
    first.suggest(first.begin())
    first.keep(now=True)
    here = cache_folder("studies") / f"{first.id}.journal"
    here.unlink()
    elsewhere = TuningStudy(call, params_of(), store, "roc_auc")
    (left,) = elsewhere.trials()
    assert not left.state.is_finished() and left.params
    here.unlink()
    with pytest.raises(StoreError, match=r"cannot share a study in memory://.*leave out tune\.as_tasks"):
        TuningStudy(call, params_of(parts=2), store, "roc_auc")
