"""Dispatch: a Call is run by its stage, with its own code, and its Outcome is kept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_mlops.backends.local import LocalBackend
from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.code import snapshot
from airflow_mlops.call.dispatch import ONCE, STAGES, run
from airflow_mlops.errors import CodeError, DataNotFoundError, MlopsError, StoreUnreachableError
from airflow_mlops.spec.window import parse_key
from tests.call.made import call
from tests.conftest import free_port


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cache"))
    return Store(str(tmp_path / "store"))


def rows(folder: Path, count: int, name: str = "2013-01") -> str:
    """Write a window's rows; return the source."""
    pq.write_table(pa.table({"x": list(range(count)), "y": [n % 2 for n in range(count)]}), folder / f"{name}.parquet")
    return f"{folder}/{{window}}.parquet"


def extraction(store: Store, source: str, **more: Any) -> Call:
    params = {"source": source, "grain": "month"}
    return call("extract", store=store.root, params=params, window=parse_key("month", "2013-01"), **more)


def test_every_stage_has_params_of_its_own_name() -> None:
    assert {kind.stage for kind in STAGES.values()} == set(STAGES)
    assert set(STAGES) > ONCE


def test_a_stage_runs_and_its_outcome_is_kept(store: Store, tmp_path: Path) -> None:
    asked = extraction(store, rows(tmp_path, 30))
    outcome = run(asked)
    assert (outcome.stage, outcome.identity, outcome.call_digest) == ("extract", asked.identity, asked.digest)
    assert outcome.outputs["data"].rows == 30
    assert pq.read_table(store.fetch(outcome.outputs["data"])).num_rows == 30
    assert store.read_outcome(asked) == outcome


def test_an_unknown_stage_names_those_there_are(store: Store) -> None:
    with pytest.raises(
        MlopsError, match=r"stage 'trian': there is no stage 'trian'; allowed: extract, .*train"
    ) as caught:
        run(call("trian", store=store.root))
    assert not caught.value.retryable


def test_an_error_gets_its_place_and_keeps_its_cause(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError) as caught:
        run(extraction(store, f"{tmp_path}/{{window}}.parquet"))
    assert str(caught.value).startswith("pipeline 'churn', stage 'extract': there is no file ")
    with pytest.raises(StoreUnreachableError) as unreachable:
        run(extraction(store, f"ftp://127.0.0.1:{free_port()}/{{window}}.parquet"))
    assert unreachable.value.where == "pipeline 'churn', stage 'extract'"
    assert unreachable.value.retryable
    assert isinstance(unreachable.value.__cause__, ConnectionRefusedError)


def test_a_failed_stage_leaves_no_outcome(store: Store, tmp_path: Path) -> None:
    asked = extraction(store, f"{tmp_path}/{{window}}.parquet")
    with pytest.raises(DataNotFoundError):
        run(asked)
    assert store.read_outcome(asked) is None
    rows(tmp_path, 5)
    assert run(asked).outputs["data"].rows == 5


def test_a_cheap_stage_runs_again_for_an_equal_call(store: Store, tmp_path: Path) -> None:
    asked = extraction(store, rows(tmp_path, 30))
    run(asked)
    rows(tmp_path, 40)
    assert run(asked).outputs["data"].rows == 40


def trained(asked: Call) -> Outcome:
    """What an earlier try of a training came to."""
    return Outcome(stage="train", identity=asked.identity, call_digest=asked.digest, info={"run_id": "earlier"})


def test_an_equal_training_is_not_run_again(store: Store) -> None:
    asked = call("train", store=store.root, params={"target": "y", "estimator": "toynowhere.Model"})
    store.write_outcome(trained(asked))
    assert run(asked) == trained(asked)
    assert run(Call.model_validate_json(asked.model_dump_json())) == trained(asked), "another try, in another process"


@pytest.mark.parametrize("other", [{"params": {"target": "y", "estimator": "toynowhere.Else"}}, {"run": "run-2"}])
def test_a_different_training_is_run(store: Store, other: dict[str, Any]) -> None:
    asked = call("train", store=store.root, params={"target": "y", "estimator": "toynowhere.Model"})
    store.write_outcome(trained(asked))
    with pytest.raises(MlopsError, match="stage 'train': the stage needs a registry"):
        run(asked.model_copy(update=other))


def preparation(store: Store, folder: Path, source: str) -> Call:
    (folder / "toyprepare.py").write_text(source)
    data = run(extraction(store, rows(folder, 50))).outputs["data"]
    params = {"target": "y", "features": "toyprepare:build", "split": {"by": "random"}}
    code = snapshot(["toyprepare:build"], str(folder), store)
    return call("prepare", store=store.root, params=params, inputs={"data": data}, code=code)


def test_a_stage_uses_the_code_of_its_call_and_no_other(store: Store, tmp_path: Path) -> None:
    asked = preparation(store, tmp_path, "def build(frame):\n    return frame * 2\n")
    (tmp_path / "toyprepare.py").write_text("raise RuntimeError('not what was snapshotted')\n")
    assert sum(run(asked).metrics.values()) == 50
    with pytest.raises(CodeError, match=r"stage 'prepare': 'toyprepare:build' cannot be imported"):
        run(asked.model_copy(update={"code": None}))


def test_code_that_raises_is_told_by_pipeline_and_stage(store: Store, tmp_path: Path) -> None:
    asked = preparation(store, tmp_path, "def build(frame):\n    return frame['gone']\n")
    with pytest.raises(
        CodeError, match=r"^pipeline 'churn', stage 'prepare': toyprepare:build raised KeyError"
    ) as caught:
        run(asked)
    assert isinstance(caught.value.__cause__, KeyError)


EXITS_LATER = """import sys
from pandas import DataFrame

class Odd(DataFrame):
    @property
    def index(self):
        sys.exit(0)

def build(frame):
    return Odd(frame)
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import sys\n\ndef build(frame):\n    sys.exit(0)\n",
            "toyprepare:build raised SystemExit: 0 (at toyprepare.py:4)",
        ),
        (EXITS_LATER, "the team's code raised SystemExit: 0 (at toyprepare.py:7)"),
    ],
)
def test_code_that_exits_is_an_error_and_no_success(store: Store, tmp_path: Path, source: str, said: str) -> None:
    asked = preparation(store, tmp_path, source)
    with pytest.raises(CodeError) as caught:
        run(asked)
    assert f"pipeline 'churn', stage 'prepare': {said}, and must return or raise an exception" in str(caught.value)
    assert not caught.value.retryable
    assert store.read_outcome(asked) is None


def test_secrets_reach_the_code_and_stay_out_of_all_that_is_kept(store: Store, tmp_path: Path) -> None:
    source = "import os\n\ndef build(frame):\n    assert os.environ['TOY_TOKEN'][::-1] == '2retnuh'\n    return frame\n"
    asked = preparation(store, tmp_path, source)
    handle = LocalBackend().submit(asked, {"TOY_TOKEN": "hunter2"})
    kept = [file.read_bytes() for file in Path(store.path).rglob("*") if file.is_file()]
    assert len(kept) > 3
    assert not any(b"hunter2" in content for content in (*kept, handle.model_dump_json().encode()))
    with pytest.raises(CodeError, match="KeyError"):
        run(asked.model_copy(update={"cache": False}))
