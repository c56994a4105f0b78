"""The ledger: one truth, whoever writes and whenever they die."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlops.call import Store
from airflow_mlops.errors import ModelNotFoundError, PromotionConflictError, StoreError
from airflow_mlops.registry import Entry, Ledger, Traffic
from airflow_mlops.registry.ledger import titles
from tests import toy

RACER = """
import json
from airflow_mlops.call import Store
from airflow_mlops.errors import PromotionConflictError
from airflow_mlops.registry import Ledger
store, me, champion = sys.argv[1], sys.argv[2], sys.argv[3] or None
ledger = Ledger(Store(store), "m")
ready(me)
try:
    ledger.record("promotion", version=me, champion_before=champion, decision="d" + me, reasons=(), run="r" + me)
    print(json.dumps("won"))
except PromotionConflictError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Store(str(tmp_path / "store")), "m")


def promote(ledger: Ledger, version: str, before: str | None, run: str | None = None) -> Entry:
    return ledger.record(
        "promotion",
        version=version,
        champion_before=before,
        decision=f"d{version}",
        reasons=("better",),
        run=run or f"r{version}",
        window="2024-01",
    )


def reject(ledger: Ledger, version: str, before: str | None) -> Entry:
    return ledger.record(
        "rejection", version=version, champion_before=before, decision="d", reasons=("worse",), run=f"r{version}"
    )


def test_an_empty_ledger_has_no_champion(ledger: Ledger) -> None:
    assert (ledger.entries(), ledger.champion(), ledger.previous(), ledger.promotion()) == ([], None, None, None)


def test_the_champion_moves_and_the_previous_one_is_known(ledger: Ledger) -> None:
    promote(ledger, "1", None)
    assert (ledger.champion(), ledger.previous()) == ("1", None)
    promote(ledger, "2", "1")
    reject(ledger, "3", "2")
    promote(ledger, "4", "2")
    assert (ledger.champion(), ledger.previous()) == ("4", "2")
    assert [entry.number for entry in ledger.entries()] == [1, 2, 3, 4]
    made = ledger.promotion()
    assert made is not None and made.version == "4" and made.window == "2024-01"


def test_a_rejection_changes_no_champion(ledger: Ledger) -> None:
    promote(ledger, "1", None)
    entry = reject(ledger, "2", "1")
    assert (entry.champion_before, entry.champion_after) == ("1", "1")
    made = ledger.promotion()
    assert ledger.champion() == "1" and made is not None and made.version == "1"


def test_a_promotion_against_another_champion_is_refused_and_writes_nothing(ledger: Ledger) -> None:
    promote(ledger, "1", None)
    before = ledger.entries()
    with pytest.raises(PromotionConflictError, match="judged against champion none, but the champion is now 1"):
        promote(ledger, "2", None)
    assert ledger.entries() == before


def test_a_retry_finds_its_entry_even_when_the_champion_has_moved_on(ledger: Ledger) -> None:
    first = promote(ledger, "1", None)
    promote(ledger, "2", "1")
    assert promote(ledger, "1", None) == first
    assert len(ledger.entries()) == 2 and ledger.champion() == "2"


def test_another_run_with_an_equal_decision_writes_an_entry_of_its_own(ledger: Ledger) -> None:
    first = reject(ledger, "1", None)
    second = ledger.record("rejection", version="1", champion_before=None, decision="d", reasons=(), run="other")
    assert (first.number, second.number) == (1, 2)


def test_of_processes_that_promote_at_once_exactly_one_wins(ledger: Ledger, tmp_path: Path) -> None:
    champion = ""
    for round_ in range(2):
        names = [f"{round_}{index}" for index in range(5)]
        said = toy.race(RACER, tmp_path / "store", [(name, champion) for name in names])
        assert said.count("won") == 1
        assert all("the champion is now" in answer for answer in said if answer != "won")
        assert ledger.champion() == names[said.index("won")]
        champion = ledger.champion() or ""
    entries = ledger.entries()
    assert [entry.number for entry in entries] == [1, 2]
    assert entries[1].champion_before == entries[0].champion_after


def roll_back(ledger: Ledger, version: str, before: str, run: str) -> Entry:
    return ledger.record("rollback", version=version, champion_before=before, reasons=("worse",), run=run, by="ann")


def test_two_rollbacks_go_back_two_steps(ledger: Ledger) -> None:
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        promote(ledger, version, before)
    roll_back(ledger, "2", "3", "first")
    assert (ledger.champion(), ledger.previous()) == ("2", "1")
    roll_back(ledger, "1", "2", "second")
    assert (ledger.champion(), ledger.previous()) == ("1", None)
    with pytest.raises(PromotionConflictError):
        roll_back(ledger, "2", "3", "late")
    promote(ledger, "4", "1")
    assert (ledger.champion(), ledger.previous()) == ("4", "1")


