"""Pruning: what is old and named by nothing goes; what anything that stays names, stays."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_mlops.call import ArtifactRef, Outcome, Store
from airflow_mlops.call.cache import Entry, entries
from airflow_mlops.call.key import key_of
from airflow_mlops.call.prune import prune

DAY = timedelta(days=1)
ROOTS = ("ledger", "requests", "verdicts", "outcome", "entry", "database snapshot", "young")
"""What may name an artifact and must keep it."""
FREE = ("nothing", "old entry", "old outcome", "file snapshot")
"""What keeps no artifact."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def artifact(store: Store, content: Any, kind: str = "dataset") -> ArtifactRef:
    return store.put_json(content, kind)


def age(store: Store, days: float = 100, *, only: str = "") -> None:
    """Let files be old."""
    at = time.time() - days * 86_400
    for file in Path(store.path, only).rglob("*"):
        os.utime(file, (at, at))


def outcome_of(ref: ArtifactRef, run: str, stage: str = "extract") -> Outcome:
    return Outcome(stage=stage, identity=f"{run}-{stage}", call_digest="sha256:0", run=run, outputs={"data": ref})


def entry(store: Store, ref: ArtifactRef, run: str, days: float, pipeline: str = "churn") -> None:
    components = {"input": ref.digest, "run": run, "days": str(days)}
    at = datetime.now(UTC) - timedelta(days=days)
    body = Entry(
        key=key_of(components),
        pipeline=pipeline,
        run=run,
        at=at,
        components=components,
        outcome=outcome_of(ref, run),
    )
    store.create_json(body.model_dump(mode="json"), "cache", pipeline, "extract", f"{body.key}.json")


def name_it(store: Store, ref: ArtifactRef, who: str, number: int) -> None:
    """Let one thing of the store name an artifact."""
    body = {"artifact": ref.model_dump(mode="json")}
    match who:
        case "ledger" | "requests" | "verdicts":
            store.create_json({"decision": ref.digest}, who, "churn", f"{number:08}.json")
        case "outcome":
            store.write_outcome(outcome_of(ref, f"run-{number}", "validate_model"))
        case "old outcome":
            store.write_outcome(outcome_of(ref, f"run-{number}"))
        case "entry" | "old entry":
            entry(store, ref, f"run-{number}", 100 if who == "old entry" else 1)
        case "database snapshot":
            store.create_json(body, "snapshots", "churn", f"{number:016x}", "2013-01", "000001.json")
        case "file snapshot":
            store.create_json(body, "snapshots", "churn", f"{number:016x}", "2013-01", f"{number:032x}.json")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("pruned")


plans = st.lists(
    st.tuples(st.sets(st.sampled_from([*ROOTS, *FREE]), min_size=1, max_size=3), st.integers(0, 4)),
    min_size=1,
    max_size=6,
)


@given(plans)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_anything_needs_stays_and_the_rest_goes(folders: Path, plan: list[tuple[set[str], int]]) -> None:
    """Each artifact is named by some things, and holds the digest of an earlier artifact of the list."""
    store = Store(tempfile.mkdtemp(dir=folders))
    made: list[ArtifactRef] = []
    named_by: list[set[str]] = []
    inner: list[int | None] = []
    for number, (who, back) in enumerate(plan):
        behind = number - back if 0 < back <= number else None
        held = made[behind].digest if behind is not None else None
        made.append(artifact(store, {"number": number, "held": held}))
        named_by.append(who)
        inner.append(behind)
        for each in who:
            name_it(store, made[-1], each, number)
    age(store)
    for ref, who in zip(made, named_by, strict=True):
        if "young" in who:
            os.utime(ref.uri)

    wanted = {number for number, who in enumerate(named_by) if who & set(ROOTS)}
    while more := {behind for number in wanted if (behind := inner[number]) is not None} - wanted:
        wanted |= more

    counted = prune(store, 30 * DAY, dry_run=True)
    assert all(Path(ref.uri).exists() for ref in made), "a dry run removes nothing"
    done = prune(store, 30 * DAY)

    assert {number for number, ref in enumerate(made) if Path(ref.uri).exists()} == wanted
    assert done == counted and done.artifacts == len(made) - len(wanted)
    assert prune(store, 30 * DAY) == (0, 0, 0, 0)


def test_an_entry_goes_by_its_age_and_its_pipeline(store: Store) -> None:
    for pipeline in ("churn", "fraud"):
        for days in (1, 40):
            entry(store, artifact(store, {pipeline: days}), f"run-{days}", days, pipeline)
    assert prune(store, 30 * DAY, "churn").entries == 1
    assert sorted((each.pipeline, each.run) for _, each in entries(store)) == [
        ("churn", "run-1"),
        ("fraud", "run-1"),
        ("fraud", "run-40"),
    ]
    assert prune(store, timedelta(0)).entries == 3


def test_a_run_that_goes_on_keeps_all_it_has_made(store: Store) -> None:
    early, late = artifact(store, "early"), artifact(store, "late")
    store.write_outcome(outcome_of(early, "running"))
    store.write_outcome(outcome_of(artifact(store, "gone"), "ended"))
    age(store)
    store.write_outcome(outcome_of(late, "running", "prepare"))
    done = prune(store, timedelta(0))
    assert (done.records, done.artifacts) == (1, 1)
    assert store.fetch(early) and store.fetch(late)


def test_code_snapshots_and_unknown_files_are_left_alone(store: Store) -> None:
    code = artifact(store, "code", "code")
    other = Path(store.path, "artifacts", "notes.txt")
    other.write_text("ours")
    age(store)
    prune(store, timedelta(0))
    assert store.fetch(code) and other.exists()


def test_an_empty_store_is_pruned_of_nothing(store: Store) -> None:
    assert prune(store, timedelta(0)) == (0, 0, 0, 0)
