"""What every backend does. A further backend enters `BACKENDS`, and is held to all of it.

A fixture there gives a `Bench`: the backend, and how to make another one that looks at the same jobs, as another worker
would.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from airflow_mlops.backends import TERMINAL, Backend, Handle, backend_of
from airflow_mlops.backends.fake import FakeBackend
from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.errors import BackendError, DataNotFoundError, JobCancelledError, JobLostError, MlopsError
from tests import toy

SECONDS = 0.4


class Bench(NamedTuple):
    """A backend to be held to the contract."""

    backend: Backend
    again: Callable[[], Backend]
    remote: bool
    """Whether it goes on by itself after `submit`: it then finds jobs, and can cancel them."""
    store: str
    """A store that its jobs reach."""


@pytest.fixture
def local(tmp_path: Path) -> Bench:
    return Bench(backend_of("local"), lambda: backend_of("local"), False, str(tmp_path / "store"))


@pytest.fixture
def immediate(tmp_path: Path) -> Bench:
    return fake(tmp_path, "immediate")


@pytest.fixture
def deferred(tmp_path: Path) -> Bench:
    return fake(tmp_path, "deferred")


@pytest.fixture
def slow(tmp_path: Path) -> Bench:
    return fake(tmp_path, "slow")


def fake(folder: Path, mode: str) -> Bench:
    def make() -> Backend:
        return backend_of("fake", {"folder": str(folder / "jobs"), "mode": mode, "seconds": SECONDS})

    return Bench(make(), make, True, str(folder / "store"))


@pytest.fixture
def subprocess(tmp_path: Path) -> Bench:
    return Bench(backend_of("subprocess"), lambda: backend_of("subprocess"), True, str(tmp_path / "store"))


@pytest.fixture
def on_vertex(vertex: Any, gcs: str) -> Bench:
    options = {"project": "loopback", "region": "europe-west1", "image": "europe-docker.pkg.dev/loopback/r/stage:1"}

    def make() -> Backend:
        return backend_of("vertex", options)

    return Bench(make(), make, True, f"{gcs}/mlops")


BACKENDS = ["local", "immediate", "deferred", "slow", "subprocess", "on_vertex"]


DEFERRING = ["deferred", "slow", "subprocess", "on_vertex"]
"""Those whose jobs go on after `submit`, long enough to be looked at."""


@pytest.fixture(params=BACKENDS)
def bench(request: pytest.FixtureRequest) -> Bench:
    made: Bench = request.getfixturevalue(request.param)
    return made


def call_of(bench: Bench, folder: Path, month: str = "2024-01", run: str = "r") -> Call:
    toy.months(folder, ["2024-01"], 20)
    params = {"source": str(folder / "data" / "{window}.parquet"), "grain": "month"}
    return Call(pipeline="toy", stage="extract", run=run, window=toy.month(month), params=params, store=bench.store)


def wait(backend: Backend, handle: Handle) -> str:
    until = time.monotonic() + 60
    while (state := backend.status(handle)) not in TERMINAL and time.monotonic() < until:
        time.sleep(0.02)
    return state


def end(backend: Backend, call: Call) -> Outcome:
    """Submit, wait and collect, as an operator does; errors may come from any of the three."""
    handle = backend.submit(call, {})
    wait(backend, handle)
    return backend.collect(handle)


def test_a_call_that_nobody_submitted_is_not_found(bench: Bench, tmp_path: Path) -> None:
    assert bench.backend.find(call_of(bench, tmp_path)) is None


def test_a_submitted_call_is_done_and_its_outcome_is_the_stages(bench: Bench, tmp_path: Path) -> None:
    call = call_of(bench, tmp_path)
    handle = bench.backend.submit(call, {})
    assert handle.call == call
    assert wait(bench.backend, handle) == "done"
    outcome = bench.backend.collect(handle)
    assert (outcome.stage, outcome.identity, outcome.metrics) == ("extract", call.identity, {"rows": 20.0})
    assert outcome == Store(call.store).read_outcome(call)


def test_a_handle_serves_another_process_after_a_trip_through_json(bench: Bench, tmp_path: Path) -> None:
    handle = bench.backend.submit(call_of(bench, tmp_path), {})
    again = Handle.model_validate_json(handle.model_dump_json())
    other = bench.again()
    assert again == handle and wait(other, again) == "done"
    assert other.collect(again).metrics == {"rows": 20.0}
    assert all(isinstance(line, str) for line in other.logs(again))


def test_collecting_twice_gives_the_same(bench: Bench, tmp_path: Path) -> None:
    handle = bench.backend.submit(call_of(bench, tmp_path), {})
    wait(bench.backend, handle)
    assert bench.backend.collect(handle) == bench.backend.collect(handle)


def test_a_job_that_runs_or_is_done_is_found_by_the_next_try(bench: Bench, tmp_path: Path) -> None:
    call = call_of(bench, tmp_path)
    handle = bench.backend.submit(call, {})
    found = bench.again().find(call)
    assert found == (handle if bench.remote else None)
    wait(bench.backend, handle)
    assert bench.again().find(call) == found
    assert bench.again().find(call_of(bench, tmp_path, run="another")) is None


def test_the_stages_own_error_comes_back_with_its_text(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(MlopsError) as caught:
        end(bench.backend, call_of(bench, tmp_path, "2024-05"))
    assert "for the window 2024-05" in str(caught.value) and "stage 'extract'" in str(caught.value)
    assert not caught.value.retryable


def test_a_failed_job_does_not_stand_in_the_way_of_the_next_try(bench: Bench, tmp_path: Path) -> None:
    call = call_of(bench, tmp_path, "2024-05")
    with pytest.raises(MlopsError):
        end(bench.backend, call)
    assert bench.backend.find(call) is None
    toy.months(tmp_path, ["2024-05"], 7)
    assert end(bench.backend, call).metrics == {"rows": 7.0}


def test_a_job_that_nobody_knows_is_lost(bench: Bench, tmp_path: Path) -> None:
    call = call_of(bench, tmp_path)
    handle = Handle(backend="any", job=call.identity, call=call)
    assert bench.backend.status(handle) == "lost"
    with pytest.raises(JobLostError) as caught:
        bench.backend.collect(handle)
    assert caught.value.retryable
    bench.backend.cancel(handle)
    assert list(bench.backend.logs(handle)) == []


def test_cancelling_what_has_ended_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    handle = bench.backend.submit(call_of(bench, tmp_path), {})
    wait(bench.backend, handle)
    bench.backend.cancel(handle)
    assert bench.backend.status(handle) == "done"
    assert bench.backend.collect(handle).metrics == {"rows": 20.0}


def test_secrets_reach_the_stage_and_are_kept_nowhere(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.package(
        tmp_path,
        "nosy",
        "import os, pathlib\ndef build(frame):\n"
        f"    pathlib.Path({str(tmp_path / 'seen')!r}).write_text(os.environ['TOY_SECRET'][::-1])\n    return frame\n",
    )
    monkeypatch.delenv("TOY_SECRET", raising=False)
    declaration = toy.declare(tmp_path, prepare={"features": "nosy.features:build"})
    registry = toy.registry_ref("sqlite://", "m")
    toy.months(tmp_path)
    store = bench.store
    outcomes = toy.run_plan(declaration, "2024-01", "r", store, registry, until="validate_data")
    call = toy.next_call(declaration, "prepare", outcomes, "2024-01", "r", store, registry)
    handle = bench.backend.submit(call, {"TOY_SECRET": "hunter2-hunter2"})
    assert wait(bench.backend, handle) == "done"
    assert (tmp_path / "seen").read_text() == "2retnuh-2retnuh"
    assert "TOY_SECRET" not in os.environ
    assert "hunter2" not in handle.model_dump_json()
    kept = [file for file in tmp_path.rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()]
    assert kept == []


def running(bench: Bench, folder: Path) -> tuple[Handle, Call]:
    call = call_of(bench, folder)
    handle = bench.backend.submit(call, {})
    assert bench.backend.status(handle) == "running"
    return handle, call


@pytest.mark.parametrize("bench", DEFERRING, indirect=True)
def test_a_job_that_runs_cannot_be_collected_yet(bench: Bench, tmp_path: Path) -> None:
    handle, _ = running(bench, tmp_path)
    with pytest.raises(BackendError, match="still running"):
        bench.backend.collect(handle)


@pytest.mark.parametrize("bench", DEFERRING, indirect=True)
def test_a_cancelled_job_is_cancelled_for_everybody_and_may_be_started_again(bench: Bench, tmp_path: Path) -> None:
    handle, call = running(bench, tmp_path)
    bench.again().cancel(handle)
    assert bench.backend.status(handle) == "cancelled"
    assert bench.backend.find(call) is None
    with pytest.raises(JobCancelledError, match="was cancelled"):
        bench.backend.collect(handle)
    assert end(bench.backend, call).metrics == {"rows": 20.0}


@pytest.mark.parametrize("bench", DEFERRING, indirect=True)
def test_a_job_that_runs_is_not_started_a_second_time(bench: Bench, tmp_path: Path) -> None:
    _, call = running(bench, tmp_path)
    with pytest.raises(BackendError, match="is there already"):
        bench.again().submit(call, {})


def test_a_submission_whose_answer_was_lost_is_found_and_never_made_again(tmp_path: Path) -> None:
    bench = fake(tmp_path, "lost_after_submit")
    call = call_of(bench, tmp_path)
    with pytest.raises(JobLostError, match="after the job .* was accepted") as caught:
        bench.backend.submit(call, {})
    assert caught.value.retryable
    found = bench.again().find(call)
    assert found is not None and wait(bench.backend, found) == "done"
    assert bench.backend.collect(found).metrics == {"rows": 20.0}
    assert isinstance(bench.backend, FakeBackend) and bench.backend.submissions() == 1


def test_a_job_that_vanished_is_lost_and_may_be_started_again(tmp_path: Path) -> None:
    bench = fake(tmp_path, "vanishing")
    call = call_of(bench, tmp_path)
    handle = bench.backend.submit(call, {})
    assert bench.backend.status(handle) == "lost" and bench.backend.find(call) is None
    with pytest.raises(JobLostError, match="can no longer be found") as caught:
        bench.backend.collect(handle)
    assert caught.value.retryable
    bench.backend.submit(call, {})
    assert isinstance(bench.backend, FakeBackend) and bench.backend.submissions() == 2


def test_a_slow_backend_takes_its_time_to_accept(tmp_path: Path) -> None:
    started = time.monotonic()
    bench = fake(tmp_path, "slow")
    bench.backend.submit(call_of(bench, tmp_path), {})
    assert time.monotonic() - started >= SECONDS


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vertexx", {}, r"there is no backend 'vertexx'; allowed: .*fake.*local"),
        ("local", {"speed": 1}, "the backend 'local' cannot be made"),
    ],
)
def test_a_backend_that_cannot_be_had_is_told(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BackendError, match=said):
        backend_of(name, options)


def test_the_stages_error_keeps_its_kind_where_it_runs_in_process(local: Bench, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError):
        local.backend.submit(call_of(local, tmp_path, "2024-05"), {})
