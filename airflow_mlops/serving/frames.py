"""What goes between the front and a version's process: a header in JSON, and bodies as they came."""

from __future__ import annotations

from typing import Any

import msgspec


class Ask(msgspec.Struct, omit_defaults=True):
    """One request of a batch."""

    request: str
    """Its id."""
    kind: str
    """Its content type."""
    role: str
    """``champion`` or ``candidate`` as it answers, ``shadow`` where it is only compared, ``probe`` where looked at."""


class Batch(msgspec.Struct):
    """Requests for one version, answered together. An empty one asks how the log stands."""

    asks: list[Ask]
    sizes: list[int]


class Said(msgspec.Struct):
    """What became of one request."""

    status: int
    rows: int = 0


class Logged(msgspec.Struct):
    """How the log of predictions stands, in rows."""

    logged: int = 0
    queued: int = 0
    dropped: int = 0
    problem: str | None = None


class Answers(msgspec.Struct):
    """The answers to a batch, in its order. Empty ones are a process's last word: how its log stands at the end."""

    said: list[Said]
    sizes: list[int]
    log: Logged


class Ready(msgspec.Struct):
    """What a version's process says first: that it has loaded the model, or why not."""

    problem: str | None = None
    bytes: int = 0
    """The size of the model's files."""
    classifies: bool = True
    """Whether it predicts classes; else numbers."""


class Start(msgspec.Struct):
    """What a version's process is told, on its standard input: addresses, and nothing secret."""

    store: str
    registry: dict[str, Any]
    version: str
    digest: str
    server: str
    allow_pickle: bool = False
    log_to: str | None = None
    """The folder of predictions; None logs nothing."""
    flush: float = 10.0
    files: str | None = None
    """Where the version's files are, as `airflow_mlops.registry.files` puts them. Default: MLflow is asked."""


_LENGTH = 4


def pack(header: msgspec.Struct, bodies: list[bytes] | None = None) -> list[bytes]:
    """A frame, in pieces."""
    text = msgspec.json.encode(header)
    return [len(text).to_bytes(_LENGTH, "big"), text, *(bodies or [])]


def length(head: bytes) -> int:
    """How long a header is, by the bytes before it."""
    return int.from_bytes(head, "big")
