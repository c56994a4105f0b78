"""One real Airflow (scheduler, triggerer, dag-processor, api-server) and MLflow, for every suite that needs them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from airflow_mlops.cli.services import Services
from tests.loopback.cloud import Cloud

up: list[Services] = []
"""The servers that were started; whoever runs the last test that needs them may stop them."""
REPOSITORY = Path(__file__).parent.parent
LOADER = '''"""DAGs of the toy pipelines (Airflow)."""

from airflow_mlops import load_dags

load_dags("toys/*.yaml", globals())
'''

IMPATIENT = """
# Jobs and trials take seconds here.
for dag in [value for value in globals().values() if hasattr(value, "task_dict")]:
    for task in dag.tasks:
        if hasattr(task, "poll_interval"):
            task.poll_interval = 4.0
"""


SLOW = '''"""Trains, but takes a minute the first time it is asked, for whoever wants to kill it."""

import time
from pathlib import Path

from sklearn.dummy import DummyClassifier


def fit(rows, target, params):
    marker = Path(params["marker"])
    if not marker.exists():
        marker.touch()
        time.sleep(60)
    return DummyClassifier().fit(rows, target)
'''


FLEET = '''"""Trains for some seconds."""

import time

from sklearn.dummy import DummyClassifier


def fit(rows, target, params):
    time.sleep(params["seconds"])
    return DummyClassifier().fit(rows, target)
'''

WAITING = '''"""Fits at once, but twice in a study it waits for its end, with a child of its own."""

import os
import subprocess
from pathlib import Path

from sklearn.dummy import DummyClassifier


def fit(rows, target, params):
    folder = Path(params["folder"])
    folder.mkdir(exist_ok=True)
    fits = len(list(folder.glob("fit-*")))
    (folder / f"fit-{fits}").touch()
    if fits in (5, 9):
        child = subprocess.Popen(["sleep", "300"])
        (folder / ".pids").write_text(f"{os.getpid()} {child.pid}")
        (folder / ".pids").rename(folder / f"waits-{fits}")
        child.wait()
    return DummyClassifier(strategy=params["strategy"]).fit(rows, target)
'''

STORM = '''"""Alarms by the dozen, and the trainings that they start, in DAGs of a team's own (Airflow)."""

from airflow.sdk import DAG, task

from airflow_mlops.call import Store
from airflow_mlops.hooks.mlflow import store_root
from airflow_mlops.operators import StartRunOperator, retrain_asset
from airflow_mlops.operators.assets import retrain_alias
from airflow_mlops.operators.base import run_key
from airflow_mlops.operators.retraining import policy_of, reconsider
from airflow_mlops.registry import Request, Requests
from airflow_mlops.spec.window import parse_key

MODELS = ("storm1", "storm2", "storm3")
POLICY = {"cooldown": "1d"}


def alarm(context, model, alias, policy, grain, key):
    window = parse_key(grain, key)
    wish = Request(model=model, champion=None, reason=f"drift in {key}", trigger="drift", window=window)
    reconsider(context, Store(store_root()), model, policy_of(policy, model), alias, wish)


def trainings(model):
    with DAG(f"{model}.train", schedule=retrain_asset(model), catchup=False, max_active_runs=1) as dag:
        start = StartRunOperator(task_id="start", pipeline=model, retrain=POLICY)

        @task
        def train(**context):
            Requests(Store(store_root()), model).settle(run_key(context), "trained")

        start >> train()
    return dag


with DAG("storm", schedule=None, catchup=False):
    ALIASES = {model: retrain_alias(model) for model in MODELS}

    @task(outlets=list(ALIASES.values()))
    def alarms(number, **context):
        for model in MODELS:
            for day in range(1 + 5 * number, 6 + 5 * number):
                alarm(context, model, ALIASES[model], POLICY, "day", f"2024-01-{day:02d}")

    # Each alarm comes from two processes at once, twice in each run of the DAG.
    alarms.expand(number=[0, 1, 1, 0])

storm1, storm2, storm3 = map(trainings, MODELS)

with DAG("asking_alarm", schedule=None, catchup=False):
    ASKING = retrain_alias("asking")

    @task(outlets=[ASKING])
    def one(**context):
        month = context["dag_run"].conf["month"]
        alarm(context, "asking", ASKING, {"mode": "suggest", "cooldown": "0s"}, "month", month)

    one()