def test_a_rollback_that_goes_forward_again_can_be_taken_back(ledger: Ledger) -> None:
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        promote(ledger, version, before)
    roll_back(ledger, "1", "3", "first")
    roll_back(ledger, "3", "1", "second")
    assert (ledger.champion(), ledger.previous()) == ("3", "1")


def trial(ledger: Ledger, version: str, before: str | None, share: int) -> Entry:
    return ledger.record(
        "trial",
        version=version,
        champion_before=before,
        reasons=(),
        run=f"r{version}",
        model=f"m{version}",
        share=share,
    )


def test_a_trial_has_traffic_until_it_is_withdrawn_or_the_champion_moves(ledger: Ledger) -> None:
    assert ledger.traffic() == Traffic(0, None)
    promote(ledger, "1", None)
    assert ledger.traffic() == Traffic(1, "1")
    trial(ledger, "2", "1", 10)
    assert ledger.traffic() == Traffic(2, "1", "2", 10)
    reject(ledger, "3", "1")
    assert ledger.traffic() == Traffic(3, "1", "2", 10)
    ledger.record("withdrawal", version="2", champion_before="1", reasons=("errors",), run="r2")
    assert ledger.traffic() == Traffic(4, "1")
    trial(ledger, "4", "1", 0)
    assert ledger.traffic() == Traffic(5, "1", "4", 0)
    promote(ledger, "4", "1")
    assert ledger.traffic() == Traffic(6, "4")
    with pytest.raises(PromotionConflictError):
        trial(ledger, "5", "1", 10)


def test_only_what_was_decided_about_has_a_digest_to_be_served_by(ledger: Ledger) -> None:
    trial(ledger, "2", None, 10)
    reject(ledger, "3", None)
    assert ledger.digest("2") == "m2"
    with pytest.raises(ModelNotFoundError, match="does not know version 3"):
        ledger.digest("3")


def test_a_damaged_entry_is_an_error_not_another_champion(ledger: Ledger, tmp_path: Path) -> None:
    promote(ledger, "1", None)
    (tmp_path / "store" / "ledger" / "m" / "00000001.json").write_text('{"number": 1')
    with pytest.raises(StoreError, match=r"is not JSON.*try: restore it from a backup"):
        ledger.champion()


def test_a_model_that_was_taken_away_is_known_until_it_is_the_champion_again(ledger: Ledger) -> None:
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        ledger.record(
            "promotion", version=version, champion_before=before, reasons=(), run=version, model=f"m{version}"
        )
    assert ledger.taken_away("m3") is None
    # Who steps back over a version trusts it no more than the one that he comes from.
    entry = roll_back(ledger, "1", "3", "first")
    assert [ledger.taken_away(f"m{version}") for version in "123"] == [None, entry, entry]
    roll_back(ledger, "3", "1", "second")
    assert [ledger.taken_away(f"m{version}") for version in "123"] == [None, entry, None]
    assert ledger.taken_away("unknown") is None


def test_what_lies_below_the_version_that_is_put_back_was_not_taken_away(ledger: Ledger) -> None:
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        ledger.record(
            "promotion", version=version, champion_before=before, reasons=(), run=version, model=f"m{version}"
        )
    entry = roll_back(ledger, "2", "3", "first")
    assert [ledger.taken_away(f"m{version}") for version in "123"] == [None, None, entry]


@given(st.lists(st.one_of(st.tuples(st.just("promote"), st.integers(1, 5)), st.just(("back", 0)), st.just(("no", 0)))))
def test_rollbacks_walk_back_over_the_promotions_that_are_left(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger, stack = Ledger(Store(folder), "m"), list[str]()
        for run, (kind, version) in enumerate(steps):
            champion = stack[-1] if stack else None
            if kind == "promote" and str(version) != champion:
                ledger.record("promotion", version=str(version), champion_before=champion, reasons=(), run=str(run))
                stack.append(str(version))
            elif kind == "back" and (previous := ledger.previous()):
                roll_back(ledger, previous, str(champion), str(run))
                stack.pop()
            elif kind == "no":
                reject(ledger, "9", champion)
            aliases = ledger.aliases()
            assert aliases["champion"] == (stack[-1] if stack else None)
            assert aliases["previous"] == (stack[-2] if len(stack) > 1 else None)
            assert titles(ledger.entries()) == stack
