"""Which window a monitoring run judges, and the verdicts it leaves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_mlops.call import Call, RegistryRef, Store
from airflow_mlops.call.source import stamp_of
from airflow_mlops.registry import Ledger
from airflow_mlops.registry.verdicts import SENSORS, Verdicts, has_arrived, next_predicted, next_window
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.window import Window
from tests import toy


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def judged(store: Store, month: str, run: str, status: str = "ok", *, stage: str = "monitor", **said: object) -> None:
    call = Call(
        pipeline="toy",
        stage=stage,
        run=run,
        window=toy.month(month),
        store=store.root,
        registry=RegistryRef(uri="x", model="m", experiment="e"),
    )
    Verdicts(store, "toy").record(call, {"status": status, **said})


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


class Predicted:
    """Predictions and labels as files that may come in any order, and who would judge which window next."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder, store

    def predict(self, *months: str) -> None:
        for month in months:
            (self.folder / "predictions" / f"window={month}").mkdir(parents=True)
            (self.folder / "predictions" / f"window={month}" / "predictions.parquet").touch()

    def label(self, month: str, text: str = "") -> str:
        (self.folder / "labels").mkdir(exist_ok=True)
        (self.folder / "labels" / f"{month}.parquet").write_text(text)
        return str(stamp_of(f"{self.folder}/labels/{{window}}.parquet", toy.month(month)))

    def judge(self, stage: str, month: str, **said: object) -> None:
        judged(self.store, month, f"{stage} {month} {said}", stage=stage, **said)

    def next(self, stage: str, delay: timedelta = timedelta(0)) -> str | None:
        labels = f"{self.folder}/labels/{{window}}.parquet" if stage == "monitor_performance" else None
        predictions = f"{self.folder}/predictions/window={{window}}/predictions.parquet"
        verdicts, ledger = Verdicts(self.store, "toy", SENSORS[stage]), Ledger(self.store, "m")
        window = next_predicted(verdicts, ledger, predictions, "month", labels, delay)
        return window.key if window else None


@pytest.fixture
def predicted(tmp_path: Path, store: Store) -> Predicted:
    return Predicted(tmp_path, store)


def test_predictions_are_judged_from_the_oldest_after_the_champions_own_training(predicted: Predicted) -> None:
    assert predicted.next("monitor_predictions") is None
    predicted.predict("2024-01", "2024-02", "2024-04")
    assert predicted.next("monitor_predictions") is None
    promoted(predicted.store, "2024-01")
    assert predicted.next("monitor_predictions") == "2024-02"
    predicted.judge("monitor_predictions", "2024-02")
    assert predicted.next("monitor_predictions") == "2024-04"
    predicted.judge("monitor_predictions", "2024-04")
    assert predicted.next("monitor_predictions") is None
    # One that was predicted late has its turn, and what other sensors say of it is their own.
    predicted.predict("2024-03")
    predicted.judge("monitor", "2024-03")
    assert predicted.next("monitor_predictions") == "2024-03"
    promoted(predicted.store, "2024-03", "2", "1")
    assert predicted.next("monitor_predictions") is None


def test_labels_are_waited_for_and_looked_at_again_when_they_were_written_again(predicted: Predicted) -> None:
    promoted(predicted.store, "2024-01")
    predicted.predict("2024-02", "2024-03", "2024-04")
    assert predicted.next("monitor_performance") is None
    predicted.label("2024-03")
    assert predicted.next("monitor_performance") == "2024-03"
    predicted.judge("monitor_performance", "2024-03")
    few = predicted.label("2024-02", "few")
    assert predicted.next("monitor_performance") == "2024-02"
    predicted.judge("monitor_performance", "2024-02", status="insufficient_data", labels=few, waits=True)
    assert predicted.next("monitor_performance") is None
    predicted.label("2024-02", "more of them")
    assert predicted.next("monitor_performance") == "2024-02"
    # What nobody has looked at comes first.
    predicted.label("2024-04")
    assert predicted.next("monitor_performance") == "2024-04"
    predicted.judge("monitor_performance", "2024-04")
    predicted.judge("monitor_performance", "2024-02")
    predicted.label("2024-02", "and even more of them")
    assert predicted.next("monitor_performance") is None


def test_labels_of_windows_before_a_later_champion_are_still_judged(predicted: Predicted) -> None:
    promoted(predicted.store, "2024-01")
    promoted(predicted.store, "2024-03", "2", "1")
    predicted.predict("2024-01", "2024-02")
    predicted.label("2024-01")
    predicted.label("2024-02")
    assert predicted.next("monitor_performance") == "2024-02"


def test_labels_are_complete_some_time_after_the_windows_end(predicted: Predicted) -> None:
    promoted(predicted.store, "2024-01")
    predicted.predict("2024-02")
    predicted.label("2024-02")
    ago = datetime.now(UTC) - toy.month("2024-02").end
    assert predicted.next("monitor_performance", ago + timedelta(hours=1)) is None
    assert predicted.next("monitor_performance", ago - timedelta(hours=1)) == "2024-02"


def test_a_run_keeps_the_window_that_it_has_taken_first(store: Store) -> None:
    ledger = promoted(store, "2024-01")
    verdicts = Verdicts(store, "toy", "data_drift")
    verdicts.take("a", toy.month("2024-02"))
    verdicts.take("a", toy.month("2024-03"))
    judged(store, "2024-02", "b")
    judged(store, "2024-03", "c")

    def key(run: str) -> str | None:
        window = next_window(verdicts, ledger, "month", run)
        return window.key if window else None

    assert (key("a"), key("d")) == ("2024-02", "2024-04")
    assert Verdicts(store, "toy", "performance").taken("a") is None
