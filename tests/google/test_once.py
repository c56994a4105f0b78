"""What is created once: of two writers at once exactly one wins, in a folder and in a bucket alike."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from airflow_mlops.call import ArtifactRef, Call, Store
from airflow_mlops.call import store as store_module
from airflow_mlops.errors import PromotionConflictError
from airflow_mlops.registry import Ledger, Request, Requests
from airflow_mlops.registry.messages import Inbox, Message
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.pipeline import Retrain
from airflow_mlops.stages.snapshots import Snapshots
from tests import toy

AT = datetime(2024, 1, 1, tzinfo=UTC)
HELD = Retrain.model_validate({"cooldown": "1d"})


def call(run: str, stage: str = "monitor") -> Call:
    return Call(pipeline="m", stage=stage, run=run, window=toy.month("2024-02"), store="unused")


def promotion(store: Store, me: str) -> str:
    try:
        entry = Ledger(store, "m").record(
            "promotion", version=me, champion_before=None, decision=me, reasons=(), run=me, model=me
        )
    except PromotionConflictError:
        return "the champion is another"
    return str(entry.version)


def rejection(store: Store, me: str) -> int:
    entry = Ledger(store, "m").record("rejection", version=me, champion_before=None, reasons=(), run=me)
    return entry.number


def versions(store: Store) -> list[str]:
    return sorted(entry.version for entry in Ledger(store, "m").entries())


def wish(champion: str) -> Request:
    return Request(model="m", champion=champion, reason="amount moved", trigger="drift", window=toy.month("2024-01"))


def ask(store: Store, me: str) -> str:
    requests = Requests(store, "m")
    return requests.ask(wish(me), HELD, requests.standing()).state


def claim(store: Store, me: str) -> list[str]:
    return [each.id for each in Requests(store, "m").claim(me, lambda run: True)]


def states(store: Store) -> list[str]:
    return sorted(each.state for each in Requests(store, "m").all())


def receive(id_: str) -> Callable[[Store, str], int]:
    def put(store: Store, me: str) -> int:
        message = Message(id=id_ or me, published=AT)
        return Inbox(store, "projects/p/subscriptions/s").put([message])

    return put


def received(store: Store) -> list[str]:
    place = ("messages", "p", "s")
    entries = [store.read_json(*place, name) for name in store.names(*place)]
    return sorted(message["id"] for entry in entries if entry for message in entry["messages"])


def dataset(store: Store, me: str) -> ArtifactRef:
    return store.put_json({"by": me}, "dataset")


def snapshot(store: Store, me: str) -> str | None:
    snapshots = Snapshots(store, call(me, "extract"), {"table": "t"})
    snapshots.keep("2024-02", dataset(store, me), None)
    found = snapshots.newest("2024-02")
    return found and found.digest


def pin(store: Store, me: str) -> str | None:
    snapshots = Snapshots(store, call("one", "extract"), {"table": "t"})
    snapshots.keep_for_run(dataset(store, me))
    found = snapshots.of_run()
    return found and found.digest


def verdict(store: Store, me: str) -> str:
    Verdicts(store, "m").record(call("one"), {"status": "ok", "reasons": (me,)})
    return str(Verdicts(store, "m").of_window("2024-02")[0]["reasons"])


def failure(store: Store, me: str) -> str:
    Verdicts(store, "m").record_failure(call("one"), me)
    return str(Verdicts(store, "m").of_window("2024-02")[0]["reasons"])


def take(store: Store, me: str) -> str | None:
    verdicts = Verdicts(store, "m", "data_drift")
    verdicts.take("one", toy.month({"a": "2024-01", "b": "2024-02"}[me]))
    return verdicts.taken("one")


class Writer(NamedTuple):
    """One that creates something once."""

    write: Callable[[Store, str], Any]
    """Gives what the writer holds to be true afterwards."""
    both: Callable[[Any, Any], bool]
    """What holds of what two of them gave."""
    kept: Callable[[Store], list[Any]] = lambda store: []
    left: tuple[list[Any], list[Any]] = ([], [])
    """What is kept after one and after two have written."""
    before: Callable[[Store], Any] = lambda store: None


def same(one: Any, other: Any) -> bool:
    return one is not None and one == other


WRITERS = {
    "a promotion": Writer(
        promotion,
        lambda *said: "the champion is another" in said and len({*said}) == 2,
        lambda s: [len(versions(s))],
        ([1], [1]),
    ),
    "a rejection": Writer(rejection, lambda *said: sorted(said) == [1, 2], versions, (["a"], ["a", "b"])),
    "a request": Writer(
        ask, lambda *said: sorted(said) == ["held", "started"], states, (["started"], ["held", "started"])
    ),
    "a claim": Writer(
        claim,
        lambda *said: sorted(map(len, said)) == [0, 1],
        states,
        (["claimed"], ["claimed"]),
        lambda store: Requests(store, "m").open(wish("1")),
    ),
    "messages": Writer(receive(""), lambda *said: {1, 2} >= {*said}, received, (["a"], ["a", "b"])),
    "one message": Writer(receive("x"), same, received, (["x"], ["x"])),
    "a snapshot": Writer(snapshot, same),
    "what a task was given": Writer(pin, same),
    "a verdict": Writer(verdict, same),
    "a failure": Writer(failure, same),
    "a window that is taken": Writer(take, same),
}


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the store is."""
    return f"{request.getfixturevalue('gcs')}/mlops" if request.param == "bucket" else str(tmp_path / "store")


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_of_two_at_once_exactly_one_wins(root: str, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read the same when both create: whatever one of them does first, the other has not seen it."""
    writer.before(Store(root))
    create, together, past = store_module.create_if_absent, threading.Barrier(2), threading.local()
    said: list[tuple[str, bool]] = []

    def create_together(uri: str, data: bytes) -> bool:
        if not getattr(past, "it", False):
            past.it = True
            together.wait(60)
        said.append((uri, create(uri, data)))
        return said[-1][1]

    monkeypatch.setattr(store_module, "create_if_absent", create_together)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda me: writer.write(Store(root), me), ("a", "b"))

    contested = [created for uri, created in said if uri == said[0][0]]
    assert sorted(contested) == [False, True]
    assert writer.both(one, other), (one, other)
    assert writer.kept(Store(root)) == writer.left[1]


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_one_whose_answer_was_lost_does_nothing_twice(
    root: str, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks again by itself, and is told of its own file that somebody was first."""
    writer.before(Store(root))
    create = store_module.create_if_absent
    lost: list[str] = []

    def create_and_lose(uri: str, data: bytes) -> bool:
        created = create(uri, data)
        if not lost:
            lost.append(uri)
            return create(uri, data)
        return created

    monkeypatch.setattr(store_module, "create_if_absent", create_and_lose)
    said = writer.write(Store(root), "a")

    assert len(lost) == 1 and said not in (None, [])
    assert said != "the champion is another"
    assert writer.kept(Store(root)) == writer.left[0]
