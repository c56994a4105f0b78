"""YAML to `Pipeline`, with the line of every mistake and all mistakes at once."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.base import SEVERAL
from airflow_mlops.spec.environment import ENVIRONMENTS, VARIABLE, in_environment
from airflow_mlops.spec.fleet import FleetMistake, folded, members
from airflow_mlops.spec.pipeline import Pipeline

_BaseLoader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Path_ = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

_ADDRESSES = {"^https?://": "http://HOST:PORT or https://HOST", "^gs://": "gs://BUCKET/FOLDER"}
_MOST_VALUES = 100_000
STAGE_KEYS = {"data", "prepare", "tune", "train", "evaluate", "validate_model", "monitor", "retrain", "predict"}


class _Loader(_BaseLoader):  # type: ignore[misc]
    """Safe YAML 1.1, with dates left as text and ``1e-3`` read as the number it is."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _BaseLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Quotes all that `_Loader` would read as something else than the same text."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Line breaks of YAML 1.1 that are kept in no other style.
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)

for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def to_yaml(value: Any, **style: Any) -> str:
    """Write plain values so that the same values are read back."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
    return text


class Document(NamedTuple):
    """One YAML document as plain values, with the line on which each of them stands."""

    value: Any
    lines: dict[Path_, int]
    file: str
    problems: tuple[str, ...] = ()

    def line(self, path: Path_) -> int:
        """The line of a value, or of the closest thing around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1


class Declaration(NamedTuple):
    """A pipeline, the folder its relative paths start from, and the document it was read from."""

    pipeline: Pipeline
    base: str
    document: Document

    def problem(self, path: Path_, what: str, **parts: str | None) -> str:
        """Write one problem of this declaration in the product's one form."""
        return describe(self.document, self.pipeline.name, path, what, **parts)


def describe(
    document: Document, name: str | None, path: Path_, what: str, *, allowed: str | None = None, fix: str | None = None
) -> str:
    """Write ``file:line: pipeline 'name', stage 'stage': what; allowed: ...; try: ...``."""
    where = f"{document.file}:{document.line(path)}: "
    if name:
        where += f"pipeline {name!r}"
        stage = path[0] if path and path[0] in STAGE_KEYS else None
        where += f", stage {stage!r}: " if stage else ": "
    return where + what + (f"; allowed: {allowed}" if allowed else "") + (f"; try: {fix}" if fix else "")


