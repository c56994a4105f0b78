"""The stage operators as declarations: their arguments, documents, templates, links and serialization."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator

from airflow_mlops import operators
from airflow_mlops.call.dispatch import STAGES
from airflow_mlops.call.wire import ArtifactRef
from airflow_mlops.errors import DeclarationError, MlopsError
from airflow_mlops.operators import base
from airflow_mlops.operators.base import StageOperator, StageTask, reference
from airflow_mlops.operators.links import MlflowReportLink, MlflowRunLink, ModelCardLink
from airflow_mlops.operators.retry import MlopsRetryPolicy
from airflow_mlops.sensors import DataDriftSensor, ModelPerformanceSensor, PredictionDriftSensor
from airflow_mlops.spec.pipeline import Split
from tests import toy
from tests.airflow_fixtures import Airflow

KINDS: list[Any] = [
    *(
        kind
        for name in operators.__all__
        if issubclass(type(kind := getattr(operators, name)), type) and issubclass(kind, StageOperator)
    ),
    DataDriftSensor,
    PredictionDriftSensor,
    ModelPerformanceSensor,
]
SHARED = set(inspect.signature(StageOperator).parameters) - {"settings", "kwargs"}
SENSOR_ONLY = {"retrain", "deferrable"}
REF = {"uri": "/srv/x.parquet", "digest": "sha256:1", "kind": "dataset"}
GIVEN: dict[str, Any] = {
    "space": {"C": {"low": 1, "high": 2}},
    "source": "data/{window}.parquet",
    "target": "y",
    "labels": "labels/{window}.parquet",
    "key": ["id"],
    "estimator": "sklearn.linear_model.Ridge",
    "reason": "wrong prices",
    **dict.fromkeys(("data", "train", "model", "test", "evaluation", "version", "decision", "champion"), REF),
}


def own_arguments(kind: Any) -> dict[str, inspect.Parameter]:
    """The arguments that a constructor names itself."""
    return {name: each for name, each in inspect.signature(kind).parameters.items() if name != "kwargs"}


def make(kind: Any, **more: Any) -> Any:
    """An operator with the least that it needs."""
    needed = {
        name: GIVEN[name]
        for name, each in own_arguments(kind).items()
        if each.default is inspect.Parameter.empty or name == "estimator"
    }
    return kind(task_id="task", **{**needed, **more})


def test_every_stage_has_its_operator() -> None:
    asking = operators.ApproveModelOperator  # Airflow's own operator first, with other arguments
    assert {kind.stage.stage for kind in (*KINDS, asking)} == set(STAGES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_arguments_are_the_stage_s_params_and_inputs(kind: Any) -> None:
    own = set(own_arguments(kind)) - SHARED - SENSOR_ONLY
    assert own == set(kind.stage.model_fields) | set(kind.inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_are_those_of_the_stage(kind: Any) -> None:
    task = make(kind, base="/srv")
    given = {
        name: getattr(task, name)
        for name in ("source", "target", "estimator", "space", "labels", "key", "reason")
        if name in own_arguments(kind)
    }
    expected = kind.stage.model_validate(given).resolved("/srv")
    if kind is operators.PrepareDataOperator:  # a plan says how to split; the operator finds it out itself
        assert make(kind, base="/srv", time="at").stage_params().split.by == "time"
        expected = expected.model_copy(update={"split": Split(by="random")})
    assert task.stage_params() == expected


@pytest.mark.parametrize("kind", [*KINDS, operators.StartRunOperator])
def test_every_argument_is_documented_once(kind: Any) -> None:
    documented = re.findall(r"^ *:param (\w+):", inspect.getdoc(kind) or "", re.MULTILINE)
    own = set(own_arguments(kind))
    if issubclass(kind, StageOperator):
        own -= SHARED
    assert sorted(documented) == sorted(own)


def test_the_shared_arguments_are_documented_once() -> None:
    documented = re.findall(r"^ *:param (\w+):", inspect.getdoc(StageOperator) or "", re.MULTILINE)
    assert sorted(documented) == sorted(SHARED)


@pytest.mark.parametrize("kind", KINDS)
def test_templates(kind: Any) -> None:
    fields = set(kind.template_fields)
    own = (set(kind.stage.model_fields) | set(kind.inputs)) - kind.untemplated
    assert fields == own | {"window", "start", "pipeline"}
    task = make(kind)
    assert not [name for name in fields if not hasattr(task, name)]
    told = set(re.findall(r":param (\w+):(?:(?!:param)[\s\S])*?\(templated\)", inspect.getdoc(kind) or ""))
    assert told <= fields


@pytest.mark.parametrize("kind", [*KINDS, operators.StartRunOperator])
def test_the_retry_policy_comes_by_itself_and_can_be_replaced(kind: Any) -> None:
    assert isinstance(make(kind).retry_policy, MlopsRetryPolicy)
    assert make(kind, retry_policy=None).retry_policy is None


@pytest.mark.parametrize("kind", [*KINDS, operators.StartRunOperator])
def test_an_operator_goes_through_airflow_s_serialization(kind: Any, airflow_home: Path) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("own", schedule=None) as dag:
        make(kind)
    again = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    task = again.task_dict["task"]
    assert task.task_type == kind.__name__
    assert set(task.template_fields) == set(kind.template_fields)
    if issubclass(kind, StageTask):
        assert sorted(task.extra_links) == sorted(link.name for link in kind.operator_extra_links)


def test_links() -> None:
    assert [type(link) for link in operators.TrainModelOperator.operator_extra_links] == [MlflowRunLink]
    assert [type(link) for link in DataDriftSensor.operator_extra_links] == [MlflowRunLink, MlflowReportLink]
    assert operators.ExtractDataOperator.operator_extra_links == ()
    for kind in (operators.EvaluateModelOperator, operators.ValidateModelOperator, operators.PromoteModelOperator):
        assert [type(link) for link in kind.operator_extra_links] == [MlflowRunLink, ModelCardLink]


def test_links_lead_to_the_run(champion: Airflow) -> None:
    run = champion.test("predict", "2024-02")
    link = run.xcom["batch_predict", MlflowRunLink().xcom_key]
    assert link == run.xcom["batch_predict", "mlflow_url"]
    assert re.fullmatch(champion.world.registry.uri + r"/#/experiments/\d+/runs/[0-9a-f]{32}", link)


def test_execute_is_in_one_place() -> None:
    inherited = [kind for kind in KINDS if issubclass(kind, StageOperator)]
    assert {kind.execute for kind in inherited} == {base.StageOperator.execute}


def test_wrong_arguments_are_all_named() -> None:
    task = make(operators.ExtractDataOperator, grain="fortnight", last=0, pipeline="toy")
    with pytest.raises(DeclarationError) as caught:
        task.stage_params()
    assert len(caught.value.problems) == 2
    assert "ExtractDataOperator 'toy': argument 'grain'" in str(caught.value)
    assert "argument 'last'" in str(caught.value)


def test_an_input_is_another_task_s_output_or_a_reference() -> None:
    ref = ArtifactRef.model_validate(REF)
    assert reference(REF, "data", "train") == ref
    assert reference(ref, "data", "train") == ref
    assert reference({"stage": "extract", "outputs": {"data": REF}}, "data", "train") == ref


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"stage": "prepare", "outputs": {"test": REF, "train": REF}}, "'prepare' has no 'data'; allowed: test"),
        ("data.parquet", "str is no artifact; try: pass TASK.output"),
        (5, "int is no artifact"),
        ({"path": "x"}, "dict is no artifact"),
    ],
)
def test_an_input_that_is_none(value: Any, text: str) -> None:
    with pytest.raises(DeclarationError, match=re.escape(text)):
        reference(value, "data", "train")


OWN = """
from airflow.sdk import DAG, task
from airflow_mlops.operators import (
    EvaluateModelOperator, ExtractDataOperator, PrepareDataOperator, RegisterModelOperator, TrainModelOperator,
    ValidateModelOperator,
)
with DAG("{name}.own", schedule=None, params={{"path": "data/2024-01.parquet"}}) as dag:
    extract = ExtractDataOperator(task_id="extract", source="{{{{ params.path }}}}")
    prepare = PrepareDataOperator(task_id="prepare", data=extract.output, target="y")
    train = TrainModelOperator(
        task_id="train", train=prepare.output, target="y", estimator="sklearn.linear_model.LogisticRegression",
        exclude=["id", "at"], pipeline="{name}",
    )
    evaluate = EvaluateModelOperator(
        task_id="evaluate", test=prepare.output, model=train.output, plots=False, pipeline="{name}"
    )
    gate = ValidateModelOperator(
        task_id="gate", evaluation=evaluate.output, min={{"roc_auc": {least}}}, pipeline="{name}"
    )

    @task
    def announce() -> str:
        return "a good model"

    gate >> announce()
