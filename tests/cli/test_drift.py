"""One comparison from the shell: its words, its exit code, and how little it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from airflow_mlops.cli import main
from airflow_mlops.drift.profile import DatasetProfile
from tests import toy


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """January, February of the same kind, and a March that moved."""
    for month, shift in (("2024-01", 0.0), ("2024-02", 0.0), ("2024-03", 1.5)):
        pq.write_table(toy.rows(month, 1_000, shift=shift), tmp_path / f"{month}.parquet")
    return tmp_path


def drift(reference: Path | str, current: Path | str, *options: str) -> int:
    return main(["drift", "--reference", str(reference), "--current", str(current), *options])


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    said["words"] = {column["column"]: column["word"] for column in said["columns"]}
    return said


def test_no_drift_is_0_and_every_column_has_a_word(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drift(data / "2024-01.parquet", data / "2024-02.parquet", "--time", "at", "--json") == 0
    said = found(capsys)
    assert said["status"] == "ok" and said["rows"] == {"reference": 1000, "current": 1000}
    assert said["words"] == {
        "id": "not_judged",
        "at": "not_judged",
        **dict.fromkeys(["amount", "age", "region", "member", "y"], "steady"),
    }


def test_drift_is_3_and_says_what_moved(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drift(data / "2024-01.parquet", data / "2024-03.parquet") == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("drift: amount moved by 1.")
    assert sum(line.startswith("  moved ") for line in lines) >= 1
    assert sum(line.startswith("  steady ") for line in lines) >= 3
    assert drift(data / "2024-01.parquet", data / "2024-03.parquet", "--columns", "age", "region") == 0


def test_few_rows_are_4(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in (("few", 100), ("one", 1), ("none", 0)):
        file = data / f"{name}.parquet"
        pq.write_table(toy.rows("2024-02", 1_000).slice(0, rows), file)
        assert drift(data / "2024-01.parquet", file, "--time", "at") == 4
        assert drift(file, data / "2024-01.parquet", "--time", "at") == 4
    assert "insufficient_data: 0 rows" in capsys.readouterr().out
    assert drift(data / "2024-01.parquet", data / "few.parquet", "--min-rows", "50") == 0


@pytest.mark.parametrize(
    ("current", "options", "said"),
    [
        ("gone.parquet", [], "DataNotFoundError: there is no data at"),
        ("bad.parquet", [], "bad.parquet cannot be read as Parquet"),
        ("mixed", [], "bad.parquet cannot be read as Parquet"),
        ("old.profile", [], "is of version 99, and this release reads version 2"),
        ("2024-02.parquet", ["--time", "when"], "has no column 'when'; allowed: id, at"),
        ("2024-02.parquet", ["--columns", "colour"], "the reference has no column 'colour'"),
        ("2024-02.parquet", ["--false-alarm-rate", "2"], "--false-alarm-rate: Input should be less than 0.5"),
        ("2024-02.parquet", ["--save-profile", "no/such/folder/p"], "no/such/folder/p cannot be written"),
    ],
)
def test_bad_input_is_2_and_named(
    data: Path, capsys: pytest.CaptureFixture[str], current: str, options: list[str], said: str
) -> None:
    (data / "mixed").mkdir()
    for folder in (data, data / "mixed"):
        (folder / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    pq.write_table(toy.rows("2024-02"), data / "mixed" / "a.parquet")
    (data / "old.profile").write_bytes(b"airflow-mlops profile 99\n...")
    assert drift(data / "2024-01.parquet", data / current, *options) == 2
    printed = capsys.readouterr()
    assert said in printed.err and not printed.out and "Traceback" not in printed.err


def test_columns_that_broke_are_drift_and_come_first(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = toy.rows("2024-02", 1_000).drop_columns(["age"])
    table = table.set_column(2, "amount", pa.array(["x"] * 1_000)).append_column("colour", pa.array(["red"] * 1_000))
    table = table.set_column(table.schema.get_field_index("region"), "region", pa.nulls(1_000, pa.string()))
    pq.write_table(table, data / "other.parquet")
    assert drift(data / "2024-01.parquet", data / "other.parquet", "--json") == 3
    said = found(capsys)
    words = {name: said["words"][name] for name in ("age", "amount", "region", "colour", "member")}
    assert words == {
        "age": "broken", "amount": "broken", "region": "moved", "colour": "not_judged", "member": "steady",
    }  # fmt: skip
    assert said["reasons"][0] == "amount holds string, and double in the reference"
    assert next(each for each in said["columns"] if each["column"] == "colour")["note"].startswith("colour is new")


def test_csv_folders_patterns_and_saved_profiles_say_the_same(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pacsv.write_csv(toy.rows("2024-01", 1_000), data / "january.csv")
    assert drift(data / "2024-01.parquet", data / "january.csv", "--json") == 0
    assert all(column["effect"] in (0, None) for column in found(capsys)["columns"])
    folder = data / "parts"
    folder.mkdir()
    for start in range(0, 1_000, 250):
        pq.write_table(toy.rows("2024-03", 1_000, shift=1.5).slice(start, 250), folder / f"{start}.parquet")
    saved = str(data / "march.profile")
    assert drift(data / "2024-01.parquet", folder, "--json", "--save-profile", saved) == 3
    wanted = found(capsys)
    assert DatasetProfile.from_bytes(Path(saved).read_bytes()).rows == 1_000
    for current in (folder / "*.parquet", saved, data / "*.profile"):
        assert drift(data / "2024-01.parquet", current, "--json") == 3
        assert found(capsys) == wanted
    assert drift(saved, saved) == 0
    assert not list(data.glob(".*"))


LOADED = """
import sys
from airflow_mlops.cli import main
code = main(sys.argv[1:])
heavy = {"airflow", "evidently", "pandas", "scipy", "mlflow", "sklearn", "matplotlib"} & set(sys.modules)
print(code, sorted(heavy))
"""


def test_neither_airflow_nor_evidently_is_loaded_and_html_loads_the_one(data: Path) -> None:
    command = [sys.executable, "-c", LOADED, "drift", "--reference", str(data / "2024-01.parquet")]
    command += ["--current", str(data / "2024-03.parquet"), "--time", "at"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "3 []"
    html = data / "report.html"
    done = subprocess.run([*command, "--html", str(html)], capture_output=True, text=True, check=True)
    assert "evidently" in done.stdout.splitlines()[-1] and "'airflow'" not in done.stdout.splitlines()[-1]
    text = html.read_text()
    assert "amount moved by 1." in text and "of all rows" in text


def test_a_reader_that_has_seen_enough_gets_no_traceback(data: Path) -> None:
    command = [sys.executable, "-m", "airflow_mlops", "drift", "--reference", str(data / "2024-01.parquet")]
    command += ["--current", str(data / "2024-02.parquet"), "--json"]
    # Nobody reads standard output any more when the first line comes.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout and running.stderr
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() == 128 + 13
