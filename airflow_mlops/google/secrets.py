"""What a job must know and nobody else may: environment variables in Secret Manager, for as long as the job lives."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress

from airflow_mlops.errors import CloudError, CloudNotFoundError
from airflow_mlops.google.rest import Rest

SERVICE = "secretmanager"


def keep(
    rest: Rest, project: str, region: str, name: str, values: Mapping[str, str], seconds: int, labels: Mapping[str, str]
) -> str:
    """Make a secret that goes by itself after so many seconds; return the resource name of its one version.

    Its content lies in the region alone.
    """
    secret = {
        "replication": {"userManaged": {"replicas": [{"location": region}]}},
        "ttl": f"{seconds}s",
        "labels": dict(labels),
    }
    try:
        rest.ask("POST", f"v1/projects/{project}/secrets", secret, query={"secretId": name})
    except CloudError as error:
        if error.status != "ALREADY_EXISTS":  # so it is when an answer was lost
            raise
    data = base64.b64encode(json.dumps(dict(values)).encode()).decode()
    made = rest.ask("POST", f"v1/projects/{project}/secrets/{name}:addVersion", {"payload": {"data": data}})
    return str(made["name"])


def read(version: str, connection: str) -> dict[str, str]:
    """The environment variables that a version of a secret holds."""
    found = Rest(SERVICE, connection).get(f"v1/{version}:access")
    return {str(name): str(value) for name, value in json.loads(base64.b64decode(found["payload"]["data"])).items()}


def drop(rest: Rest, version: str) -> None:
    """Delete the secret that a version is of; nothing happens where there is none."""
    with suppress(CloudNotFoundError):
        rest.ask("DELETE", f"v1/{version.partition('/versions/')[0]}")
