"""The services of docker/compose.yaml as processes of this machine, the flights loop on them, and some that die."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from airflow_mlops.call import Store
from airflow_mlops.cli.services import fetch
from airflow_mlops.deployments import Endpoint
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.requests import Requests
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.stages.golden import as_json
from benchmarks.native import Native, NoRedisError

REPOSITORY = Path(__file__).parents[2]
FLIGHTS = REPOSITORY / "dags" / "flights"
FILES = ("flights.yaml", "flights_pipeline.py", "flights/__init__.py", "flights/features.py", "flights/schema.yaml")
PRELOADED = [
    "airflow.sdk.execution_time.task_runner",
    "airflow.dag_processing.dagbag",
    "airflow_mlops.ui.plugin",
    "airflow_mlops.factory",
    "airflow_mlops.stages.train",
    "airflow_mlops.stages.evaluate",
]
QUICK = {
    # A lost task is noticed by its heartbeats; Airflow's five minutes are for real clusters.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__API__WORKERS": "1",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
    # Without what only an alarm or a plot needs: there is one alarm here, and each worker would pay for it.
    "AIRFLOW__CELERY__EXTRA_CELERY_CONFIG": json.dumps({"imports": PRELOADED}),
}
"""What differs from production: how fast things are noticed, and how many processes wait for work with what loaded."""
HELD = '''"""Trains; while the marker is there, it tells who trains and waits to be killed."""

import os
import time
from pathlib import Path

from sklearn.ensemble import HistGradientBoostingClassifier


def fit(rows, target, params):
    marker = Path(params["marker"])
    if marker.exists():
        marker.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)
    return HistGradientBoostingClassifier(max_iter=60, learning_rate=0.1, max_leaf_nodes=15).fit(rows, target)
'''


# Servers that start one after another, and a loop on them, on a machine that does other things as well.
pytestmark = pytest.mark.timeout(1500)


class Traffic(threading.Thread):
    """Asks the model server again and again, as a client would that cannot wait."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(daemon=True)
        self.url, self.key = url, key
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self._end = threading.Event()
        # Real rows, without what nobody knows at departure.
        rows = pd.read_parquet(FLIGHTS / "data" / "2013-03.parquet").drop(columns="late").head(20)
        self.columns = list(rows.columns)
        self.rows = [[as_json(value) for value in row] for row in rows.to_dict("split")["data"]]

    def run(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIRFLOW_MLOPS_SERVING_KEY", self.key)
            with Endpoint(self.url) as endpoint:
                while not self._end.wait(0.5):
                    try:
                        answer = endpoint.ask(self.columns, self.rows)
                        self.answered[answer.version] += len(answer.predictions)
                    except Exception as error:
                        self.failed.append(repr(error))

    def end(self) -> None:
        self._end.set()
        self.join()


def lay_out(home: Path) -> Path:
    """A DAGs folder with the flights pipeline, whose training can be held."""
    dags = home / "dags"
    for name in FILES:
        (dags / name).parent.mkdir(parents=True, exist_ok=True)
        (dags / name).write_bytes((REPOSITORY / "dags" / name).read_bytes())
    (dags / "flights" / "held.py").write_text(HELD)
    declaration = yaml.safe_load((dags / "flights.yaml").read_text())
    declaration["train"] = {
        "function": "flights.held:fit",
        "params": {"marker": str(home / "held")},
        "windows": {"last": 2},
    }
    declaration |= {"task": "binary", "retries": 2, "retry_delay": "1s", "pool": {"name": "trainings", "slots": 2}}
    declaration["evaluate"] |= {"plots": False}
    (dags / "flights.yaml").write_text(yaml.safe_dump(declaration))
    return dags


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Native]:
    home = tmp_path_factory.mktemp("production")
    try:
        services = Native(home, lay_out(home), settings=QUICK, variables={"MLFLOW_WORKERS": "1"})
    except NoRedisError as error:
        pytest.skip(str(error))
    # One password in 64 begins with a dash.
    password = services.secrets / "admin_password"
    password.chmod(0o644)
    password.write_text(f"-{password.read_text()}")
    with services:
        services.start()
        yield services


def arrive(platform: Native, month: str, of: str | None = None) -> None:
    """Let a third of a month's rows appear at once, by themselves or as those of another month."""
    rows = pd.read_parquet(FLIGHTS / "data" / f"{of or month}.parquet").iloc[::3]
    if of:
        shift = pd.Timestamp(f"{of}-01") - pd.Timestamp(f"{month}-01")
        rows = rows.assign(scheduled_at=(rows["scheduled_at"] - shift).astype("datetime64[us]"))
    folder = platform.dags / "flights" / "data"
    folder.mkdir(exist_ok=True)
    rows.to_parquet(folder / f".{month}", index=False)
    (folder / f".{month}").rename(folder / f"{month}.parquet")


