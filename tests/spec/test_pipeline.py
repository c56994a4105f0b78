"""The declaration: its defaults, its documentation and what it refuses."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from airflow_mlops.call import Call, Outcome
from airflow_mlops.call.dispatch import STAGES
from airflow_mlops.call.wire import Wire
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import DataSchema, Pipeline
from airflow_mlops.spec.base import Section, field_docs
from airflow_mlops.spec.metrics import DEFAULT_METRICS, METRICS, TASKS, metrics_of


def pipeline(**more: Any) -> Pipeline:
    least = {"name": "churn", "data": {"source": "a.parquet", "target": "y"}, "train": {"function": "churn.model:fit"}}
    return Pipeline.model_validate({**least, **more})


@pytest.mark.parametrize("model", [Pipeline, DataSchema, Call, Outcome, *STAGES.values()], ids=lambda m: m.__name__)
def test_every_property_is_documented(model: type[BaseModel]) -> None:
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    bare = []
    for owner in (schema, *definitions.values()):
        for name, field in owner.get("properties", {}).items():
            # Where the property says the same as its section, pydantic says it once, there.
            section = definitions.get(field.get("$ref", "").removeprefix("#/$defs/"), {})
            if not (field.get("description") or section.get("description")):
                bare.append(f"{owner.get('title')}.{name}")
    assert bare == []


@pytest.mark.parametrize("kind", [Section, Wire])
def test_every_field_has_a_docstring(kind: type[BaseModel]) -> None:
    classes = list(kind.__subclasses__())
    for each in classes:
        classes += each.__subclasses__()
    mine = [each for each in classes if each.__module__.startswith("airflow_mlops.")]
    assert len(mine) > 3
    bare = [f"{e.__name__}.{name}" for e in mine for name in e.model_fields.keys() - field_docs(e).keys()]
    assert bare == []


def test_the_json_schema_is_what_the_loader_takes() -> None:
    schema = Pipeline.model_json_schema(by_alias=True)
    assert sorted(schema["required"]) == ["data", "name", "train"]
    assert "apiVersion" in schema["properties"]
    assert "schema" in schema["$defs"]["Data"]["properties"]
    assert all(each.get("additionalProperties") is False for each in (schema, schema["$defs"]["Split"]))


def test_no_key_is_a_word_that_yaml_reads_as_something_else() -> None:
    schema = Pipeline.model_json_schema(by_alias=True)
    keys = {key for owner in (schema, *schema["$defs"].values()) for key in owner.get("properties", {})}
    assert not keys & {"on", "off", "yes", "no", "y", "n", "true", "false", "null"}
    assert len(keys) > 30


def test_the_defaults_are_those_of_a_careful_team() -> None:
    made = pipeline()
    assert made.validate_model.versus_champion is not None
    assert made.train.serialization == "skops", "loading a model runs no code"
    assert (made.retrain.mode, made.retrain.triggers) == ("auto", ("drift", "prediction_drift", "performance", "skew"))
    assert (made.retrain.cooldown, made.retrain.max_per_week) == (timedelta(hours=24), 3)
    assert made.retrain.approval.timeout == timedelta(days=3)
    assert (made.schedule, made.backend, made.retries) == (None, "local", 2)


def test_a_pipeline_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        pipeline().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("schedule", "window", "grain"),
    [("@monthly", None, "month"), ("@monthly", "day", "day"), ("0 3 * * *", None, "day"), (None, None, "day")],
)
def test_windows_step_by_the_schedule_unless_declared(schedule: str | None, window: str | None, grain: str) -> None:
    data = {"source": "{window}.parquet", "target": "y", "window": window}
    assert pipeline(schedule=schedule, data=data).grain == grain


@pytest.mark.parametrize(
    ("data", "windowed"),
    [({"source": "a.csv"}, False), ({"source": "{window}.csv"}, True), ({"source": "a.csv", "time": "at"}, True)],
)
def test_data_comes_in_windows_by_its_source_or_its_time(data: dict[str, str], windowed: bool) -> None:
    assert pipeline(data={**data, "target": "y"}).data.windowed is windowed


def test_one_name_stands_for_a_list_of_one() -> None:
    made = pipeline(evaluate={"metrics": "f1"}, tags="team-a")
    assert (made.evaluate.metrics, made.tags) == (("f1",), ("team-a",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "9lives"},
        {"name": "a/b"},
        {"name": "a\n"},
        {"name": "a" * 101},
        {"apiVersion": "airflow-mlops/v2"},
        {"prepare": {"features": "churn.features"}},
        {"prepare": {"features": "churn.features:build()"}},
        {"prepare": {"features": "lambda x: x"}},
        {"train": {"estimator": "DummyClassifier"}},
        {"train": {"estimator": "sklearn.dummy.DummyClassifier()"}},
        {"train": {"function": "a:b", "windows": {"last": 0}}},
        {"retries": -1},
        {"retrain": {"triggers": [{"model": "a", "when": "b"}]}},
        {"retrain": {"mode": "manual"}},
        {"retrain": {"max_per_week": 0}},
        {"retrain": {"approval": {"timeout": "0s"}}},
        {"validate_model": {"versus_champion": {"confidence": 1.0}}},
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        pipeline(**wrong)


def test_every_task_has_default_metrics_that_it_has() -> None:
    for task in TASKS:
        assert set(DEFAULT_METRICS[task]) <= set(metrics_of(task))
        assert metrics_of(task) == [name for name in METRICS if task in METRICS[name].tasks]
