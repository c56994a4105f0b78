"""MLflow's scoring protocol: what a client may send, as rows of the types that the model was trained on.

The forms are those of MLflow's scoring server: ``dataframe_split``, ``dataframe_records``, ``instances`` (records) and
``inputs`` (columns, or records) as JSON, and CSV with a header. An answer is ``{"predictions": [...]}``, with
``probabilities`` by class where the model gives them; Vertex AI's ``parameters`` may ask for an object a row instead.
Errors have MLflow's form too: ``error_code`` and ``message``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from airflow_mlops.errors import DataError
from airflow_mlops.stages.model_io import arrow_type

PROBABILITIES = "probabilities"
"""The key of ``parameters`` by which each prediction is an object ``{"prediction": ..., "probabilities": {...}}``."""
_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_NOT_JSON_NUMBER = re.compile(rb"[:\[,]\s*-?(NaN|Infinity)\b")
_TRUE, _FALSE = frozenset({"true", "True", "1"}), frozenset({"false", "False", "0"})
_MISSING = object()
_LONGEST = 2000


class RequestError(DataError):
    """A request that the client has to mend.

    Args:
        message: what is wrong and what is allowed, for the client.
        status: the HTTP status.
        code: the error code, in MLflow's words.
    """

    def __init__(self, message: str, status: int = 400, code: str = "BAD_REQUEST") -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def body(self) -> bytes:
        """The answer."""
        return error_body(self.code, self.what)


def error_body(code: str, message: str) -> bytes:
    """An error as MLflow's clients read it; what it quotes of a request may be long, or no text at all."""
    text = message if len(message) <= _LONGEST else f"{message[: _LONGEST - 3]}..."
    return msgspec.json.encode({"error_code": code, "message": text.encode("utf-8", "backslashreplace").decode()})


class Rows(NamedTuple):
    """The rows of a request: of each column its values, as JSON or CSV had them."""

    columns: dict[str, Sequence[Any]]
    number: int
    """How many."""
    apart: bool = False
    """Whether each row's answer is wanted as an object of its own, with its probabilities in it."""


