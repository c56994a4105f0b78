"""What differs between two environments, and what a pointer makes of a release where Airflow parses it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_mlops.cli.main import main
from airflow_mlops.delivery.build import build
from airflow_mlops.delivery.places import StorePlace
from airflow_mlops.delivery.release import deploy
from tests.delivery.made import project
from tests.forked import AIRFLOW, printed

OVERLAYS = {"staging": {"owner": "dev", "retrain": {"mode": "observe"}}, "prod": {"owner": "ops"}}
PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1], safe_mode=True)
tags = {name: sorted(tag for tag in dag.tags if ":" in tag) for name, dag in bag.dags.items()}
print(json.dumps({"tags": tags, "owner": sorted({dag.owner for dag in bag.dags.values()}),
                  "errors": list(bag.import_errors.values())}))
"""


TEAM = """from airflow_mlops import load_dags

load_dags("pipelines/churn.yaml", globals())
"""


def environments(folder: Path) -> Path:
    for name in ("staging", "prod"):
        (folder / name).mkdir()
    target: dict[str, Any] = {name: {"dags": name, "airflow": "http://127.0.0.1:9"} for name in ("staging", "prod")}
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"environments": target}))
    return folder / "deploy.yaml"


def put(folder: Path, environment: str, file: str, version: str, *dags: str) -> str:
    bundle = build([file, *dags], version=version)
    place = StorePlace(str(folder / environment))
    options = {"by": "ann", "source": "x", "timeout": timedelta(minutes=1)}
    deploy(place, bundle, environment, watch=lambda *_: None, **options)  # type: ignore[arg-type]
    return bundle.manifest.release


def test_releases_and_overlays_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, file = str(environments(tmp_path)), project(tmp_path / "p", environments=OVERLAYS)
    assert main(["diff", "staging", "prod", "--files", file, "--json"]) == 0
    overlay = {"owner": ["dev", "ops"], "retrain.mode": ["observe", "auto"]}
    assert json.loads(capsys.readouterr().out) == {"churn": overlay}
    assert main(["diff", "staging", "prod", "--config", config]) == 1
    assert "nothing was released in staging" in capsys.readouterr().err

    put(tmp_path, "staging", file, "2.0")
    put(tmp_path, "prod", file, "1.0")
    assert main(["diff", "staging", "prod", "--config", config, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["churn"] == overlay
    assert found["release"]["version"] == ["2.0", "1.0"]
    assert main(["release", "list", "--config", config]) == 0
    told = capsys.readouterr().out
    assert "*churn 2.0" in told
    assert "by ann from x" in told


def test_airflow_finds_the_release_that_the_pointer_names_and_no_other(tmp_path: Path) -> None:
    environments(tmp_path)
    one = project(tmp_path / "one", environments=OVERLAYS)
    two = project(tmp_path / "two", environments=OVERLAYS, tags=["new"])
    # A DAG file of the team's own is one that Airflow would also find where it lies.
    (tmp_path / "one" / "team.py").write_text(TEAM)
    put(tmp_path, "staging", one, "1.0", str(tmp_path / "one" / "team.py"))
    told = printed(PARSE, str(tmp_path / "staging"), libraries=AIRFLOW)
    assert {name.partition(".")[0] for name in told["tags"]} == {"churn"}
    release = put(tmp_path, "staging", two, "2.0")
    told = printed(PARSE, str(tmp_path / "staging"), libraries=AIRFLOW)
    assert told["errors"] == []
    assert told["tags"]["churn.train"] == [f"release:{release}"]
    assert set(map(tuple, told["tags"].values())) == {(f"release:{release}",)}
    assert told["owner"] == ["dev"]

    other = printed(PARSE, str(tmp_path / "staging"), libraries=AIRFLOW, AIRFLOW__AIRFLOW_MLOPS__ENVIRONMENT="prod")
    assert "was deployed to 'staging', and this Airflow is 'prod'" in other["errors"][0]
    assert release in other["errors"][0]
