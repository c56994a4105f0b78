"""What Google's clients for BigQuery raise, in this package's errors: which role, which setting, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow_mlops.call.connection import Connection
from airflow_mlops.errors import CloudAccessError, DataError, DataNotFoundError, MlopsError, SourceUnreachableError

PATIENCE = 120.0
"""For how many seconds the clients themselves try again what passes."""
_ROLES = {
    "bigquery.jobs.create": "roles/bigquery.jobUser",
    "bigquery.readsessions": "roles/bigquery.readSessionUser",
    "bigquery.tables.getData": "roles/bigquery.dataViewer",
    "bigquery.tables.get": "roles/bigquery.dataViewer",
    "bigquery.datasets": "roles/bigquery.dataViewer",
    "bigquery.tables.export": "roles/bigquery.dataViewer",
    "storage.objects": "roles/storage.objectAdmin on the store's bucket",
}
_PASSES = ("rateLimitExceeded", "backendError", "internalError", "jobRateLimitExceeded")


def patience() -> Any:
    """How the client for the REST API tries again."""
    from google.cloud.bigquery.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(PATIENCE)


@contextmanager
def speaking(connection: Connection, source: str) -> Iterator[None]:
    """Turn the clients' errors into ours.

    Args:
        connection: who asks.
        source: what is read, for the message.
    """
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from requests.exceptions import RequestException

    try:
        yield
    except RetryError as error:
        cause = error.cause
        if isinstance(cause, GoogleAPICallError):
            raise _error(cause, connection, source) from error
        raise _away(connection, type(cause).__name__) from error
    except GoogleAPICallError as error:
        raise _error(error, connection, source) from error
    except (TransportError, RequestException, ConnectionError) as error:
        raise _away(connection, type(error).__name__) from error
    except GoogleAuthError as error:
        # The library's own words may quote the key.
        raise CloudAccessError(
            f"Google Cloud does not let the connection {connection.id!r} in: {type(error).__name__}",
            fix="give the connection a valid key, or this machine a service account",
        ) from None


def _away(connection: Connection, words: str) -> SourceUnreachableError:
    return SourceUnreachableError(
        f"BigQuery, by the connection {connection.id!r}, does not answer or broke off: {words}",
        fix="a retry finds its query again and reads on from its result",
    )


def _error(error: Any, connection: Connection, source: str) -> MlopsError:
    # Without the client's own lines around it: the request before, place and job after.
    words = re.sub(r"^(GET|POST) \S+: ", "", connection.scrub(error.message or error)).split("\n\nLocation:")[0].strip()
    reason = next((each.get("reason", "") for each in error.errors or () if isinstance(each, dict)), "")
    code = int(error.code or 0)
    what = f"BigQuery refuses {source}: {words}"
    if reason == "quotaExceeded":
        return DataError(what, fix="wait until the quota is filled up again, or have it raised")
    if reason == "bytesBilledLimitExceeded":
        return DataError(what, fix="read less, or raise data.source.max_bytes")
    if reason == "responseTooLarge":
        return DataError(what, fix="put the store on gs:// and declare data.source.export: true")
    if reason in _PASSES or code >= 500 or code == 429:
        return _away(connection, words)
    if code in (401, 403):
        role = next((role for permission, role in _ROLES.items() if permission.lower() in words.lower()), None)
        if role is None and "does not have permission to query" in words:
            role = "roles/bigquery.dataViewer"
        who = f"the account of the connection {connection.id!r}"
        return CloudAccessError(what, fix=f"grant {who} the role {role or 'that has the permission'}")
    if code == 404:
        fix = "correct data.source"
        if place := re.search(r"in location (\S+?)\.?$", words):
            fix += f"; if it lies elsewhere than in {place[1]}, name its place as data.source.location"
        return DataNotFoundError(what, fix=fix)
    fix = "correct data.source"
    if re.search(r"parameter '(start|end)' not found", words):
        fix = "write :start and :end in the query"
    return DataError(what, fix=fix)
