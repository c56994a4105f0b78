"""A database connection beside a Call: Airflow's own environment variable, read without Airflow.

The hook gives ``AIRFLOW_CONN_<ID>`` to the Call just before it starts; ``airflow-mlops run`` finds what was set.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from airflow_mlops.errors import DataError

_TYPES = {"postgresql": "postgres"}
_GOOGLE = "google_cloud_default"


class Connection(NamedTuple):
    """What an Airflow connection says. It is a secret: nothing of it goes into a Call, an artifact or a log."""

    id: str
    type: str
    host: str = ""
    port: int | None = None
    login: str = ""
    password: str = ""
    schema: str = ""
    extra: dict[str, Any] = {}  # noqa: RUF012

    def __repr__(self) -> str:
        return f"Connection({self.id!r})"

    @property
    def database(self) -> str:
        """Which database it is, without credentials: what makes rows of one another's or not."""
        if self.type == "google_cloud_platform":
            return f"{self.type}://{self.extra.get('project', '')}"
        return f"{self.type}://{self.host}:{self.port or ''}/{self.schema}"

    def scrub(self, text: object) -> str:
        """A driver's words without the password, however it was written."""
        cleaned = str(text)
        hidden = {self.password, *(str(value) for key, value in self.extra.items() if "pass" in key.lower())}
        for secret in sorted((each for each in hidden if each), key=len, reverse=True):
            for written in {secret, quote(secret, safe=""), secret.replace("\\", "\\\\").replace("'", "\\'")}:
                cleaned = cleaned.replace(written, "***")
        return cleaned


def variable(connection_id: str) -> str:
    """The environment variable that holds a connection."""
    return f"AIRFLOW_CONN_{connection_id.upper()}"


def connection_of(connection_id: str) -> Connection:
    """The connection that stands in the environment, as a URI or as JSON.

    ``google_cloud_default`` need not stand there.

    Raises:
        DataError: when there is none, or it cannot be read.
    """
    name = variable(connection_id)
    text = os.environ.get(name, "").strip()
    if not text and connection_id == _GOOGLE:
        # As Airflow's own: whoever is logged in here, or the account that a job runs as.
        return Connection(id=_GOOGLE, type="google_cloud_platform")
    if not text:
        raise DataError(
            f"there is no connection {connection_id!r}",
            fix=f"add it to Airflow, or for `airflow-mlops run` set {name} to postgresql://USER:PASSWORD@HOST/DATABASE",
        )
    try:
        return _from_json(connection_id, text) if text.startswith("{") else _from_uri(connection_id, text)
    except (ValueError, TypeError, AttributeError):
        # The parser's own words may hold the password.
        raise DataError(f"{name} is neither a connection's URI nor its JSON", fix="write it anew") from None


def _from_json(connection_id: str, text: str) -> Connection:
    given = json.loads(text)
    extra = given.get("extra") or {}
    return Connection(
        id=connection_id,
        type=_type(given.get("conn_type") or ""),
        host=given.get("host") or "",
        port=int(given["port"]) if given.get("port") else None,
        login=given.get("login") or "",
        password=given.get("password") or "",
        schema=given.get("schema") or "",
        extra=dict(json.loads(extra) if isinstance(extra, str) else extra),
    )


def _from_uri(connection_id: str, text: str) -> Connection:
    parts = urlsplit(text)
    place = parts.netloc.rpartition("@")[2]
    extra: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "__extra__" in extra:
        extra = dict(json.loads(extra["__extra__"]))
    if not parts.scheme:
        raise ValueError("no connection type")
    return Connection(
        id=connection_id,
        type=_type(parts.scheme),
        # Not parts.hostname, which writes a socket's folder or a file's path in small letters.
        host=unquote(place.rpartition(":")[0] if parts.port else place.rstrip(":")),
        port=parts.port,
        login=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        schema=unquote(parts.path[1:]),
        extra=extra,
    )


def _type(name: str) -> str:
    name = name.lower().replace("-", "_")
    return _TYPES.get(name, name)
