"""The vocabulary the declaration is made of: frozen sections and the few types that YAML lacks."""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import re
import textwrap
from datetime import timedelta
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.json_schema import GenerateJsonSchema

SEVERAL = "several"
"""The type of a validation error that holds several, each with its path, in its context's ``problems``."""

_DURATION = re.compile(r"(\d+)\s*([smhdw])")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Described(BaseModel):
    """A model whose JSON Schema says of a field what the docstring under it says.

    Pydantic's own ``use_attribute_docstrings`` looks for them while each class is made, in CPU time that every parse of
    a DAG file and every task would pay for.
    """

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe the fields; Pydantic calls it when a schema is asked for, and not before."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in field_docs(cls).items():
            key = cls.model_fields[name].alias or name
            if key in properties:
                properties[key].setdefault("description", text)
        return schema


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings under a model's fields, by the fields' names."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if not issubclass(each, Described) or each is Described:
            continue
        source: Any = ast.parse(textwrap.dedent(inspect.getsource(each)))
        for field, below in itertools.pairwise(source.body[0].body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return {name: text for name, text in found.items() if name in model.model_fields}


class Section(Described):
    """A part of the declaration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, ser_json_inf_nan="constants")


def parse_duration(value: Any) -> Any:
    """Read ``90s``, ``15m``, ``24h``, ``14d``, ``2w`` or a sum such as ``1d 12h``; pass a ``timedelta`` through."""
    if isinstance(value, timedelta):
        if value < timedelta(0) or value.microseconds:
            raise ValueError(f"{value!r} is no duration of whole seconds, 0 or more")
        return value
    if isinstance(value, str):
        text = value.strip()
        parts = _DURATION.findall(text)
        if parts and not _DURATION.sub("", text).strip():
            total = timedelta()
            try:
                for number, unit in parts:
                    total += timedelta(**{_UNITS[unit]: int(number)})
            except OverflowError as error:
                raise ValueError(f"{value!r} is a longer duration than can be counted") from error
            return total
    raise ValueError(f"{value!r} is not a duration; write a number and a unit: 90s, 15m, 24h, 14d, 2w")


def format_duration(value: timedelta) -> str:
    """Write a duration so that `parse_duration` reads it back."""
    seconds = int(value.total_seconds())
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


_PRESETS = ("@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly", "@continuous")


def check_schedule(value: str) -> str:
    """Pass on a cron expression or a preset.

    Raises:
        ValueError: for anything else, which Airflow would refuse for the whole DAG file.
    """
    if value in _PRESETS:
        return value
    # A tenth of a second that a preset does not pay; in Airflow it is loaded anyway.
    from croniter import croniter

    if value.startswith("@") or not croniter.is_valid(value):
        close = difflib.get_close_matches(value, _PRESETS, n=1)
        raise ValueError(
            f"{value!r} is no schedule; allowed: a cron expression such as '0 6 * * 1', {', '.join(_PRESETS)}"
            + (f"; try: '{close[0]}'" if close else "")
        )
    return value


def parse_size(value: Any) -> int:
    """Read ``512MiB``, ``2GiB`` or ``1.5GB``; pass a whole number of bytes through."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match:
        number, unit = match.groups()
        base = 1024 if "i" in unit else 1000
        size = int(float(number) * base ** ("KMGT".index(unit[0]) + 1))
        if size > 0:
            return size
    raise ValueError(f"{value!r} is no amount of memory; write a number and a unit: 512MiB, 2GiB, 1.5GB")


def format_size(value: int) -> str:
    """Write an amount of bytes in the greatest unit that keeps two digits after the point exact enough for a person."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.2f}".rstrip("0").rstrip(".") + unit
    return f"{value} bytes"


def _size(value: str) -> str:
    parse_size(value)
    return value


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+\s*[smhdw]\s*)+$", "examples": ["24h", "14d"]}),
]
"""A length of time, written ``24h`` or ``14d``."""

Schedule = Annotated[
    str, AfterValidator(check_schedule), WithJsonSchema({"type": "string", "examples": ["@daily", "0 6 * * 1"]})
]
"""A cron expression or a preset."""

Size = Annotated[
    str,
    AfterValidator(_size),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[KMGT]i?B\s*$", "examples": ["2GiB"]}),
]
"""An amount of memory, written ``512MiB`` or ``2GiB``."""

Callable = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"),
    Field(examples=["churn.features:build"]),
]
"""A function of the pipeline's own code, written ``package.module:function``."""

Estimator = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*$"),
    Field(examples=["sklearn.ensemble.HistGradientBoostingClassifier"]),
]
"""The path of an estimator class with scikit-learn's interface."""

Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_tuple),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""One name or a list of names."""


class _Schema(GenerateJsonSchema):
    """Writes durations as the declaration does."""

    def encode_default(self, dft: Any) -> Any:
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a section, as an editor needs it: with the keys and the forms that YAML has."""
    return model.model_json_schema(by_alias=True, schema_generator=_Schema)