def read_rows(body: bytes, content_type: str, wanted: Collection[str]) -> Rows:
    """Read a request.

    Args:
        body: its body.
        content_type: what that is said to be.
        wanted: the columns that somebody asks for; others may be left out.

    Raises:
        RequestError: when it is malformed, or in none of the forms.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/csv":
        return _csv(body)
    if kind not in ("application/json", ""):
        raise RequestError(
            f"the content type {kind!r} is not known; allowed: application/json, text/csv",
            415,
            "INVALID_PARAMETER_VALUE",
        )
    said = _json(body)
    if not isinstance(said, dict):
        raise RequestError(f"the body is {_kind(said)}; allowed: an object with one of {', '.join(_FORMS)}")
    unknown = set(said) - {*_FORMS, "params", "parameters"}
    if unknown:
        raise RequestError(f"unknown key {', '.join(map(repr, sorted(unknown)))}; allowed: {', '.join(_FORMS)}")
    if said.get("params"):
        raise RequestError("the model takes no 'params'; leave them out")
    apart = _apart(said.get("parameters"))
    forms = [name for name in _FORMS if name in said]
    if len(forms) != 1:
        raise RequestError(f"the body has {' and '.join(forms) or 'none'}; allowed: exactly one of {', '.join(_FORMS)}")
    value = said[forms[0]]
    if forms[0] == "dataframe_split":
        rows = _split(value)
    elif forms[0] == "inputs" and isinstance(value, dict):
        rows = _columns(value)
    else:
        rows = _records(value, forms[0], wanted)
    return rows._replace(apart=apart)


def _apart(parameters: Any) -> bool:
    """What the ``parameters`` of a request to Vertex AI ask for."""
    said = {} if parameters is None else parameters
    if said not in ({}, {PROBABILITIES: True}, {PROBABILITIES: False}):
        raise RequestError(f'the model takes no such "parameters"; allowed: {{"{PROBABILITIES}": true}}')
    return bool(said.get(PROBABILITIES))


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not _NOT_JSON_NUMBER.search(body):
            raise RequestError(f"the body is not JSON: {error}") from error
    try:
        # MLflow's own clients write a missing number so.
        return json.loads(body, parse_constant=_constant, parse_float=_finite)
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from error


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is out of range")
    return number


def _constant(name: str) -> None:
    if name != "NaN":
        raise RequestError(f"{name} is no number that a model takes; send null")


def _split(value: Any) -> Rows:
    form = '\'dataframe_split\' is {"columns": [names], "data": [[values], ...]}'
    if not isinstance(value, dict) or not {"columns", "data"} <= set(value) <= {"columns", "data", "index"}:
        raise RequestError(form)
    names, data = value["columns"], value["data"]
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names) or not isinstance(data, list):
        raise RequestError(form)
    twice = {name for name, times in Counter(names).items() if times > 1}
    if twice:
        raise RequestError(f"'columns' names {', '.join(sorted(twice))} more than once")
    for number, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(names):
            has = f"{len(row)} values" if isinstance(row, list) else _kind(row)
            raise RequestError(f"row {number} of 'data' is {has}, and there are {len(names)} columns")
    values: Sequence[Sequence[Any]] = list(zip(*data, strict=True)) if data else [()] * len(names)
    return Rows(dict(zip(names, values, strict=True)), len(data))


def _columns(value: Mapping[str, Any]) -> Rows:
    for name, values in value.items():
        if not isinstance(values, list):
            raise RequestError(f"the column {name!r} of 'inputs' is {_kind(values)}; allowed: a list of values")
    counts = {len(values) for values in value.values()}
    if len(counts) > 1:
        raise RequestError("the columns of 'inputs' have different lengths: " + ", ".join(map(str, sorted(counts))))
    return Rows(dict(value), counts.pop() if counts else 0)


def _records(value: Any, form: str, wanted: Collection[str]) -> Rows:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise RequestError(f'{form!r} is no list of objects, one a row, such as [{{"amount": 1.5}}]')
    # Not every name that there is: a million records of one name each would make a million columns of them.
    names = dict.fromkeys(name for record in value for name in record if name in wanted)
    return Rows({name: [record.get(name, _MISSING) for record in value] for name in names}, len(value))


def _csv(body: bytes) -> Rows:
    try:
        lines = list(csv.reader(io.StringIO(body.decode("utf-8-sig")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"the body is not CSV in UTF-8: {error}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise RequestError("the body is empty; allowed: CSV with a header line")
    names, data = lines[0], lines[1:]
    for number, line in enumerate(data):
        if len(line) != len(names):
            raise RequestError(f"row {number} has {len(line)} values, and the header {len(names)}")
    return Rows(
        {name: [_Text(line[at]) if line[at] else None for line in data] for at, name in enumerate(names)}, len(data)
    )


class _Text(str):
    """A value of a CSV file, which has no types of its own."""

    __slots__ = ()


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def require(rows: Rows, columns: Mapping[str, str]) -> None:
    """See that a request has rows, and every column that the model takes.

    Raises:
        RequestError: when it has not.
    """
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        raise RequestError(
            f"missing column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}; "
            f"the model takes {', '.join(columns)}",
        )
    if not rows.number:
        raise RequestError("there are no rows")


def together(requests: Sequence[Rows], names: Iterable[str]) -> Rows:
    """The rows of several requests as if one had sent them; a column that one of them lacks is null there."""
    if len(requests) == 1:
        return requests[0]
    columns: dict[str, Sequence[Any]] = {}
    for name in names:
        if any(name in rows.columns for rows in requests):
            values: list[Any] = []
            for rows in requests:
                values.extend(rows.columns.get(name) or repeat(None, rows.number))
            columns[name] = values
    return Rows(columns, sum(rows.number for rows in requests))


def table_of(rows: Rows, columns: Mapping[str, str]) -> pa.Table:
    """The columns that are asked for, with their types.

    Args:
        rows: the request's rows; columns beyond those asked for are left out.
        columns: the names, and their Arrow types.

    Raises:
        RequestError: when a column is missing, or a value is of another type; with the column and the row.
    """
    require(rows, columns)
    return pa.table({name: column_of(name, rows.columns[name], kind) for name, kind in columns.items()})


def column_of(name: str, values: Sequence[Any], wanted: str) -> pa.Array:
    """Values as an Arrow column.

    Raises:
        RequestError: when one is of another type.
    """
    kind = arrow_type(wanted)
    read, accepted, told = _reader(kind)
    if not set(map(type, values)) <= accepted or read is not None:
        values = [_read(name, row, value, accepted, read, told) for row, value in enumerate(values)]
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise RequestError(f"the column {name!r} has a value that does not fit into {wanted}: {error}") from error


_Reader = Callable[[Any], Any]


def _reader(kind: pa.DataType) -> tuple[_Reader | None, frozenset[type], str]:
    """How a value of JSON becomes one of a type: a function where it must be read, the types taken as they are."""
    none = type(None)
    if pa.types.is_boolean(kind):
        return None, frozenset({bool, none}), "true or false"
    if pa.types.is_integer(kind):
        return None, frozenset({int, none}), "a whole number"
    if pa.types.is_floating(kind):
        return None, frozenset({int, float, none}), "a number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return None, frozenset({str, none}), "a text"
    if pa.types.is_timestamp(kind):
        return _moment_of(kind.tz), frozenset({none}), "a time in ISO 8601, such as 2024-03-01T12:00:00"
    if pa.types.is_date(kind):
        return date.fromisoformat, frozenset({none}), "a date, such as 2024-03-01"
    if pa.types.is_time(kind):
        return time.fromisoformat, frozenset({none}), "a time of day, such as 12:00:00"
    if pa.types.is_decimal(kind):
        return lambda value: Decimal(str(value)), frozenset({none}), "a decimal number"
    if pa.types.is_null(kind):
        return None, frozenset({none}), "null"
    raise RequestError(f"columns of {kind} cannot be sent as JSON or CSV", 501, "NOT_IMPLEMENTED")


def _moment_of(zone: str | None) -> _Reader:
    def moment(value: Any) -> datetime:
        found = datetime.fromisoformat(value)
        if zone is None:
            return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    return moment


def _read(name: str, row: int, value: Any, accepted: frozenset[type], read: _Reader | None, told: str) -> Any:
    if value is _MISSING:
        raise RequestError(f"row {row} has no {name!r}; allowed: {told}, or null")
    if type(value) in accepted:
        return value
    try:
        if isinstance(value, _Text):
            value = _from_text(str(value), accepted)
            if type(value) in accepted:
                return value
        if int in accepted and float not in accepted and isinstance(value, float) and value.is_integer():
            return int(value)
        if read is not None and isinstance(value, str | int | float) and not isinstance(value, bool):
            return read(value)
    except (ValueError, TypeError, OverflowError, InvalidOperation):
        pass
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    raise RequestError(f"the column {name!r}, row {row}: {shown} is not {told}, or null")


def _from_text(text: str, accepted: frozenset[type]) -> Any:
    """A text of a CSV file as what its column holds."""
    if str in accepted:
        return text
    if bool in accepted:
        return True if text in _TRUE else False if text in _FALSE else text
    if float in accepted:
        number = float(text)
        return number if math.isfinite(number) else None
    return int(text) if int in accepted else text


def answer_body(predictions: Sequence[Any], probabilities: Mapping[str, Sequence[float]]) -> bytes:
    """An answer."""
    said: dict[str, Any] = {"predictions": predictions}
    if probabilities:
        said["probabilities"] = probabilities
    return msgspec.json.encode(said, enc_hook=str)


def answers_apart(predictions: Sequence[Any], probabilities: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """The same with an object for each row: what goes through Vertex AI keeps of an answer its predictions only."""
    return [
        {"prediction": each}
        | ({PROBABILITIES: {name: values[at] for name, values in probabilities.items()}} if probabilities else {})
        for at, each in enumerate(predictions)
    ]
