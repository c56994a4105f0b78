"""From the team's Google Cloud connection to who acts below the hooks, by the provider's own hook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from airflow_mlops.errors import CloudAccessError
from airflow_mlops.google.auth import lend


@contextmanager
def google_credentials(*connection_ids: str | None) -> Iterator[None]:
    """Let what runs inside the scope act by Airflow connections of type ``google_cloud_platform``.

    A connection is asked for when somebody first acts: a scope around what does not costs nothing. Where there is
    none of that id, or it leads to no credentials, whoever acts gets a `CloudAccessError`.

    Args:
        connection_ids: their ids; None stands for no connection.
    """
    with ExitStack() as scopes:
        for each in connection_ids:
            if each is not None:
                scopes.enter_context(lend(each, cache(partial(_credentials, each))))
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
