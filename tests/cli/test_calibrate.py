"""``airflow-mlops calibrate``: a rule on the source's own history, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_mlops.cli.main import main
from tests import toy

MONTHS = ("2024-01", "2024-02", "2024-03", "2024-04")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.months(tmp_path, MONTHS[:3])
    toy.months(tmp_path, MONTHS[3:], shift=2.0)
    toy.declare(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "toy.yaml"


def test_the_history_the_alarms_and_the_power_are_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(file.parent.rglob("*"))
    assert main(["calibrate", str(file), "--window", "2024-03"]) == 0
    said = capsys.readouterr().out
    assert "False alarms to expect (declared: at most 1.00% of windows" in said and "own window" in said
    assert "Smallest move found in 95% of windows" in said and "2024-03" in said and "Evidently" not in said
    assert sorted(file.parent.rglob("*")) == before


def test_json_says_the_same_for_machines(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(each["window"], each["status"], each["moved"]) for each in said["windows"]] == [
        ("2024-02", "ok", []), ("2024-03", "ok", []), ("2024-04", "drift", ["amount"]),
    ]  # fmt: skip
    assert [each["rows"] for each in said["sizes"]] == [400, 300, 1000, 5000, 50_000]
    assert {each["column"] for each in said["sizes"][0]["columns"]} == {"amount", "age", "region", "member"}


def test_evidently_is_shown_beside_when_it_is_asked_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(file), "--windows", "2", "--evidently"]) == 0
    said = capsys.readouterr().out
    assert "Evidently's preset" in said and "of 4 columns)" in said


def test_a_source_without_windows_is_a_reference_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.write(toy.rows("2024-01", 2000), tmp_path / "all.parquet")
    toy.declare(tmp_path, data={"source": "all.parquet", "time": None})
    assert main(["calibrate", str(tmp_path / "toy.yaml")]) == 0
    assert "rows taken as independent" in capsys.readouterr().out
