"""A client of whatever speaks MLflow's scoring protocol, on one connection that stays open."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from airflow_mlops.errors import DeploymentError

KEY_VARIABLE = "AIRFLOW_MLOPS_SERVING_KEY"
"""The environment variable with the API key that servers want, where they want one."""

PROBE_HEADER = "X-Probe"
"""The header of a request that only looks whether answers are right."""


class Answer(NamedTuple):
    """What an endpoint has answered."""

    version: str
    """The version that says so; empty where the server does not tell."""
    predictions: list[Any]
    probabilities: dict[str, list[float]]
    """The probability of each class, by its name; empty for a regression."""
    seconds: float
    """How long it took, on this side."""


class Endpoint:
    """A server of one model.

    Args:
        url: its address, such as ``http://127.0.0.1:8080``.
        size: the bytes of what it serves, where that is known.
        seconds: how long an answer may take.
    """

    def __init__(self, url: str, *, size: int | None = None, seconds: float = 30.0) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.url, self.size = url, size
        self._connection = kind(parts.hostname or "", parts.port, timeout=seconds)
        self._path = parts.path.rstrip("/")

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, probe: bool = False) -> Answer:
        """Ask for the predictions of raw rows, given as plain JSON values.

        Args:
            columns: the columns' names.
            rows: the rows.
            probe: whether nobody wants to know: then the log of predictions leaves them out.

        Raises:
            DeploymentError: when the server does not answer, refuses, or answers something else.
        """
        body = json.dumps({"dataframe_split": {"columns": list(columns), "data": [list(row) for row in rows]}})
        headers = {"Content-Type": "application/json"}
        if probe:
            headers[PROBE_HEADER] = "1"
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        started = time.perf_counter()
        status, said_headers, text = self._send(body, headers)
        seconds = time.perf_counter() - started
        if status != http.client.OK:
            raise DeploymentError(f"{self.url} answers {status}: {text.decode(errors='replace')[:500]}")
        try:
            said: Mapping[str, Any] = json.loads(text)
            predictions = said["predictions"]
            if len(predictions) != len(rows):
                raise ValueError(f"{len(predictions)} predictions for {len(rows)} rows")
        except (ValueError, LookupError, TypeError) as error:
            raise DeploymentError(f"{self.url} answers what is no answer to rows: {error}") from error
        return Answer(said_headers.get("X-Model-Version", ""), predictions, said.get("probabilities") or {}, seconds)

    def _send(self, body: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request; status, headers and body of what comes back."""
        try:
            self._connection.request("POST", f"{self._path}/invocations", body, dict(headers))
            response = self._connection.getresponse()
            return response.status, response.headers, response.read()  # type: ignore[return-value]
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise DeploymentError(f"{self.url} does not answer: {str(error) or type(error).__name__}") from error
