"""A new project runs at once: its tests are green, its CI makes the steps of its Makefile, nothing is overwritten."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement

from airflow_mlops import __version__
from airflow_mlops.cli import main
from airflow_mlops.cli.init import PLACEHOLDER, TEMPLATES, rendered
from airflow_mlops.cli.main import parser_of_commands
from airflow_mlops.delivery.build import build
from airflow_mlops.delivery.git import git
from airflow_mlops.delivery.login import Login, Said, User, login_of
from airflow_mlops.delivery.settings import read_settings
from airflow_mlops.spec import load_declarations
from tests.delivery.made import WHO, project
from tests.forked import commands

CI = ("github", "cloudbuild")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(target: str, project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a step of a project."""
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            ["make", target, *words],
            cwd=project,
            env={**os.environ, "PATH": commands(Path(folder))},
            text=True,
            capture_output=True,
            timeout=1200,
            check=False,
        )


@pytest.mark.timeout(1800)
def test_the_tests_of_a_new_project_are_green(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They lint its declaration, train a model that passes its gate, and load its DAGs; then it can be built."""
    assert main(["init", "churn"]) == 0
    assert "airflow-mlops run pipelines/churn.yaml" in capsys.readouterr().out

    tested, built = make("test", folder / "churn"), make("build", folder / "churn")

    assert tested.returncode == 0, tested.stdout
    assert re.search(r"\b5 passed\b", tested.stdout) and re.search(r"checks, 0 failed", tested.stdout)
    assert built.returncode == 0, built.stderr
    (bundle,) = (folder / "churn" / "dist").iterdir()
    assert "churn.yaml" in zipfile.ZipFile(bundle).namelist()
    settings = read_settings(folder / "churn" / "deploy.yaml")
    assert list(settings.environments) == list(
        load_declarations(folder / "churn/pipelines/churn.yaml")[0].pipeline.environments
    )


def test_a_project_goes_by_its_name_and_is_small() -> None:
    for ci in (None, *CI):
        files = dict(rendered("churn", ci))
        assert not [path for path, content in files.items() if PLACEHOLDER in f"{path} {content!r}"]
        assert max(map(len, files.values())) < 200_000


def test_what_is_made_is_in_the_wheel(tmp_path: Path) -> None:
    root = TEMPLATES.parents[1]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=root, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("airflow_mlops/templates/")}
    kept = [file for file in TEMPLATES.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert shipped == {file.relative_to(root).as_posix() for file in kept}


def test_the_data_are_those_of_their_seed(folder: Path) -> None:
    data = TEMPLATES / "project" / "pipelines" / "data"
    subprocess.run([sys.executable, data / "make_data.py", folder], check=True, timeout=120)
    months = sorted(file.name for file in data.glob("*.parquet"))
    assert len(months) == 6
    for name in months:
        pd.testing.assert_frame_equal(pd.read_parquet(folder / name), pd.read_parquet(data / name))


def test_nothing_is_overwritten_and_nothing_is_half_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "churn" / "tests").mkdir(parents=True)
    (folder / "churn" / "Makefile").write_text("mine")
    (folder / "churn" / "tests" / "conftest.py").symlink_to("nowhere")

    assert main(["init", "churn"]) == 1

    said = capsys.readouterr().err
    assert "churn/Makefile: is there already" in said and "churn/tests/conftest.py: is there already" in said
    assert (folder / "churn" / "Makefile").read_text() == "mine"
    assert sorted(each.name for each in folder.rglob("*")) == ["Makefile", "churn", "conftest.py", "tests"]


def test_what_is_in_nobodys_way_stays(folder: Path) -> None:
    (folder / "churn").mkdir()
    (folder / "churn" / "LICENSE").write_text("mine")
    assert main(["init", "churn", "--ci", "github"]) == 0
    assert (folder / "churn" / "LICENSE").read_text() == "mine"
    assert (folder / "churn" / ".github" / "workflows" / "release.yml").is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-churn", "try: my_churn"),
        ("Churn", "try: churn"),
        ("2nd", "is no name of a package"),
        ("../churn", "try: churn"),
        ("class", "is a word of Python's"),
        ("données", "is no name of a package"),
        ("json", "is taken"),
        ("pandas", "try: pandas_model"),
        ("data", "is taken"),
        ("c" * 51, "50 at most"),
    ],
)
def test_a_name_that_cannot_be_a_package_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    assert main(["init", name]) == 1
    assert said in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_the_requirements_take_this_version() -> None:
    (line,) = [
        line
        for line in (TEMPLATES / "project" / "requirements.txt").read_text().splitlines()
        if "airflow-mlops" in line
    ]
    assert __version__ in Requirement(line).specifier


def _workflows(ci: str) -> dict[str, dict[Any, Any]]:
    return {
        path.stem: yaml.safe_load(content)
        for path, content in rendered("churn", ci)
        if path.suffix in (".yml", ".yaml") and path.parts[0] in (".github", "cloudbuild")
    }


def _steps(ci: str, workflow: dict[Any, Any]) -> list[str]:
    """The targets of the Makefile that a workflow makes, in its order."""
    steps = (
        workflow["steps"]
        if ci == "cloudbuild"
        else [each for job in workflow["jobs"].values() for each in job["steps"]]
    )
    text = "\n".join(each.get("script", each.get("run", "")) for each in steps)
    return re.findall(r"\bmake ([\w-]+)", text)


@pytest.mark.parametrize("ci", CI)
def test_a_ci_makes_the_same_steps_as_a_person(folder: Path, ci: str) -> None:
    workflows = _workflows(ci)
    made = {name: [each for each in _steps(ci, workflow) if each != "install"] for name, workflow in workflows.items()}
    assert made == {
        "pull-request": ["test"],
        "main": ["test", "build", "deploy-staging"],
        "release": ["promote", "rollback"],
    }

    main(["init", "churn", "--ci", ci])
    (commands,) = [each.choices for each in parser_of_commands()._actions if isinstance(each.choices, dict)]
    for target in sorted({"install", *(each for steps in made.values() for each in steps)}):
        shown = make(target, folder / "churn", "--dry-run", "BUNDLE=dist/churn")
        assert shown.returncode == 0, shown.stderr
        called = re.findall(r"^airflow-mlops ([a-z]+)", shown.stdout, re.MULTILINE)
        assert set(called) <= set(commands)


def test_workflows_have_no_more_rights_than_they_need() -> None:
    workflows = _workflows("github")
    for workflow in workflows.values():
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"]
            uses = [each["uses"] for each in job["steps"] if "uses" in each]
            assert uses and all(re.fullmatch(r"actions/[\w-]+@v\d+", each) for each in uses)
    assert workflows["main"]["jobs"]["staging"]["environment"] == "staging"
    assert workflows["release"]["jobs"]["prod"]["environment"] == "prod"
    # What is typed into a form never becomes part of a command.
    assert not any("${{" in str(step.get("run", "")) for each in workflows.values() for job in each["jobs"].values()
                   for step in job["steps"])  # fmt: skip


DELIVERING = {"main": "staging", "release": "prod"}
"""The environment that a workflow delivers to."""


def _handed_on(ci: str, workflow: dict[Any, Any], kept: dict[str, str]) -> dict[str, dict[str, str]]:
    """The variables that each target of the Makefile gets of the secrets that are kept."""
    found: dict[str, dict[str, str]] = {}
    if ci == "cloudbuild":
        known = {
            each["env"]: each["versionName"] for each in workflow.get("availableSecrets", {}).get("secretManager", [])
        }
        for step in workflow["steps"]:
            names = [re.fullmatch(r"projects/\$PROJECT_ID/secrets/(\w+)/versions/latest", known[name])
                     for name in step.get("secretEnv", [])]  # fmt: skip
            values = {
                name: kept[match[1]] for name, match in zip(step.get("secretEnv", []), names, strict=True) if match
            }
            found |= dict.fromkeys(re.findall(r"\bmake ([\w-]+)", step.get("script", "")), values)
        return found
    assert not [1 for each in (workflow, *workflow["jobs"].values()) if "secrets." in str(each.get("env"))]
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            named = {name: re.fullmatch(r"\$\{\{ secrets\.(\w+) \}\}", value)
                     for name, value in step.get("env", {}).items()}  # fmt: skip
            # GitHub makes an empty text of a secret that is not there.
            values = {name: kept.get(match[1], "") for name, match in named.items() if match}
            found |= dict.fromkeys(re.findall(r"\bmake ([\w-]+)", step.get("run", "")), values)
    return found


@pytest.mark.parametrize("ci", CI)
@pytest.mark.parametrize("name", DELIVERING)
def test_a_ci_hands_on_who_asks_airflow_to_the_steps_that_deploy_and_to_no_other(
    ci: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = DELIVERING[name]
    workflow = _workflows(ci)[name]
    user, password, token = (f"AIRFLOW_API_{each}_{environment.upper()}" for each in ("USER", "PASSWORD", "TOKEN"))
    a_user = (Login(user=User(Said(user, "ci"), Said(password, "pass"))), {user: "ci", password: "pass"})
    ways = [a_user] if ci == "cloudbuild" else [a_user, (Login(Said(token, "t")), {token: "t"}), (Login(), {})]
    for login, kept in ways:
        handed = _handed_on(ci, workflow, kept)
        asking = [each for each in handed if each in ("deploy-staging", "promote", "rollback")]
        assert asking
        for target in asking:
            with monkeypatch.context() as patch:
                for variable, value in handed[target].items():
                    patch.setenv(variable, value)
                assert login_of(environment) == login
        assert not any(values for target, values in handed.items() if target not in asking)


def test_a_github_workflow_builds_from_a_checkout_with_history_and_tags() -> None:
    building = 0
    for workflow in _workflows("github").values():
        for job in workflow["jobs"].values():
            if any(each.get("run") == "make build" for each in job["steps"]):
                (checkout,) = [each for each in job["steps"] if each.get("uses", "").startswith("actions/checkout@")]
                assert checkout["with"]["fetch-depth"] == 0  # which is all of it, and all tags
                building += 1
    assert building == 1


def test_cloud_build_builds_the_version_that_git_names_from_its_shallow_clone(tmp_path: Path) -> None:
    """Its clones hold one commit and no tags; the step that comes before the build is run as it stands."""
    tree = tmp_path / "tree"
    file = project(tree)
    git("init", "--quiet", "--initial-branch", "main", folder=tree)
    git("add", ".", folder=tree)
    git(*WHO, "commit", "--quiet", "--message", "one", folder=tree)
    git("tag", "v1.4.0", folder=tree)
    git(*WHO, "commit", "--quiet", "--allow-empty", "--message", "two", folder=tree)
    git("clone", "--quiet", "--depth", "1", "--no-tags", tree.as_uri(), "workspace", folder=tmp_path)
    steps = _workflows("cloudbuild")["main"]["steps"]
    before = steps[: [each["id"] for each in steps].index("build")]

    (fetching,) = [each for each in before if each["name"] == "gcr.io/cloud-builders/git"]
    git(*fetching["args"], folder=tmp_path / "workspace")

    whole, shallow = build([file]), build([str(tmp_path / "workspace" / Path(file).relative_to(tree))])
    assert shallow.manifest.version.startswith("1.4.0.post1+g")
    assert shallow.manifest.digest == whole.manifest.digest
