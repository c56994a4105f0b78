"""The store: names by content, files that are created once, and never half a file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from airflow_mlops.call import ArtifactRef, Outcome, Store, create_if_absent
from airflow_mlops.call.store import cache_folder, digest_of_file, reaching
from airflow_mlops.errors import StoreError, StoreUnreachableError
from tests.call.made import call
from tests.conftest import free_port


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run code in another process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def overwrite(store: Store, ref: ArtifactRef, content: bytes) -> None:
    with fsspec.open(ref.uri, "wb") as file:
        file.write(content)


# Creating once


def test_a_file_is_created_once(store: Store) -> None:
    assert create_if_absent(store.uri("claims", "a"), b"first") is True
    assert create_if_absent(store.uri("claims", "a"), b"second") is False
    with fsspec.open(store.uri("claims", "a"), "rb") as file:
        assert file.read() == b"first"
    assert store.names("claims") == ["a"]


RACER = """
import os, sys, time
from airflow_mlops.call.store import create_if_absent
folder, me, racers, rounds = sys.argv[1:]
for number in range(int(rounds)):
    line = f"{folder}/lines/{number:03}"
    os.makedirs(f"{line}/{me}")
    while len(os.listdir(line)) < int(racers):
        time.sleep(0.0001)
    if create_if_absent(f"{folder}/claims/{number:03}", (me * 1000).encode()):
        print(number)
