"""Who we are on Google Cloud.

In Airflow the provider's own hook resolves the connection, with all that it knows (keys, impersonation, secrets), and
lends what came out for as long as a stage or a look lasts. Elsewhere, in a job on Google Cloud or on the shell, a key
in ``AIRFLOW_CONN_<ID>`` counts, else Application Default Credentials: the account that the job runs as.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from airflow_mlops.call.connection import connection_of, variable
from airflow_mlops.errors import CloudAccessError

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_lent: ContextVar[dict[str, Any] | None] = ContextVar("lent", default=None)


@contextmanager
def lend(connection_id: str, credentials: Any) -> Iterator[None]:
    """Let what runs inside the scope, on this thread or on one started by ``asyncio.to_thread``, act by credentials.

    Args:
        connection_id: the Airflow connection that they are of.
        credentials: of ``google.auth``, or a function that gets them when they are first asked for.
    """
    token = _lent.set({**(_lent.get() or {}), connection_id: credentials})
    try:
        yield
    finally:
        _lent.reset(token)


def credentials_of(connection_id: str) -> Any:
    """The credentials of a connection: lent, of its key in the environment, or those of the machine or job.

    Raises:
        CloudAccessError: when there are none.
    """
    lent = (_lent.get() or {}).get(connection_id)
    if lent is not None:
        return lent() if callable(lent) else lent
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import DefaultCredentialsError

    extra = connection_of(connection_id).extra if os.environ.get(variable(connection_id)) else {}
    if extra.get("is_anonymous"):
        return AnonymousCredentials()
    try:
        if key := extra.get("keyfile_dict"):
            key = json.loads(key) if isinstance(key, str) else key
            return google.auth.load_credentials_from_dict(key, scopes=SCOPES)[0]
        if path := extra.get("key_path"):
            return google.auth.load_credentials_from_file(path, scopes=SCOPES)[0]
        return google.auth.default(scopes=SCOPES)[0]
    except (DefaultCredentialsError, ValueError) as error:
        # The library's own words may quote the key.
        why = (
            "there are no credentials for Google Cloud here"
            if isinstance(error, DefaultCredentialsError)
            else "bad key"
        )
        raise CloudAccessError(
            f"the connection {connection_id!r}: {why}",
            fix="gcloud auth application-default login, or give the connection a key or this machine a service account",
        ) from None
