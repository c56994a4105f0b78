"""Backfills and fleets under a real scheduler: what is told of the past, and whose turn it is in a pool."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime
from typing import Any

from airflow_mlops.cli.services import ServiceError, Services, fetch
from airflow_mlops.registry.ledger import Ledger
from tests.system.test_loop import ENDED, arrive, parsed, ring, states, store, until, wish

MONTHS = ("2024-01", "2024-02", "2024-03")


def command(running: Services, *words: str) -> subprocess.Popen[str]:
    """Start a command beside the servers, as the person who owns them does."""
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        env=running.environment,
        cwd=running.home,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def done(process: subprocess.Popen[str]) -> str:
    """What a command has said."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def created(process: subprocess.Popen[str]) -> bool:
    """Whether a command has written what it had to; SQLite refuses it while the scheduler writes."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 or "database is locked" in said, said
    return process.returncode == 0


def backfill(running: Services, dag_id: str, conf: dict[str, Any] | None = None) -> None:
    """Train for January in a backfill, as the UI asks for one."""
    tick = "2024-02-01T00:00:00Z"
    body: dict[str, Any] = {"dag_id": dag_id, "from_date": tick, "to_date": tick, "dag_run_conf": conf or {}}
    body |= {"max_active_runs": 1, "reprocess_behavior": "none"}

    def asked() -> bool:
        try:
            running.airflow("POST", "backfills", body)
        except ServiceError as error:
            if "Database is locked" not in str(error):
                raise
            return False
        return True

    until(running, asked)


def resize(running: Services, slots: int) -> None:
    """Change the size of the fleet's pool."""
    body = {"pool": "crew", "slots": slots, "include_deferred": True}
    running.airflow("PATCH", "pools/crew?update_mask=slots", body)


def verdict(running: Services, dag_id: str, run_id: str) -> Any:
    path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/validate_model/xcomEntries/return_value?deserialize=true"
    return running.airflow("GET", path)["value"]["verdict"]


def model(running: Services, name: str) -> Any:
    """The registered model, as MLflow's own server tells it."""
    found = fetch(f"{running.mlflow_url}/api/2.0/mlflow/registered-models/get?name={name}", needed=True)
    return found["registered_model"]


def test_a_backfill_trains_and_evaluates_past_windows_and_promotes_only_when_told(running: Services) -> None:
    for month in MONTHS:
        arrive(running, "past", month)
    until(running, lambda: {"past_held.train", "past_told.train"} <= parsed(running))
    today = running.trigger("past_held.train", {"window": "2024-03"})
    backfill(running, "past_told.train", conf={"promote": True})
    words = ("--dag-id", "past_held.train", "--from-date", "2024-02-01", "--to-date", "2024-03-01")
    create = ("airflow", "backfill", "create", *words, "--max-active-runs", "1")
    until(running, lambda: created(command(running, *create)))

    def ended() -> bool:
        # The schedule's own newest tick comes up as well once a DAG has been backfilled; it finds no data.
        found = [run for name in ("past_held.train", "past_told.train") for run in running.runs(name)]
        found = [run for run in found if run["run_type"] != "scheduled"]
        return len(found) == 4 and {run["state"] for run in found} <= set(ENDED)

    until(running, ended)
    past = [run for run in running.runs("past_held.train") if run["run_type"] == "backfill"]
    assert [run["state"] for run in past] == ["success", "success"]
    for run in past:
        tasks = running.tasks("past_held.train", run["dag_run_id"])
        assert tasks.pop("promote") == "skipped"
        assert set(tasks.values()) == {"success"} and {"train", "evaluate"} <= tasks.keys()
        said = verdict(running, "past_held.train", run["dag_run_id"])
        assert said["status"] == "held" and "promotes only with `promote: true`" in said["reasons"][-1]
    assert running.tasks("past_held.train", today)["promote"] == "success"
    # Three versions of three windows, and the one champion is that of the run that was no backfill.
    entries = Ledger(store(running), "past_held").entries()
    assert [(entry.window, entry.run) for entry in entries] == [("2024-03", f"past_held.train/{today}")]
    registered = model(running, "past_held")
    assert {each["alias"]: each["version"] for each in registered["aliases"]} == {"champion": entries[0].version}
    versions = fetch(
        f"{running.mlflow_url}/api/2.0/mlflow/model-versions/search?filter=name%3D%27past_held%27", needed=True
    )["model_versions"]
    tags = [{tag["key"]: tag["value"] for tag in each["tags"]}["mlops.verdict"] for each in versions]
    assert sorted(tags) == ["held", "held", "ok"]

    assert [entry.window for entry in Ledger(store(running), "past_told").entries()] == ["2024-01"]
    assert [each["alias"] for each in model(running, "past_told")["aliases"]] == ["champion"]


def test_a_pool_holds_its_limit_and_who_came_first_goes_first(running: Services) -> None:
    """Six members, two slots: by hand with old dates and with none, by a request, and a backfill before all of them."""
    pools = command(running, "airflow_mlops", "pools", str(running.dags / "toys" / "crew.yaml"))
    arrive(running, "crew", "2024-01")
    dag_ids = [f"crew_{kind}.train" for kind in "abcdef"]
    until(running, lambda: set(dag_ids) <= parsed(running))
    assert done(pools) == "pool crew: 2 slots\n"
    # The gate is closed until all of them wait before it.
    resize(running, 0)
    conf = {"window": "2024-01"}
    backfill(running, dag_ids[5])
    for kind, dag_id in zip("abcde", dag_ids, strict=False):
        if kind in "bd":
            ring(running, f"crew_{kind}", wish(f"crew_{kind}", "2024-01"))
            until(running, lambda dag_id=dag_id: states(running, dag_id))
        else:
            date = {"a": None, "c": "2020-01-01T00:00:00Z", "e": "2019-01-01T00:00:00Z"}[kind]
            running.airflow("POST", f"dags/{dag_id}/dagRuns", {"logical_date": date, "conf": conf})
        time.sleep(1.1)  # who came first is told by the second
    runs = {dag_id: next(iter(states(running, dag_id))) for dag_id in dag_ids}

    def trainings() -> dict[str, Any]:
        found = running.airflow(
            "POST", "dags/~/dagRuns/~/taskInstances/list", {"dag_ids": dag_ids, "task_ids": ["train"]}
        )
        return {each["dag_id"]: each for each in found["task_instances"] if each["dag_run_id"] == runs[each["dag_id"]]}

    until(running, lambda: all(each["state"] == "scheduled" for each in trainings().values()))
    resize(running, 2)
    seen = []

    def trained() -> bool:
        pool = running.airflow("GET", "pools/crew")
        seen.append(pool["running_slots"] + pool["queued_slots"])
        return all(each["state"] in ENDED for each in trainings().values())

    until(running, trained)
    assert max(seen) == 2
    found = trainings()
    assert {each["state"] for each in found.values()} == {"success"}
    moments = {
        dag_id: [datetime.fromisoformat(each[name]) for name in ("start_date", "end_date")]
        for dag_id, each in found.items()
    }
    at_once = [sum(start <= moment < end for start, end in moments.values()) for moment, _ in moments.values()]
    assert max(at_once) == 2
    turns = sorted(dag_ids, key=lambda dag_id: moments[dag_id][0])
    assert [set(turns[:2]), set(turns[2:4]), turns[4:]] == [set(dag_ids[:2]), set(dag_ids[2:4]), dag_ids[4:]]
    # What comes after the training is nobody's question here.
    for dag_id, run in runs.items():
        running.airflow("PATCH", f"dags/{dag_id}/dagRuns/{run}", {"state": "failed"})