def until(platform: Native, what: Callable[[], Any], seconds: float = 400) -> Any:
    found: list[Any] = []

    def ready() -> bool:
        found[:] = [what()]
        return bool(found[0])

    platform.wait("airflow-scheduler", ready, seconds)
    return found[0]


def ended(platform: Native, run_id: str) -> str:
    """How a training ended; a failed one tells its task's log."""
    states = {run["dag_run_id"]: run["state"] for run in platform.runs("flights.train")}
    if states[run_id] == "failed":
        failed = [task for task, state in platform.tasks("flights.train", run_id).items() if state == "failed"]
        pytest.fail(platform.task_log("flights.train", run_id, failed[0]))
    return states[run_id] if states[run_id] == "success" else ""


def trainings(platform: Native) -> list[str]:
    return [run["dag_run_id"] for run in platform.runs("flights.train") if run["run_type"] == "asset_triggered"]


def versions(platform: Native) -> list[str]:
    found = fetch(f"{platform.mlflow_url}/api/2.0/mlflow/model-versions/search", needed=True)
    return sorted(each["version"] for each in found["model_versions"])


def trainer(platform: Native) -> str:
    """The worker that the training runs in."""
    import psutil

    pid = int((platform.home / "held.pid").read_text())
    above = {each.pid for each in psutil.Process(pid).parents()}
    return next(worker for worker in platform.workers if platform.pid(worker) in above)


def test_the_loop_ends_exactly_once_though_a_worker_and_the_scheduler_are_killed(platform: Native) -> None:
    store = Store(str(platform.store))
    ledger, requests = Ledger(store, "flights"), Requests(store, "flights")
    for month in ("2013-01", "2013-02"):
        arrive(platform, month)
    names = {"flights.train", "flights.monitor", "flights.monitor_predictions"}
    until(platform, lambda: names <= {dag["dag_id"] for dag in platform.airflow("GET", "dags?limit=50")["dags"]})
    assert platform.airflow("GET", "importErrors")["import_errors"] == []
    for name in ("flights.train", "flights.monitor"):
        platform.airflow("PATCH", f"dags/{name}", {"is_paused": False})

    first = platform.trigger("flights.train", {"window": "2013-02"})
    until(platform, lambda: ended(platform, first))
    assert ledger.champion() == "1"

    platform.start_server("flights")
    traffic = Traffic(platform.server_url, (platform.secrets / "serving_key").read_text())
    traffic.start()
    try:
        # July is another season than the winter that the champion knows.
        (platform.home / "held").touch()
        arrive(platform, "2013-03", of="2013-07")
        until(platform, (platform.home / "held.pid").exists)
        platform.lose(trainer(platform))
        platform.lose("airflow-scheduler")
        (platform.home / "held").unlink()
        platform.start_service("airflow-scheduler")
        (lost,) = set(platform.workers) - set(platform.running())
        platform.start_service("airflow-worker", lost)

        (second,) = trainings(platform)
        until(platform, lambda: ended(platform, second))
        entry = ledger.entries()[1]
        until(platform, lambda: entry.kind != "promotion" or traffic.answered["2"] > 0, 60)
    finally:
        traffic.end()

    (verdict,) = Verdicts(store, "flights", "data_drift").of_window("2013-03")
    assert verdict["status"] == "drift"
    (asked,) = requests.all()
    assert (asked.state, asked.run) == ("done", f"flights.train/{second}")
    assert trainings(platform) == [second]
    # Without a server there was nobody to deploy the first one to.
    kinds = [each.kind for each in ledger.entries()]
    assert kinds in (["promotion", "promotion", "deployment"], ["promotion", "rejection"])
    assert (entry.version, entry.requests) == ("2", (asked.request.id,))
    assert versions(platform) == ["1", "2"]
    tries = platform.airflow("GET", f"dags/flights.train/dagRuns/{second}/taskInstances?limit=50")["task_instances"]
    assert {each["task_id"]: each["try_number"] for each in tries}["train"] == 2
    # Nobody who asked went without an answer, and each answer is of one of the two.
    assert traffic.failed == []
    assert set(traffic.answered) <= {"1", "2"}
    assert ledger.champion() == (entry.version if entry.kind == "promotion" else "1")


def test_a_page_and_the_api_want_to_know_who_asks(platform: Native) -> None:
    assert fetch(f"{platform.airflow_url}/api/v2/dags") is None
    assert fetch(f"{platform.airflow_url}/mlops/") is None
    shown = fetch(f"{platform.airflow_url}/mlops/", headers=platform.headers, needed=True)
    assert "flights" in shown["text"]


def test_no_task_reaches_airflows_own_database(platform: Native) -> None:
    environment = platform.environment_of("airflow-worker")
    said = " ".join(f"{name}={value}" for name, value in environment.items())
    assert "celery_db_password" in said
    for secret in ("airflow_db_password", "fernet_key", "jwt_secret", "api_secret_key", "admin_password"):
        assert secret not in said
