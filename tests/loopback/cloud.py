"""All of Google Cloud at once, for whatever processes get its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.loopback.gcs import PROJECT, client_environment

if TYPE_CHECKING:
    from tests.loopback.bigquery import BigQuery
    from tests.loopback.pubsub import PubSub
    from tests.loopback.vertex import VertexService
    from tests.loopback.vertex_models import VertexModels


class Cloud(NamedTuple):
    """The stand-ins, and what clients look at to find them."""

    bucket: str
    bigquery: BigQuery
    pubsub: PubSub
    jobs: VertexService
    models: VertexModels
    url: str
    """Where Vertex AI answers, jobs and models alike."""
    environment: dict[str, str]


@pytest.fixture(scope="session")
def cloud(
    gcs_server: str,
    secret_server: Any,
    bigquery_server: BigQuery,
    pubsub_server: PubSub,
    vertex_server: VertexService,
) -> Iterator[Cloud]:
    """Everything, with one bucket."""
    import gcsfs

    from tests.loopback.rest import Asked, RestService
    from tests.loopback.vertex_models import VertexModels

    models = VertexModels({**os.environ, **client_environment(gcs_server)})

    class Vertex(RestService):
        """One address for both stand-ins, as Vertex AI has one."""

        def answer(self, asked: Asked) -> tuple[int, Any, bool]:
            jobs = any(each in asked.path for each in ("customJobs", "hyperparameterTuningJobs", "entries"))
            return (vertex_server if jobs else models).answer(asked)

    with Vertex() as front:
        services = ("AIPLATFORM", "MONITORING", "LOGGING")
        environment = {
            **client_environment(gcs_server),
            **{f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{each}": front.url for each in services},
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": secret_server.url,
            "PUBSUB_EMULATOR_HOST": pubsub_server.host,
            **{name: value for name, value in bigquery_server.environment.items() if "CONN" not in name},
            "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(
                {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": PROJECT}}
            ),
        }
        fs = gcsfs.GCSFileSystem(project=PROJECT, token="anon", endpoint_url=gcs_server, skip_instance_cache=True)
        fs.mkdir("flights-cloud")
        vertex_server.environment = environment
        try:
            yield Cloud("flights-cloud", bigquery_server, pubsub_server, vertex_server, models, front.url, environment)
        finally:
            models.end()
