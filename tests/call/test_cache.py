"""The cache: what is found again by content, what is not, and why."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_mlops.call import ArtifactRef, Call, Outcome, Store
from airflow_mlops.call import key as subject
from airflow_mlops.call.cache import INFO, entries, look
from airflow_mlops.call.code import snapshot
from airflow_mlops.call.dispatch import STAGES, run
from airflow_mlops.call.key import key_of
from airflow_mlops.errors import DataNotFoundError
from airflow_mlops.spec.window import parse_key
from tests.call.made import call, json_values, letters
from tests.toy import race

FEATURES = "def build(frame):\n    return frame\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return Store(str(tmp_path / "store"))


def rows(file: Path, count: int = 30) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": list(range(count)), "y": [n % 2 for n in range(count)]}), file)
    return file


def extraction(store: Store, source: Path | str, run: str = "run-1", **params: Any) -> Call:
    return call("extract", store=store.root, run=run, params={"source": str(source), **params})


def preparation(store: Store, folder: Path, code: str = FEATURES, run_id: str = "run-1", **more: Any) -> Call:
    (folder / "toycached.py").write_text(code)
    data = run(extraction(store, rows(folder / "rows.parquet"))).outputs["data"]
    return call(
        "prepare",
        store=store.root,
        run=run_id,
        params={"target": "y", "features": "toycached:build", "split": {"by": "random"}, **more},
        inputs={"data": data},
        code=snapshot(["toycached:build"], str(folder), store),
    )


def said(outcome: Outcome) -> str:
    return outcome.info[INFO]


def test_an_equal_call_of_another_run_gives_the_earlier_outcome_as_its_own(store: Store, tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.parquet")
    first = run(extraction(store, file))
    asked = extraction(store, file, "run-2")
    again = run(asked)
    assert said(first) == "miss: 'churn' has nothing kept of this stage yet"
    assert said(again).startswith("hit: same code, params, inputs and libraries as run run-1 of 20")
    assert (again.identity, again.call_digest, again.run) == (asked.identity, asked.digest, "run-2")
    assert (again.digest, again.outputs) == (first.digest, first.outputs)
    assert store.read_outcome(asked) == again, "backends find it there"


def test_the_reason_stands_in_the_log(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = rows(tmp_path / "rows.parquet")
    for number in range(2):
        run(extraction(store, file, f"run-{number}"))
    lines = [line for line in caplog.messages if "cache" in line]
    assert [line.split(": ")[1].split("cache ")[1] for line in lines] == ["miss", "hit"]
    assert all(line.startswith("pipeline 'churn', stage 'extract'") for line in lines)


def test_the_same_data_under_another_path_hits(store: Store, tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.parquet")
    moved = tmp_path / "elsewhere" / "2013.parquet"
    moved.parent.mkdir()
    run(extraction(store, file))
    shutil.copy(file, moved)
    assert said(run(extraction(store, moved, "run-2"))).startswith("hit")


def test_other_data_under_the_same_path_misses_and_is_named(store: Store, tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.parquet")
    before = file.stat()
    run(extraction(store, file))
    rows(file, 31)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = run(extraction(store, file, "run-2"))
    assert again.outputs["data"].rows == 31
    assert said(again).startswith(f"miss: file://{file} has other content (since run run-1 of 20")


def test_windows_of_equal_content_are_told_apart_by_the_time_column_only(store: Store, tmp_path: Path) -> None:
    for key in ("2013-01", "2013-02"):
        rows(tmp_path / f"{key}.parquet")
    asked = extraction(store, tmp_path / "{window}.parquet", grain="month")
    run(asked.model_copy(update={"window": parse_key("month", "2013-01")}))
    second = asked.model_copy(update={"window": parse_key("month", "2013-02"), "run": "run-2"})
    outcome = run(second)
    assert said(outcome).startswith("hit")
    assert outcome.window is not None and outcome.window.key == "2013-02"
    timed = second.model_copy(update={"params": {**second.params, "time": "x"}})
    looked = look(timed, STAGES["extract"].model_validate(timed.params), store)
    assert looked is not None and "2013-02-01T00:00:00+00:00 to 2013-03-01" in looked.components["source 1"]


def test_data_that_is_not_there_is_told_by_the_extraction(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="there is no file"):
        run(extraction(store, tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 7}, "miss: params.seed changed from 0 to 7"),
        ({"split": {"by": "random", "test": 0.5}}, "miss: params.split.test changed from 0.2 to 0.5"),
    ],
)
def test_other_params_miss_and_are_named(store: Store, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    run(preparation(store, tmp_path))
    assert said(run(preparation(store, tmp_path, run_id="run-2", **change))).startswith(f"{reason} (since run run-1")


def test_other_code_misses_and_its_file_is_named(store: Store, tmp_path: Path) -> None:
    run(preparation(store, tmp_path))
    assert said(run(preparation(store, tmp_path, run_id="run-2"))).startswith("hit")
    commented = run(preparation(store, tmp_path, FEATURES + "# a comment\n", "run-3"))
    assert said(commented).startswith("miss: code changed: toycached.py (since run run-1")


def test_the_nearest_entry_explains(store: Store, tmp_path: Path) -> None:
    run(preparation(store, tmp_path, seed=1))
    run(preparation(store, tmp_path, FEATURES + "\n", "run-2", seed=2))
    outcome = run(preparation(store, tmp_path, FEATURES + "\n", "run-3", seed=3))
    assert said(outcome).startswith("miss: params.seed changed from 2 to 3 (since run run-2")


def test_libraries_that_the_users_code_imports_count(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import yaml\nfrom dateutil import parser\n" + FEATURES
    asked = preparation(store, tmp_path, code)
    looked = look(asked, STAGES["prepare"].model_validate(asked.params), store)
    assert looked is not None
    names = {name.removeprefix("library ") for name in looked.components if name.startswith("library ")}
    assert names >= {"PyYAML", "python-dateutil", "scikit-learn", "numpy", "mlflow"}
    run(asked)
    real = subject._version
    monkeypatch.setattr(subject, "_version", lambda name: "99.0" if name == "scikit-learn" else real(name))
    assert "library scikit-learn changed from " in said(run(preparation(store, tmp_path, code, "run-2")))


@pytest.mark.parametrize("harm", ["cut", "empty", "other"])
def test_an_entry_that_cannot_be_read_is_a_miss_with_a_warning_and_is_mended(
    store: Store, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = rows(tmp_path / "rows.parquet")
    run(extraction(store, file))
    (entry,) = Path(store.path, "cache", "churn", "extract").iterdir()
    text = entry.read_text()
    body = json.loads(text)
    body["outcome"]["metrics"], body["components"]["python"] = {}, "2.7"
    entry.write_text({"cut": text[:100], "empty": "", "other": json.dumps(body)}[harm])
    assert said(run(extraction(store, file, "run-2"))).startswith("miss")
    assert str(entry) in caplog.text and "counts as missing" in caplog.text
    assert said(run(extraction(store, file, "run-3"))).startswith("hit")


@pytest.mark.parametrize(("harm", "word"), [("cut", "damaged"), ("gone", "lost")])
def test_an_artifact_that_is_lost_or_damaged_is_made_anew(store: Store, tmp_path: Path, harm: str, word: str) -> None:
    file = rows(tmp_path / "rows.parquet")
    artifact = Path(run(extraction(store, file)).outputs["data"].uri)
    if harm == "cut":
        artifact.write_bytes(artifact.read_bytes()[:-9])
    else:
        artifact.unlink()
    again = run(extraction(store, file, "run-2"))
    assert said(again).startswith(f"miss: its data is {word}: {artifact}")
    assert store.fetch(again.outputs["data"]) == artifact
    assert said(run(extraction(store, file, "run-3"))).startswith("hit")


def test_a_store_that_was_moved_still_hits(store: Store, tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.parquet")
    run(extraction(store, file))
    shutil.move(store.path, tmp_path / "moved")
    moved = Store(str(tmp_path / "moved"))
    again = run(extraction(moved, file, "run-2"))
    assert said(again).startswith("hit") and again.outputs["data"].uri.startswith(moved.path)


def test_without_the_cache_nothing_is_looked_up_and_nothing_kept(store: Store, tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.parquet")
    outcome = run(extraction(store, file).model_copy(update={"cache": False}))
    assert INFO not in outcome.info and list(entries(store)) == []


def test_data_that_changes_while_it_is_read_is_not_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = rows(tmp_path / "rows.parquet")
    from airflow_mlops.stages import extract

    real = extract.run

    def slow(*arguments: Any) -> Outcome:
        outcome = real(*arguments)
        rows(file, 31)
        return outcome

    monkeypatch.setattr(extract, "run", slow)
    run(extraction(store, file))
    assert list(entries(store)) == []


def test_a_failed_stage_is_not_kept(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="raised"):
        run(preparation(store, tmp_path, "def build(frame):\n    raise ValueError('no')\n"))
    assert [stage for stage, _ in entries(store)] == ["extract"]


RACER = """
import json
from airflow_mlops.call import Call, Store
from airflow_mlops.call.dispatch import run
call = Call.model_validate_json(sys.argv[3])
import airflow_mlops.stages.extract
ready(sys.argv[2])
print(json.dumps(run(call).digest))
"""


def test_two_workers_with_one_key_leave_one_whole_entry(store: Store, tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.parquet", 50_000)
    asked = [(f"{n}", extraction(store, file, f"run-{n}").model_dump_json()) for n in range(2)]
    first, second = race(RACER, Path(store.path), asked)
    assert first == second
    ((_, entry),) = entries(store)
    assert entry.outcome.digest == first


components = st.dictionaries(letters.filter(bool), letters, min_size=1, max_size=5)


@given(components, st.data())
def test_any_change_of_one_component_gives_another_key(one: dict[str, str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(one)))
    value = data.draw(letters)
    assume(value != one[name])
    changed = {**one, name: value}
    fewer = {each: text for each, text in one.items() if each != name}
    assert len({key_of(one), key_of(changed), key_of(fewer)}) == 3
    assert key_of(dict(reversed(one.items()))) == key_of(one)


PARAMS = st.fixed_dictionaries(
    {"target": st.just("y"), "estimator": st.just("sklearn.linear_model.LogisticRegression")},
    optional={
        "model_params": st.dictionaries(letters, json_values, max_size=3),
        "seed": st.integers(0, 5),
        "drop": st.lists(letters, max_size=2),
    },
)


@given(PARAMS, PARAMS, st.text(max_size=5), st.sampled_from(["churn", "other"]))
def test_equal_params_and_digests_give_one_key_and_other_params_another(
    one: dict[str, Any], two: dict[str, Any], place: str, pipeline: str
) -> None:
    memory = Store("memory://cache")

    def key(params: dict[str, Any], uri: str, declaration: str | None = None, **more: Any) -> str:
        ref = ArtifactRef(uri=uri, digest="sha256:rows", kind="dataset")
        asked = call("train", inputs={"train": ref}, params={**params, "declaration": declaration}, **more)
        looked = look(asked, STAGES["train"].model_validate(asked.params), memory)
        assert looked is not None
        return key_of(looked.components)

    assert key(one, "a") == key(one, place, "name: churn", pipeline=pipeline, run=place)
    kind = STAGES["train"]
    same = kind.model_validate(one).model_dump_json() == kind.model_validate(two).model_dump_json()
    assert (key(one, "a") == key(two, "a")) == same
