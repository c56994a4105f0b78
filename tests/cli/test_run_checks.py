"""``airflow-mlops run``: what it finds before the first stage, and what it tells a newcomer at the end."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from tests import toy
from tests.forked import command

FEATURES = """
def build(rows):
    return rows[["amount", "member"]]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A month of data, and a declaration whose features are the team's own."""
    toy.months(tmp_path, ("2024-01",))
    toy.package(tmp_path, "team", FEATURES)
    toy.declare(tmp_path, prepare={"features": "team.features:build"})
    return tmp_path


@pytest.mark.parametrize(
    ("sections", "source", "said"),
    [
        ({"prepare": {"features": "team.features:buidl"}}, FEATURES, "try: team.features:build"),
        ({"train": {"estimator": "sklearn.dummy.DumyClassifier"}}, FEATURES, "try: sklearn.dummy.DummyClassifier"),
        ({"train": {"params": {"c": 1}}}, FEATURES, "sklearn.linear_model.LogisticRegression has no parameter 'c'"),
        (
            {"prepare": {"features": "taem.features:build"}},
            FEATURES,
            "No module named 'taem'; try: correct the name, install taem",
        ),
        ({}, "import os\nimport nowhere_to_be_found\n", "(at team/features.py:2); try: install nowhere_to_be_found"),
        ({}, "def build(rows):\n    return rows[\n", "SyntaxError: '[' was never closed at team/features.py:2"),
    ],
)
def test_code_that_is_wrong_is_told_before_the_first_stage(
    folder: Path, sections: dict[str, object], source: str, said: str
) -> None:
    toy.package(folder, "team", source)
    toy.declare(folder, **{"prepare": {"features": "team.features:build"}, **sections})

    done = command("run", "toy.yaml", cwd=folder)

    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("DeclarationError: toy.yaml:") and said in done.stderr
    assert "extract" not in done.stdout and not (folder / ".airflow-mlops" / "store" / "outcomes").exists()


def test_code_that_was_found_right_is_not_imported_again_to_be_checked(folder: Path) -> None:
    toy.package(folder, "team", "print('imported')\n" + FEATURES)
    said = [command("run", "toy.yaml", "--no-promote", cwd=folder).stdout.count("imported\n") for _ in range(2)]
    # Checked, prepared and trained with; then all of that is there already.
    assert said[0] >= 2 and said[1] == 0


def test_a_registry_out_of_reach_is_told_before_the_first_stage(folder: Path) -> None:
    done = command("run", "toy.yaml", "--json", "--registry", "http://127.0.0.1:9", cwd=folder)

    summary = json.loads(done.stdout)
    assert (summary["error"]["type"], summary["stages"]) == ("RegistryUnreachableError", {})


def test_the_end_says_where_the_model_is_and_what_comes_next(folder: Path) -> None:
    first = command("run", "toy.yaml", cwd=folder)

    assert first.returncode == 0, first.stderr
    told = dict(line.split(maxsplit=1) for line in first.stdout.splitlines()[-3:])
    assert told["model"] == "toy version 1"
    assert told["look"] == f"mlflow ui --backend-store-uri sqlite:///{folder}/.airflow-mlops/mlflow.db"
    assert command(*shlex.split(told["next"])[1:], cwd=folder).returncode == 0
    toy.declare(folder, prepare={"features": "team.features:build"}, data={"schema": "schemas/toy.yaml"})

    again = command("run", "toy.yaml", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert f'next   load_dags("{folder}/toy.yaml", globals()) in a DAG file' in again.stdout


def test_with_a_server_the_end_gives_the_address_of_the_model(world: toy.World) -> None:
    toy.months(world.folder, ("2024-01",))
    toy.declare(world.folder, world.registry.model)
    words = ("run", f"{world.registry.model}.yaml", "--registry", world.registry.uri)

    assert (
        f"look   {world.registry.uri}/#/models/{world.registry.model}/versions/1"
        in command(*words, cwd=world.folder).stdout
    )
    found = json.loads(command(*words, "--json", cwd=world.folder).stdout)["model"]
    assert (found["name"], found["version"]) == (world.registry.model, "1")


def test_one_member_of_a_fleet_is_run_by_its_name(tmp_path: Path) -> None:
    toy.months(tmp_path, ("2024-01",))
    toy.declare(tmp_path)
    body = yaml.safe_load((tmp_path / "toy.yaml").read_text())
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({**body, "name": "churn_{c}", "for_each": {"c": ["de", "fr"]}}))

    which = command("run", "fleet.yaml", cwd=tmp_path)
    wrong = command("run", "fleet.yaml", "--pipeline", "churn_dee", cwd=tmp_path)
    done = command("run", "fleet.yaml", "--pipeline", "churn_fr", cwd=tmp_path)

    assert which.returncode == wrong.returncode == 1
    assert which.stderr == (
        "DeclarationError: fleet.yaml: holds 2 pipelines; allowed: churn_de, churn_fr; try: --pipeline churn_de\n"
    )
    assert wrong.stderr.endswith("'churn_dee'; allowed: churn_de, churn_fr; try: --pipeline churn_de\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("churn_fr: run ") and "model  churn_fr version 1" in done.stdout
    assert [path.name for path in (tmp_path / ".airflow-mlops" / "store" / "ledger").iterdir()] == ["churn_fr"]
