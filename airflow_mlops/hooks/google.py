"""From the team's Google Cloud connection to who acts below the hooks, by the provider's own hook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from airflow_mlops.errors import CloudAccessError
from airflow_mlops.google.auth import lend


@contextmanager
def google_credentials(connection_id: str | None) -> Iterator[None]:
    """Let what runs inside the scope act by an Airflow connection of type ``google_cloud_platform``.

    The connection is asked for when somebody first acts: a scope around what does not costs nothing. Where there is
    none of that id, or it leads to no credentials, whoever acts gets a `CloudAccessError`.

    Args:
        connection_id: its id; with None nothing is done.
    """
    if connection_id is None:
        yield
        return
    with lend(connection_id, cache(lambda: _credentials(connection_id))):
        yield


def _credentials(connection_id: str) -> Any:
    from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    from google.auth.exceptions import GoogleAuthError

    try:
        return GoogleBaseHook(gcp_conn_id=connection_id).get_credentials()
    except AirflowNotFoundException as error:
        raise CloudAccessError(
            f"there is no connection {connection_id!r}",
            fix=f"airflow connections add {connection_id} --conn-type google_cloud_platform",
        ) from error
    except (AirflowException, GoogleAuthError) as error:
        # The provider's own words may quote the key.
        raise CloudAccessError(
            f"the connection {connection_id!r} leads to no credentials: {type(error).__name__}",
            fix="correct its key, or give this machine a service account and the connection none",
        ) from None