def read_documents(file: str | Path) -> list[Document]:
    """Read a YAML file's documents.

    Raises:
        DeclarationError: when the file cannot be read or is not YAML.
    """
    name = str(file)
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise DeclarationError([f"{name}: cannot be read: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        raise DeclarationError([f"{name}: is not UTF-8 text; try: save it as UTF-8"]) from error
    try:
        loader = _Loader(text)
        try:
            documents = []
            while loader.check_node():
                documents.append(_document(loader, loader.get_node(), name))
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise DeclarationError([f"{name}:{line}: not valid YAML: {what}"]) from error
    except yaml.reader.ReaderError as error:
        what = f"the character {chr(error.character)!r} is not allowed"
        raise DeclarationError([f"{name}: not valid YAML: {what}"]) from error
    except RecursionError as error:
        raise DeclarationError([f"{name}: not valid YAML: it is nested too deeply"]) from error
    return [document for document in documents if document.value is not None]


def _construct(loader: Any, node: yaml.Node) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except (ValueError, KeyError) as error:
        kind = node.tag.rsplit(":", 1)[-1]
        raise yaml.MarkedYAMLError(problem=f"{node.value!r} is no {kind}", problem_mark=node.start_mark) from error


def _document(loader: Any, root: yaml.Node, file: str) -> Document:
    lines: dict[Path_, int] = {}
    problems: list[str] = []
    merged: dict[int, set[int]] = {}

    def own_keys(node: yaml.MappingNode) -> set[int]:
        """The keys that a mapping holds itself; those merged into it by `<<` are meant to be overridden."""
        if id(node) not in merged:
            own = {id(key) for key, _ in node.value}
            loader.flatten_mapping(node)
            merged[id(node)] = own
        return merged[id(node)]

    def walk(node: yaml.Node, path: Path_, around: tuple[int, ...]) -> Any:
        line = node.start_mark.line + 1
        lines.setdefault(path, line)
        if len(lines) > _MOST_VALUES:
            what = f"more than {_MOST_VALUES} values, counting each alias as what it stands for"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark)
        if id(node) in around:
            problems.append(f"{file}:{line}: an alias refers to what it stands in; try: write the value out")
            return None
        around = (*around, id(node))
        if isinstance(node, yaml.MappingNode):
            own = own_keys(node)
            seen: set[str] = set()
            mapping: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key_line = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    problems.append(f"{file}:{key_line}: a key is a list or a mapping; allowed: text")
                    continue
                key = _construct(loader, key_node)
                if not isinstance(key, str):
                    problems.append(
                        f"{file}:{key_line}: the key {key_node.value!r} is read as {type(key).__name__} {key!r}; "
                        f"allowed: text; try: quote it, '{key_node.value}'"
                    )
                    continue
                if id(key_node) in own:
                    if key in seen:
                        problems.append(f"{file}:{key_line}: the key {key!r} stands twice; try: keep one")
                    seen.add(key)
                lines[(*path, key)] = key_line
                mapping[key] = walk(value_node, (*path, key), around)
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [walk(item, (*path, index), around) for index, item in enumerate(node.value)]
        return _construct(loader, node)

    value = walk(root, (), ())
    return Document(value, lines, file, tuple(problems))


def validate(model: type[M], document: Document) -> M:
    """Make a model of a document.

    Raises:
        DeclarationError: with one line for every mistake.
    """
    if not isinstance(document.value, dict):
        raise DeclarationError(
            [
                *document.problems,
                f"{document.file}:{document.line(())}: holds {type(document.value).__name__}; "
                f"allowed: a mapping of {', '.join(_keys(model))}",
            ]
        )
    try:
        valid = model.model_validate(document.value, context={"lines": document.lines})
    except ValidationError as error:
        name = document.value.get("name") if model is Pipeline else None
        raise DeclarationError([*document.problems, *_problems(model, document, name, error)]) from error
    if document.problems:
        raise DeclarationError(list(document.problems))
    return valid


def document_here(value: Any) -> Document:
    """A declaration made in Python, as a document all of whose values stand on the line that made it."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("airflow_mlops", "pydantic"):
        frame = frame.f_back
    lines: dict[Path_, int] = {}

    def walk(inner: Any, path: Path_) -> None:
        lines[path] = frame.f_lineno
        each = (
            inner.items()
            if isinstance(inner, Mapping)
            else enumerate(inner)
            if isinstance(inner, (list, tuple))
            else ()
        )
        for key, below in each:
            walk(below, (*path, key))

    walk(value, ())
    return Document(value, lines, frame.f_code.co_filename)


def declared_wrongly(model: type[BaseModel], value: Any, error: ValidationError) -> DeclarationError:
    """The mistakes of a declaration made in Python, each with file and line."""
    name = value.get("name") if isinstance(value, Mapping) else None
    return DeclarationError(list(_problems(model, document_here(value), name, error)))


def _problems(model: type[BaseModel], document: Document, name: Any, error: ValidationError) -> Iterator[str]:
    seen = set()
    for item in error.errors(include_url=False):
        if item["type"] == SEVERAL:
            for inner, text in item["ctx"]["problems"]:
                yield describe(document, name, _known_path(document, (*item["loc"], *inner)), text)
            continue
        path = _known_path(document, item["loc"])
        allowed = fix = None
        what = item["msg"].removeprefix("Value error, ")
        context = item.get("ctx") or {}
        if item["type"] == "extra_forbidden":
            keys = _keys(_model_at(model, item["loc"][:-1]))
            close = difflib.get_close_matches(str(item["loc"][-1]), keys, n=1)
            what = f"unknown key {item['loc'][-1]!r}"
            allowed, fix = ", ".join(keys), close[0] if close else None
        elif item["type"] == "missing":
            what = f"{_dotted((*path, item['loc'][-1]))!r} is missing"
        elif item["type"] == "literal_error":
            what = f"{_dotted(path)} is {item['input']!r}"
            allowed = str(context.get("expected", ""))
            options = re.findall(r"'([^']+)'", allowed)
            close = difflib.get_close_matches(str(item["input"]), options, n=1)
            fix = close[0] if close else None
        elif item["type"] == "string_pattern_mismatch":
            what = f"{_dotted(path)} is {item['input']!r}, which does not have the right form"
            allowed = _form_of(context.get("pattern", ""))
        elif item["type"] == "too_short":
            what = f"{_dotted(path)} is {item['input']!r}"
            allowed = f"{context['min_length']} or more"
        elif item["type"] != "value_error" and path:
            what = f"{_dotted(path)} is {item['input']!r}: {what[0].lower()}{what[1:]}"
        elif path and (len(path) > 2 or "is not a duration" in what or "is no schedule" in what):
            # Deep inside a section, several mistakes may stand in one line.
            what = f"{_dotted(path)}: {what}"
        line = describe(document, name if isinstance(name, str) else None, path, what, allowed=allowed, fix=fix)
        if line not in seen:
            seen.add(line)
            yield line


def _form_of(pattern: str) -> str:
    for scheme, form in _ADDRESSES.items():
        if pattern.startswith(scheme):
            return form
    if ":[A-Za-z_]" in pattern or "[.:]" in pattern:
        return "package.module:function" if "[.:]" not in pattern else "package.module.Class"
    return f"text that matches {pattern}"


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))


def _known_path(document: Document, location: tuple[str | int, ...]) -> Path_:
    """Drop what pydantic adds to a path to name a member of a union."""
    path: Path_ = ()
    for part in location:
        if (*path, part) in document.lines:
            path = (*path, part)
    return path


def _model_at(model: type[BaseModel], location: tuple[str | int, ...]) -> type[BaseModel]:
    members: dict[str | int, type[BaseModel]] = {}
    for part in location:
        # The tag of a union's member is its name.
        model = members.get(part, model)
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                members = {each.__name__: each for each in _models_in(field.annotation)}
                model = next(iter(members.values()), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def declared(document: Document, environment: str | None) -> tuple[Pipeline, Document]:
    """The pipeline of a document as it is in an environment, and the document that says so.

    Raises:
        DeclarationError: with one line for every mistake, also when it declares environments and none of that name.
    """
    pipeline = validate(Pipeline, document)
    if not environment or not pipeline.environments:
        return pipeline, document
    if environment not in pipeline.environments:
        what = f"there is no environment {environment!r}"
        allowed = ", ".join(pipeline.environments)
        raise DeclarationError([describe(document, pipeline.name, (ENVIRONMENTS,), what, allowed=allowed)])
    document = in_environment(document, environment)
    return validate(Pipeline, document), document


def load_declarations(file: str | Path, environment: str | None = None) -> list[Declaration]:
    """Read every pipeline of a YAML file; several stand in one file as documents between ``---`` lines.

    A document with ``for_each`` makes a pipeline for every member of its fleet.

    Args:
        file: the file.
        environment: which of the declared ``environments`` they are to be in. Default: that of Airflow's variable
            ``AIRFLOW__AIRFLOW_MLOPS__ENVIRONMENT``; empty: none, the declaration as it stands.

    Raises:
        DeclarationError: with one line for every mistake in the file.
    """
    environment = os.environ.get(VARIABLE) if environment is None else environment
    declarations, problems = [], []
    base = str(Path(file).absolute().parent)
    documents = read_documents(file)
    if not documents:
        raise DeclarationError([f"{file}: is empty; allowed: a pipeline, which starts with 'name:'"])
    for document in documents:
        try:
            fleet = members(document)
        except FleetMistake as wrong:
            problems.append(describe(document, None, wrong.path, wrong.what, allowed=wrong.allowed, fix=wrong.fix))
            continue
        found = []
        for member in fleet:
            try:
                pipeline, resolved = declared(member, environment)
                declarations.append(Declaration(pipeline, base, resolved))
            except DeclarationError as error:
                name = member.value.get("name") if isinstance(member.value, dict) else None
                found.append((str(name), error.problems))
        problems += folded(found)
    if problems:
        raise DeclarationError(problems)
    return declarations


def load_pipeline(file: str | Path) -> Pipeline:
    """Read a file that holds one pipeline.

    Raises:
        DeclarationError: with one line for every mistake, also when the file holds several pipelines.
    """
    declarations = load_declarations(file)
    if len(declarations) > 1:
        names = ", ".join(declaration.pipeline.name for declaration in declarations)
        raise DeclarationError([f"{file}: holds {len(declarations)} pipelines: {names}; try: load_declarations(file)"])
    return declarations[0].pipeline


def dump_pipeline(pipeline: Pipeline) -> str:
    """Write a pipeline as YAML that `load_pipeline` reads back to an equal object; defaults are left out."""
    body: Mapping[str, Any] = pipeline.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    head = {"apiVersion": pipeline.api_version, "name": pipeline.name}
    return to_yaml({**head, **body})
