"""``airflow-mlops run``: the train plan over the same Calls, in this process, without so much as importing Airflow."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_mlops.backends import Backend, backend_of, carrier
from airflow_mlops.backends.subprocess import SubprocessBackend
from airflow_mlops.call.cache import INFO
from airflow_mlops.call.code import snapshot
from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.source import windows_of
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import SHELL, ArtifactRef, Call, Outcome, RegistryRef, digest_of
from airflow_mlops.cli import resume
from airflow_mlops.cli.carry import carry
from airflow_mlops.cli.lint import lint_one
from airflow_mlops.cli.where import choose_declaration, uri_of
from airflow_mlops.errors import CodeError, DataNotFoundError, DeclarationError, MlopsError, RegistryError
from airflow_mlops.registry import ModelRegistry
from airflow_mlops.registry.mlflow_api import mlflow_api
from airflow_mlops.registry.models import MODEL_DIGEST_TAG
from airflow_mlops.spec import Declaration, Node, dump_pipeline, train_plan
from airflow_mlops.spec.google import VERTEX, Google, out_of_reach
from airflow_mlops.spec.pipeline import Pipeline
from airflow_mlops.spec.plan import callables_of, carried_by
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.stages import resolve
from airflow_mlops.spec.window import Window, parse_key, window_before
from airflow_mlops.spec.wiring import problems_of

GATE = "validate_model"
Progress = Callable[[str, str, float, Outcome | None], None]
"""Told of each stage: its name, what became of it, the seconds it took, and its Outcome."""


def run(options: argparse.Namespace, state: Path) -> int:
    """Run the command; see ``airflow-mlops run --help``."""
    declaration = choose_declaration(options.file, options.pipeline)
    name = declaration.pipeline.name
    registry, store = registry_of(options, state, name), store_of(options, state, declaration.pipeline.google)
    with _aside(options):
        check(declaration, Store(store))
    identity = options.resume or f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
    if options.resume:
        window = resume.window_of(Store(store), name, options.resume, options.window)
    else:
        window = choose_window(declaration, options.window)
    say = _silent if options.json else _print_stage
    if not options.json:
        print(f"{name}: run {identity}, window {window.key if window else 'all rows'}")
    started = time.perf_counter()
    failure: MlopsError | None = None
    outcomes: dict[str, Outcome] = {}
    try:
        with _aside(options):
            registry_answers(registry, declaration.pipeline)
            run_plan(
                declaration,
                window=window,
                store=store,
                registry=registry,
                run=f"{SHELL}{identity}",
                progress=say,
                outcomes=outcomes,
                cache=declaration.pipeline.cache and not options.no_cache,
                promote=options.promote,
                approved_by=getpass.getuser() if options.approve else None,
                model=options.model,
            )
    except MlopsError as error:
        failure = error
        if options.verbose:
            raise
    # A run that has done nothing is nothing to go on with.
    again = _command_again(options, identity if outcomes else None, window)
    if options.json:
        summary = _summary(name, identity, window, outcomes, failure, again)
        print(json.dumps({**summary, "model": model_of(outcomes, registry, store)}, indent=1))
    elif failure is not None:
        how = "resume" if outcomes else "run it again"
        print(f"\n{type(failure).__name__}: {failure}\n\n{how} with:\n  {again}", file=sys.stderr)
    else:
        print(f"\n{_conclusion(name, outcomes)} ({time.perf_counter() - started:.1f} s)")
        if list(outcomes)[-1] == "approve" and not outcomes["approve"].verdict.passed:
            print(f"  approve of it with:\n  {again} --approve")
        _print_afterwards(declaration, options.file, model_of(outcomes, registry, store), registry)
    return 1 if failure else 0


def _aside(options: argparse.Namespace) -> contextlib.AbstractContextManager[object]:
    """With --json, standard output is the summary's alone; MLflow and the user's code may print."""
    return contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()


def check(declaration: Declaration, store: Store) -> None:
    """Lint a declaration before its first stage, what it names included.

    Importing that costs as much as a stage does, so it is done once for each content of code and declaration.

    Raises:
        DeclarationError: with one line for every mistake.
    """
    problems = problems_of(declaration)
    if problems:
        raise DeclarationError(problems)
    runtime = declaration.pipeline.runtime
    if runtime and (runtime.python or runtime.requirements):
        return  # what is right there may be wrong here: other libraries, another Python
    try:
        code = code_of(declaration, store)
    except CodeError as error:
        # The same with file and line, and with whatever else is wrong.
        raise DeclarationError(lint_one(declaration) or [str(error)]) from None
    record = f"{digest_of([code.digest if code else None, dump_pipeline(declaration.pipeline)])[7:39]}.json"
    if store.read_json("linted", record) is not None:
        return
    problems = lint_one(declaration)
    if problems:
        raise DeclarationError(problems)
    store.create_json({"pipeline": declaration.pipeline.name}, "linted", record)


def registry_answers(registry: RegistryRef, pipeline: Pipeline) -> None:
    """See that the registry's server is there, for jobs too, before anything is computed that would go to it.

    Raises:
        DeclarationError: when jobs cannot reach it.
        RegistryError: when it is not, or refuses.
    """
    jobs = any(
        node.params.needs_registry and carried_by(pipeline, node.params)[0] == VERTEX for node in train_plan(pipeline)
    )
    if jobs and (problem := out_of_reach(registry.uri)):
        raise DeclarationError([f"{pipeline.name}: {problem}"])
    if registry.uri.startswith(("http://", "https://")):
        mlflow_api(registry.uri).aliases(registry.model)


def run_plan(
    declaration: Declaration,
    *,
    window: Window | None,
    store: str,
    registry: RegistryRef,
    run: str,
    progress: Progress,
    outcomes: dict[str, Outcome],
    cache: bool = True,
    promote: bool | None = None,
    approved_by: str | None = None,
    model: str | None = None,
) -> None:
    """Run the train plan stage by stage, filling ``outcomes``; what this run has done before is not done again.

    With ``cache`` nor is what another run has done with the same code, params, inputs and libraries. With ``model``, a
    version that is registered, nothing is trained: that version is judged.

    A gate that says no ends the plan without an error.
    """
    plan = train_plan(declaration.pipeline)
    said: dict[str, dict[str, Any]] = {
        GATE: {"promote": promote},
        "approve": {"approved": True, "by": approved_by} if approved_by else {},
        "trial": {"wait": True},
    }
    plan = tuple(node._replace(params=node.params.model_copy(update=said.get(node.stage, {}))) for node in plan)
    if model:
        plan = tuple(
            node._replace(inputs={} if node.stage == "train" else node.inputs) for node in plan if node.stage != "tune"
        )
    root = Store(store)
    code = code_of(declaration, root)
    here = backend_of("local")
    with _apart(declaration) as apart:
        for position, node in enumerate(plan):
            call = call_of(
                declaration,
                node,
                outcomes,
                code=code,
                window=window,
                run=run,
                store=root,
                registry=registry,
                cache=cache,
            )
            earlier = _judged(call, model, root) if model and node.stage == "train" else root.read_outcome(call)
            if earlier is not None:
                outcomes[node.stage] = earlier
                progress(node.stage, "reused", 0.0, earlier)
            else:
                started = time.perf_counter()
                try:
                    backend, given = carried_by(declaration.pipeline, node.params)
                    if backend == VERTEX:
                        outcomes[node.stage] = carry(backend_of(backend, given), call)
                    else:
                        outcomes[node.stage] = carry(apart if node.params.in_runtime else here, call)
                except MlopsError:
                    progress(node.stage, "failed", time.perf_counter() - started, None)
                    raise
                outcome = outcomes[node.stage]
                progress(node.stage, _status(outcome), time.perf_counter() - started, outcome)
            if not outcomes[node.stage].verdict.passed:
                for later in plan[position + 1 :]:
                    progress(later.stage, "skipped", 0.0, None)
                return


def _judged(call: Call, version: str, store: Store) -> Outcome:
    """In place of a training: a version that is registered, such as one that was copied here.

    Raises:
        ModelNotFoundError: when there is no such version.
        RegistryError: when it is none of ours.
    """
    registry = ModelRegistry.of(call, store)
    found = registry.api.version(registry.ref.model, version)
    digest = found.tags.get(MODEL_DIGEST_TAG)
    if digest is None:
        raise RegistryError(f"version {version} of {found.model!r} was not made by airflow_mlops")
    ref = ArtifactRef(uri=found.source, digest=digest, kind="model")
    outcome: Outcome = stage_module("outcome").outcome_of(call, outputs={"model": ref}, info={"run_id": found.run_id})
    return outcome


def code_of(declaration: Declaration, store: Store) -> ArtifactRef | None:
    """The snapshot of all the user's code that the train plan runs."""
    paths = callables_of(train_plan(declaration.pipeline), declaration.base)
    isolated = declaration.pipeline.runtime is not None
    return snapshot(paths, declaration.base, store, elsewhere=isolated)


