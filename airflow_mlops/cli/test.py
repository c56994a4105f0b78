"""``airflow-mlops test``: what a pipeline promises, checked on a sample, in a store and a registry of its own."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from airflow_mlops.call.code import code_scope, load, unpack
from airflow_mlops.call.dispatch import run as run_call
from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, RegistryRef
from airflow_mlops.cli.lint import lint_one
from airflow_mlops.cli.load_light import load_light
from airflow_mlops.cli.run import choose_window, code_of
from airflow_mlops.errors import (
    CodeError,
    DataError,
    DataNotFoundError,
    DeclarationError,
    MlopsError,
    SchemaError,
)
from airflow_mlops.spec import Declaration, load_declarations, train_plan
from airflow_mlops.spec.base import parse_size
from airflow_mlops.spec.data_schema import DataSchema
from airflow_mlops.spec.stages import Extract, StageParams

if TYPE_CHECKING:
    from airflow_mlops.stages.model_io import Model

Path_ = tuple[str | int, ...]
_PLACED = re.compile(r"(.+?):(\d+): (.*)")
"""A problem of a declaration with its file and line."""


class Check(NamedTuple):
    """One promise, and whether it is kept."""

    name: str
    """What is promised."""
    status: str
    """``ok``, ``failed`` or ``skipped``."""
    told: str
    """What was found; of one that failed: why."""
    seconds: float
    file: str
    line: int
    """Where it is declared."""


class UnderTest:
    """A pipeline under test: its sample, and the model that is trained on it, each made once when it is asked for.

    Args:
        declaration: the pipeline.
        rows: how many rows of the sample are used. Default: ``tests.rows``.
    """

    def __init__(self, declaration: Declaration, rows: int | None = None) -> None:
        self.declaration, self.pipeline = declaration, declaration.pipeline
        self.rows = declaration.pipeline.tests.rows if rows is None else rows
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="airflow-mlops-test-")))
        self.folder, self.store = folder, Store(str(folder / "store"))
        name = self.pipeline.name
        self._registry = RegistryRef(uri=f"sqlite:///{folder}/mlflow.db", model=name, experiment=name)
        self._plan = {node.stage: node for node in train_plan(self.pipeline)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model, and remove what was made."""
        self._stack.close()

    @cached_property
    def _code(self) -> ArtifactRef | None:
        return code_of(self.declaration, self.store)

    def code(self) -> contextlib.AbstractContextManager[Path | None]:
        """A scope in which the pipeline's own code is imported, as its stages import it."""
        return code_scope(unpack(self._code, self.store) if self._code else None)

    def _run(self, params: StageParams, **inputs: ArtifactRef) -> Outcome:
        params = params.resolved(self.declaration.base)
        return run_call(
            Call(
                pipeline=self.pipeline.name,
                stage=params.stage,
                run="test",
                window=self._window if isinstance(params, Extract) else None,
                inputs=inputs,
                params=params.model_dump(mode="json", by_alias=True),
                code=self._code if params.callables() else None,
                store=self.store.root,
                registry=self._registry,
                cache=False,
            )
        )

    @cached_property
    def _window(self) -> Any:
        return None if self.pipeline.tests.sample else choose_window(self.declaration, None)

    def _read(self, key: Literal["sample", "golden"]) -> ArtifactRef:
        extract: Any = self._plan["extract"].params
        file = getattr(self.pipeline.tests, key)
        if file is None:
            return self._run(extract.model_copy(update={"last": 1})).outputs["data"]
        # A file that stands for itself: no windows, and rows of any time.
        plain = {"source": file, "format": None, "time": None, "last": 1}
        try:
            return self._run(extract.model_copy(update=plain)).outputs["data"]
        except DataNotFoundError as error:
            raise DataNotFoundError(
                error.what, where=f"tests.{key}", fix=f"correct tests.{key}, or put its rows there"
            ) from error

    @cached_property
    def whole(self) -> ArtifactRef:
        """All rows of the sample."""
        return self._read("sample")

    @cached_property
    def sample(self) -> ArtifactRef:
        """The rows of the sample that are used."""
        tables, promises = stage_module("tables"), stage_module("promises")
        ref: ArtifactRef = tables.write_table(promises.thinned(self.table(self.whole), self.rows), self.store)
        return ref

    @cached_property
    def frame(self) -> Any:
        """The rows of the sample that are used, as a frame."""
        return stage_module("tables").to_frame(self.table(self.sample))

    def features(self, rows: Any = None) -> Any:
        """What the feature function makes of raw rows. Default: of the sample without its target.

        Raises:
            CodeError: when there is none, it raises, or it gives no frame.
        """
        path = self.pipeline.prepare.features
        if path is None:
            raise CodeError(f"the pipeline {self.pipeline.name!r} has no prepare.features")
        rows = self.frame.drop(columns=self.pipeline.data.target) if rows is None else rows
        with self.code():
            return stage_module("prepare").call_features(load(path), path, rows)

    @cached_property
    def split(self) -> dict[str, ArtifactRef]:
        """The sample's rows to train on (``train``) and those held out (``test``)."""
        outputs: dict[str, ArtifactRef] = self._run(self._plan["prepare"].params, data=self.sample).outputs
        return outputs

    @cached_property
    def model(self) -> Model:
        """The model that was trained on the sample, logged, and loaded as a server loads it."""
        from airflow_mlops.registry.mlflow_api import mlflow_api

        model_io = stage_module("model_io")
        trained = self._run(self._plan["train"].params, train=self.split["train"], data=self.sample)
        api, run_id = mlflow_api(self._registry.uri), str(trained.info["run_id"])
        self.golden = api.fetch(run_id, stage_module("golden").GOLDEN, self.folder)
        facts = model_io.read_facts(api, run_id)
        model: Model = self._stack.enter_context(model_io.loaded(facts, self._made("model"), api))
        return model

    def _made(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def table(self, ref: ArtifactRef) -> Any:
        """The rows of an artifact, as an Arrow table."""
        return stage_module("tables").read_table(ref, self.store)

    @cached_property
    def raw(self) -> Any:
        """The sample as the frame of raw columns that the model takes."""
        return stage_module("model_io").raw_rows(self.table(self.sample), self.model.facts)

    @cached_property
    def scores(self) -> Any:
        """What the model says of the golden rows, else of those held out."""
        ref = self._read("golden") if self.pipeline.tests.golden else self.split["test"]
        return stage_module("promises").scores_of(self.model, self.table(ref))

    def checks(self) -> Iterator[Check]:
        """Check everything; what needs what has failed is skipped."""
        kept: set[str] = set()
        for name, path, needs, check in self._promises():
            line = self.declaration.document.line(path)
            place = (self.declaration.document.file, line)
            if missing := [each for each in needs if each not in kept]:
                yield Check(name, "skipped", f"after {', '.join(missing)} has failed", 0.0, *place)
                continue
            started = time.perf_counter()
            status = "ok"
            try:
                told = check() or ""
            except MlopsError as error:
                status, told = "failed", "\n".join(getattr(error, "problems", ())) or str(error)
            except (Exception, SystemExit) as error:
                # What a library raises over code that nobody has tried yet is a finding, and no end of the test.
                status, told = "failed", f"{type(error).__name__}: {error}"
            if status == "ok":
                kept.add(name)
            yield Check(name, status, told, time.perf_counter() - started, *place)

    def _promises(self) -> Iterator[tuple[str, Path_, tuple[str, ...], Callable[[], str | None]]]:
        """Every check: its name, where it is declared, what must have been kept before, and what to do."""
        tests, prepare, deploy = self.pipeline.tests, self.pipeline.prepare, self.pipeline.deploy
        promises = stage_module("promises")
        yield "lint", (), (), self._lint
        yield "sample", ("tests", "sample"), ("lint",), self._sample
        yield "schema", ("data", "schema"), ("sample",), self._schema
        if path := prepare.features:
            yield "features", ("prepare", "features"), ("sample",), lambda: self._contract(path)
        if make := prepare.preprocess:
            yield "preprocess", ("prepare", "preprocess"), ("lint",), lambda: self._preprocess(make)
        yield "train", ("train",), ("sample",), self._train
        trained = ("train",)
        yield "serving", ("prepare",), trained, lambda: promises.serves_as_trained(self.model, self.golden, self.raw)
        if tests.min or tests.max:
            limits = ("tests", "min" if tests.min else "max")
            yield "quality", limits, trained, lambda: promises.reaches(self.scores, tests.min, tests.max)
        if tests.better_than_constant:
            yield "constant", ("tests",), trained, lambda: promises.beats_constant(self.scores, self.model)
        for column, way in tests.monotone.items():
            yield f"monotone {column}", ("tests", "monotone", column), trained, partial(self._monotone, column, way)
        for index, column in enumerate(tests.invariant):
            yield f"invariant {column}", ("tests", "invariant", index), trained, partial(self._invariant, column)
        if size := tests.max_size or (deploy and deploy.max_size):
            yield "size", ("tests", "max_size"), trained, lambda: promises.fits_into(self.model, parse_size(size))
        if most := tests.max_latency_ms or (deploy and deploy.max_latency_ms):
            yield (
                "latency",
                ("tests", "max_latency_ms"),
                trained,
                lambda: promises.answers_within(self.model, self.raw, most),
            )
        yield "dags", (), ("lint",), lambda: load_light(self.declaration)

    def _lint(self) -> None:
        try:
            # Its own code, whatever package of the same name this process has imported before.
            scope = self.code()
        except CodeError:  # lint says so, with the line
            scope = contextlib.nullcontext()
        with scope:
            problems = lint_one(self.declaration)
        if problems:
            raise DeclarationError(problems)

    def _sample(self) -> str:
        rows, used = self.table(self.whole).num_rows, self.table(self.sample).num_rows
        if self.pipeline.data.target not in self.table(self.sample).column_names:
            raise DataError(f"the sample has no column {self.pipeline.data.target!r}, the target")
        return f"{used} of {rows} rows"

    def _schema(self) -> str:
        params: Any = self._plan["validate_data"].params.resolved(self.declaration.base)
        if isinstance(params.data_schema, DataSchema):
            # What is about a whole window, or about a champion, a sample cannot tell.
            whole = {"min_rows": 1, "max_rows": None, "freshness": None, "volume": None, "skew": None}
            params = params.model_copy(update={"data_schema": params.data_schema.model_copy(update=whole)})
        try:
            outcome = self._run(params, data=self.whole)
        except SchemaError as error:
            if self.store.path not in str(error.fix):
                raise
            # It names the report, which goes with the store.
            fix = "mend the sample, or review the schema (airflow-mlops schema infer)"
            raise SchemaError(error.what, where=error.where, fix=fix) from error
        return "; ".join(outcome.verdict.reasons[:3])

    def _contract(self, path: str) -> None:
        sample = self.table(self.sample)
        with self.code():
            stage_module("promises").keeps_feature_contract(path, sample, self.pipeline.data.target)

    def _preprocess(self, path: str) -> None:
        with self.code():
            stage_module("promises").gives_unfitted(path)

    def _monotone(self, column: str, direction: str) -> None:
        stage_module("promises").is_monotone(self.model, self.raw, column, direction)

    def _invariant(self, column: str) -> Any:
        return stage_module("promises").is_invariant(self.model, self.raw, self.table(self.sample), column)

    def _train(self) -> str:
        return f"{type(self.model.estimator.steps[-1][1]).__name__}, {self.model.facts.task}"


def test(options: argparse.Namespace) -> int:
    """Run the command; see ``airflow-mlops test --help``."""
    # A sample is small: threads would wait for each other, and for whoever else has the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found: dict[str, list[Check]] = {}
    for file in options.files:
        try:
            declarations = load_declarations(file)
        except DeclarationError as error:
            found[file] = [Check("lint", "failed", "\n".join(error.problems), 0.0, file, 1)]
            _print(file, found[file][0], options.github)
            continue
        for declaration in declarations:
            name = declaration.pipeline.name
            print(f"{name}: {file}", flush=True)
            found[name] = []
            with UnderTest(declaration, options.sample) as tested:
                for check in tested.checks():
                    found[name].append(check)
                    _print(name, check, options.github)
    if options.junit:
        options.junit.write_bytes(junit(found))
    checks = [check for each in found.values() for check in each]
    failed = sum(check.status == "failed" for check in checks)
    print(f"{len(checks)} checks, {failed} failed ({sum(check.seconds for check in checks):.1f} s)")
    return 1 if failed else 0


def _print(name: str, check: Check, github: bool) -> None:
    first, *more = check.told.splitlines() or [""]
    shown = "FAILED" if check.status == "failed" else check.status
    print(f"  {check.name:<20} {shown:<8} {check.seconds:5.1f} s  {first}".rstrip(), flush=True)
    for line in more:
        print(f"  {'':<20} {line}")
    if github and check.status == "failed":
        for line in github_lines(name, check):
            print(line)


def github_lines(name: str, check: Check) -> Iterator[str]:
    """A check that failed, in the form that GitHub shows beside the line; each problem of a declaration by itself."""
    placed = [_PLACED.fullmatch(line) for line in check.told.splitlines()]
    if placed and all(placed):
        found = [(each[1], each[2], each[3]) for each in placed if each]
    else:
        found = [(check.file, str(check.line), check.told)]
    for file, line, told in found:
        title = _escaped(f"{name}: {check.name}", ",:")
        yield f"::error file={_escaped(os.path.relpath(file), ',:')},line={line},title={title}::{_escaped(told)}"


def _escaped(text: str, more: str = "") -> str:
    for mark in ("%", "\r", "\n", *more):
        text = text.replace(mark, f"%{ord(mark):02X}")
    return text


def junit(found: dict[str, list[Check]]) -> bytes:
    """Checks by pipeline, in the XML form of JUnit."""
    from xml.etree import ElementTree as xml

    root = xml.Element("testsuites")
    for name, checks in found.items():
        counts = {kind: sum(check.status == kind for check in checks) for kind in ("failed", "skipped")}
        suite = xml.SubElement(
            root,
            "testsuite",
            name=name,
            tests=str(len(checks)),
            failures=str(counts["failed"]),
            skipped=str(counts["skipped"]),
            errors="0",
            time=f"{sum(check.seconds for check in checks):.3f}",
        )
        for check in checks:
            case = xml.SubElement(
                suite,
                "testcase",
                classname=f"airflow_mlops.{name}",
                name=check.name,
                time=f"{check.seconds:.3f}",
                file=check.file,
                line=str(check.line),
            )
            told = "".join(each if each.isprintable() or each == "\n" else " " for each in check.told)
            if check.status == "failed":
                xml.SubElement(case, "failure", message=told.splitlines()[0] if told else "").text = told
            elif check.status == "skipped":
                xml.SubElement(case, "skipped", message=told)
            elif told:
                xml.SubElement(case, "system-out").text = told
    xml.indent(root)
    content: bytes = xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return content
