"""Lint: what the declaration says, what only its wiring shows, and whether the code it names is there."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points

from airflow_mlops.call.code import load
from airflow_mlops.errors import CodeError, DeclarationError
from airflow_mlops.spec.data_schema import read_schema
from airflow_mlops.spec.fleet import folded
from airflow_mlops.spec.load import Declaration, describe, load_declarations
from airflow_mlops.spec.schema_wiring import FILL_IN, check_columns
from airflow_mlops.spec.stages import resolve
from airflow_mlops.spec.wiring import check_all, problems_of


def lint(files: list[str]) -> list[str]:
    """Every problem of the pipelines in these files, one line each, in each environment that they declare."""
    problems = _lint(files, "")
    for environment in _environments(files):
        declaring = [file for file in files if environment in _environments([file])]
        problems += [
            f"{each} (environment {environment!r})" for each in _lint(declaring, environment) if each not in problems
        ]
    return problems


def _environments(files: list[str]) -> list[str]:
    """The environments that pipelines of these files declare, in their order."""
    found: dict[str, None] = {}
    for file in files:
        with suppress(DeclarationError):
            for declaration in load_declarations(file, ""):
                found |= dict.fromkeys(declaration.pipeline.environments)
    return list(found)


def _lint(files: list[str], environment: str) -> list[str]:
    declarations: list[Declaration] = []
    problems: list[str] = []
    for file in files:
        try:
            declarations += load_declarations(file, environment)
        except DeclarationError as error:
            problems += error.problems
    found = [(declaration.pipeline.name, lint_one(declaration)) for declaration in declarations]
    return [*problems, *folded(found), *check_all(declarations)]


def lint_one(declaration: Declaration) -> list[str]:
    """Every problem of one pipeline by itself, one line each. What it names is imported."""
    family, wrong = _check_code(declaration)
    rest = (*_check_schema(declaration), *_check_files(declaration), *_check_names(declaration))
    return [*problems_of(declaration, family), *wrong, *rest]


@contextmanager
def _beside(base: str) -> Iterator[None]:
    """Find packages beside the declaration first, as a run does."""
    path = list(sys.path)
    sys.path[:0] = [base, resolve(base, "..")]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path


def _check_code(declaration: Declaration) -> tuple[str | None, list[str]]:
    """Import what the declaration names; return the estimator's family and the problems."""
    pipeline = declaration.pipeline
    named = {
        ("prepare", "features"): pipeline.prepare.features,
        ("prepare", "preprocess"): pipeline.prepare.preprocess,
        ("train", "function"): pipeline.train.function,
        ("train", "estimator"): pipeline.train.estimator,
    }
    family, problems = None, []
    with _beside(declaration.base):
        for path, name in named.items():
            if name is None:
                continue
            if name == f"{FILL_IN}.{FILL_IN}":
                what = "the model's class is not named yet: airflow-mlops adopt has left it open"
                fix = f"write it in place of {name}, such as sklearn.linear_model.LogisticRegression"
                problems.append(declaration.problem(path, what, fix=fix))
                continue
            try:
                found = load(name)
            except CodeError as error:
                if pipeline.runtime and isinstance(error.__cause__, ImportError):
                    continue  # it may well be there where it runs
                problems.append(declaration.problem(path, error.what, allowed=error.allowed, fix=error.fix))
                continue
            if path[-1] == "estimator":
                family, wrong = _family(found, name)
                known = getattr(found, "_get_param_names", None)
                given = [("train", "params", each) for each in pipeline.train.params]
                given += [("tune", "space", each) for each in pipeline.tune.space] if pipeline.tune else []
                unknown = [each for each in given if known and not wrong and each[-1] not in known()]
                if wrong:
                    problems.append(declaration.problem(path, wrong, allowed="a class with fit and predict"))
                problems += [
                    declaration.problem(each, f"{name} has no parameter {each[-1]!r}", allowed=", ".join(known()))
                    for each in unknown
                    if known
                ]
            elif not callable(found):
                problems.append(declaration.problem(path, f"{name!r} is {type(found).__name__}", allowed="a function"))
    return family, problems


def _family(kind: object, name: str) -> tuple[str | None, str | None]:
    """Whether an estimator class classifies or regresses, or why it is none."""
    if not (isinstance(kind, type) and hasattr(kind, "fit") and hasattr(kind, "predict")):
        return None, f"{name!r} is no estimator class"
    mixins = {each.__name__ for each in kind.__mro__}
    if "ClassifierMixin" in mixins:
        return "classifier", None
    return ("regressor", None) if "RegressorMixin" in mixins else (None, None)


def _check_schema(declaration: Declaration) -> list[str]:
    """Hold the schema's file against itself, against the code that it names, and the declaration against it."""
    file = declaration.pipeline.data.schema_file
    if file is None:
        return []
    try:
        schema, document = read_schema(resolve(declaration.base, file))
    except DeclarationError as error:
        return [declaration.problem(("data", "schema"), problem) for problem in error.problems]
    problems = [
        declaration.problem(each.path, each.what, allowed=each.allowed, fix=each.fix)
        for each in check_columns(declaration.pipeline, schema)
    ]
    with _beside(declaration.base):
        for index, check in enumerate(schema.checks):
            if wrong := _check_function(check.function) if check.function else None:
                what, more = wrong
                told = describe(document, None, ("checks", index, "function"), what, **more)
                problems.append(declaration.problem(("data", "schema"), told))
    return problems


def _check_function(name: str) -> tuple[str, dict[str, str | None]] | None:
    """What is wrong with the function of a check, and what is allowed."""
    try:
        found = load(name)
    except CodeError as error:
        return error.what, {"allowed": error.allowed, "fix": error.fix}
    allowed = "a function that takes a frame and gives a boolean Series"
    if not callable(found):
        return f"{name!r} is {type(found).__name__}", {"allowed": allowed}
    try:
        signature = inspect.signature(found)
    except ValueError:  # some of those written in C have none
        return None
    try:
        signature.bind("the frame")
    except TypeError:
        return f"{name}{signature} cannot be called with a frame alone", {"allowed": allowed}
    return None


def _check_files(declaration: Declaration) -> list[str]:
    """Look for the files that the declaration names by their path; what lies at a URI is not asked for."""
    tests, runtime = declaration.pipeline.tests, declaration.pipeline.runtime
    named = {
        ("runtime", "requirements"): runtime.requirements if runtime else None,
        ("tests", "sample"): tests.sample,
        ("tests", "golden"): tests.golden,
    }
    found = {path: resolve(declaration.base, name) for path, name in named.items() if name and "://" not in name}
    return [
        declaration.problem(path, f"there is no file {file}", fix=f"correct {'.'.join(path)}, or put the file there")
        for path, file in found.items()
        if not os.path.isfile(file)
    ]


def _check_names(declaration: Declaration) -> list[str]:
    """What is chosen by name is installed here."""
    pipeline = declaration.pipeline
    named: dict[tuple[str, ...], tuple[str, str | None]] = {
        ("backend",): ("airflow_mlops.backends", pipeline.backend),
        ("deploy", "target"): ("airflow_mlops.deployments", pipeline.deploy.target if pipeline.deploy else None),
    }
    problems = []
    for path, (group, name) in named.items():
        known = {entry.name for entry in entry_points(group=group)}
        if name is not None and name not in known:
            told = f"no package that is installed here has the {path[-1]} {name!r}"
            problems.append(declaration.problem(path, told, allowed=", ".join(sorted(known))))
    return problems
