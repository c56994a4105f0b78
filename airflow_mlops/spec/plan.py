"""A pipeline's stages in order: the one list that the DAG factory and ``airflow-mlops run`` both follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import stages
from airflow_mlops.spec.google import VERTEX
from airflow_mlops.spec.load import dump_pipeline
from airflow_mlops.spec.pipeline import Canary, Pipeline
from airflow_mlops.spec.source import SqlSource


class Node(NamedTuple):
    """One stage of a plan; ``inputs`` maps the stage's input to the stage and output that it comes from."""

    params: stages.StageParams
    inputs: dict[str, tuple[str, str]] = {}

    @property
    def stage(self) -> str:
        """The stage's kind."""
        return self.params.stage


def carried_by(pipeline: Pipeline, params: stages.StageParams) -> tuple[str, dict[str, Any]]:
    """The backend of a stage, and what it is made with.

    A job on Vertex AI takes minutes to start: it is worth it for stages that import the team's code or load a model,
    and for those that ``google.stages`` names; the others run in the worker.
    """
    google = pipeline.google
    if pipeline.backend != VERTEX or google is None:
        return pipeline.backend, {}
    if not params.in_runtime and params.stage not in google.stages:
        return "local", {}
    return VERTEX, google.model_dump(mode="json", exclude_none=True)


def callables_of(nodes: Iterable[Node], base: str) -> list[str]:
    """The user's functions that a plan runs, those of the schema's checks among them.

    Args:
        nodes: the plan.
        base: the folder that relative paths start from. A schema there that cannot be read adds nothing; its stage says
            what is wrong with it.
    """
    found: set[str] = set()
    for node in nodes:
        params = node.params
        with suppress(DeclarationError):
            params = params.resolved(base)
        found.update(params.callables())
    return sorted(found)


def excluded_columns(pipeline: Pipeline) -> tuple[str, ...]:
    """The raw columns that tell rows apart and are no features by themselves."""
    data = pipeline.data
    names = (*data.key, *((data.time,) if data.time else ()))
    group = pipeline.prepare.split.group
    return tuple(dict.fromkeys((*names, group) if group else names))


def _extract(pipeline: Pipeline, last: int) -> stages.Extract:
    data = pipeline.data
    return stages.Extract(
        source=_source(pipeline, data.source),
        format=data.format,
        time=data.time,
        grain=pipeline.grain,
        last=last,
        settle=data.settle,
        snapshots=data.snapshots,
    )


def _source(pipeline: Pipeline, source: str | SqlSource) -> str | SqlSource:
    """A source with the project that its queries are paid by."""
    if isinstance(source, str) or pipeline.google is None or source.project:
        return source
    return source.model_copy(update={"project": pipeline.google.project})


def _validate_data(pipeline: Pipeline) -> stages.ValidateData:
    data = pipeline.data
    windows = pipeline.train.windows.last
    return stages.ValidateData(data_schema=data.schema_file, target=data.target, time=data.time, windows=windows)


def _tune(pipeline: Pipeline, model: dict[str, Any], time: str | None) -> tuple[Node, ...]:
    """The search for the model's parameters, where one is declared."""
    tune = pipeline.tune
    if tune is None:
        return ()
    primary = pipeline.evaluate.metrics[0] if pipeline.evaluate.metrics else None
    return (
        Node(
            stages.Tune(
                **model,
                space=tune.space,
                trials=tune.trials,
                sampler=tune.sampler,
                pruner=tune.pruner,
                folds=tune.folds,
                metric=tune.metric or primary,
                time=time,
                jobs=tune.jobs,
                timeout=tune.timeout,
                parts=tune.as_tasks or 1,
            ),
            {"train": ("prepare", "train")},
        ),
    )


def train_plan(pipeline: Pipeline) -> tuple[Node, ...]:
    """The stages from raw rows to the champion.

    Registration stands before the gate: every trained model is registered, and a rejected one skips only what follows
    the gate.
    """
    data, prepare, train = pipeline.data, pipeline.prepare, pipeline.train
    split = prepare.split.model_copy(update={"by": prepare.split.by or ("time" if data.time else "random")})
    gate = _gate(pipeline)
    model: dict[str, Any] = {
        "target": data.target,
        "estimator": train.estimator,
        "function": train.function,
        "model_params": train.params,
        "features": prepare.features,
        "preprocess": prepare.preprocess,
        "exclude": excluded_columns(pipeline),
        "drop": data.drop,
        "group": split.group if split.by == "group" else None,
        "ml_task": pipeline.task,
        "seed": train.seed,
    }
    version = {"version": ("register", "version")}
    tune = _tune(pipeline, model, data.time if split.by == "time" else None)
    return (
        Node(_extract(pipeline, train.windows.last)),
        Node(_validate_data(pipeline), {"data": ("extract", "data")}),
        Node(
            stages.Prepare(target=data.target, features=prepare.features, time=data.time, split=split, seed=train.seed),
            # The rows that go on: all of them, unless the schema sets bad ones aside.
            {"data": ("validate_data", "data")},
        ),
        *tune,
        Node(
            stages.Train(
                **model,
                windows=train.windows.last,
                time=data.time,
                serialization=train.serialization,
                declaration=dump_pipeline(pipeline),
            ),
            {
                "train": ("prepare", "train"),
                "data": ("validate_data", "data"),
                **({"tuned": ("tune", "tuned")} if tune else {}),
            },
        ),
        Node(stages.Register(), {"model": ("train", "model")}),
        Node(
            stages.Evaluate(
                **pipeline.evaluate.model_dump(),
                versus_champion=gate.versus_champion is not None,
                time=data.time,
            ),
            {"test": ("prepare", "test"), "model": ("train", "model"), "report": ("validate_data", "report")},
        ),
        Node(
            gate,
            {"evaluation": ("evaluate", "evaluation"), "version": ("register", "version")},
        ),
        *(Node(params, {**version, "decision": (before, "decision")}) for before, params in _follow_up(pipeline)),
        *_deploy(pipeline),
    )


