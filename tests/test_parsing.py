"""Parsing a DAG file loads none of the heavy libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.backends import Handle
from airflow_mlops.call import Call, Store
from airflow_mlops.registry.ledger import Ledger
from tests import toy
from tests.forked import AIRFLOW, printed
from tests.toy import finish, start

HEAVY = (
    "pandas",
    "numpy",
    "sklearn",
    "mlflow",
    "evidently",
    "pyarrow",
    "duckdb",
    "matplotlib",
    "google.auth",
    "google.cloud",
    "google.pubsub_v1",
    "google.api_core",
    "grpc",
    "gcsfs",
    "skops",
    "scipy",
    "optuna",
    "pandera",
    "adbc_driver_manager",
    "airflow_mlops.stages",
)

PARSE = """
import json, sys
from airflow.dag_processing import dagbag
before = set(sys.modules)
bag = dagbag.DagBag(sys.argv[1], safe_mode=True)
assert not bag.import_errors, bag.import_errors
heavy = [name for name in set(sys.modules) - before if name.startswith(tuple(sys.argv[2].split()))]
print(json.dumps({"dags": sorted(bag.dags), "heavy": sorted(heavy)}))
"""

ALONE = """
import airflow.sdk, json, sys
before = set(sys.modules)
import airflow_mlops.operators, airflow_mlops.sensors, airflow_mlops.triggers, airflow_mlops.factory
import airflow_mlops.hooks, airflow_mlops.provider_info, airflow_mlops.backends.local
heavy = [name for name in set(sys.modules) - before if name.startswith(tuple(sys.argv[1].split()))]
print(json.dumps({"heavy": sorted(heavy)}))
"""

DECLARED = """
from airflow_mlops import load_dags
load_dags("toy.yaml", globals())
"""

FLEET = """
from airflow_mlops import load_dags
load_dags("fleet.yaml", globals())
"""

OWN = """
from airflow.sdk import DAG
from airflow_mlops.operators import ExtractDataOperator, PromoteModelOperator, TrainModelOperator, ValidateModelOperator
from airflow_mlops.sensors import DataDriftSensor
with DAG("own", schedule=None) as dag:
    extract = ExtractDataOperator(task_id="extract", source="data.parquet")
    TrainModelOperator(task_id="train", train=extract.output, target="y", estimator="sklearn.linear_model.Ridge")
    DataDriftSensor(task_id="drift", source="data/{window}.parquet")
"""


VERTEX = """
from airflow.sdk import DAG
from airflow_mlops import load_dags
from airflow_mlops.operators import TrainModelOperator
load_dags("vertex.yml", globals())
google = {"project": "my-project", "region": "europe-west1", "image": "europe-docker.pkg.dev/p/r/stage:1"}
with DAG("own-vertex", schedule=None):
    TrainModelOperator(
        task_id="train", train=None, target="y", estimator="sklearn.linear_model.Ridge",
        store="gs://bucket/mlops", backend="vertex", backend_options=google,
    )
"""
GOOGLE = "{project: my-project, region: europe-west1, bucket: my-bucket, image: europe-docker.pkg.dev/p/r/stage:1}"


@pytest.mark.parametrize(
    ("text", "dags"),
    [
        (DECLARED, ["toy.monitor", "toy.predict", "toy.rollback", "toy.train"]),
        (
            FLEET,
            sorted(
                f"toy-{member:03}.{what}"
                for member in range(100)
                for what in ("monitor", "predict", "rollback", "train")
            ),
        ),
        (OWN, ["own"]),
        (VERTEX, ["on-vertex.monitor", "on-vertex.predict", "on-vertex.rollback", "on-vertex.train", "own-vertex"]),
    ],
    ids=["declared", "fleet", "own", "vertex"],
)
def test_a_dag_file_loads_nothing_heavy(tmp_path: Path, text: str, dags: list[str]) -> None:
    toy.declare(tmp_path, prepare={"features": "churn.features:build", "split": {"by": "time"}})
    members = ", ".join(f"'{member:03}'" for member in range(100))
    one = (tmp_path / "toy.yaml").read_text().replace("name: toy\n", "name: 'toy-{member}'\n")
    on_vertex = one.replace("'toy-{member}'", "on-vertex") + f"backend: vertex\ngoogle: {GOOGLE}\n"
    one += "google: {project: my-project, region: europe-west1, topic: events}\n"
    one = one.replace("retrain:\n", "retrain:\n  triggers: [drift, {pubsub: requests}]\n")
    (tmp_path / "fleet.yaml").write_text(f"{one}for_each: {{member: [{members}]}}\npool: {{name: all, slots: 2}}\n")
    (tmp_path / "vertex.yml").write_text(on_vertex)
    (tmp_path / "dag_file.py").write_text(text)

    found = printed(PARSE, str(tmp_path), " ".join(HEAVY), libraries=AIRFLOW)

    assert found == {"dags": dags, "heavy": []}


def test_the_light_half_loads_nothing_heavy() -> None:
    assert printed(ALONE, " ".join(HEAVY), libraries=AIRFLOW) == {"heavy": []}


POLL = """
import asyncio, json, sys
import airflow.triggers.base
before = set(sys.modules)
from airflow_mlops.triggers import WindowTrigger
async def first(arguments):
    async for event in WindowTrigger(arguments, 0.01).run():
        return event.payload["window"]
