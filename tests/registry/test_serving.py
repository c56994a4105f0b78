"""Heartbeats: the servers that are there, by what they say of themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_mlops.call import Store
from airflow_mlops.registry.serving import ALIVE, Served, Serving, beat, end, live


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def serving(server: str, **more: object) -> Serving:
    now = datetime.now(UTC)
    return Serving.model_validate(
        {"server": server, "url": "http://127.0.0.1:1", "pid": 1, "started": now, "at": now, **more}
    )


def test_a_heartbeat_is_written_over_and_taken_away(store: Store) -> None:
    assert live(store, "m") == []
    beat(store, "m", serving("a"))
    later = serving("a", entry=3, champion="7", versions={"7": Served(requests=5, errors=1, p99=2.5)})
    beat(store, "m", later)
    beat(store, "m", serving("b"))
    beat(store, "other", serving("c"))
    assert [each.server for each in live(store, "m")] == ["a", "b"]
    assert live(store, "m")[0] == later
    end(store, "m", "a")
    end(store, "m", "a")
    assert [each.server for each in live(store, "m")] == ["b"]


def test_who_has_not_been_heard_of_is_not_live(store: Store) -> None:
    beat(store, "m", serving("old", at=datetime.now(UTC) - ALIVE))
    beat(store, "m", serving("new", at=datetime.now(UTC) - ALIVE + timedelta(seconds=5)))
    assert [each.server for each in live(store, "m")] == ["new"]


def test_a_heartbeat_that_cannot_be_read_is_no_server(store: Store) -> None:
    store.create_json({"server": "x"}, "serving", "m", "x.json")
    beat(store, "m", serving("a"))
    assert [each.server for each in live(store, "m")] == ["a"]
