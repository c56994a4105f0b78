"""The plan: a pipeline's stages in order, and what each is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from airflow_mlops.call.dispatch import STAGES
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import DataSchema, Node, Pipeline, load_pipeline, monitor_node, predict_plan, train_plan
from airflow_mlops.spec.stages import Extract, ModelParams, Monitor, ValidateData, resolve
from tests.spec.generated import pipelines


def pipeline(**more: Any) -> Pipeline:
    least = {"name": "churn", "data": {"source": "a.parquet", "target": "y"}, "train": {"function": "churn.model:fit"}}
    return Pipeline.model_validate({**least, **more})


def node(stage: str, plan: tuple[Node, ...]) -> Any:
    return next(each.params for each in plan if each.stage == stage)


def plans(declared: Pipeline) -> list[tuple[Node, ...]]:
    return [train_plan(declared), predict_plan(declared), (monitor_node(declared),)]


def test_the_stages_stand_in_their_order() -> None:
    assert [each.stage for each in train_plan(pipeline())] == [
        "extract",
        "validate_data",
        "prepare",
        "train",
        "register",
        "evaluate",
        "validate_model",
        "promote",
    ]
    assert [each.stage for each in predict_plan(pipeline())] == ["extract", "batch_predict"]


def test_a_person_stands_between_the_gate_and_the_promotion_where_declared() -> None:
    plan = train_plan(pipeline(approval={"users": "7", "timeout": "24h"}))
    assert [each.stage for each in plan][-3:] == ["validate_model", "approve", "promote"]
    assert plan[-1].inputs == {"version": ("register", "version"), "decision": ("approve", "decision")}
    assert (plan[-2].params.users, plan[-2].params.timeout.total_seconds()) == (("7",), 86_400)  # type: ignore[attr-defined]


def test_a_declared_search_stands_between_preparation_and_training() -> None:
    made = pipeline(
        data={"source": "a", "target": "y", "time": "at"},
        tune={"space": {"C": {"low": 1, "high": 2}}},
        evaluate={"metrics": ["log_loss", "roc_auc"]},
    )
    plan = train_plan(made)
    assert [each.stage for each in plan][2:5] == ["prepare", "tune", "train"]
    tune, train = node("tune", plan), node("train", plan)
    assert (tune.metric, tune.time) == ("log_loss", "at")
    assert {name: getattr(tune, name) for name in ModelParams.model_fields} == {
        name: getattr(train, name) for name in ModelParams.model_fields
    }
    # The test rows are no input of it.
    assert plan[3].inputs == {"train": ("prepare", "train")}
    assert plan[4].inputs["tuned"] == ("tune", "tuned")
    drawn = pipeline(prepare={"split": {"by": "random"}}, tune=made.tune, data={**made.data.model_dump(), "time": "at"})
    assert node("tune", train_plan(drawn)).time is None


@given(pipelines)
def test_every_stage_comes_after_what_it_needs(declared: Pipeline) -> None:
    for plan in plans(declared):
        done: set[str] = set()
        for each in plan:
            assert {source for source, _ in each.inputs.values()} <= done
            assert each.stage not in done
            done.add(each.stage)


@given(pipelines)
def test_params_cross_the_wire_unchanged(declared: Pipeline) -> None:
    for plan in plans(declared):
        for each in plan:
            sent = each.params.model_dump_json()
            assert repr(STAGES[each.stage].model_validate_json(sent)) == repr(each.params)


def test_nothing_is_prepared_before_the_data_is_valid() -> None:
    inputs = {each.stage: each.inputs for each in train_plan(pipeline())}
    assert inputs["prepare"] == {"data": ("validate_data", "data")}
    assert inputs["train"]["data"] == ("validate_data", "data")


def test_promotion_asks_for_the_decision_of_the_gate() -> None:
    promote = train_plan(pipeline())[-1]
    assert promote.inputs == {"version": ("register", "version"), "decision": ("validate_model", "decision")}


@pytest.mark.parametrize(
    ("time", "declared", "by"), [(None, None, "random"), ("at", None, "time"), ("at", "random", "random")]
)
def test_rows_with_a_time_are_split_by_time(time: str | None, declared: str | None, by: str) -> None:
    made = pipeline(data={"source": "a", "target": "y", "time": time}, prepare={"split": {"by": declared}})
    assert node("prepare", train_plan(made)).split.by == by


def test_keys_times_and_groups_are_no_features() -> None:
    made = pipeline(
        data={"source": "a", "target": "y", "time": "at", "key": ["id", "shop"], "drop": "note"},
        prepare={"split": {"by": "group", "group": "shop"}},
    )
    train = node("train", train_plan(made))
    assert (train.exclude, train.drop, train.group) == (("id", "shop", "at"), ("note",), "shop")
    assert node("batch_predict", predict_plan(made)).keep == ("id", "shop", "at")
    alone = pipeline(prepare={"split": {"by": "group", "group": "team"}})
    assert node("train", train_plan(alone)).exclude == ("team",)


def test_the_champion_is_scored_only_for_a_gate_that_compares() -> None:
    assert node("evaluate", train_plan(pipeline())).versus_champion is True
    alone = train_plan(pipeline(validate_model={"versus_champion": None}))
    assert node("evaluate", alone).versus_champion is False
    assert node("validate_model", alone).versus_champion is None


def test_the_seed_is_one_for_split_model_and_gate() -> None:
    plan = train_plan(pipeline(train={"function": "a:b", "seed": 7}))
    assert {node(stage, plan).seed for stage in ("prepare", "train", "validate_model")} == {7}


def test_each_plan_reads_its_own_number_of_windows() -> None:
    made = pipeline(
        data={"source": "{window}.parquet", "target": "y", "window": "week"},
        train={"function": "a:b", "windows": {"last": 5}},
        monitor={"windows": {"last": 2}},
    )
    assert node("extract", train_plan(made)).last == 5
    assert node("extract", predict_plan(made)).last == 1
    monitor = monitor_node(made).params
    assert isinstance(monitor, Monitor)
    assert monitor.extract == Extract(source="{window}.parquet", grain="week", last=2)


def test_the_logged_declaration_is_the_pipeline(tmp_path: Path) -> None:
    made = pipeline(schedule="@weekly")
    (tmp_path / "logged.yaml").write_text(node("train", train_plan(made)).declaration)
    assert load_pipeline(tmp_path / "logged.yaml") == made


def test_a_plan_names_the_users_code() -> None:
    made = pipeline(prepare={"features": "churn.features:build", "preprocess": "churn.features:scaler"})
    named = {each.stage: each.params.callables() for each in train_plan(made) if each.params.callables()}
    assert named == {
        "prepare": ["churn.features:build"],
        "train": ["churn.features:build", "churn.features:scaler", "churn.model:fit"],
    }


@pytest.mark.parametrize(
    ("path", "absolute"),
    [
        ("data/a.parquet", "/base/data/a.parquet"),
        ("../a.parquet", "/a.parquet"),
        ("/else/a.parquet", "/else/a.parquet"),
        ("gs://bucket/a.parquet", "gs://bucket/a.parquet"),
        ("memory://a", "memory://a"),
    ],
)
def test_paths_start_from_the_declaration_and_uris_stay(path: str, absolute: str) -> None:
    assert resolve("/base", path) == absolute
    assert Extract(source=path).resolved("/base") == Extract(source=absolute)


def test_a_call_carries_the_schema_and_not_its_path(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "churn.yaml").write_text("columns: {age: {type: integer}}\n")
    made = pipeline(data={"source": "a.csv", "target": "y", "schema": "schemas/churn.yaml"})
    params = node("validate_data", train_plan(made)).resolved(str(tmp_path))
    assert params.data_schema == DataSchema.model_validate({"columns": {"age": {"type": "integer"}}})
    assert str(tmp_path) not in params.model_dump_json()
    assert ValidateData.model_validate(params.model_dump(mode="json")) == params


def test_a_schema_that_is_not_there_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=rf"{os.path.join(tmp_path, 'no.yaml')}: cannot be read"):
        ValidateData(data_schema="no.yaml").resolved(str(tmp_path))


def test_a_deployment_is_validated_before_the_person_and_followed_after_the_promotion() -> None:
    def stages(**sections: Any) -> list[str]:
        plan = train_plan(pipeline(**sections))
        return [each.stage for each in plan][-5:]

    assert stages(deploy={})[-4:] == ["validate_model", "validate_serving", "promote", "deploy"]
    canary = {"strategy": {"canary": 10}, "bake": "2m", "rollback_on": {"error_rate": 0.1}}
    assert stages(deploy=canary) == ["validate_model", "validate_serving", "trial", "promote", "deploy"]
    plan = train_plan(pipeline(deploy=canary, approval={}))
    assert [each.stage for each in plan][-5:] == ["validate_serving", "approve", "trial", "promote", "deploy"]
    trial = plan[-3].params
    assert (trial.share, trial.error_rate, trial.target) == (10, 0.1, "local")  # type: ignore[attr-defined]
    # Each hands the gate's decision on, and a no keeps it to itself.
    assert [each.inputs.get("decision") for each in plan[-5:-1]] == [
        (before, "decision") for before in ("validate_model", "validate_serving", "approve", "trial")
    ]
    assert plan[-1].inputs == {"champion": ("promote", "champion")}
    shadow = train_plan(pipeline(deploy={"strategy": "shadow"}))
    assert shadow[-3].params.share == 0  # type: ignore[attr-defined]
