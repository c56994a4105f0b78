"""``for_each``: one YAML document becomes a pipeline for every member of a fleet.

The members share what the document says; a member may override any part of it. ``{country}`` in a text stands for the
member's value. It is replaced as it stands: nothing is computed, and braces around any other name stay.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_mlops.spec.base import json_schema
from airflow_mlops.spec.environment import merged
from airflow_mlops.spec.pipeline import Pipeline

if TYPE_CHECKING:
    from airflow_mlops.spec.load import Document, Path_

FOR_EACH = "for_each"
_MOST_MEMBERS = 1_000
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYS = frozenset(field.alias or name for name, field in Pipeline.model_fields.items())

SCHEMA: dict[str, Any] = {
    "description": "Makes a pipeline of this document for each member: a map of placeholder to its values (every "
    "combination is a member), or a list of members, each a map of placeholders and of keys that it overrides. "
    "`{country}` in a text stands for the member's country.",
    "examples": [{"country": ["de", "fr"]}, [{"country": "de", "schedule": "@daily"}, {"country": "fr"}]],
    "anyOf": [
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": "array",
                "minItems": 1,
                "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            },
        },
        {"type": "array", "minItems": 1, "items": {"type": "object", "minProperties": 1}},
    ],
}
"""The JSON Schema of ``for_each``."""


class FleetMistake(Exception):
    """Something wrong with ``for_each``: where in the document, what, what is allowed, what to do."""

    def __init__(self, path: Path_, what: str, *, allowed: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.path, self.what, self.allowed, self.fix = path, what, allowed, fix


class _Member(NamedTuple):
    """One member: what its placeholders stand for, what it overrides, and where the document says so."""

    values: dict[str, str]
    overrides: dict[str, Any]
    path: Path_


def declaration_schema() -> dict[str, Any]:
    """The JSON Schema of a YAML document: a pipeline, or a fleet of them."""
    schema = json_schema(Pipeline)
    schema["properties"][FOR_EACH] = SCHEMA
    schema["properties"]["name"]["pattern"] = r"^[A-Za-z{][A-Za-z0-9_{}-]{0,99}$"
    return schema


def members(document: Document) -> list[Document]:
    """The documents of a fleet's members, or the document itself where it has no ``for_each``.

    Lines stay those of the file: of a value that a member overrides, the line where the member says so.

    Raises:
        FleetMistake: when ``for_each`` or a member is wrong.
    """
    if not isinstance(document.value, dict) or FOR_EACH not in document.value:
        return [document]
    shared = {key: value for key, value in document.value.items() if key != FOR_EACH}
    found = list(_members(document.value[FOR_EACH]))
    if len(found) > _MOST_MEMBERS:
        raise FleetMistake((FOR_EACH,), f"it makes {len(found)} pipelines", allowed=f"at most {_MOST_MEMBERS}")
    documents: dict[str, Document] = {}
    for index, member in enumerate(found):
        _check_values(member, found[0])
        value = _filled(merged(shared, member.overrides), member.values)
        # A name that is missing or no text is told by the pipeline's own check.
        name = value["name"] if isinstance(value.get("name"), str) else f"{index}"
        if name in documents:
            raise FleetMistake(
                (*member.path, "name") if "name" in member.overrides else ("name",),
                f"two members of {FOR_EACH} have the name {name!r}",
                fix="write placeholders into the name that tell every member from the others",
            )
        problems = () if documents else document.problems
        documents[name] = document._replace(value=value, lines=_lines(document, member), problems=problems)
    return list(documents.values())


def folded(found: Iterable[tuple[str, list[str]]]) -> list[str]:
    """The problems of pipelines by name, with what several members of a fleet share said once."""
    first: dict[str, str] = {}
    count: dict[str, int] = {}
    for name, problems in found:
        for problem in problems:
            key = problem.replace(repr(name), "")
            first.setdefault(key, problem)
            count[key] = count.get(key, 0) + 1
    more = {
        key: f" (and in {number - 1} more of its {FOR_EACH})" if number > 1 else "" for key, number in count.items()
    }
    return [problem + more[key] for key, problem in first.items()]


def _lines(document: Document, member: _Member) -> dict[Path_, int]:
    lines = {path: line for path, line in document.lines.items() if path[:1] != (FOR_EACH,)}
    depth = len(member.path)
    for path, line in document.lines.items():
        if path[:depth] == member.path and len(path) > depth and path[depth] in member.overrides:
            lines[path[depth:]] = line
    return lines


def _members(declared: Any) -> Iterator[_Member]:
    if isinstance(declared, dict) and declared:
        texts = []
        for name, values in declared.items():
            path = (FOR_EACH, name)
            if not isinstance(values, list) or not values:
                raise FleetMistake(path, f"{name!r} holds {values!r}", allowed="a list of values: [de, fr]")
            texts.append([_text(name, value, (*path, index)) for index, value in enumerate(values)])
        for combination in itertools.product(*texts):
            yield _Member(dict(zip(declared, combination, strict=True)), {}, (FOR_EACH,))
    elif isinstance(declared, list) and declared:
        for index, each in enumerate(declared):
            path = (FOR_EACH, index)
            if not isinstance(each, dict):
                raise FleetMistake(path, f"a member is {each!r}", allowed="a map such as {country: de}")
            overrides = {key: value for key, value in each.items() if key in _KEYS}
            values = {key: _text(key, value, (*path, key)) for key, value in each.items() if key not in _KEYS}
            yield _Member(values, overrides, path)
    else:
        raise FleetMistake(
            (FOR_EACH,),
            f"{FOR_EACH} holds {declared!r}",
            allowed="a map such as {country: [de, fr]}, or a list of members such as [{country: de}]",
        )


def _text(name: str, value: Any, path: Path_) -> str:
    if value is None or isinstance(value, (bool, float)):
        raise FleetMistake(path, f"{name!r} is read as {value!r}", allowed="a text or an integer", fix="quote it: 'no'")
    if isinstance(value, (str, int)):
        return str(value)
    raise FleetMistake(
        path,
        f"{name!r} is no key of a pipeline, so it is a placeholder, which cannot hold a {type(value).__name__}",
        allowed=f"a text or an integer; to override: {', '.join(sorted(_KEYS))}",
    )


def _check_values(member: _Member, first: _Member) -> None:
    for name in member.values:
        if not _NAME.fullmatch(name) or name == "window":
            what = "stands for the run's window" if name == "window" else "is no name"
            raise FleetMistake((*member.path, name), f"{name!r} {what}", allowed="a name of letters, digits and _")
    if member.values.keys() != first.values.keys():
        listed = [", ".join(each.values) or "none" for each in (member, first)]
        raise FleetMistake(
            member.path,
            f"a member has the placeholders {listed[0]}, and the first one has {listed[1]}",
            fix="give every member the same placeholders",
        )


def _filled(value: Any, values: dict[str, str]) -> Any:
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {key: _filled(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, values) for each in value]
    return value
