"""Make the pages of docs/reference/ from the code, so that they cannot say anything else than the code.

Usage: python docs/build.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from airflow_mlops.cli.main import parser_of_commands
from airflow_mlops.spec.base import format_duration, json_schema
from airflow_mlops.spec.data_schema import DataSchema
from airflow_mlops.spec.fleet import declaration_schema

REFERENCE = Path(__file__).parent / "reference"
MADE = "<!-- Made by `make docs`. Edit the docstrings it is made from. -->\n"

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def declaration() -> str:
    """The page of the declaration: every key, its type, default and meaning."""
    return _page_of("The declaration", declaration_schema())


def data_schema() -> str:
    """The page of the data schema: every key, its type, default and meaning."""
    return _page_of("The data schema", json_schema(DataSchema))


def _page_of(title: str, schema: dict[str, Any]) -> str:
    parts = [
        MADE,
        f"# {title}\n",
        _prose(schema["description"]),
        "An unknown key is an error. Durations are written `90s`, `15m`, `24h`, `14d` or `1d 12h`.\n",
        *_sections(schema, schema["$defs"], ""),
    ]
    return "\n".join(parts)


def _sections(schema: dict[str, Any], defs: dict[str, Any], path: str) -> Iterator[str]:
    required = schema.get("required", ())
    rows = ["| Key | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    below: list[tuple[str, dict[str, Any]]] = []
    for key, field in schema["properties"].items():
        inner = [defs[name] for name in _references(field)]
        below += [(f"{path}{key}", section) for section in inner]
        default = "required" if key in required else _default(field, inner)
        # A description that repeats its section's is left out of the schema.
        meaning = field.get("description") or "".join(section.get("description", "") for section in inner)
        rows.append(f"| `{key}` | {_type(field)} | {default} | {_cell(meaning)} |")
    yield "\n".join(rows) + "\n"
    for name, section in below:
        yield f"{'#' * (2 + name.count('.'))} `{name}`\n"
        yield _prose(section.get("description", ""))
        yield from _sections(section, defs, f"{name}.")


def _references(field: dict[str, Any]) -> Iterator[str]:
    """The sections that a field is made of, however deep."""
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2]
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for each in field.get(key, ()):
            yield from _references(each)
    for key in ("items", "additionalProperties"):
        if isinstance(field.get(key), dict):
            yield from _references(field[key])


def _type(field: dict[str, Any]) -> str:
    choices = field.get("anyOf") or field.get("oneOf")
    if choices:
        return " or ".join(_type(each) for each in choices)
    if "$ref" in field:
        return "section"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kind = str(field.get("type", "anything"))
    if kind == "array":
        return f"list of {_type(field['items'])}" if "items" in field else "list"
    if kind == "object":
        values = field.get("additionalProperties")
        return f"map of name to {_type(values)}" if isinstance(values, dict) else "map"
    bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
    examples = [f"`{example}`" for example in field.get("examples", ())]
    return ", ".join([kind, *bounds, *(["such as " + " or ".join(examples)] if examples else [])])


def _default(field: dict[str, Any], inner: list[dict[str, Any]]) -> str:
    value = field.get("default")
    if value is None or value in ("", [], {}) or (inner and isinstance(value, dict)):
        return ""
    if isinstance(value, list):
        return ", ".join(f"`{each}`" for each in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def operators() -> str:
    """The page of operators and sensors: what each does, and every argument."""
    with tempfile.TemporaryDirectory() as home:
        # Airflow writes its configuration where it is first imported.
        os.environ.setdefault("AIRFLOW_HOME", home)
        base = import_module("airflow_mlops.operators.base").StageOperator
        rooms = [import_module(f"airflow_mlops.{room}") for room in ("operators", "sensors")]
        parts = [MADE, "# Operators and sensors\n", "## Arguments of every stage operator\n", _described(base)]
        for room in rooms:
            parts += [f"## {room.__name__}\n", _prose(inspect.getdoc(room) or ""), *_members(room)]
    return "\n".join(parts)


def _members(room: ModuleType) -> Iterator[str]:
    for name in room.__all__:
        member = getattr(room, name)
        if not callable(member):
            continue
        title = name if inspect.isclass(member) else f"{name}{inspect.signature(member)}".replace("'", "")
        yield f"### `{title}`\n"
        yield _described(member)


def _described(member: Callable[..., Any]) -> str:
    """A docstring, its ``:param`` fields as a table with type and default from the signature."""
    text = inspect.getdoc(member) or ""
    prose, *fields = re.split(r"^:(?=param |raises |returns?:)", text, flags=re.MULTILINE)
    function: Any = vars(member).get("__init__", member) if inspect.isclass(member) else member
    signature = inspect.signature(function)
    rows, notes = [], []
    for field in fields:
        head, _, meaning = field.partition(":")
        word, _, name = head.partition(" ")
        if word != "param":
            notes.append(f"{word.capitalize()} {f'`{name}`: ' if name else ''}{_cell(meaning)}\n")
            continue
        parameter = signature.parameters.get(name)
        rows.append(f"| `{name}` | {_annotation(parameter)} | {_argument_default(parameter)} | {_cell(meaning)} |")
    table = ["| Argument | Type | Default | Meaning |", "| --- | --- | --- | --- |", *rows] if rows else []
    return "\n".join([_prose(prose), *([*table, ""] if table else []), *notes])


def _annotation(parameter: inspect.Parameter | None) -> str:
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return ""
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return f"`{text}`".replace("|", "\\|")


def _argument_default(parameter: inspect.Parameter | None) -> str:
    if parameter is None or parameter.default is None:
        return ""
    if parameter.default is inspect.Parameter.empty:
        return "required"
    value = parameter.default
    return f"`{format_duration(value)}`" if isinstance(value, timedelta) else f"`{value!r}`"


def _markdown(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text)


def _prose(text: str) -> str:
    return f"{_markdown(text).strip()}\n"


def _cell(text: str) -> str:
    return " ".join(_markdown(text).split()).replace("|", "\\|")


def commands() -> str:
    """The page of the command line: every command and every argument."""
    parser = parser_of_commands()
    parts = [MADE, "# The command line\n", _prose(parser.description or ""), *_commands(parser, parser.prog)]
    parts.append(
        "The exit code is 0 when it is done (a rejected model too), 1 when the answer is no or the work failed, 2 when "
        "the command line is wrong.\n"
    )
    return "\n".join(parts)


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            for word, below in action.choices.items():
                yield f"{'#' * (name.count(' ') + 2)} `{name} {word}`\n"
                yield _prose(f"{helps[word][:1].upper()}{helps[word][1:]}.")
                yield from _commands(below, f"{name} {word}")
        elif not isinstance(action, (argparse._HelpAction, argparse._VersionAction)):
            value = f" {action.metavar}" if action.metavar and action.option_strings else ""
            written = [f"`{option}{value}`" for option in action.option_strings] or [f"`{action.metavar}`"]
            times = " (one or more)" if action.nargs == "+" else ""
            meaning = (action.help or "").replace("%(default)s", str(action.default))
            rows.append(f"| {', '.join(written)}{times} | {_cell(meaning)} |")
    if rows:
        yield "\n".join(["| Argument | Meaning |", "| --- | --- |", *rows]) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": commands,
    "declaration.md": declaration,
    "operators.md": operators,
    "schema.md": data_schema,
}


def main() -> int:
    """Write the pages, or compare them with those that are there."""
    parser = argparse.ArgumentParser(description="Make the pages of docs/reference/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        page, text = REFERENCE / name, make()
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
    if stale and check:
        print(f"out of date: {', '.join(stale)}; run: make docs", file=sys.stderr)
        return 1
    print(f"{len(PAGES)} pages, {len(stale)} {'changed' if stale else 'to change'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
