"""Releases into the folder of a real Airflow: loaded, smoked, and taken back where either goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from airflow_mlops.cli.services import Services
from airflow_mlops.delivery.bundle import read_bundle
from airflow_mlops.delivery.places import StorePlace
from tests import toy
from tests.delivery.made import project
from tests.loopback.airflow import airflow_of

QUICK = {"retry_delay": "1s", "evaluate": {"plots": False}, "validate_model": {"versus_champion": None}}


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "airflow_mlops", *words], cwd=folder, capture_output=True, text=True, check=False
    )


def built(folder: Path, version: str) -> str:
    done = command(folder, "build", "pipelines/churn.yaml", "--version", version)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0]


def settings(folder: Path, running: Services, *smoke: object) -> None:
    target = {"dags": str(running.dags), "airflow": running.airflow_url, "smoke": list(smoke)}
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"environments": {"staging": target}}))


def tags(running: Services, dag_id: str = "churn.train") -> set[str]:
    dags = running.airflow("GET", "dags?tags=churn")["dags"]
    return {tag["name"] for dag in dags if dag["dag_id"] == dag_id for tag in dag["tags"]}


def release_tag(running: Services) -> str:
    pointer = (running.dags / "churn_release.py").read_text()
    return f"release:{pointer.partition('releases/churn/')[2][:16]}"


def test_a_release_is_loaded_and_smoked_and_a_bad_one_leaves_the_old_one_running(
    running: Services, tmp_path: Path
) -> None:
    project(tmp_path, **QUICK)
    toy.months(tmp_path, ["2024-01"])
    settings(tmp_path, running, {"dag": "churn", "params": {"window": "2024-01"}})
    bundle = built(tmp_path, "1.0")
    started = time.monotonic()
    done = command(tmp_path, "deploy", bundle, "--env", "staging", "--by", "ann")
    print(f"deployed in {time.monotonic() - started:.1f} s: {done.stdout}")
    assert done.returncode == 0, done.stderr
    assert "churn 1.0 runs in staging" in done.stdout
    good = release_tag(running)
    assert good in tags(running)
    (run,) = running.runs("churn.train")
    assert (run["state"], run["note"]) == ("success", f"smoke run of churn 1.0, {good.replace(':', ' ')}")
    assert running.airflow("GET", "importErrors")["import_errors"] == []

    # It breaks where it is parsed, and nowhere before: this Airflow has no such package.
    team = tmp_path / "pipelines" / "team.py"
    team.write_text('"""DAGs for Airflow."""\n\nimport not_on_this_airflow\n')
    broken = command(tmp_path, "build", "pipelines/churn.yaml", str(team), "--version", "1.1").stdout.splitlines()[0]
    done = command(tmp_path, "deploy", broken, "--env", "staging")
    assert done.returncode == 1
    assert "Airflow does not load it" in done.stderr
    assert "No module named 'not_on_this_airflow'" in done.stderr
    assert "1.0 runs again" in done.stderr, done.stderr
    assert release_tag(running) == good
    assert running.airflow("GET", "importErrors")["import_errors"] == []

    # This one is loaded, and its smoke run fails.
    settings(tmp_path, running, {"dag": "churn", "params": {"window": "2023-05"}})
    (tmp_path / "pipelines" / "churn" / "features.py").open("a").write("\n")
    done = command(tmp_path, "deploy", built(tmp_path, "1.2"), "--env", "staging")
    assert done.returncode == 1
    assert "failed: extract" in done.stderr
    assert "2023-05" in done.stderr
    assert release_tag(running) == good
    assert good in tags(running)

    done = command(tmp_path, "release", "list", "staging", "--json")
    entries = json.loads(done.stdout)["staging"]["churn"]
    assert [(each["version"], each["kind"]) for each in entries] == [
        ("1.0", "started"),
        ("1.0", "deployed"),
        ("1.1", "started"),
        ("1.1", "failed"),
        ("1.2", "started"),
        ("1.2", "failed"),
    ]
    assert entries[0]["by"] == "ann"


def test_what_staging_runs_is_promoted_and_rolled_back(running: Services, tmp_path: Path) -> None:
    """Staging is a folder with a stand-in for its Airflow; production is the real one."""
    if not (running.dags / "churn_release.py").exists():
        pytest.skip("nothing is deployed, because the test before this one failed")
    project(tmp_path, **QUICK, description="another one", environments={"staging": {}, "prod": {"owner": "ops"}})
    (tmp_path / "staging").mkdir()
    before = release_tag(running)
    with airflow_of(StorePlace(str(tmp_path / "staging"))) as staging:
        targets = {
            "staging": {"dags": "staging", "airflow": staging.url},
            "prod": {"dags": str(running.dags), "airflow": running.airflow_url},
        }
        (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"environments": targets}))
        bundle = built(tmp_path, "2.0")
        assert command(tmp_path, "deploy", bundle, "--env", "staging").returncode == 0
    done = command(tmp_path, "release", "promote", "staging", "prod")
    assert done.returncode == 0, done.stderr
    after = release_tag(running)
    assert after != before
    assert after in tags(running)
    assert f"digest   {read_bundle(tmp_path / bundle).manifest.digest}" in done.stdout
    assert running.airflow("GET", "dags/churn.train")["owners"] == ["ops"]
    done = command(tmp_path, "release", "rollback", "prod")
    assert done.returncode == 0, done.stderr
    assert "back from 2.0 to 1.0" in done.stdout
    assert before in tags(running)
