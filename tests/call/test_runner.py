"""The runner, ``python -m airflow_mlops.call CALL.json [OUTCOME.json]``, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.__main__ import main
from airflow_mlops.call.code import snapshot
from airflow_mlops.spec.window import parse_key
from tests.call.made import call
from tests.conftest import free_port
from tests.forked import python


def runner(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "airflow_mlops.call", *map(str, arguments), **environment)


@pytest.fixture
def asked(tmp_path: Path) -> Call:
    pq.write_table(pa.table({"x": [1, 2, 3], "y": [4, 5, 6]}), tmp_path / "2013-01.parquet")
    return call(
        store=str(tmp_path / "store"),
        params={"source": f"{tmp_path}/{{window}}.parquet", "grain": "month"},
        window=parse_key("month", "2013-01"),
    )


def written(folder: Path, asked: Call, **changes: Any) -> Path:
    file = folder / "call.json"
    file.write_text(asked.model_copy(update=changes).model_dump_json())
    return file


def test_a_call_is_done_and_its_outcome_written(tmp_path: Path, asked: Call) -> None:
    done = runner(written(tmp_path, asked), tmp_path / "out.json", TOY_TOKEN="hunter2")
    assert (done.returncode, done.stdout) == (0, "")
    outcome = Outcome.model_validate_json((tmp_path / "out.json").read_bytes())
    assert outcome.outputs["data"].rows == 3
    assert Store(asked.store).read_outcome(asked) == outcome
    assert not (tmp_path / "out.json.part").exists()
    kept = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(b"hunter2" in content for content in (*kept, done.stderr.encode()))


def test_without_a_second_file_the_outcome_is_all_of_standard_output(tmp_path: Path, asked: Call) -> None:
    done = runner(written(tmp_path, asked))
    assert done.returncode == 0
    assert Outcome.model_validate(json.loads(done.stdout)).identity == asked.identity


def test_what_the_stage_prints_goes_to_standard_error(tmp_path: Path, asked: Call) -> None:
    store = Store(asked.store)
    (tmp_path / "talker.py").write_text("def build(frame):\n    print('a word')\n    return frame\n")
    data = Outcome.model_validate_json(runner(written(tmp_path, asked)).stdout).outputs["data"]
    talking = call(
        "prepare",
        store=asked.store,
        inputs={"data": data},
        code=snapshot(["talker:build"], str(tmp_path), store),
        params={"target": "x", "features": "talker:build", "split": {"by": "random", "test": 0.5}},
    )
    done = runner(written(tmp_path, talking))
    assert done.returncode == 0, done.stderr
    assert "a word" in done.stderr
    assert Outcome.model_validate_json(done.stdout).stage == "prepare"


def test_log_lines_go_to_standard_error(tmp_path: Path, asked: Call) -> None:
    training = call("train", store=asked.store)
    earlier = Outcome(stage="train", identity=training.identity, call_digest=training.digest)
    Store(asked.store).write_outcome(earlier)
    done = runner(written(tmp_path, training))
    assert "an earlier try of this run has done it" in done.stderr
    assert Outcome.model_validate_json(done.stdout) == earlier


WITHOUT_AIRFLOW = """
import sys
sys.modules["airflow"] = None
from airflow_mlops.call.__main__ import main
code = main(sys.argv[1:])
del sys.modules["airflow"]
print(*[name for name in sys.modules if name.split(".")[0] == "airflow"])
sys.exit(code)
"""


def test_no_airflow_is_needed_nor_loaded(tmp_path: Path, asked: Call) -> None:
    command = [sys.executable, "-c", WITHOUT_AIRFLOW, str(written(tmp_path, asked)), str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
    assert (tmp_path / "out.json").exists()


def test_what_cannot_be_done_is_1_and_says_why(tmp_path: Path, asked: Call) -> None:
    file = written(tmp_path, asked, window=parse_key("month", "2013-02"))
    done = runner(file, tmp_path / "out.json")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "DataNotFoundError: pipeline 'churn', stage 'extract': there is no file"
    )
    assert not (tmp_path / "out.json").exists()


def test_what_a_retry_may_mend_is_75(tmp_path: Path, asked: Call) -> None:
    done = runner(written(tmp_path, asked, store=f"ftp://127.0.0.1:{free_port()}/store"))
    assert done.returncode == 75
    assert done.stderr.startswith("StoreUnreachableError: pipeline 'churn', stage 'extract': ftp://127.0.0.1:")


@pytest.mark.parametrize("content", [None, "", "{", "{}", '{"pipeline": "p"}', b"\xff\xfe"])
def test_what_is_no_call_is_2(tmp_path: Path, content: str | bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "call.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{file}: is no Call: ")


def test_a_wrong_number_of_arguments_is_2_and_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    done = runner()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: python -m airflow_mlops.call CALL.json [OUTCOME.json]\n"
    assert main(["a", "b", "c"]) == 2
    assert capsys.readouterr().err == done.stderr