'''


def toy_declaration(name: str, **sections: object) -> dict[str, object]:
    """A pipeline that trains in a second and is retried at once."""
    return {
        "name": name,
        "data": {
            "source": f"../{name}/{{window}}.parquet",
            "target": "y",
            "time": "at",
            "key": "id",
            "window": "month",
        },
        "train": {"estimator": "sklearn.linear_model.LogisticRegression"},
        "evaluate": {"plots": False},
        "validate_model": {"versus_champion": {"min_rows": 50}},
        "monitor": {},
        # Months pass in seconds here.
        "retrain": {"cooldown": "0s", "max_per_week": None},
        "retries": 1,
        "retry_delay": "1s",
        **sections,
    }


TOYS = ("loop", "burst", "failing", "killed", "tuned", "shown", "asking")
QUIET = {"schedule": "@monthly", "validate_model": {"versus_champion": None}}
"""Nothing of these pipelines runs by itself within a test, and whatever they train passes its gate."""
FLEETS: dict[str, dict[str, object]] = {
    "past": {**QUIET, "for_each": {"kind": ["held", "told"]}},
    "crew": {
        **QUIET,
        "for_each": {"kind": list("abcdef")},
        "train": {"function": "crew:fit", "params": {"seconds": 3, "kind": "{kind}"}},
        "task": "binary",
        "pool": {"name": "crew", "slots": 2},
    },
}
"""Pipelines ``past_held``, ``crew_a`` and so on; the members of a fleet read the same files."""


HEARD = ("heard1", "heard2")
"""Pipelines of two DAG files that name one subscription."""


CLOUDY = "flights_cloud"
"""The flights, on Google Cloud."""


def cloudy_declaration(bucket: str, subscription: str) -> dict[str, object]:
    """The declaration of the flights, with what Google Cloud wants laid over it; months pass in seconds."""
    declared: dict[str, object] = yaml.safe_load((REPOSITORY / "dags" / "flights.yaml").read_text())
    declared["data"] |= {"source": {"connection": "google_cloud_default", "table": "airport.flights"}}  # type: ignore[operator]
    declared["train"]["params"] |= {"max_iter": 30}  # type: ignore[index]
    return {
        **{key: value for key, value in declared.items() if key != "tests"},
        "name": CLOUDY,
        "backend": "vertex",
        "google": {"project": "loopback", "region": "europe-west1", "bucket": bucket, "image": "r.pkg.dev/p/stage:1"},
        "evaluate": {"metrics": ["roc_auc"], "plots": False},
        "validate_model": {"versus_champion": None},
        "deploy": {"target": "vertex", "strategy": {"canary": 30}, "bake": "3s", "min_requests": 5},
        # Drift is told, and nobody but a message asks.
        "monitor": {"data_drift": {"min_effect": 0.5}},
        "retrain": {"triggers": [{"pubsub": subscription}], "cooldown": "0s", "max_per_week": None},
        "retries": 1,
        "retry_delay": "1s",
    }


def thinned(rows: pa.Table, count: int) -> pa.Table:
    """So many rows of a table, or a few more, evenly over all of it."""
    return rows.take(list(range(0, rows.num_rows, rows.num_rows // count)))


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, cloud: Cloud) -> Iterator[Services]:
    """The servers, with the repository's example DAGs and the toy pipelines in their DAGs folder."""
    home = tmp_path_factory.mktemp("running")
    dags = home / "dags"
    shutil.copytree(REPOSITORY / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (dags / "flights" / "data").glob("2013-*.parquet"):
        if file.stem in ("2013-01", "2013-02"):
            # The team's own DAG asks for ten thousand.
            pq.write_table(thinned(pq.read_table(file), 11_000), file)
        else:
            file.unlink()
    (dags / "toys").mkdir()
    (dags / "toys" / "slow.py").write_text(SLOW)
    (dags / "toys" / "waiting.py").write_text(WAITING)
    special: dict[str, dict[str, object]] = {
        # The one that is watched: a run that waits is looked at whenever the scheduler looks at all.
        "loop": {"monitor": {"schedule": "@continuous", "poll": "2s", "data_drift": {"min_effect": 0.5}}},
        "killed": {"train": {"function": "slow:fit", "params": {"marker": str(home / "asked")}}},
        "tuned": {
            "train": {"function": "waiting:fit", "params": {"folder": str(home / "waiting")}},
            "tune": {
                "space": {"strategy": {"choices": ["prior", "stratified", "uniform"]}},
                "trials": 6,
                "folds": 2,
                "metric": "log_loss",
            },
            "runtime": {"python": sys.executable},
        },
        "asking": {"retrain": {"mode": "suggest", "cooldown": "0s"}},
    }
    for name in TOYS:
        (dags / name).mkdir()
        (dags / "toys" / f"{name}.yaml").write_text(yaml.safe_dump(toy_declaration(name, **special.get(name, {}))))
    (dags / "toys" / "crew.py").write_text(FLEET)
    for name, sections in FLEETS.items():
        (dags / name).mkdir()
        body = {**toy_declaration(name, **sections), "name": f"{name}_{{kind}}"}
        (dags / "toys" / f"{name}.yaml").write_text(yaml.safe_dump(body))
    _, subscription = cloud.pubsub.make("heard")
    for name in HEARD:
        (dags / name).mkdir()
        listening = {"triggers": [{"pubsub": subscription}], "cooldown": "0s", "max_per_week": None}
        body = toy_declaration(name, **QUIET, retrain=listening)
        (dags / name / f"{name}.yaml").write_text(yaml.safe_dump(body))
        (dags / f"{name}_dags.py").write_text(LOADER.replace("toys/", f"{name}/"))
    _, messages = cloud.pubsub.make(CLOUDY)
    (dags / f"{CLOUDY}.yaml").write_text(yaml.safe_dump(cloudy_declaration(cloud.bucket, messages)))
    (dags / "toy_dags.py").write_text(LOADER)
    (dags / "cloudy_dags.py").write_text(LOADER.replace("toys/*", CLOUDY) + IMPATIENT)
    (dags / "storm_dags.py").write_text(STORM)
    # A task whose worker was killed is noticed by its heartbeat; the default of five minutes is for real clusters.
    environment = {
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "15",
        # What has not changed is not parsed again; what has is, whenever the folder is looked at.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
        "AIRFLOW_MLOPS_RUNTIMES": str(home / "runtimes"),
        **cloud.environment,
    }
    with Services(home, dags, environment=environment) as services:
        up.append(services)
        services.start()
        yield services
