"""The artifact store on Google Cloud Storage: created once, whole, and checked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_mlops.call.store import Store
from airflow_mlops.errors import StoreError, StoreUnreachableError
from tests.loopback.rest import RestService


def test_of_many_writers_one_creates(gcs: str) -> None:
    store = Store(f"{gcs}/mlops")
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: store.create_json({"by": number}, "ledger", "m", "1.json"), range(8)))
    assert sum(created) == 1
    assert store.read_json("ledger", "m", "1.json") == {"by": created.index(True)}


def test_artifacts_come_back_as_they_were(gcs: str, tmp_path: Path) -> None:
    store = Store(f"{gcs}/mlops")
    ref = store.put_json({"a": [1, 2]}, "report")
    assert ref.uri.startswith(f"{gcs}/mlops/artifacts/report/")
    assert store.fetch_json(ref) == {"a": [1, 2]}
    assert store.put_json({"a": [1, 2]}, "report") == ref
    assert store.names("artifacts", "report") == [ref.digest[7:9]]
    other = ref.model_copy(update={"digest": "sha256:" + "0" * 64})
    with pytest.raises(StoreError, match="was changed or cut off"):
        store.fetch(other)
    store.discard(ref)
    assert not store.has(ref)


def test_what_another_process_has_made_is_there_though_its_folder_was_listed_before(gcs: str) -> None:
    import gcsfs

    store = Store(f"{gcs}/mlops")
    store.create_json({"a": 1}, "outcomes", "1.json")
    assert store.names("outcomes") == ["1.json"]
    elsewhere = gcsfs.GCSFileSystem(token="anon", skip_instance_cache=True)
    elsewhere.pipe_file(f"{gcs}/mlops/outcomes/2.json", b'{"a": 2}')
    elsewhere.pipe_file(f"{gcs}/mlops/outcomes/1.json", b'{"a": "another and longer"}')
    assert store.read_json("outcomes", "2.json") == {"a": 2}
    assert store.read_json("outcomes", "1.json") == {"a": "another and longer"}


def test_an_artifact_that_another_process_has_removed_is_written_again(gcs: str) -> None:
    import gcsfs

    store = Store(f"{gcs}/mlops")
    ref = store.put_json({"a": 1}, "report")
    store.names("artifacts", "report", ref.digest[7:9])
    gcsfs.GCSFileSystem(token="anon", skip_instance_cache=True).rm_file(ref.uri)
    assert store.put_json({"a": 1}, "report") == ref
    assert store.has(ref)


@pytest.fixture
def closed(gcs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RestService]:
    """A storage that refuses what is asked of it, without the client's pauses between its tries."""
    import gcsfs

    async def at_once(seconds: float) -> None:
        pass

    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=at_once))
    with RestService() as service:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", service.url)
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield service


@pytest.mark.parametrize(
    ("status", "words", "kind", "said"),
    [
        ("UNAUTHENTICATED", "Invalid Credentials", StoreError, "gcloud auth application-default login"),
        ("PERMISSION_DENIED", "me does not have storage.objects.get", StoreError, "roles/storage.objectUser"),
        ("FAILED_PRECONDITION", "the bucket is held", StoreError, "the bucket is held"),
        ("UNAVAILABLE", "later", StoreUnreachableError, "cannot be reached"),
        ("RESOURCE_EXHAUSTED", "slower", StoreUnreachableError, "cannot be reached"),
    ],
)
def test_what_a_bucket_refuses_is_told_and_says_whether_a_retry_helps(
    closed: RestService, gcs: str, status: str, words: str, kind: type[StoreError], said: str
) -> None:
    closed.fail(status, words, times=99)
    store = Store(f"{gcs}/mlops")
    for deed in (lambda: store.read_json("a.json"), lambda: store.create_json({}, "a.json"), lambda: store.names("a")):
        with pytest.raises(StoreError, match=said) as caught:
            deed()
        assert type(caught.value) is kind and f"{gcs}/mlops" in str(caught.value)
