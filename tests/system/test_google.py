"""The flights on Google Cloud, end to end under a real scheduler and triggerer.

From BigQuery to a champion that is promoted, mirrored and deployed; predicted with; drifted; and retrained by a message
of Pub/Sub, with a canary between the gate and the promotion.
"""

from __future__ import annotations

import json
import threading
import urllib.request
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_mlops.call import Store
from airflow_mlops.cli.services import Services
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.requests import Requests
from airflow_mlops.registry.verdicts import Verdicts
from tests.loopback.cloud import Cloud
from tests.loopback.pubsub import PROJECT
from tests.running import CLOUDY, REPOSITORY, thinned
from tests.system.test_loop import ENDED, parsed, states, until

ROWS = 2500
TABLE = "airport.flights"


@pytest.fixture
def seen(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The pipeline's store, as this process sees it."""
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    return Store(f"gs://{cloud.bucket}/mlops")


def load(cloud: Cloud, *months: str) -> None:
    cloud.bigquery.load(TABLE, pa.concat_tables([flights(month) for month in months]))


def flights(month: str) -> pa.Table:
    return thinned(pq.read_table(REPOSITORY / "dags" / "flights" / "data" / f"{month}.parquet"), ROWS)


def run_to_its_end(running: Services, dag_id: str, window: str) -> str:
    until(running, lambda: dag_id in parsed(running))
    run_id = running.trigger(dag_id, {"window": window})
    return str(until(running, lambda: (state := states(running, dag_id)[run_id]) in ENDED and state, 300))


def aliases(cloud: Cloud) -> dict[str, str]:
    """Which MLflow version each alias of the mirror is on."""
    [versions] = cloud.models.models.values()
    return {alias: version.labels["mlops_version"] for version in versions for alias in version.version_aliases}


class Traffic:
    """Requests to the endpoint, one after another, until the scope ends."""

    def __init__(self, cloud: Cloud, body: Any) -> None:
        [self.endpoint] = cloud.models.endpoints.values()
        self.url, self.body = f"{cloud.url}/v1/{self.endpoint.name}:rawPredict", json.dumps(body).encode()
        self.wrong: list[Any] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        while not self.over.wait(0.2):
            request = urllib.request.Request(self.url, self.body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    if len(json.loads(answer.read())["predictions"]) != 2:
                        self.wrong.append(answer.status)
            except OSError as error:
                self.wrong.append(error)

    def __enter__(self) -> Traffic:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def test_from_bigquery_to_a_champion_that_a_message_retrains(running: Services, cloud: Cloud, seen: Store) -> None:
    load(cloud, "2013-01", "2013-02")
    assert run_to_its_end(running, f"{CLOUDY}.train", "2013-02") == "success"
    ledger = Ledger(seen, CLOUDY)
    assert ledger.champion() == "1"
    assert aliases(cloud)["champion"] == "1"
    [endpoint] = cloud.models.endpoints.values()
    assert list(endpoint.traffic_split.values()) == [100]
    ran = {job.labels["mlops_stage"] for job in cloud.jobs.jobs.values()}
    assert ran == {"prepare", "train", "evaluate"}

    load(cloud, "2013-01", "2013-02", "2013-07")
    assert run_to_its_end(running, f"{CLOUDY}.predict", "2013-07") == "success"
    [file] = seen.names("predictions", CLOUDY, "window=2013-07")
    assert file.endswith(".parquet")

    # The drift is told by profiles that BigQuery has made: no row has moved.
    sent = cloud.bigquery.sent
    assert run_to_its_end(running, f"{CLOUDY}.monitor", "2013-07") == "success"
    [verdict] = Verdicts(seen, CLOUDY).of_window("2013-07")
    assert verdict["status"] == "drift"
    assert cloud.bigquery.sent == sent

    rows = flights("2013-07").slice(0, 2)
    columns = [name for name in rows.column_names if name != "late"]
    asked = {
        "dataframe_split": {
            "columns": columns,
            "data": json.loads(json.dumps([[row[name] for name in columns] for row in rows.to_pylist()], default=str)),
        }
    }
    with Traffic(cloud, asked) as traffic:
        cloud.pubsub.say(f"projects/{PROJECT}/topics/{CLOUDY}", window="2013-07")
        until(running, lambda: ledger.champion() == "2", 400)
        until(running, lambda: set(states(running, f"{CLOUDY}.train").values()) == {"success"}, 200)
    assert traffic.wrong == []
    asked_by = {each.request.trigger: each.request for each in Requests(seen, CLOUDY).all()}
    # The drift is on record, and was nobody's reason: the declaration listens to messages alone.
    assert asked_by.keys() <= {"drift", "pubsub"}
    assert asked_by["pubsub"].window and asked_by["pubsub"].window.key == "2013-07"
    kinds = [entry.kind for entry in ledger.entries()]
    assert kinds == ["promotion", "deployment", "trial", "promotion", "deployment"]
    assert aliases(cloud)["champion"] == "2" and aliases(cloud)["previous"] == "1"
    # The version before has left the endpoint, when the new one was seen to serve.
    [endpoint] = cloud.models.endpoints.values()
    assert list(endpoint.traffic_split.values()) == [100]
    assert len(endpoint.deployed_models) == 1
    # Both versions have answered while the candidate was on trial, and no other.
    assert len({each.deployed for each in cloud.models.answered}) == 2