def call_of(
    declaration: Declaration,
    node: Node,
    outcomes: Mapping[str, Outcome],
    *,
    code: ArtifactRef | None,
    window: Window | None,
    run: str,
    store: Store,
    registry: RegistryRef,
    cache: bool = True,
) -> Call:
    """The Call of one stage, after the stages that it takes from."""
    params = node.params.resolved(declaration.base)
    return Call(
        pipeline=declaration.pipeline.name,
        stage=node.stage,
        run=run,
        window=window,
        inputs={name: outcomes[stage].outputs[output] for name, (stage, output) in node.inputs.items()},
        params=params.model_dump(mode="json", by_alias=True),
        code=code if params.callables() else None,
        store=store.root,
        registry=registry,
        cache=cache,
    )


def registry_of(options: argparse.Namespace, state: Path, name: str) -> RegistryRef:
    """The registry of a pipeline: the one given, that of MLflow's own variable, or a database in the state folder."""
    uri = uri_of(options) or f"sqlite:///{state.absolute()}/mlflow.db"
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return RegistryRef(uri=uri, model=name, experiment=name)


def store_of(options: argparse.Namespace, state: Path, google: Google | None = None) -> str:
    """The root of the store: the one given, that of a declared bucket, or one in the state folder."""
    return options.store or (google.store if google else None) or str(state.absolute() / "store")


