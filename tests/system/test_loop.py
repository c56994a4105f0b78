"""The loop under a real scheduler, triggerer and dag-processor, with what goes wrong in real life."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from airflow_mlops.call import Outcome, Store
from airflow_mlops.cli.services import Services
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.requests import Request, Requests
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.window import parse_key
from tests import toy

ENDED = ("success", "failed")


def store(running: Services) -> Store:
    return Store(str(running.store))


def arrive(running: Services, name: str, month: str, **options: Any) -> None:
    """Let a month's file appear, whole."""
    folder = running.dags / name
    beside = toy.write(toy.rows(month, 600, **options), folder / f".{month}")
    beside.rename(folder / f"{month}.parquet")


def until(running: Services, what: Callable[[], Any], seconds: float = 150) -> Any:
    """Wait until something is true, and return it."""
    found: list[Any] = []

    def ready() -> bool:
        found[:] = [what()]
        return bool(found[0])

    running.wait("scheduler", ready, seconds)
    return found[0]


def states(running: Services, dag_id: str) -> dict[str, str]:
    return {run["dag_run_id"]: run["state"] for run in running.runs(dag_id)}


def train(running: Services, name: str, month: str) -> str:
    """Start a training by hand and wait for its end; return the run's state."""
    until(running, lambda: f"{name}.train" in parsed(running))
    run_id = running.trigger(f"{name}.train", {"window": month})
    return str(until(running, lambda: (s := states(running, f"{name}.train")[run_id]) in ENDED and s))


def parsed(running: Services) -> set[str]:
    return {dag["dag_id"] for dag in running.airflow("GET", "dags?limit=100")["dags"]}


def ring(running: Services, name: str, request: Request) -> None:
    """Record a request and update the retrain asset, as the sensor does."""
    Requests(store(running), name).open(request)
    body = {"asset_id": retrain_asset_id(running, name), "extra": {"request": request.id}}
    running.airflow("POST", "assets/events", body)


def retrain_asset_id(running: Services, name: str) -> int:
    assets = running.airflow("GET", f"assets?name_pattern={name}.retrain&limit=10")["assets"]
    return int(next(each["id"] for each in assets if each["name"] == f"{name}.retrain"))


def wish(name: str, month: str, champion: str | None = None) -> Request:
    window = parse_key("month", month)
    return Request(model=name, champion=champion, reason=f"a test asks for {month}", trigger="drift", window=window)


def test_the_dag_processor_finds_every_example_and_nothing_fails_to_load(running: Services) -> None:
    expected = {
        "flights.train",
        "flights.monitor",
        "flights.predict",
        "flights_team",
        "flights_team_drift",
        "loop.train",
    }
    until(running, lambda: expected <= parsed(running))
    assert running.airflow("GET", "importErrors")["import_errors"] == []


def test_drift_and_only_drift_retrains_and_the_gate_decides(running: Services) -> None:
    name = "loop"
    arrive(running, name, "2024-01")
    assert train(running, name, "2024-01") == "success"
    assert Ledger(store(running), name).champion() == "1"
    verdicts, requests = Verdicts(store(running), name), Requests(store(running), name)

    arrive(running, name, "2024-02")
    until(running, lambda: verdicts.of_window("2024-02"))
    assert [verdict["status"] for verdict in verdicts.of_window("2024-02")] == ["ok"]
    assert requests.all() == []

    arrive(running, name, "2024-03", shift=3.0)
    until(running, lambda: verdicts.of_window("2024-03"))
    (asked,) = until(running, requests.all)
    assert asked.request.window.key == "2024-03"
    until(running, lambda: requests.all()[0].state == "done")
    trained = [run for run in running.runs(f"{name}.train") if run["run_type"] == "asset_triggered"]
    assert len(trained) == 1
    assert requests.all()[0].run == f"{name}.train/{trained[0]['dag_run_id']}"
    entry = Ledger(store(running), name).entries()[-1]
    assert (entry.window, entry.requests) == ("2024-03", (asked.request.id,))
    # The events of no-drift runs would show here: the asset was updated once.
    asset = retrain_asset_id(running, name)
    events = running.airflow("GET", f"assets/events?asset_id={asset}")["asset_events"]
    assert [event["extra"]["request"] for event in events] == [asked.request.id]