found = [asyncio.run(first(each)) for each in json.loads(sys.argv[1])]
found += [name for name in set(sys.modules) - before if name.startswith(tuple(sys.argv[2].split()))]
print(json.dumps(found))
"""


def test_a_poll_loads_nothing_heavy_and_never_evidently(tmp_path: Path) -> None:
    """In a process that was loaded with nothing, as a triggerer is, each sensor's trigger finds its window."""
    store = Store(str(tmp_path / "store"))
    Ledger(store, "toy").record(
        "promotion", version="1", champion_before=None, decision="d", reasons=(), run="r", window="2024-01"
    )
    for file in ("data/2024-02.parquet", "said/window=2024-02/predictions.parquet", "labels/2024-02.parquet"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    every = {"store": store.root, "pipeline": "toy", "grain": "month", "run": "r"}
    said = f"{tmp_path}/said/window={{window}}/predictions.parquet"
    waiting = [
        {**every, "source": f"{tmp_path}/data/{{window}}.parquet"},
        {**every, "sensor": "prediction_drift", "predictions": said},
        {**every, "sensor": "performance", "predictions": said, "labels": f"{tmp_path}/labels/{{window}}.parquet"},
    ]
    assert printed(POLL, json.dumps(waiting), " ".join(HEAVY), libraries=AIRFLOW) == ["2024-02"] * 3


LOOK = """
import asyncio, json, sys
import airflow.triggers.base
before = set(sys.modules)
from airflow_mlops.triggers import JobTrigger
async def first(arguments):
    async for event in JobTrigger(**arguments).run():
        return "fired"
found = [asyncio.run(first(json.loads(sys.argv[1])))]
found += [name for name in set(sys.modules) - before if name.startswith(tuple(sys.argv[2].split()))]
print(json.dumps(found))
"""


def test_a_look_at_a_job_loads_no_client_of_vertex(vertex: Any, gcs: str) -> None:
    """The provider's hook for connections, google.auth and requests are all that a triggerer loads for it."""
    options = {"project": "my-project", "region": "us-central1"}
    call = Call(pipeline="toy", stage="train", run="r", store=f"{gcs}/mlops")
    handle = Handle(backend="vertex", job="projects/p/locations/us-central1/customJobs/1", call=call)
    arguments = {
        "backend": "vertex",
        "options": options,
        "handle": handle.model_dump(mode="json"),
        "poll_interval": 0.01,
    }
    hook = ("google.auth", "google.cloud", "google.api_core", "grpc")
    clients = " ".join(name for name in HEAVY if name not in hook)
    clients += " google.cloud.aiplatform google.cloud.logging google.cloud.storage vertexai"
    assert printed(LOOK, json.dumps(arguments), clients, libraries=AIRFLOW) == ["fired"]
    assert len(vertex.requests("GET", "customJobs/1")) == 1


def test_the_package_itself_imports_no_airflow() -> None:
    code = """
import airflow_mlops, airflow_mlops.provider_info, json, sys
airflow_mlops.provider_info.get_provider_info()
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "airflow"]))
"""
    assert finish(start(code)) == []
