"""A declared deployment on Vertex AI in its DAG, by an Airflow connection."""

from __future__ import annotations

import pytest

from airflow_mlops.call import Store
from airflow_mlops.registry.ledger import Ledger
from tests import toy
from tests.airflow_fixtures import Airflow
from tests.google.made import mirrored, section, traffic
from tests.loopback.vertex_models import VertexModels

pytestmark = pytest.mark.usefixtures("forked_servers")


def test_a_pipeline_serves_on_vertex_ai(airflow: Airflow, gcs: str, vertex_models: VertexModels) -> None:
    toy.months(airflow.folder, ["2024-01", "2024-02"])
    google = section(gcs).model_dump(mode="json", exclude_none=True)
    airflow.declare(
        retries=0,
        validate_model={"versus_champion": None},
        deploy={"target": "vertex", "strategy": {"canary": 50}, "bake": "1s", "min_requests": 20},
        google=google,
    )
    run = airflow.run("train", conf={"window": "2024-01"})
    assert run.state == "success", (run.states, run.errors)
    ledger = Ledger(Store(f"{gcs}/mlops"), airflow.name)
    assert [entry.kind for entry in ledger.entries()] == ["promotion", "deployment"]
    assert mirrored(vertex_models) == {"1": {"champion", "default"}}
    (endpoint,) = vertex_models.endpoints.values()
    assert list(endpoint.traffic_split.values()) == [100]
    # The credentials are those of Airflow's connection, which is anonymous here.
    assert {each.authorization for each in vertex_models.asked} == {None}
    with traffic(vertex_models, toy.rows("2024-03", 2)) as said:
        run = airflow.run("train", conf={"window": "2024-02"})
    assert run.state == "success", (run.states, run.errors)
    assert [entry.kind for entry in ledger.entries()][2:] == ["trial", "promotion", "deployment"]
    assert mirrored(vertex_models) == {"2": {"champion", "default"}, "1": {"previous"}}
    assert set(said) == {200}
