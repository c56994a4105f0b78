"""One REST request to Google Cloud and what became of it, in this package's errors.

`CLOUDSDK_API_ENDPOINT_OVERRIDES_<SERVICE>` names another endpoint, as it does for gcloud: a private one, or one of a
test.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_mlops.errors import CloudAccessError, CloudError, CloudNotFoundError, CloudUnreachableError
from airflow_mlops.google.auth import credentials_of

_TIMEOUT = 60.0
_TRIES = 4
_ROLES = {
    "aiplatform": "roles/aiplatform.user",
    "bigquery": "roles/bigquery.user",
    "iam": "roles/iam.serviceAccountUser",
    "logging": "roles/logging.viewer",
    "pubsub": "roles/pubsub.editor",
    "secretmanager": "roles/secretmanager.admin",
    "storage": "roles/storage.objectUser",
}
"""The least of Google's own roles that brings what is asked of a service here."""
_KEY = "give the connection a valid key, or this machine a service account"
_PASSES = frozenset({429, 500, 502, 503, 504})


class Rest:
    """A service of Google Cloud, asked by REST.

    Args:
        service: its name, such as ``aiplatform`` or ``secretmanager``.
        connection: the id of the Airflow connection that says who asks.
        region: for services with an endpoint a region.
    """

    def __init__(self, service: str, connection: str, region: str | None = None) -> None:
        host = f"{region}-{service}" if region else service
        override = os.environ.get(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service.upper()}")
        self.base = (override or f"https://{host}.googleapis.com").rstrip("/")
        self.service, self.connection = service, connection
        self._session: Any = None

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Read a resource."""
        return self.ask("GET", path, query=query)

    def pages(self, path: str, key: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Every resource of a listing, page by page."""
        token = ""
        while True:
            page = self.get(path, **query, **({"pageToken": token} if token else {}))
            yield from page.get(key, ())
            token = page.get("nextPageToken", "")
            if not token:
                return

    def ask(
        self, method: str, path: str, body: Any = None, *, query: Mapping[str, Any] | None = None, again: bool = True
    ) -> dict[str, Any]:
        """Make one request; what passes by itself is tried again.

        Args:
            method: ``GET``, ``POST``, ``PATCH`` or ``DELETE``.
            path: from the version on, such as ``v1/projects/p/locations/r/customJobs``.
            body: JSON values.
            query: the query's parameters.
            again: whether the request may be repeated after its answer was lost. False for what would be done twice:
                then only what was refused for load is repeated.

        Raises:
            CloudAccessError: when we may not; with the permission, where Google says it.
            CloudNotFoundError: when there is no such resource.
            CloudUnreachableError: when the service does not answer.
            CloudError: when it refuses; with its reason.
        """
        response = self.send(method, path, query=query, again=again, json=body)
        return dict(response.json()) if response.content else {}

    def send(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, again: bool = True, **what: Any
    ) -> Any:
        """The same for whoever needs the response itself, of ``requests``: its headers, or bytes as they are.

        Args:
            method: the method.
            path: from the version on.
            query: the query's parameters.
            again: whether the request may be repeated after its answer was lost.
            what: ``json``, or ``data`` and ``headers``.
        """
        from google.auth.exceptions import GoogleAuthError, TransportError
        from requests.exceptions import RequestException

        renewed = False
        for number in range(_TRIES):
            last = number == _TRIES - 1
            try:
                response = self._open().request(
                    method, f"{self.base}/{path}", params=dict(query or {}), timeout=_TIMEOUT, **what
                )
            except (RequestException, TransportError) as error:
                if last or not again:
                    raise CloudUnreachableError(f"{self.base} does not answer: {type(error).__name__}") from error
            except GoogleAuthError as error:
                # Nothing was asked yet, so it may be asked again: by what the connection holds now, such as a new key.
                self._session = None
                if error.retryable and last:
                    raise CloudUnreachableError(
                        f"the token of the connection {self.connection!r} cannot be renewed now: {_first_line(error)}"
                    ) from None
                if not error.retryable and (renewed or last):
                    raise CloudAccessError(
                        f"Google Cloud lets the connection {self.connection!r} not in: {_first_line(error)}",
                        fix=_KEY,
                    ) from None
                renewed = True
            else:
                if response.status_code < 400:
                    return response
                if response.status_code == 401 and not (renewed or last):
                    # The session has renewed its token, to no avail.
                    self._session, renewed = None, True
                elif last or response.status_code not in _PASSES or not (again or response.status_code == 429):
                    raise self._refused(method, path, response)
            time.sleep(0.5 * 2**number)
        raise AssertionError("the last try returns or raises")

    def _open(self) -> Any:
        if self._session is None:
            from google.auth.transport.requests import AuthorizedSession

            self._session = AuthorizedSession(credentials_of(self.connection))
        return self._session

    def _grant(self, words: str, resource: str) -> str:
        account = f"the account of the connection {self.connection!r}"
        role, project = _role(words), re.search(r"projects/([^/]+)", resource)
        if role is None or project is None:
            return f"grant {account} {role or 'that permission'}"
        binding = f"gcloud projects add-iam-policy-binding {project[1]} --member serviceAccount:ACCOUNT --role {role}"
        return f"{binding}, where ACCOUNT is {account}"

    def _refused(self, method: str, path: str, response: Any) -> CloudError:
        try:
            said = response.json()["error"]
            words, status = str(said.get("message", "")), str(said.get("status", ""))
        except (ValueError, LookupError, TypeError, AttributeError):
            words, status = response.text[:300], ""
        resource = path.partition("/")[2]
        what = f"{self.service}: {method} {resource}: {words or status or response.status_code}"
        code = response.status_code
        if code in (401, 403):
            error: CloudError = CloudAccessError(what, fix=_KEY if code == 401 else self._grant(words, resource))
        elif code == 404:
            error = CloudNotFoundError(what)
        else:
            error = CloudUnreachableError(what) if code in _PASSES else CloudError(what)
        error.status = status
        return error


def _role(words: str) -> str | None:
    """The role that brings the permission which Google's words name."""
    if re.search(r"act as|actAs", words):
        return "roles/iam.serviceAccountUser"
    found = re.search(r"\b(\w+)\.\w+\.\w+\b", words.replace("googleapis.com", ""))
    return _ROLES.get(found[1]) if found else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