@contextlib.contextmanager
def _apart(declaration: Declaration) -> Iterator[Backend]:
    """What carries the stages of the pipeline's runtime: one process, so that what they import is imported once."""
    runtime = declaration.pipeline.runtime
    if runtime is None:
        yield backend_of("local")
        return
    backend = SubprocessBackend(**carrier("local", None, runtime, declaration.base)[1], warm=True)
    try:
        yield backend
    finally:
        backend.close()


def choose_window(declaration: Declaration, key: str | None) -> Window | None:
    """The window asked for, or the newest whose data is there; None where the source comes as one whole.

    A database is not asked what it has: there it is the newest window that has settled.
    """
    pipeline = declaration.pipeline
    if key:
        return parse_key(pipeline.grain, key)
    data = pipeline.data
    if isinstance(data.source, SqlSource):
        return window_before(pipeline.grain, datetime.now(UTC) - data.settle) if data.windowed else None
    if "{window}" not in data.source:
        return None
    source = resolve(declaration.base, data.source)
    there = windows_of(source, pipeline.grain)
    if not there:
        raise DataNotFoundError(f"no window of {source} is there", fix="correct data.source, or put the files there")
    return there[-1]


def _print_stage(stage: str, status: str, seconds: float, outcome: Outcome | None) -> None:
    shown = (
        f"  {stage:<15} {status:<9} {seconds:6.1f} s" if outcome or status == "failed" else f"  {stage:<15} {status}"
    )
    if outcome:
        shown += "  " + "  ".join(f"{name}={_number(value)}" for name, value in list(outcome.metrics.items())[:5])
        for reason in (*([outcome.info[INFO]] if INFO in outcome.info else ()), *outcome.verdict.reasons):
            shown += f"\n  {'':<15} {reason}"
    print(shown, flush=True)