def test_a_killed_triggerer_loses_no_window(running: Services) -> None:
    name = "loop"
    verdicts = Verdicts(store(running), name)
    if Ledger(store(running), name).champion() is None:
        pytest.skip("the loop has no champion, because the test before this one failed")
    running.kill("triggerer", signal.SIGKILL)
    arrive(running, name, "2024-04", shift=3.0)
    running.start_component("triggerer")
    until(running, lambda: verdicts.of_window("2024-04"), 240)
    assert len(verdicts.of_window("2024-04")) == 1


def test_a_burst_of_requests_is_answered_each_once(running: Services) -> None:
    name, months = "burst", ("2024-01", "2024-02", "2024-03")
    for month in months:
        arrive(running, name, month)
    until(running, lambda: f"{name}.train" in parsed(running))
    wishes = [wish(name, month) for month in months]
    for each in (*wishes, *wishes):
        ring(running, name, each)
    requests = Requests(store(running), name)
    until(running, lambda: all(recorded.state == "done" for recorded in requests.all()), 240)
    until(running, lambda: set(states(running, f"{name}.train").values()) <= set(ENDED))
    assert [recorded.attempts for recorded in requests.all()] == [1] * len(months)
    claimed = {recorded.run for recorded in requests.all()}
    started = [f"{name}.train/{run['dag_run_id']}" for run in running.runs(f"{name}.train")]
    trained = [run for run in started if running.tasks(f"{name}.train", run.partition("/")[2])["train"] == "success"]
    # Surplus runs were skipped, and nothing was trained that nobody had asked for.
    assert set(trained) == claimed
    assert "failed" not in states(running, f"{name}.train").values()


def test_a_failed_run_gives_its_claim_back_and_a_cleared_one_takes_it_again(running: Services) -> None:
    name, dag_id = "failing", "failing.train"
    until(running, lambda: dag_id in parsed(running))
    requests = Requests(store(running), name)
    ring(running, name, wish(name, "2024-01"))
    (first,) = until(running, lambda: [r for r, s in states(running, dag_id).items() if s == "failed"])
    assert running.tasks(dag_id, first)["extract"] == "failed"
    assert requests.all()[0].state == "claimed"

    ring(running, name, wish(name, "2024-01"))
    until(running, lambda: list(states(running, dag_id).values()) == ["failed", "failed"])
    assert requests.all()[0].attempts == 2

    arrive(running, name, "2024-01")
    second = str(requests.all()[0].run).partition("/")[2]
    body = {"dry_run": False, "only_failed": False}
    running.airflow("POST", f"dags/{dag_id}/dagRuns/{second}/clear", body)
    until(running, lambda: states(running, dag_id)[second] == "success")
    assert (requests.all()[0].state, requests.all()[0].attempts) == ("done", 2)
    assert Ledger(store(running), name).champion() == "1"


def test_a_killed_worker_is_tried_again_and_nothing_is_done_twice(running: Services) -> None:
    name, dag_id = "killed", "killed.train"
    arrive(running, name, "2024-01")
    until(running, lambda: dag_id in parsed(running))
    request = wish(name, "2024-01")
    ring(running, name, request)
    run_id = until(running, lambda: next(iter(states(running, dag_id)), None))
    until(running, (running.home / "asked").exists)
    killed = task_processes(running, dag_id, run_id, "train")
    assert killed
    for process in killed:
        process.send_signal(signal.SIGKILL)
    until(running, lambda: states(running, dag_id)[run_id] in ENDED, 240)
    assert states(running, dag_id)[run_id] == "success"
    found = running.airflow("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/train")
    assert found["try_number"] == 2
    (recorded,) = Requests(store(running), name).all()
    assert (recorded.state, recorded.attempts) == ("done", 1)
    versions = json.loads(version_search(running, name))
    assert [version["version"] for version in versions["model_versions"]] == ["1"]


