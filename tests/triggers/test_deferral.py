"""Tasks whose backend is not done at once: they defer, a trigger watches, they resume; no job is started twice."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.backends.fake import FakeBackend
from airflow_mlops.call import Store
from airflow_mlops.errors import JobCancelledError, JobLostError, MlopsError
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.triggers import JobTrigger, WindowTrigger
from tests import toy
from tests.airflow_fixtures import Airflow

OWN = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_mlops.operators import ExtractDataOperator
with DAG("{name}.own", schedule=None, default_args={{"retries": 2, "retry_delay": timedelta(0)}}) as dag:
    ExtractDataOperator(
        task_id="extract", source="data/{window}.parquet", pipeline="{name}", poll_interval=0.2,
        backend="fake", backend_options={options!r}, cache={cache},
    )
"""


def own_dag(airflow: Airflow, window: str = "2024-01", *, cache: bool = False, **options: Any) -> FakeBackend:
    """Write a DAG with one task on the fake backend, and give the backend to look at its jobs."""
    options = {"folder": str(airflow.folder / "jobs"), **options}
    airflow.write(OWN.format(name=airflow.name, window=window, options=options, cache=cache))
    return FakeBackend(**options)


@pytest.fixture
def one_month(airflow: Airflow) -> Airflow:
    """The toy pipeline's world with a month of rows."""
    toy.months(airflow.folder, ("2024-01",), 50)
    return airflow


def jobs(airflow: Airflow) -> list[dict[str, Any]]:
    """The jobs that were started."""
    return [json.loads(file.read_text()) for file in (airflow.folder / "jobs").glob("*.json")]


def test_a_task_is_deferred_while_its_job_runs_and_then_goes_on(one_month: Airflow) -> None:
    backend = own_dag(one_month, mode="deferred", seconds=1.0)

    waiting = one_month.run(f"{one_month.name}.own", triggers=False)
    assert (waiting.state, waiting.states) == ("running", {"extract": "deferred"})
    assert ("extract", "return_value") not in waiting.xcom
    assert backend.submissions() == 1

    run = one_month.test(f"{one_month.name}.own")
    assert (run.state, run.tries) == ("success", {"extract": 1})
    assert run.xcom["extract", "return_value"]["outputs"]["data"]["rows"] == 50
    assert backend.submissions() == 2


def test_what_an_earlier_run_has_done_needs_no_job(one_month: Airflow) -> None:
    backend = own_dag(one_month, mode="deferred", seconds=0.2, cache=True)
    first = one_month.test(f"{one_month.name}.own")

    again = one_month.run(f"{one_month.name}.own", triggers=False)

    assert (again.state, again.states) == ("success", {"extract": "success"}), "it was not deferred"
    assert again.xcom["extract", "return_value"]["outputs"] == first.xcom["extract", "return_value"]["outputs"]
    assert backend.submissions() == 1


def test_a_job_that_is_done_at_once_defers_nothing(one_month: Airflow) -> None:
    own_dag(one_month, mode="immediate")
    assert one_month.run(f"{one_month.name}.own", triggers=False).states == {"extract": "success"}


def test_a_retry_finds_the_job_whose_submission_broke(one_month: Airflow) -> None:
    backend = own_dag(one_month, mode="lost_after_submit", seconds=0.5)

    run = one_month.test(f"{one_month.name}.own")

    assert (run.state, run.tries) == ("success", {"extract": 2})
    assert isinstance(run.error("extract"), JobLostError)
    assert backend.submissions() == 1


def test_a_job_that_vanishes_is_tried_again_as_often_as_allowed(one_month: Airflow) -> None:
    own_dag(one_month, mode="vanishing")

    run = one_month.test(f"{one_month.name}.own")

    assert (run.state, run.tries) == ("failed", {"extract": 3})
    assert [type(error) for error in run.errors["extract"]] == [JobLostError] * 3
    assert "can no longer be found" in str(run.errors["extract"][0])


def test_an_error_of_the_job_fails_at_once(one_month: Airflow) -> None:
    backend = own_dag(one_month, window="2024-07", mode="deferred", seconds=0.2)

    run = one_month.test(f"{one_month.name}.own")

    assert (run.state, run.tries) == ("failed", {"extract": 1})
    assert isinstance(run.error("extract"), MlopsError)
    assert "DataNotFoundError" in str(run.error("extract"))
    assert "2024-07.parquet" in str(run.error("extract"))
    assert backend.submissions() == 1