"""


def test_of_many_processes_exactly_one_creates_a_file(tmp_path: Path) -> None:
    racers = {me: python(RACER, tmp_path, me, 4, 60) for me in "abcd"}
    won = {me: [int(number) for number in racer.communicate(timeout=120)[0].split()] for me, racer in racers.items()}
    assert sorted(number for numbers in won.values() for number in numbers) == list(range(60))
    for me, numbers in won.items():
        assert {(tmp_path / "claims" / f"{number:03}").read_text() for number in numbers} <= {me * 1000}
    assert len(os.listdir(tmp_path / "claims")) == 60, "something was left behind"


KILLED_AT = """
import os, signal, sys
from airflow_mlops.call.store import Store, create_if_absent
step, folder = sys.argv[1:]
setattr(os, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
create_if_absent(folder + "/claims/a", b"x" * 100_000)
"""


@pytest.mark.parametrize(("step", "there"), [("fsync", False), ("link", False), ("unlink", True)])
def test_a_process_killed_while_it_creates_leaves_all_or_nothing(tmp_path: Path, step: str, there: bool) -> None:
    child = python(KILLED_AT, step, tmp_path)
    assert child.wait(timeout=60) == -signal.SIGKILL, child.communicate()[1]
    store = Store(str(tmp_path))
    assert store.names("claims") == (["a"] if there else [])
    assert create_if_absent(store.uri("claims", "a"), b"again") is not there
    assert (tmp_path / "claims" / "a").read_bytes() == (b"x" * 100_000 if there else b"again")


CREATOR = """
import itertools, sys
from airflow_mlops.call.store import Store
store = Store(sys.argv[1])
for number in itertools.count():
    store.create_json({"number": number, "rest": "x" * 200_000}, "claims", f"{number:06}.json")
    store.put_json({"number": number, "rest": "y" * 200_000}, "report")
"""


def test_processes_killed_at_random_leave_only_whole_files(tmp_path: Path) -> None:
    chance = random.Random(0)
    seen = 0
    for number in range(4):
        store = Store(str(tmp_path / str(number)))
        child = python(CREATOR, store.root)
        while len(store.names("claims")) < 3:
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.001)
        time.sleep(chance.random() * 0.1)
        child.kill()
        child.communicate()
        for name in store.names("claims"):
            assert store.read_json("claims", name)["number"] == int(name.removesuffix(".json"))
            seen += 1
        for file in Path(store.path).glob("artifacts/report/*/*.json"):
            assert digest_of_file(file) == f"sha256:{file.stem}"
            seen += 1
    assert seen > 12


REPLACER = """
import os, signal, sys
from airflow_mlops.call import Store
store = Store(sys.argv[1])
with store.scratch(".json") as file:
    file.write_text("new" * 10_000)
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    store.replace_file(file, "outcomes", "a.json")
"""


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "outcomes").mkdir()
    (tmp_path / "outcomes" / "a.json").write_text("old")
    child = python(REPLACER, tmp_path)
    assert child.wait(timeout=60) == -signal.SIGKILL, child.communicate()[1]
    assert (tmp_path / "outcomes" / "a.json").read_text() == "old"


def test_a_file_system_without_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(StoreError, match=r"no hard links.*try: put the store on a local disk or an object store"):
        create_if_absent(f"{tmp_path}/a", b"x")
    assert os.listdir(tmp_path) == []


# Names by content


def test_equal_content_is_one_file(store: Store) -> None:
    one = store.put_json({"b": 1, "a": [2.5, None]}, "report")
    other = store.put_json({"a": [2.5, None], "b": 1}, "report")
    assert one == other
    assert len(store.fs.find(store.path + "/artifacts")) == 1
    assert store.put_json({"a": 1}, "report").uri != one.uri


def test_a_file_is_moved_into_the_store(store: Store, tmp_path: Path) -> None:
    for _ in range(2):
        source = tmp_path / "rows.csv"
        source.write_bytes(b"a\n1\n")
        digest = digest_of_file(source)
        ref = store.put_file(source, "dataset", rows=1, schema_id="s")
        assert not source.exists()
    assert (ref.digest, ref.kind, ref.rows, ref.schema_id) == (digest, "dataset", 1, "s")
    assert ref.uri == store.uri("artifacts", "dataset", digest[7:9], f"{digest[7:]}.csv")
    assert store.fetch(ref).read_bytes() == b"a\n1\n"


def test_a_file_that_is_there_is_left_alone_and_counts_as_new(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    ref = store.put_json([1], "report")
    os.utime(ref.uri, (0, 0))
    before = os.stat(ref.uri)
    store.put_json([1], "report")
    assert os.stat(ref.uri).st_ino == before.st_ino
    assert os.stat(ref.uri).st_mtime > 1, "whoever prunes goes by the age"


@pytest.mark.parametrize("content", [b"", b'{\n "a": 1\n', b'{\n "a": 2\n}'], ids=["emptied", "cut off", "changed"])
def test_content_that_is_not_what_its_digest_says_is_refused_until_mended(store: Store, content: bytes) -> None:
    ref = store.put_json({"a": 1}, "report")
    overwrite(store, ref, content)
    with pytest.raises(StoreError, match=r"changed or cut off.*try: remove the file and rerun the stage") as caught:
        store.fetch(ref)
    assert not caught.value.retryable
    store.fs.rm(store.fs._strip_protocol(ref.uri))
    assert store.put_json({"a": 1}, "report") == ref
    assert store.fetch_json(ref) == {"a": 1}


def test_a_damaged_copy_of_a_remote_file_is_fetched_anew() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    ref = store.put_json({"a": 1}, "report")
    store.fetch(ref).write_text("{}")
    assert store.fetch_json(ref) == {"a": 1}


def test_a_remote_file_is_fetched_once() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    ref = store.put_json({"a": 1}, "report")
    store.fetch(ref)
    store.fs.rm(store.path, recursive=True)
    assert store.fetch_json(ref) == {"a": 1}


def test_a_missing_artifact_says_what_makes_it(store: Store) -> None:
    ref = ArtifactRef(uri=store.uri("nothing.json"), digest="sha256:0", kind="report")
    with pytest.raises(StoreError, match=r"nothing\.json does not exist; try: rerun the stage that makes it") as caught:
        store.fetch(ref)
    assert not caught.value.retryable


def test_scratch_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.scratch(".x") as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert not file.exists()


# Named places


def test_json_in_named_places(store: Store) -> None:
    assert store.names("ledger") == []
    assert store.read_json("ledger", "1.json") is None
    assert store.create_json({"n": 1}, "ledger", "1.json")
    assert not store.create_json({"n": 2}, "ledger", "1.json")
    assert store.create_json({"n": 2}, "ledger", "0.json")
    assert store.read_json("ledger", "1.json") == {"n": 1}
    assert store.names("ledger") == ["0.json", "1.json"]


def test_a_damaged_named_file_is_an_error_and_not_an_absence(store: Store) -> None:
    create_if_absent(store.uri("a.json"), b'{"a":')
    with pytest.raises(StoreError, match=r"a\.json is not JSON"):
        store.read_json("a.json")


def test_an_outcome_is_found_by_the_call_that_asked(store: Store) -> None:
    asked = call("train", params={"a": 1})
    outcome = Outcome(
        stage="train", identity=asked.identity, call_digest=asked.digest, metrics={"f1": 0.5, "auc": float("inf")}
    )
    assert store.read_outcome(asked) is None
    store.write_outcome(outcome)
    assert store.read_outcome(asked) == outcome
    assert store.read_outcome(call("train", params={"a": 2})) is None
    store.write_outcome(outcome.model_copy(update={"metrics": {}}))
    assert store.read_outcome(asked) == outcome.model_copy(update={"metrics": {}})


def test_an_outcome_that_does_not_read_says_what_to_do(store: Store) -> None:
    asked = call("train")
    store.create_json({"stage": "train"}, "outcomes", f"{asked.identity}.json")
    with pytest.raises(StoreError, match=r"does not read as an outcome; try: remove the file and rerun the stage"):
        store.read_outcome(asked)


# Reaching


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (FileNotFoundError(2, "x"), StoreError, "does not exist"),
        (NotADirectoryError(20, "x"), StoreError, "a file where a folder belongs"),
        (PermissionError(13, "x"), StoreError, "grant the worker access"),
        (ImportError("Install s3fs"), StoreError, "pip install the package it names"),
        (ValueError("x"), StoreError, "is no usable URI"),
        (ConnectionResetError(104, "x"), StoreUnreachableError, "cannot be reached"),
        (TimeoutError("x"), StoreUnreachableError, "cannot be reached"),
    ],
)
def test_what_a_file_system_says_becomes_ours(error: Exception, kind: type[StoreError], words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught, reaching("some://place"):
        raise error
    assert type(caught.value) is kind
    assert "some://place" in str(caught.value)
    assert caught.value.__cause__ is error


def test_a_server_that_does_not_answer_is_worth_a_retry() -> None:
    with pytest.raises(StoreUnreachableError) as caught:
        Store(f"ftp://127.0.0.1:{free_port()}/store")
    assert caught.value.retryable


@pytest.mark.parametrize("uri", ["nope://bucket", "nope://bucket/a"])
def test_an_unknown_file_system_is_not_worth_a_retry(uri: str) -> None:
    with pytest.raises(StoreError, match="no usable URI") as caught:
        Store(uri)
    assert not caught.value.retryable


def test_a_file_where_a_folder_belongs_is_not_worth_a_retry(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "claims").write_text("")
    for use in (lambda: store.create_json(1, "claims", "a"), lambda: store.read_json("claims", "a")):
        with pytest.raises(StoreError, match="a file where a folder belongs") as caught:
            use()
        assert not caught.value.retryable


def test_a_cache_that_somebody_else_made_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(StoreError, match="belongs to somebody else"):
        cache_folder("code")


def test_the_root_of_a_local_store_is_a_plain_path(tmp_path: Path) -> None:
    assert Store(f"file://{tmp_path}/").root == str(tmp_path)
    assert Store(str(tmp_path)).uri("a", "b") == f"{tmp_path}/a/b"
    assert Store("memory://bucket/a/").uri("b") == "memory://bucket/a/b"