def _status(outcome: Outcome) -> str:
    hit = outcome.info.get(INFO, "").startswith("hit")
    return "cached" if hit and outcome.verdict.status == "ok" else outcome.verdict.status


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}"


def _silent(stage: str, status: str, seconds: float, outcome: Outcome | None) -> None:
    """Say nothing: the summary says it all."""


def _conclusion(name: str, outcomes: dict[str, Outcome]) -> str:
    if "promote" in outcomes:
        return f"{name}: {'; '.join(outcomes['promote'].verdict.reasons)}"
    last = next(reversed(outcomes.values()))
    return f"{name}: the champion stays: {'; '.join(last.verdict.reasons)}"


def model_of(outcomes: Mapping[str, Outcome], registry: RegistryRef, store: str) -> dict[str, str | None] | None:
    """The version that a run has made or found: name, version and the address of its page, if a server has one."""
    if "register" not in outcomes:
        return None
    version = outcomes["register"].info["version"]
    url = ModelRegistry(registry, Store(store)).version_url(version)
    return {"name": registry.model, "version": version, "url": url}


def _print_afterwards(
    declaration: Declaration, file: str, model: dict[str, str | None] | None, registry: RegistryRef
) -> None:
    """Say where the model is, how to look at it, and what a person does next."""
    if model is None:
        return
    look = model["url"] or shlex.join(["mlflow", "ui", "--backend-store-uri", registry.uri])
    if declaration.pipeline.data.schema_file is None:
        out = Path(file).parent / "schemas" / f"{declaration.pipeline.name}.yaml"
        following = shlex.join(["airflow-mlops", "schema", "infer", file, "--out", str(out)])
    else:
        following = f"load_dags({json.dumps(os.path.abspath(file))}, globals()) in a DAG file hands it to Airflow"
    print(f"  model  {model['name']} version {model['version']}\n  look   {look}\n  next   {following}")


def _summary(
    name: str,
    identity: str,
    window: Window | None,
    outcomes: dict[str, Outcome],
    failure: MlopsError | None,
    again: str,
) -> dict[str, object]:
    return {
        "pipeline": name,
        "run": identity,
        "window": window.key if window else None,
        "status": _end(outcomes, failure),
        "error": {"type": type(failure).__name__, "text": str(failure), "resume": again} if failure else None,
        "stages": {
            stage: {**outcome.model_dump(mode="json"), "digest": outcome.digest} for stage, outcome in outcomes.items()
        },
    }


def _end(outcomes: dict[str, Outcome], failure: MlopsError | None) -> str:
    if failure:
        return "failed"
    if "promote" in outcomes:
        return "promoted"
    return "held" if outcomes[GATE].verdict.status == "held" else "rejected"


def _command_again(options: argparse.Namespace, identity: str | None, window: Window | None) -> str:
    words = ["airflow-mlops", "run", options.file]
    if window:
        words += ["--window", window.key]
    for flag in ("env", "pipeline", "store", "registry", "model"):
        if getattr(options, flag):
            words += [f"--{flag}", getattr(options, flag)]
    if options.no_cache:
        words.append("--no-cache")
    if options.promote is not None:
        words.append("--promote" if options.promote else "--no-promote")
    return shlex.join([*words, "--resume", identity] if identity else words)