def _follow_up(pipeline: Pipeline) -> Iterator[tuple[str, stages.StageParams]]:
    """What comes after the gate, each with the stage that it gets the decision from: a no keeps it to itself."""
    before = stages.ValidateModel.stage
    promote = stages.Promote(gate=_gate(pipeline), needs_approval=pipeline.approval is not None, google=pipeline.google)
    for params in (_validate_serving(pipeline), _approve(pipeline), _trial(pipeline), promote):
        if params is not None:
            yield before, params
            before = params.stage


def _gate(pipeline: Pipeline) -> stages.ValidateModel:
    limits = pipeline.validate_model
    return stages.ValidateModel(
        min=limits.min, max=limits.max, versus_champion=limits.versus_champion, seed=pipeline.train.seed
    )


def _validate_serving(pipeline: Pipeline) -> stages.ValidateServing | None:
    deploy = pipeline.deploy
    if deploy is None:
        return None
    names = ("target", "tolerance", "max_latency_ms", "max_size", "allow_pickle")
    return stages.ValidateServing(**{name: getattr(deploy, name) for name in names}, google=pipeline.google)


def _trial(pipeline: Pipeline) -> stages.Trial | None:
    deploy = pipeline.deploy
    if deploy is None or deploy.strategy == "replace":
        return None
    return stages.Trial(
        target=deploy.target,
        share=deploy.strategy.canary if isinstance(deploy.strategy, Canary) else 0,
        bake=deploy.bake,
        min_requests=deploy.min_requests,
        timeout=deploy.timeout,
        error_rate=deploy.rollback_on.error_rate,
        disagreement=deploy.rollback_on.disagreement,
        max_p99_ms=deploy.rollback_on.p99_ms,
        metric_drop=deploy.rollback_on.metric_drop,
        performance=_performance(pipeline) if deploy.rollback_on.metric_drop is not None else None,
        google=pipeline.google,
    )


def _deploy(pipeline: Pipeline) -> tuple[Node, ...]:
    deploy = pipeline.deploy
    if deploy is None:
        return ()
    return (
        Node(
            stages.Deploy(target=deploy.target, tolerance=deploy.tolerance, google=pipeline.google),
            {"champion": ("promote", "champion")},
        ),
    )


def _approve(pipeline: Pipeline) -> stages.Approve | None:
    asked = pipeline.approval
    return stages.Approve(users=asked.users, timeout=asked.timeout) if asked else None


def kept_columns(pipeline: Pipeline) -> tuple[str, ...]:
    """The columns that are kept beside predictions: keys and the time."""
    data = pipeline.data
    return tuple(dict.fromkeys((*data.key, *((data.time,) if data.time else ()))))


def predict_plan(pipeline: Pipeline) -> tuple[Node, ...]:
    """The stages from raw rows to predictions."""
    keep = kept_columns(pipeline)
    return (
        Node(_extract(pipeline, 1)),
        Node(
            stages.BatchPredict(
                destination=pipeline.predict.output,
                keep=keep,
                job=pipeline.predict.job,
                google=pipeline.google if pipeline.predict.job == "vertex" else None,
            ),
            {"data": ("extract", "data")},
        ),
    )


def monitor_node(pipeline: Pipeline) -> Node:
    """The one stage of monitoring."""
    extract = _extract(pipeline, pipeline.monitor.windows.last)
    return Node(stages.Monitor(**extract.model_dump(), data_drift=pipeline.monitor.data_drift))


def prediction_drift_node(pipeline: Pipeline) -> Node | None:
    """The stage that watches predictions, where they are watched."""
    rule = pipeline.monitor.prediction_drift
    if rule is None:
        return None
    return Node(
        stages.MonitorPredictions(
            destination=pipeline.predict.output,
            time=pipeline.data.time,
            grain=pipeline.grain,
            prediction_drift=rule,
            quiet=pipeline.monitor.quiet,
        )
    )


def performance_node(pipeline: Pipeline) -> Node | None:
    """The stage that watches performance, where it is watched."""
    params = _performance(pipeline)
    return None if params is None else Node(params)


def _performance(pipeline: Pipeline) -> stages.MonitorPerformance | None:
    rule, data = pipeline.monitor.performance, pipeline.data
    if rule is None:
        return None
    primary = pipeline.evaluate.metrics[0] if pipeline.evaluate.metrics else None
    own = rule.labels is None
    return stages.MonitorPerformance(
        labels=_source(pipeline, data.source if rule.labels is None else rule.labels),
        key=data.key,
        target=data.target,
        destination=pipeline.predict.output,
        format=data.format if own else None,
        time=data.time if own else None,
        grain=pipeline.grain,
        label_delay=max(rule.label_delay, data.settle) if own else rule.label_delay,
        metric=rule.metric or primary,
        drop=rule.drop,
        min_labels=rule.min_labels,
        confidence=rule.confidence,
        quiet=pipeline.monitor.quiet,
    )