@pytest.fixture
def _signals() -> Iterator[None]:
    """What a task does on SIGTERM is undone afterwards: here it shares its process with the tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_signals")
def test_a_task_that_is_ended_cancels_its_job(one_month: Airflow) -> None:
    own_dag(one_month, mode="deferred", seconds=30.0)
    assert one_month.run(f"{one_month.name}.own", triggers=False).states == {"extract": "deferred"}
    assert [job["cancelled"] for job in jobs(one_month)] == [False]

    signal.raise_signal(signal.SIGTERM)

    assert [job["cancelled"] for job in jobs(one_month)] == [True]


def test_ending_a_task_before_it_has_a_job_does_nothing(one_month: Airflow) -> None:
    own_dag(one_month)
    one_month.dag(f"{one_month.name}.own").task_dict["extract"].on_kill()
    assert jobs(one_month) == []


def trigger_of(airflow: Airflow) -> JobTrigger:
    """The trigger that a deferred task has left in the metadata database, made of that alone."""
    from airflow.models.trigger import Trigger
    from airflow.sdk._shared.module_loading import import_string
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        row = session.scalars(select(Trigger).order_by(Trigger.id.desc())).first()
        assert row is not None
        trigger: JobTrigger = import_string(row.classpath)(**row.kwargs)
    assert isinstance(trigger, JobTrigger)
    return trigger


async def first_event(trigger: Any) -> Any:
    """What a trigger fires with."""
    async for event in trigger.run():
        return event.payload
    return None


def test_the_trigger_fires_only_when_the_job_has_ended(one_month: Airflow) -> None:
    own_dag(one_month, mode="deferred", seconds=1.0)
    assert one_month.run(f"{one_month.name}.own", triggers=False).states == {"extract": "deferred"}
    trigger = trigger_of(one_month)
    ready = jobs(one_month)[0]["ready"]

    payload = asyncio.run(asyncio.wait_for(first_event(trigger), 30))

    assert time.time() >= ready
    assert payload == {"handle": trigger.handle}
    assert len(json.dumps(trigger.serialize()[1])) < 4096


def test_a_deferred_task_that_is_cleared_cancels_its_job(one_month: Airflow) -> None:
    own_dag(one_month, mode="deferred", seconds=30.0)
    assert one_month.run(f"{one_month.name}.own", triggers=False).states == {"extract": "deferred"}
    trigger = trigger_of(one_month)

    asyncio.run(trigger.on_kill())

    assert [job["cancelled"] for job in jobs(one_month)] == [True]
    assert asyncio.run(asyncio.wait_for(first_event(trigger), 30)) == {"handle": trigger.handle}
    task = one_month.dag(f"{one_month.name}.own").task_dict["extract"]
    with pytest.raises(JobCancelledError, match="was cancelled"):
        task.resume({}, {"handle": trigger.handle})


def test_a_whole_train_run_on_a_remote_backend(airflow: Airflow) -> None:
    toy.months(airflow.folder, ("2024-01",))
    airflow.declare(backend="local")
    text = (
        "from airflow_mlops import load_dags\n"
        "for dag in load_dags('*.yaml', globals()).values():\n"
        "    for task in dag.tasks:\n"
        "        if task.task_id != 'start':\n"
        "            task.backend, task.poll_interval = 'fake', 0.1\n"
        f"            task.backend_options = {{'folder': {str(airflow.folder / 'jobs')!r}, 'seconds': 0.1}}\n"
    )
    airflow.write(text)

    run = airflow.test("train", "2024-01")

    assert run.state == "success"
    assert len(jobs(airflow)) == 8
    assert [entry.version for entry in airflow.ledger()] == ["1"]
    assert len(run.events) == 1


def test_the_window_trigger_waits_for_the_data(champion: Airflow) -> None:
    arguments = {
        "store": champion.world.store,
        "pipeline": champion.name,
        "source": f"{champion.folder}/data/{{window}}.parquet",
        "grain": "month",
        "run": "toy.monitor/run",
        "window": "2024-04",
    }
    trigger = WindowTrigger(arguments, 0.1)
    path, again = trigger.serialize()
    assert path == "airflow_mlops.triggers.window.WindowTrigger"
    timer = threading.Timer(1.0, toy.months, (champion.folder, ("2024-04",), 10))
    started = time.monotonic()
    timer.start()

    payload = asyncio.run(asyncio.wait_for(first_event(WindowTrigger(**again)), 30))
    timer.join()
    (champion.folder / "data" / "2024-04.parquet").unlink()

    assert payload == {"window": "2024-04"}
    assert time.monotonic() - started >= 1.0


def test_the_first_look_comes_when_airflow_has_taken_note_of_the_deferral(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that is there at once, and the turn that comes first."""
    monkeypatch.setattr("airflow_mlops.triggers.window.random", lambda: 0.0)
    monkeypatch.setattr("airflow_mlops.triggers.window.NOTED", 0.5)
    arguments = {"store": str(tmp_path), "pipeline": "toy", "source": "x", "grain": "month", "run": "r", "window": "?"}
    started = time.monotonic()
    asyncio.run(asyncio.wait_for(first_event(WindowTrigger(arguments, 60.0)), 30))
    assert 0.5 <= time.monotonic() - started < 30


def test_the_window_trigger_leaves_an_error_to_the_worker(tmp_path: Path) -> None:
    arguments = {
        "store": str(tmp_path),
        "pipeline": "toy",
        "source": "x",
        "grain": "month",
        "run": "r",
        "window": "last month",
    }
    payload = asyncio.run(asyncio.wait_for(first_event(WindowTrigger(arguments, 0.1)), 30))
    assert payload == {"window": None}


def test_looks_without_end_read_the_ledger_once_and_see_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = Store(str(tmp_path / "store")), []
    ledger = Ledger(store, "toy")

    def promote(version: str, before: str | None, window: str) -> None:
        facts: dict[str, Any] = {"decision": "d", "reasons": (), "run": "r", "window": window}
        ledger.record("promotion", version=version, champion_before=before, **facts)

    promote("1", None, "2024-01")
    honest = Store.read_json

    def counted(self: Store, *parts: str) -> Any:
        if parts[0] == "ledger":
            read.append(parts[-1])
        return honest(self, *parts)

    monkeypatch.setattr(Store, "read_json", counted)
    arguments = {"store": store.root, "pipeline": "toy", "source": f"{tmp_path}/{{window}}.csv", "grain": "month"}
    trigger = WindowTrigger({**arguments, "run": "r"}, 0.05)

    async def watch() -> Any:
        fired = asyncio.create_task(first_event(trigger))
        await asyncio.sleep(0.5)
        # A new champion has seen February and March.
        await asyncio.to_thread(promote, "2", "1", "2024-03")
        (tmp_path / "2024-04.csv").touch()
        return await asyncio.wait_for(fired, 30)

    assert asyncio.run(watch()) == {"window": "2024-04"}
    looked = [name for name in read if name == "00000001.json"]
    # The trigger reads the first entry once; the one who promotes does as well.
    assert 1 <= len(looked) <= 2