def test_a_study_in_its_own_interpreter_goes_on_after_a_kill_and_after_a_clearing(running: Services) -> None:
    name, dag_id = "tuned", "tuned.train"
    arrive(running, name, "2024-01")
    until(running, lambda: dag_id in parsed(running))
    run_id = running.trigger(dag_id, {"window": "2024-01"})
    waiting = running.home / "waiting"

    until(running, (waiting / "waits-5").exists)
    task_processes(running, dag_id, run_id, "tune")[-1].send_signal(signal.SIGKILL)
    until(running, lambda: not alive(waiting / "waits-5"))

    until(running, (waiting / "waits-9").exists)
    body = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["tune"], "only_failed": False}
    running.airflow("POST", f"dags/{dag_id}/clearTaskInstances", body)
    until(running, lambda: not alive(waiting / "waits-9"))

    until(running, lambda: states(running, dag_id)[run_id] in ENDED)
    assert states(running, dag_id)[run_id] == "success"
    (journal,) = (running.store / "studies" / name).glob("*.journal")
    trials = optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(str(journal)))).trials
    assert [(trial.number, trial.state.name) for trial in trials] == [(number, "COMPLETE") for number in range(6)]


def alive(file: Path) -> list[int]:
    """Those of the processes that a file names that go on; one that has ended may wait for its parent to notice."""
    found = []
    for pid in map(int, file.read_text().split()):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def task_processes(running: Services, dag_id: str, run_id: str, task_id: str) -> list[psutil.Process]:
    """The processes that do a task's work; Airflow titles them by the task instance's id."""
    instance = running.airflow("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")["id"]
    found = []
    for process in psutil.Process(running.pid("scheduler")).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(instance in part for part in process.cmdline()):
                found.append(process)
    return found


def version_search(running: Services, name: str) -> str:
    import urllib.request

    url = f"{running.mlflow_url}/api/2.0/mlflow/model-versions/search?filter=name%3D%27{name}%27"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as answer:
        text: str = answer.read().decode()
    return text


def test_airflow_and_the_command_line_come_to_the_same_outcomes(running: Services, tmp_path: Path) -> None:
    """The golden test: the flights pipeline through real workers and through ``airflow-mlops run``."""
    until(running, lambda: "flights.train" in parsed(running))
    if Ledger(store(running), "flights").champion() is None:
        run_id = running.trigger("flights.train", {"window": "2013-02"})
        until(running, lambda: states(running, "flights.train")[run_id] in ENDED, 240)
    first = next(run for run in running.runs("flights.train") if run["state"] == "success")
    tasks = ("extract", "validate_data", "prepare", "train", "register", "evaluate", "validate_model")
    tasks += ("validate_serving", "promote", "deploy")
    path = f"dags/flights.train/dagRuns/{first['dag_run_id']}/taskInstances"
    in_airflow = {
        task: Outcome.model_validate(
            running.airflow("GET", f"{path}/{task}/xcomEntries/return_value?deserialize=true")["value"]
        ).digest
        for task in tasks
    }

    command = [sys.executable, "-m", "airflow_mlops", "run", str(running.dags / "flights.yaml"), "--window", "2013-02"]
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    on_the_shell = {task: value["digest"] for task, value in json.loads(done.stdout)["stages"].items()}
    assert on_the_shell == in_airflow


def test_a_teams_own_dag_of_single_operators_trains_and_promotes(running: Services) -> None:
    until(running, lambda: "flights_team" in parsed(running))
    run_id = running.trigger("flights_team", {"window": "2013-02"})
    until(running, lambda: states(running, "flights_team")[run_id] in ENDED, 240)
    assert set(running.tasks("flights_team", run_id).values()) == {"success"}
    assert Ledger(store(running), "flights_team").champion() == "1"


def test_references_only_cross_between_tasks(running: Services) -> None:
    until(running, lambda: any(state == "success" for state in states(running, "flights.train").values()), 240)
    run = next(run for run in running.runs("flights.train") if run["state"] == "success")
    path = f"dags/flights.train/dagRuns/{run['dag_run_id']}/taskInstances"
    for task in running.tasks("flights.train", run["dag_run_id"]):
        entries = running.airflow("GET", f"{path}/{task}/xcomEntries")["xcom_entries"]
        for entry in entries:
            value = running.airflow("GET", f"{path}/{task}/xcomEntries/{entry['key']}?deserialize=true")["value"]
            assert len(json.dumps(value)) < 4_000, (task, entry["key"])


def test_servers_listen_on_loopback_only(running: Services) -> None:
    listening = [
        connection.laddr.ip
        for pid in running.pids()
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) == {"127.0.0.1"}
