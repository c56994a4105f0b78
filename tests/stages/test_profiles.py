"""Profiles of artifacts are made once, and references know their blocks of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.call import Store
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.stages import profiles
from airflow_mlops.stages.profiles import profile_of, reference_of
from airflow_mlops.stages.tables import write_table
from tests import toy


def test_what_was_profiled_once_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    data = write_table(toy.rows("2024-01"), store)
    first = profile_of(data, store, "at")
    read: list[Any] = []
    real = profiles.profile_files
    monkeypatch.setattr(profiles, "profile_files", lambda *given, **more: read.append(given) or real(*given, **more))
    assert profile_of(data, store, "at") == first and not read
    assert profile_of(data, store).time is None and len(read) == 1
    (kept, _) = sorted((tmp_path / "artifacts" / "profile").rglob("*.bin"))
    assert data.digest.removeprefix("sha256:") in kept.name
    for damaged in (b"", b"airflow-mlops profile 99\n", kept.read_bytes()[:50]):
        for each in (tmp_path / "artifacts" / "profile").rglob("*.bin"):
            each.write_bytes(damaged)
        assert profile_of(data, store, "at") == first
    assert len(read) == 4


def test_a_reference_has_the_columns_asked_for_and_blocks_of_time() -> None:
    table = toy.rows("2024-01")
    found = reference_of(table, ("amount", "region"), "at")
    assert list(found.columns) == ["amount", "region"] and found.rows == 400
    assert found.blocks is not None and found.blocks.rows.sum() == 400
    assert all(counts.sum() == 400 for counts in found.blocks.counts.values())
    assert DatasetProfile.from_bytes(found.to_bytes()) == found
    for time in (None, "gone"):
        assert reference_of(table, ("amount",), time).blocks is None
