"""Where rows come from: files, or a query through an Airflow connection."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from airflow_mlops.spec.base import Section, Size

Snapshots = Literal["reuse", "refresh"]

# What a colon may stand in without naming a parameter comes first, so that it is passed over whole.
_PLACEHOLDER = re.compile(
    r"'(?:[^']|'')*'"
    r'|"(?:[^"]|"")*"'
    r"|`[^`]*`"
    r"|--[^\n]*|/\*.*?\*/"
    r"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$"
    r"|::|(?<![\w:]):(?P<name>start|end)\b",
    re.DOTALL,
)


class SqlSource(Section):
    """Rows of a SQL database, through an Airflow connection. Exactly one of ``query`` and ``table``."""

    connection: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", examples=["warehouse"])
    """The id of an Airflow connection of type ``postgres``, ``sqlite`` or, for BigQuery, ``google_cloud_platform``.
    ``airflow-mlops run`` takes it from ``AIRFLOW_CONN_<ID>``."""
    query: str | None = Field(None, min_length=1)
    """One SELECT. ``:start`` and ``:end`` are the run's window, bound as parameters; with ``data.time`` declared the
    database applies the window by itself."""
    table: str | None = Field(None, min_length=1, examples=["public.flights"])
    """A table or view, which is read with all its columns."""
    project: str | None = Field(None, pattern=r"^[a-z][a-z0-9.:-]{4,62}$", examples=["my-project"])
    """BigQuery: the project that queries run in and are paid by. Default: ``google.project``, else the connection's."""
    location: str | None = Field(None, pattern=r"^[A-Za-z0-9-]+$", examples=["EU"])
    """BigQuery: where queries run. Default: where the data lie."""
    max_bytes: Size = "1TiB"
    """BigQuery: a run whose queries would process more is refused before anything is paid."""
    export: bool | None = None
    """BigQuery: whether rows go through Parquet files in the store's bucket instead of the Storage Read API. Default:
    where more than 8GiB are processed and the store is on ``gs://``."""

    @model_validator(mode="after")
    def _one_way(self) -> SqlSource:
        if (self.query is None) == (self.table is None):
            raise ValueError("give exactly one of 'query' and 'table'")
        return self

    @property
    def select(self) -> str:
        """The query: the one given without its final semicolon, or all rows of the table."""
        if self.table is not None:
            return f"SELECT * FROM {'.'.join(map(quoted, self.table.split('.')))}"  # noqa: S608
        return str(self.query).strip().rstrip(";").rstrip()

    @property
    def names_window(self) -> bool:
        """Whether the query names ``:start`` or ``:end``."""
        return any(found["name"] for found in _PLACEHOLDER.finditer(self.select))

    @property
    def identity(self) -> dict[str, str | None]:
        """What makes its rows these and no others."""
        project = {"project": self.project} if self.project else {}
        return {"connection": self.connection, "query": self.query, "table": self.table, **project}

    def __str__(self) -> str:
        return f"{self.table or 'the query'} of the connection {self.connection!r}"


def quoted(name: str) -> str:
    """A name as an SQL identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def numbered(query: str) -> tuple[str, tuple[str, ...]]:
    """Write ``:start`` and ``:end`` as ``$1`` and ``$2``; also give which of them is which, in that order.

    Texts, quoted names, comments and casts (``::date``) are left as they are.
    """
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if not found["name"]:
            return found[0]
        if found["name"] not in names:
            names.append(found["name"])
        return f"${names.index(found['name']) + 1}"

    return _PLACEHOLDER.sub(number, query), tuple(names)


def named(query: str) -> str:
    """Write ``:start`` and ``:end`` as ``@start`` and ``@end``, BigQuery's named parameters."""
    return _PLACEHOLDER.sub(lambda found: f"@{found['name']}" if found["name"] else found[0], query)


def _kind_of(source: Any) -> str:
    return "SqlSource" if isinstance(source, (dict, SqlSource)) else "file"


Source = Annotated[
    Annotated[str, Field(min_length=1, examples=["data/{window}.parquet"]), Tag("file")]
    | Annotated[SqlSource, Tag("SqlSource")],
    Discriminator(_kind_of),
]
"""A file or folder, or ``{connection: ..., query: ...}``; told apart first, so that a mistake is reported once."""

_SOURCE: TypeAdapter[str | SqlSource] = TypeAdapter(Source)


def source_from(value: Any) -> str | SqlSource:
    """A source from its JSON."""
    return _SOURCE.validate_python(value)


def is_windowed(source: str | SqlSource, time: str | None) -> bool:
    """Whether a source comes in windows at all."""
    named = source.names_window if isinstance(source, SqlSource) else "{window}" in source
    return named or time is not None
