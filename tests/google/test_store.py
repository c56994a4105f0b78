"""The artifact store on Google Cloud Storage: created once, whole, and checked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_mlops.call.store import Store
from airflow_mlops.errors import StoreError


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
