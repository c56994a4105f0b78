"""How a stage becomes a task. The only ``execute`` of the stage operators is here; they themselves are declarations."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import DownstreamTasksSkipped, TaskDeferralTimeout
from pydantic import ValidationError

from airflow_mlops.backends.base import TERMINAL, Backend, Handle, backend_of, carrier, connection_of, others_of, relay
from airflow_mlops.call.code import snapshot
from airflow_mlops.call.dispatch import STAGES, known
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import SHELL, ArtifactRef, Call, Outcome
from airflow_mlops.errors import DeclarationError, MlopsError
from airflow_mlops.hooks.database import connection_environment
from airflow_mlops.hooks.google import google_credentials
from airflow_mlops.hooks.mlflow import MlflowHook, store_root
from airflow_mlops.operators.links import (
    CARD_URL,
    JOB_LOG_URL,
    JOB_URL,
    REPORT_URL,
    RUN_URL,
    VALIDATION_URL,
    JobLink,
    JobLogLink,
    MlflowReportLink,
    MlflowRunLink,
    ModelCardLink,
    ValidationReportLink,
)
from airflow_mlops.operators.retry import MlopsRetryPolicy
from airflow_mlops.operators.window import window_from, window_of_run
from airflow_mlops.spec.pipeline import RUNTIME_BACKENDS, Runtime
from airflow_mlops.spec.stages import Extract, Monitor, StageParams
from airflow_mlops.spec.window import Grain, Window
from airflow_mlops.triggers.job import JobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

_LINKS: dict[str, BaseOperatorLink] = {
    RUN_URL: MlflowRunLink(),
    REPORT_URL: MlflowReportLink(),
    VALIDATION_URL: ValidationReportLink(),
    CARD_URL: ModelCardLink(),
}


def run_key(context: Mapping[str, Any]) -> str:
    """What makes this DAG run (and mapped task) different from any other, the same over retries."""
    run = context["dag_run"]
    index = getattr(context["ti"], "map_index", -1)
    mapped = f"/{index}" if isinstance(index, int) and index >= 0 else ""
    return f"{run.dag_id}/{run.run_id}{mapped}"


def is_active_run(context: Mapping[str, Any], run: str) -> bool:
    """Whether the DAG run of a `run_key` still goes on."""
    dag_id, run_id = run.split("/")[:2]
    return bool(context["ti"].get_dr_count(dag_id=dag_id, run_ids=[run_id], states=["queued", "running"]))


@contextmanager
def acting(backend: Backend, call: Call) -> Iterator[None]:
    """Let a backend and the stage act on Google Cloud by the connections that they name, if they name any."""
    connections = STAGES[call.stage].model_validate(call.params).google_connections if call.stage in STAGES else ()
    with google_credentials(connection_of(backend), *connections):
        yield


class StageTask:
    """What stage operators and sensors share: a Call is made of the task's arguments, carried, and reported on."""

    stage: ClassVar[type[StageParams]]
    inputs: ClassVar[tuple[str, ...]] = ()
    """The arguments that take another task's output."""
    untemplated: ClassVar[frozenset[str]] = frozenset()
    links: ClassVar[tuple[str, ...]] = (RUN_URL,)
    """The links that the task has, by the keys of the Outcome's info; those of other keys are pushed elsewhere."""
    template_fields: Collection[str]
    operator_extra_links: Collection[BaseOperatorLink]
    ui_color = "#dbeafe"

    pipeline: str | None
    start: Any
    window: Any
    registry_conn_id: str
    store: str | None
    cache: bool
    base: str | None
    backend: str
    backend_options: dict[str, Any]
    runtime: dict[str, Any] | None
    poll_interval: float

    execution_timeout: timedelta | None

    if TYPE_CHECKING:
        dag: Any
        log: Any
        downstream_task_ids: set[str]

        def defer(self, **kwargs: Any) -> Any:
            """Of ``BaseOperator``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "stage" in vars(cls):
            fields = [name for name in cls.stage.model_fields if name not in cls.untemplated]
            cls.template_fields = (*fields, *cls.inputs, "window", "start", "pipeline")
            cls.operator_extra_links = tuple(_LINKS[key] for key in cls.links)

    def configure(
        self,
        settings: Mapping[str, Any],
        *,
        pipeline: str | None,
        start: Any,
        window: Any,
        registry_conn_id: str,
        store: str | None,
        base: str | None,
        backend: str,
        backend_options: Mapping[str, Any] | None,
        poll_interval: float,
        cache: bool = True,
        runtime: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the arguments that every stage task has, and the stage's own."""
        for name, value in settings.items():
            setattr(self, name, value)
        self.pipeline, self.start, self.window = pipeline, start, window
        self.registry_conn_id, self.store, self.base = registry_conn_id, store, base
        self.cache = cache
        self.backend, self.backend_options = backend, dict(backend_options or {})
        self.runtime = dict(runtime) if runtime else None
        self.poll_interval = poll_interval
        if backend not in RUNTIME_BACKENDS:
            self.operator_extra_links = (*self.operator_extra_links, JobLink(), JobLogLink())

    @property
    def pipeline_name(self) -> str:
        """The pipeline's name: the one given, or the DAG's id."""
        return self.pipeline or str(self.dag.dag_id)

    @property
    def folder(self) -> str:
        """The folder that relative paths and the user's packages are looked up from: the DAG file's, unless given."""
        return self.base or str(self.dag.folder)

    @property
    def carrier(self) -> tuple[str, dict[str, Any]]:
        """The name of the backend that carries this stage, and what it is made with.

        Raises:
            DeclarationError: when ``runtime`` is wrong.
        """
        try:
            runtime = Runtime.model_validate(self.runtime) if self.runtime else None
        except ValidationError as error:
            where = f"{type(self).__name__} {self.pipeline_name!r}"
            raise DeclarationError(
                [f"{where}: argument 'runtime': {item['msg']}" for item in error.errors()]
            ) from error
        return carrier(self.backend, self.backend_options, runtime, self.folder, self.execution_timeout)

    def stage_params(self) -> StageParams:
        """The stage's params, after templates were rendered.

        Raises:
            DeclarationError: when an argument is wrong; every one of them is named.
        """
        settings = {name: getattr(self, name) for name in self.stage.model_fields}
        try:
            params = self.stage.model_validate(settings)
        except ValidationError as error:
            where = f"{type(self).__name__} {self.pipeline_name!r}"
            problems = [
                f"{where}: argument {'.'.join(map(str, item['loc']))!r}: {item['msg'].removeprefix('Value error, ')}"
                for item in error.errors()
            ]
            raise DeclarationError(problems) from error
        return params.resolved(self.folder)

    def make_call(self, context: Context, window: Window | None = None) -> Call:
        """The Call of this task in this run, with everything resolved but the secrets."""
        params = self.stage_params()
        start = json.loads(self.start) if isinstance(self.start, str) else self.start or {}
        given = {name: getattr(self, name) for name in self.inputs if getattr(self, name) is not None}
        root = store_root(self.store)
        # Only a stage that runs the user's code depends on it: the others stay what they are when it changes.
        code = start.get("code") if params.callables() else None
        if code is None and params.callables():
            code = snapshot(params.callables(), self.folder, Store(root), elsewhere=self.runtime is not None)
        return Call(
            pipeline=self.pipeline_name,
            stage=params.stage,
            run=run_key(context),
            window=window or self._window(context, params, start, given),
            inputs={name: reference(value, name, params.stage) for name, value in given.items()},
            params=params.model_dump(mode="json", by_alias=True),
            code=code,
            store=root,
            registry=MlflowHook(self.registry_conn_id).registry(self.pipeline_name) if params.needs_registry else None,
            cache=self.cache,
        )

    def _window(
        self, context: Context, params: StageParams, start: Mapping[str, Any], given: Mapping[str, Any]
    ) -> Window | None:
        grain: Grain = getattr(params, "grain", "day")
        if self.window:
            return window_from(self.window, grain)
        if "window" in start:
            return window_from(start["window"], grain)
        for value in given.values():
            if isinstance(value, Mapping) and value.get("window"):
                return window_from(value["window"], grain)
        if given:
            return None
        if not isinstance(params, (Extract, Monitor)):
            return window_of_run(context, grain, None)
        return window_of_run(context, grain, params.source, time=params.time, settle=params.settle)

    def carry(self, context: Context, call: Call) -> Outcome:
        """Let the backend run the Call; the task is deferred while a remote one does."""
        name, options = self.carrier
        backend = backend_of(name, options)
        with acting(backend, call):
            handle = backend.find(call)
            if handle is None and not backend.attached and (outcome := known(call)) is not None:
                self.log.info("%s: no job is needed", call.where)
                return outcome
            if handle is None:
                self._end_orphans(context, backend, call)
                handle = backend.submit(call, self._secrets(call))
            else:
                self.log.info("%s: the job %s of an earlier try is found again", call.where, handle.job)
            self._handle: Handle | None = handle
            # The links stand on the task while it is deferred.
            for key, url in ((JOB_URL, handle.url), (JOB_LOG_URL, handle.log_url)):
                if url:
                    context["ti"].xcom_push(key=key, value=url)
            self._await(backend, handle)
            return self._collect(backend, handle)

    def _await(self, backend: Backend, handle: Handle) -> None:
        """Defer while a job that needs no worker goes on."""
        if backend.attached or backend.status(handle) in TERMINAL:
            return
        name, options = self.carrier
        trigger = JobTrigger(
            backend=name,
            options=options,
            handle=handle.model_dump(mode="json"),
            poll_interval=self.poll_interval,
        )
        # Airflow leaves the time of a deferred task to the trigger.
        self.defer(trigger=trigger, method_name="resume", timeout=self.execution_timeout)

    def _end_orphans(self, context: Context, backend: Backend, call: Call) -> None:
        """Cancel the pipeline's jobs whose runs are over or gone: no triggerer was there to do it when they ended."""
        try:
            for handle in others_of(backend, call):
                if not handle.call.run.startswith(SHELL) and not is_active_run(context, handle.call.run):
                    self.log.warning("the run %s is over, and its job %s is cancelled", handle.call.run, handle.job)
                    backend.cancel(handle)
        except MlopsError as error:  # it is theirs to end; this run's own job is none the worse for it
            self.log.warning("jobs that nobody waits for cannot be looked for: %s", error)

    def _secrets(self, call: Call) -> dict[str, str]:
        secrets = MlflowHook(self.registry_conn_id).environment() if call.registry else {}
        judged = call.params.get("performance") or {}
        for source in (call.params.get("source"), call.params.get("labels"), judged.get("labels")):
            if isinstance(source, Mapping):
                secrets |= connection_environment(source["connection"])
        return secrets

    def _collect(self, backend: Backend, handle: Handle) -> Outcome:
        relay(backend.logs(handle), self.log)
        return backend.collect(handle)

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on when the trigger has seen the job end; wait on where it was let in no more, and we are."""
        backend, handle = backend_of(*self.carrier), Handle.model_validate(event["handle"])
        with acting(backend, handle.call):
            self._await(backend, handle)
            outcome = self._collect(backend, handle)
        return self.finish(context, outcome)

    def finish(self, context: Context, outcome: Outcome) -> dict[str, Any]:
        """Report what came out: log, links, and references for the tasks that follow."""
        ti = context["ti"]
        for key in self.links:
            if key != VALIDATION_URL:
                ti.xcom_push(key=key, value=outcome.info.get(key, ""))
        for reason in outcome.verdict.reasons:
            self.log.info("%s: %s: %s", outcome.stage, outcome.verdict.status, reason)
        if outcome.metrics:
            self.log.info("metrics: %s", ", ".join(f"{name} {value:,.6g}" for name, value in outcome.metrics.items()))
        for name, made in outcome.outputs.items():
            self.log.info("%s: %s%s", name, made.uri, "" if made.rows is None else f" ({made.rows:,} rows)")
        return outcome.model_dump(mode="json")

    def let_pass(self, context: Context, outcome: Outcome, result: dict[str, Any]) -> dict[str, Any]:
        """Give the result back, or skip what follows when the verdict does not let it pass."""
        following = sorted(self.downstream_task_ids)
        if outcome.verdict.passed or not following:
            return result
        self.log.info("skipping %s: %s", ", ".join(following), "; ".join(outcome.verdict.reasons))
        # The exception ends the task, so what it returns is stored here.
        context["ti"].xcom_push(key="return_value", value=result)
        raise DownstreamTasksSkipped(tasks=following)

    def on_kill(self) -> None:
        """End the job when the task is ended."""
        handle = getattr(self, "_handle", None)
        if handle is not None:
            backend = backend_of(*self.carrier)
            with acting(backend, handle.call):
                backend.cancel(handle)


class StageOperator(StageTask, BaseOperator):
    """A stage as an operator.

    Every stage operator takes, besides its own arguments and those of ``BaseOperator``:

    :param pipeline: the pipeline's name, which its model, experiment and assets go by. Default: the DAG's id.
        (templated)
    :param start: the output of `StartRunOperator`, or a template that renders it as JSON: the run's window and code.
        Default: each is resolved here. (templated)
    :param window: the window's key, such as ``2013-03``. Default: that of the inputs, or the run's. (templated)
    :param registry_conn_id: the connection of type ``mlflow``.
    :param store: the artifact store's root. Default: ``[airflow_mlops] store``.
    :param cache: whether what an earlier run has done with the same code, params, inputs and libraries is not done
        again. Stages that change the registry or write predictions always run.
    :param base: the folder that relative paths and the user's packages are looked up from. Default: the DAG file's.
    :param backend: where the stage runs: a name entered in the entry points ``airflow_mlops.backends``.
    :param backend_options: what the backend is made with.
    :param runtime: run the stage in a process of its own, without Airflow: ``{"python": PATH}`` in that interpreter,
        ``{"requirements": FILE}`` in an environment built from that file, each with ``"memory": "2GiB"`` at most.
    :param poll_interval: seconds between two looks at a remote job; with less than 8, Airflow may fail
        a task whose job ends at once (see `airflow_mlops.triggers.window.NOTED`).
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, Any],
        pipeline: str | None = None,
        start: Any = None,
        window: Any = None,
        registry_conn_id: str = MlflowHook.default_conn_name,
        store: str | None = None,
        cache: bool = True,
        base: str | None = None,
        backend: str = "local",
        backend_options: Mapping[str, Any] | None = None,
        runtime: Mapping[str, Any] | None = None,
        poll_interval: float = 10.0,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", MlopsRetryPolicy())
        super().__init__(**kwargs)
        self.configure(
            settings,
            pipeline=pipeline,
            start=start,
            window=window,
            registry_conn_id=registry_conn_id,
            store=store,
            cache=cache,
            base=base,
            backend=backend,
            backend_options=backend_options,
            runtime=runtime,
            poll_interval=poll_interval,
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; a task whose time is over ends its job, for its trigger does not."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            backend, call = backend_of(*self.carrier), self.make_call(context)
            with acting(backend, call):
                if (handle := backend.find(call)) is not None:
                    self.log.info("%s: its time is over, and the job %s is cancelled", call.where, handle.job)
                    backend.cancel(handle)
            raise

    def execute(self, context: Context) -> Any:
        """Make the Call, let the backend carry it, and report on its Outcome."""
        return self.finish(context, self.carry(context, self.make_call(context)))


class GateOperator(StageOperator):
    """A stage that may say no: then it succeeds, and what follows it is skipped."""

    def finish(self, context: Context, outcome: Outcome) -> dict[str, Any]:
        """Skip what follows when the verdict does not let it pass."""
        return self.let_pass(context, outcome, super().finish(context, outcome))


def reference(value: Any, name: str, stage: str) -> ArtifactRef:
    """The artifact that an argument names: another task's output, or a reference itself.

    Raises:
        DeclarationError: when it is neither, or the other task has no such output.
    """
    if isinstance(value, ArtifactRef):
        return value
    if isinstance(value, Mapping) and "outputs" in value:
        outputs = value["outputs"]
        if name in outputs:
            return ArtifactRef.model_validate(outputs[name])
        what = f"the output of {value.get('stage')!r} has no {name!r}"
        raise DeclarationError([f"stage {stage!r}, argument {name!r}: {what}; allowed: {', '.join(outputs)}"])
    if isinstance(value, Mapping) and "uri" in value:
        return ArtifactRef.model_validate(value)
    raise DeclarationError(
        [
            f"stage {stage!r}, argument {name!r}: {type(value).__name__} is no artifact; "
            "try: pass TASK.output of the stage that makes it"
        ]
    )
