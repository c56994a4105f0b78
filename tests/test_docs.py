"""The documents hold what the code offers: pages that are made from it are fresh, and nothing public is left out."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_mlops import operators, sensors
from airflow_mlops.cli.main import parser_of_commands
from tests import toy
from tests.airflow_fixtures import Airflow

DOCS = Path(__file__).parents[1] / "docs"
PUBLIC = [*operators.__all__, *sensors.__all__]
TASKS = sorted(name for name in PUBLIC if name.endswith(("Operator", "Sensor")))
HOWTO = {page: page.read_text(encoding="utf-8") for page in (DOCS / "howto.md", *sorted((DOCS / "howto").glob("*.md")))}


def test_the_reference_is_what_the_code_says() -> None:
    made = subprocess.run(
        [sys.executable, str(DOCS / "build.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_has_an_entry_in_the_reference_and_a_how_to_page(name: str) -> None:
    reference = (DOCS / "reference" / "operators.md").read_text(encoding="utf-8")
    assert re.search(rf"^### `{name}\b", reference, re.MULTILINE)
    assert any(f"`{name}`" in text for text in HOWTO.values())


def test_every_command_is_in_the_reference_and_in_a_how_to_page() -> None:
    reference = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    said = "\n".join([*HOWTO.values(), (DOCS.parent / "README.md").read_text(encoding="utf-8")])
    (commands,) = [each.choices for each in parser_of_commands()._actions if isinstance(each.choices, dict)]
    for name in commands:
        assert f"## `airflow-mlops {name}`" in reference
        assert f"airflow-mlops {name}" in said or f"make {name}" in said


def links() -> Iterator[tuple[str, str]]:
    for page in (DOCS.parent / "README.md", DOCS / "architecture.md", DOCS / "tutorial.md", *HOWTO):
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            yield str(page.relative_to(DOCS.parent)), target


def test_links_between_pages_lead_somewhere() -> None:
    lost = []
    for page, target in links():
        file, _, anchor = target.partition("#")
        to = (DOCS.parent / page).parent / file if file else DOCS.parent / page
        heads = re.findall(r"^#+ (.+)$", to.read_text(encoding="utf-8"), re.MULTILINE) if to.is_file() else []
        if not to.exists() or (anchor and anchor not in {head.lower().replace(" ", "-") for head in heads}):
            lost.append(f"{page}: {target}")
    assert lost == []


def test_the_example_of_single_operators_is_a_dag(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", HOWTO[DOCS / "howto" / "operators.md"], re.DOTALL)
    (tmp_path / "team.py").write_text(code)
    found = runpy.run_path(str(tmp_path / "team.py"))
    assert found["gate"].dag.dag_id == "churn" and len(found["gate"].dag.tasks) == 7


def test_every_operator_and_sensor_runs_in_a_real_dag(airflow: Airflow) -> None:
    """The DAGs of one pipeline hold all of them, and Airflow's own ``dag.test()`` runs each to success."""
    toy.months(airflow.folder)
    tune = {"space": {"C": {"low": 0.1, "high": 1.0}}, "trials": 2, "folds": 2}
    airflow.declare(
        tune=tune, retries=0, monitor={"data_drift": {"min_effect": 5.0}, "prediction_drift": {}, "performance": {}}
    )
    done = set()
    for what, window in (
        ("train", "2024-01"),
        ("predict", "2024-02"),
        ("monitor", "2024-02"),
        ("monitor_predictions", "2024-02"),
        ("monitor_performance", "2024-02"),
    ):
        run = airflow.test(what, window)
        assert run.state == "success", (what, run.states)
        tasks = airflow.dag(what).task_dict
        done |= {type(tasks[task]).__name__ for task, state in run.states.items() if state == "success"}
    # These wait for a person; tests/operators/test_approval.py, test_approve_model.py and test_rollback_dag.py are one.
    # And these for a server: test_deploy_dag.py.
    elsewhere = {
        "ApproveRetrainingOperator",
        "ApproveModelOperator",
        "RollbackModelOperator",
        "ValidateServingOperator",
        "TrialModelOperator",
        "DeployModelOperator",
    }
    assert sorted(done | elsewhere) == TASKS
