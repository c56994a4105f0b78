"""One declaration, and what an environment lays over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_mlops.cli.lint import lint
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import load_declarations
from airflow_mlops.spec.environment import MAY_DIFFER, VARIABLE
from airflow_mlops.spec.load import dump_pipeline
from airflow_mlops.spec.pipeline import Pipeline

BODY = """\
name: churn
schedule: "@weekly"
data: {source: "data/{window}.csv", target: churned}
train: {estimator: sklearn.dummy.DummyClassifier}
retrain: {cooldown: 1d, max_per_week: 5}
environments:
  prod:
    schedule: "@daily"
    retrain: {cooldown: 2d}
    backend: vertex
    google: {project: my-project, region: europe-west1, bucket: my-bucket}
  staging:
    retries: 0
"""


def write(folder: Path, text: str = BODY) -> str:
    file = folder / "churn.yaml"
    file.write_text(text)
    return str(file)


def test_maps_are_merged_and_all_else_is_replaced(tmp_path: Path) -> None:
    [plain] = load_declarations(write(tmp_path))
    [prod] = load_declarations(write(tmp_path), "prod")
    assert (plain.pipeline.schedule, prod.pipeline.schedule) == ("@weekly", "@daily")
    assert prod.pipeline.retrain.cooldown.days == 2
    assert prod.pipeline.retrain.max_per_week == 5
    assert prod.pipeline.google and prod.pipeline.google.store == "gs://my-bucket/mlops"
    # What is logged with a model is what was used.
    assert "environments" not in dump_pipeline(prod.pipeline)


def test_python_says_the_same_as_yaml(tmp_path: Path) -> None:
    [plain] = load_declarations(write(tmp_path), "")
    [prod] = load_declarations(write(tmp_path), "prod")
    made = Pipeline.model_validate(plain.pipeline.model_dump(by_alias=True, exclude_unset=True))
    assert made.in_environment("prod") == prod.pipeline
    assert made.in_environment(None) is made
    with pytest.raises(DeclarationError, match="no environment 'qa'; allowed: prod, staging"):
        made.in_environment("qa")


def test_the_variable_of_airflows_configuration_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "staging")
    [found] = load_declarations(write(tmp_path))
    assert found.pipeline.retries == 0
    without = BODY.partition("environments:")[0]
    assert load_declarations(write(tmp_path, without))[0].pipeline.retries == 2
    monkeypatch.setenv(VARIABLE, "qa")
    with pytest.raises(DeclarationError, match=r"churn.yaml:6: .* no environment 'qa'; allowed: prod, staging"):
        load_declarations(write(tmp_path, BODY))


@pytest.mark.parametrize("key", ["train: {params: {strategy: uniform}}", "name: other", "monitor: {quiet: 1m}"])
def test_what_makes_the_model_is_the_same_everywhere(tmp_path: Path, key: str) -> None:
    with pytest.raises(DeclarationError) as raised:
        load_declarations(write(tmp_path, BODY.replace("retries: 0", key)))
    [problem] = raised.value.problems
    assert problem.partition(": ")[0].endswith("churn.yaml:13")
    assert "is the same in every environment" in problem and ", ".join(MAY_DIFFER) in problem


def test_lint_looks_at_every_environment(tmp_path: Path) -> None:
    text = BODY.replace("region: europe-west1", "region: Europe").replace("retries: 0", "backend: vertex")
    problems = lint([write(tmp_path, text)])
    assert len(problems) == 2
    assert "churn.yaml:11" in problems[0] and "google.region" in problems[0] and "'prod'" in problems[0]
    assert "churn.yaml:13" in problems[1] and "no project is declared" in problems[1] and "'staging'" in problems[1]
