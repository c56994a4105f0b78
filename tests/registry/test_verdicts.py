"""Which window a monitoring run judges, and the verdicts it leaves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_mlops.call import Call, RegistryRef, Store
from airflow_mlops.registry import Ledger
from airflow_mlops.registry.verdicts import Verdicts, has_arrived, next_window
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.window import Window
from tests import toy


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def judged(store: Store, month: str, run: str, status: str = "ok") -> None:
    call = Call(
        pipeline="toy",
        stage="monitor",
        run=run,
        window=toy.month(month),
        store=store.root,
        registry=RegistryRef(uri="x", model="m", experiment="e"),
    )
    Verdicts(store, "toy").record(call, {"status": status})


def promoted(store: Store, month: str | None, version: str = "1", before: str | None = None) -> Ledger:
    ledger = Ledger(store, "m")
    ledger.record("promotion", version=version, champion_before=before, decision="d", reasons=(), run="r", window=month)
    return ledger


def key_of(store: Store, ledger: Ledger, run: str) -> str | None:
    window = next_window(Verdicts(store, "toy"), ledger, "month", run)
    return window.key if window else None


def test_there_is_nothing_to_judge_without_a_champion(store: Store) -> None:
    assert key_of(store, Ledger(store, "m"), "a") is None


def test_a_champion_without_a_window_has_no_next_one(store: Store) -> None:
    assert key_of(store, promoted(store, None), "a") is None


def test_windows_are_judged_one_after_another_from_the_champions_own(store: Store) -> None:
    ledger = promoted(store, "2024-01")
    assert key_of(store, ledger, "a") == "2024-02"
    judged(store, "2024-02", "a")
    assert key_of(store, ledger, "b") == "2024-03"


def test_a_retry_gets_the_window_that_it_has_judged(store: Store) -> None:
    ledger = promoted(store, "2024-01")
    judged(store, "2024-02", "a")
    assert key_of(store, ledger, "a") == "2024-02"


def test_a_window_that_a_new_champion_was_trained_on_is_passed_over(store: Store) -> None:
    promoted(store, "2024-01")
    judged(store, "2024-02", "a", "drift")
    ledger = promoted(store, "2024-05", "2", "1")
    assert key_of(store, ledger, "b") == "2024-06"


def test_a_retry_records_its_verdict_once(store: Store) -> None:
    judged(store, "2024-02", "a", "drift")
    judged(store, "2024-02", "a", "ok")
    judged(store, "2024-02", "b", "ok")
    judged(store, "2024-01", "c", "ok")
    verdicts = Verdicts(store, "toy")
    assert verdicts.windows() == ["2024-01", "2024-02"]
    assert [(verdict["run"], verdict["status"]) for verdict in verdicts.of_window("2024-02")] == [
        ("a", "drift"),
        ("b", "ok"),
    ]
    assert [verdict["run"] for verdict in verdicts.all()] == ["c", "a", "b"]


def test_a_window_has_arrived_when_its_file_is_there(tmp_path: Path) -> None:
    source = str(tmp_path / "data" / "{window}.parquet")
    assert not has_arrived(source, toy.month("2024-01"))
    toy.months(tmp_path, ["2024-01"], 5)
    assert has_arrived(source, toy.month("2024-01"))
    assert not has_arrived(source, toy.month("2024-02"))


def test_of_a_source_without_windows_the_window_must_be_over(tmp_path: Path) -> None:
    file = toy.write(toy.rows("2024-01", 5), tmp_path / "all.parquet")
    assert has_arrived(str(file), toy.month("2024-01"))
    assert not has_arrived(str(file), toy.month("2999-01"))


def test_a_window_of_a_database_has_arrived_when_it_has_settled() -> None:
    source = SqlSource(connection="nowhere", table="t")
    now = datetime.now(UTC)
    window = Window(now - timedelta(hours=2), now - timedelta(hours=1), "one")
    assert has_arrived(source, window)
    assert has_arrived(source, window, timedelta(minutes=59))
    assert not has_arrived(source, window, timedelta(minutes=61))
