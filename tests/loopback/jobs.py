"""The fixtures of what jobs on Vertex AI need. Google's own messages are imported by those who ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.loopback.gcs import client_environment

if TYPE_CHECKING:
    from tests.loopback.secretmanager import SecretService
    from tests.loopback.vertex import VertexService


@pytest.fixture(scope="session")
def secret_server() -> Iterator[SecretService]:
    """Secret Manager, for the whole session."""
    from tests.loopback.secretmanager import SecretService

    with SecretService() as service:
        yield service


@pytest.fixture
def secret_manager(secret_server: SecretService, monkeypatch: pytest.MonkeyPatch) -> SecretService:
    """Secret Manager without any secret; clients of this process find it."""
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", secret_server.url)
    secret_server.forget()
    return secret_server


@pytest.fixture(scope="session")
def vertex_server() -> Iterator[VertexService]:
    """Vertex AI's jobs, for the whole session."""
    from tests.loopback.vertex import VertexService

    with VertexService() as service:
        yield service
        service.forget()


@pytest.fixture
def vertex(
    vertex_server: VertexService,
    gcs_server: str,
    gcs: str,
    secret_manager: SecretService,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[VertexService]:
    """Vertex AI without any job; clients of this process find it, GCS and Secret Manager, and so do its jobs."""
    from airflow_mlops.backends.google import vertex as backend
    from tests.loopback.vertex import ACCOUNT

    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM", vertex_server.url)
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_LOGGING", vertex_server.url)
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", ACCOUNT)
    vertex_server.forget()
    vertex_server.environment = {
        **client_environment(gcs_server),
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": secret_manager.url,
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": ACCOUNT,
    }
    backend._rest.cache_clear()
    yield vertex_server
    vertex_server.forget()
    backend._rest.cache_clear()