"""


@pytest.mark.parametrize(("least", "announced"), [(0.5, "success"), (0.999, "skipped")])
def test_single_operators_in_a_team_s_own_dag(airflow: Airflow, least: float, announced: str) -> None:
    toy.months(airflow.folder, ("2024-01",))
    airflow.write(OWN.format(name=airflow.name, least=least))

    run = airflow.test(f"{airflow.name}.own")

    assert run.state == "success"
    assert run.states["announce"] == announced
    decision = run.xcom["gate", "return_value"]
    assert decision["verdict"]["status"] == ("ok" if announced == "success" else "rejected")
    assert decision["window"] is None


def test_a_gate_with_nothing_after_it_succeeds(airflow: Airflow) -> None:
    toy.months(airflow.folder, ("2024-01",))
    airflow.write(OWN.format(name=airflow.name, least=0.999).split("    @task")[0])

    run = airflow.test(f"{airflow.name}.own")

    assert (run.state, run.states["gate"]) == ("success", "success")
    assert run.xcom["gate", "return_value"]["verdict"]["status"] == "rejected"


def test_the_retry_policy_asks_the_error_itself() -> None:
    policy = MlopsRetryPolicy()
    default = policy.evaluate(ValueError("not ours"), 1, 3)
    kinds = [kind for kind in _tree(MlopsError) if kind is not DeclarationError]
    for kind in kinds:
        decision = policy.evaluate(kind("what"), 1, 3)
        assert (decision.action == default.action) is kind.retryable, kind
    assert {kind.__name__ for kind in kinds if kind.retryable} == {
        "RegistryUnreachableError",
        "SourceUnreachableError",
        "StoreUnreachableError",
        "JobLostError",
        "JobFailedError",
        "PackageIndexUnreachableError",
        "CloudUnreachableError",
        "AirflowUnreachableError",
    }


def _tree(kind: type[MlopsError]) -> list[type[MlopsError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _tree(child))]


def test_operators_are_operators() -> None:
    assert all(issubclass(kind, BaseOperator) for kind in KINDS)
