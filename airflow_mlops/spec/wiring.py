"""What only the whole shows: rules between the parts of a declaration, and between declarations.

Nothing is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.google import JOBS, VERTEX, Google
from airflow_mlops.spec.load import Declaration, document_here
from airflow_mlops.spec.metrics import DEFAULT_METRICS, FAIRNESS, METRICS, TASKS, Task, fairness_limit, metrics_of
from airflow_mlops.spec.pipeline import RUNTIME_BACKENDS, ModelTrigger, Pipeline, PubsubTrigger
from airflow_mlops.spec.source import SqlSource


class Problem(NamedTuple):
    """One mistake: where in the declaration, what, what is allowed, what to do."""

    path: tuple[str | int, ...]
    what: str
    allowed: str | None = None
    fix: str | None = None


def possible_tasks(pipeline: Pipeline, family: str | None = None) -> tuple[Task, ...]:
    """The tasks that the declaration leaves open.

    Args:
        pipeline: the declaration.
        family: ``classifier`` or ``regressor`` where the estimator's class is known, else None.
    """
    if pipeline.task is not None:
        return (pipeline.task,)
    if family == "classifier":
        return ("binary", "multiclass")
    if family == "regressor":
        return ("regression",)
    return TASKS


def check(pipeline: Pipeline, family: str | None = None) -> Iterator[Problem]:
    """Find what is wrong between the parts of one pipeline."""
    tasks = possible_tasks(pipeline, family)
    if pipeline.task is not None and family is not None:
        fits = ("regression",) if family == "regressor" else ("binary", "multiclass")
        if pipeline.task not in fits:
            yield Problem(
                ("task",),
                f"the task is {pipeline.task!r}, but {pipeline.train.estimator} is a {family}",
                allowed=" or ".join(fits),
            )
    yield from _check_metrics(pipeline, tasks)
    yield from _check_tune(pipeline, tasks)
    yield from _check_data(pipeline)
    yield from _check_monitor(pipeline, tasks)
    if pipeline.runtime and pipeline.backend not in RUNTIME_BACKENDS:
        yield Problem(
            ("runtime",),
            f"the backend {pipeline.backend!r} runs no `runtime`",
            allowed=" or ".join(f"backend: {name}" for name in RUNTIME_BACKENDS),
        )
    for path, value in (
        (("backend",), pipeline.backend),
        (("deploy", "target"), getattr(pipeline.deploy, "target", "")),
    ):
        if value == VERTEX and pipeline.google is None:
            yield Problem(
                path, "'vertex' is Google Cloud's, and no project is declared", fix="google: {project: P, region: R}"
            )
    if pipeline.google is not None:
        yield from _check_google(pipeline, pipeline.google)
    yield from _check_vertex_target(pipeline)
    if pipeline.deploy and pipeline.train.serialization == "cloudpickle" and not pipeline.deploy.allow_pickle:
        yield Problem(
            ("deploy",),
            "no server loads a model that is written with cloudpickle, which runs code when it is loaded",
            fix="train.serialization: skops, or deploy: {allow_pickle: true} and airflow-mlops serve --allow-pickle",
        )
    if pipeline.deploy and pipeline.deploy.rollback_on.metric_drop is not None and not pipeline.monitor.performance:
        yield Problem(
            ("deploy", "rollback_on", "metric_drop"),
            "a candidate's metric is known by labels only, and no labels are declared",
            fix="add monitor.performance, which says where they are",
        )
    for index, trigger in enumerate(pipeline.retrain.triggers):
        if isinstance(trigger, ModelTrigger) and trigger.model == pipeline.name:
            yield Problem(
                ("retrain", "triggers", index),
                f"a promotion of {pipeline.name!r} would retrain {pipeline.name!r}, for ever",
                fix="name another pipeline, or leave the trigger out",
            )
        if isinstance(trigger, PubsubTrigger) and "/" not in trigger.pubsub and pipeline.google is None:
            yield Problem(
                ("retrain", "triggers", index),
                f"in which project the subscription {trigger.pubsub!r} is, is not declared",
                fix=f"projects/P/subscriptions/{trigger.pubsub}, or google: {{project: P, region: R}}",
            )


def _check_vertex_target(pipeline: Pipeline) -> Iterator[Problem]:
    """What an endpoint of Vertex AI cannot do, or not without."""
    deploy, google = pipeline.deploy, pipeline.google
    if pipeline.predict.job == "vertex" and (google is None or google.image is None):
        yield Problem(
            ("predict", "job"),
            "a batch prediction job runs a container, and no image is declared",
            fix="google: {project: P, region: R, image: IMAGE}",
        )
    if deploy is None or google is None or deploy.target != "vertex":
        return
    if google.image is None:
        yield Problem(("google",), "what serves on Vertex AI is a container: no image is declared", fix="image: IMAGE")
    if deploy.strategy == "shadow":
        yield Problem(
            ("deploy", "strategy"),
            "Vertex AI sends a request to one deployed model only, so no candidate can stand in the shadow there",
            allowed="{canary: N}, replace",
        )
    if deploy.allow_pickle:
        yield Problem(
            ("deploy", "allow_pickle"),
            "the container on Vertex AI loads no model that is written with cloudpickle",
            fix="train.serialization: skops",
        )
    if deploy.rollback_on.metric_drop is not None:
        yield Problem(
            ("deploy", "rollback_on", "metric_drop"),
            "a candidate's metric is known by its logged predictions, and on Vertex AI none are logged",
            allowed="error_rate, p99_ms",
        )


def _check_metrics(pipeline: Pipeline, tasks: tuple[Task, ...]) -> Iterator[Problem]:
    evaluated = pipeline.evaluate.metrics
    left = tasks
    for index, name in enumerate(evaluated):
        path = ("evaluate", "metrics", index)
        if name not in METRICS:
            yield _unknown_metric(path, name, tasks)
        elif not set(METRICS[name].tasks) & set(tasks):
            yield Problem(
                path,
                f"{_a_task(tasks)} has no metric {name!r}",
                allowed=", ".join(dict.fromkeys(m for task in tasks for m in metrics_of(task))),
            )
        else:
            narrowed = tuple(task for task in left if task in METRICS[name].tasks)
            if not narrowed:
                yield Problem(
                    path,
                    f"no task has both {name!r} and {', '.join(evaluated[:index])}",
                    allowed=", ".join(dict.fromkeys(m for task in left for m in metrics_of(task))),
                )
            left = narrowed or left
    known = set(evaluated) if evaluated else {metric for task in tasks for metric in DEFAULT_METRICS[task]}
    gate = pipeline.validate_model
    gated: list[tuple[tuple[str | int, ...], str, bool | None]] = [
        *((("validate_model", "min", name), name, True) for name in gate.min),
        *((("validate_model", "max", name), name, False) for name in gate.max),
    ]
    if gate.versus_champion and gate.versus_champion.metric:
        gated.append((("validate_model", "versus_champion", "metric"), gate.versus_champion.metric, None))
    for gate_path, name, more in gated:
        if fairness_limit(name):
            yield from _check_fairness(pipeline, tasks, gate_path, name)
        elif name not in METRICS:
            yield _unknown_metric(gate_path, name, tasks)
        elif name not in known:
            yield Problem(
                gate_path,
                f"the gate asks for {name!r}, which is not evaluated",
                allowed=", ".join(evaluated or sorted(known)),
                fix=f"add {name} to evaluate.metrics",
            )
        elif more is not None and METRICS[name].more_is_better is not more:
            right = "max" if more else "min"
            yield Problem(
                gate_path,
                f"{'less' if more else 'more'} {name} is better, so {'min' if more else 'max'} does not protect it",
                fix=f"validate_model.{right}",
            )


def _check_tune(pipeline: Pipeline, tasks: tuple[Task, ...]) -> Iterator[Problem]:
    tune = pipeline.tune
    if tune is None:
        return
    if tune.metric is not None:
        if tune.metric not in METRICS:
            yield _unknown_metric(("tune", "metric"), tune.metric, tasks)
        elif not set(METRICS[tune.metric].tasks) & set(tasks):
            allowed = ", ".join(dict.fromkeys(metric for task in tasks for metric in metrics_of(task)))
            yield Problem(("tune", "metric"), f"{_a_task(tasks)} has no metric {tune.metric!r}", allowed=allowed)
    elif pipeline.train.function and not pipeline.evaluate.metrics and pipeline.task is None:
        yield Problem(
            ("tune",), "a function does not say what its model predicts, and so by which metric", fix="tune.metric"
        )
    for name, dimension in tune.space.items():
        if tune.sampler == "grid" and dimension.count is None:
            yield Problem(
                ("tune", "space", name),
                f"a grid over {name!r} would have no end",
                fix="give the range a step, list choices, or take another sampler",
            )
    if tune.as_tasks is not None and tune.as_tasks > tune.trials:
        yield Problem(
            ("tune", "as_tasks"), f"{tune.trials} trials are too few for {tune.as_tasks} tasks", fix="more trials"
        )


def _check_google(pipeline: Pipeline, google: Google) -> Iterator[Problem]:
    for stage in google.stages:
        if stage not in JOBS:
            yield Problem(("google", "stages", stage), f"no job does the stage {stage!r}", allowed=", ".join(JOBS))
    if pipeline.backend != VERTEX:
        return
    if google.image is None:
        yield Problem(
            ("google",),
            "stages run in an image, and none is declared",
            fix="build docker/stage.Dockerfile as docker/stage.md says, and declare google.image",
        )
    if pipeline.tune and pipeline.tune.as_tasks:
        yield Problem(
            ("tune", "as_tasks"),
            "a search is one job on Vertex AI, whose trials are no tasks of Airflow",
            fix="tune.jobs: how many trials run at once, each on a machine of its own",
        )
    if pipeline.tune and pipeline.tune.pruner == "hyperband":
        yield Problem(("tune", "pruner"), "Vertex AI has no pruner 'hyperband'", allowed="none, median")


def _check_fairness(
    pipeline: Pipeline, tasks: tuple[Task, ...], path: tuple[str | int, ...], name: str
) -> Iterator[Problem]:
    column, difference = fairness_limit(name) or ("", "")
    columns = pipeline.evaluate.fairness
    possible = [each for each, its in FAIRNESS.items() if set(its) & set(tasks)]
    if difference not in possible:
        what = f"{_a_task(tasks)} has no difference {difference!r}" if difference in FAIRNESS else ""
        yield Problem(
            path,
            what or f"there is no difference {difference!r}",
            allowed=", ".join(f"fairness.{column or 'COLUMN'}.{each}" for each in possible),
        )
    elif column not in columns:
        yield Problem(
            path,
            f"the gate asks for differences between the values of {column!r}, which are not measured",
            allowed=", ".join(columns) or None,
            fix=f"evaluate: {{fairness: [{', '.join((*columns, column))}]}}",
        )
    elif path[-2] != "max":
        yield Problem(path, f"less {difference} is better, so {path[-2]} does not protect it", fix="validate_model.max")


def _unknown_metric(path: tuple[str | int, ...], name: str, tasks: tuple[Task, ...]) -> Problem:
    names = list(dict.fromkeys(metric for task in tasks for metric in metrics_of(task)))
    close = difflib.get_close_matches(name, names, n=1)
    return Problem(path, f"there is no metric {name!r}", allowed=", ".join(names), fix=close[0] if close else None)


def _a_task(tasks: tuple[Task, ...]) -> str:
    return {("binary", "multiclass"): "a classifier", TASKS: "no task"}.get(tasks, f"the task {tasks[0]!r}")


_TO_WINDOWS = "put {window} into data.source (:start and :end into a query), or declare data.time"


def _check_data(pipeline: Pipeline) -> Iterator[Problem]:
    data, split = pipeline.data, pipeline.prepare.split
    if split.by == "time" and data.time is None:
        yield Problem(("prepare", "split", "by"), "a split by time needs a time column", fix="declare data.time")
    if (split.by == "group") != (split.group is not None):
        what = "a split by group needs the group's column" if split.by == "group" else "a group without `by: group`"
        yield Problem(("prepare", "split"), what, fix="split: {by: group, group: COLUMN}")
    for field in ("key", "drop"):
        if data.target in getattr(data, field):
            yield Problem(("data", field), f"the target {data.target!r} cannot be among data.{field}")
    if data.time == data.target:
        yield Problem(("data", "time"), f"the target {data.target!r} cannot be the time column")
    if not data.windowed and (pipeline.train.windows.last > 1 or pipeline.monitor.windows.last > 1):
        stage = "train" if pipeline.train.windows.last > 1 else "monitor"
        yield Problem(
            (stage, "windows"),
            "several windows of data that comes in none",
            fix=_TO_WINDOWS,
        )
    if isinstance(data.source, SqlSource):
        if "{window}" in data.source.select:
            yield Problem(("data", "source"), "a query gets its window as parameters", allowed=":start, :end")
        if data.format is not None:
            yield Problem(("data", "format"), "a database has no file format", fix="leave data.format out")
    elif "{" in data.source.replace("{window}", ""):
        yield Problem(("data", "source"), f"{data.source!r} holds an unknown placeholder", allowed="{window}")
    for index, column in enumerate(pipeline.monitor.data_drift.columns):
        if column == data.target:
            yield Problem(
                ("monitor", "data_drift", "columns", index), f"the target {column!r} is not known when drift is judged"
            )
    if not data.windowed and pipeline.monitor.schedule:
        yield Problem(
            ("monitor", "schedule"),
            "monitoring needs windows, and the data comes in none",
            fix=_TO_WINDOWS,
        )


def _check_monitor(pipeline: Pipeline, tasks: tuple[Task, ...]) -> Iterator[Problem]:
    """Predictions are watched by window, and joined with labels by key, in a metric that was measured at promotion."""
    monitor, data = pipeline.monitor, pipeline.data
    for field in ("prediction_drift", "performance"):
        if getattr(monitor, field) is not None and not data.windowed:
            yield Problem(
                ("monitor", field), "predictions are watched by window, and the data comes in none", fix=_TO_WINDOWS
            )
    rule = monitor.performance
    if rule is None:
        return
    path: tuple[str | int, ...] = ("monitor", "performance")
    if not data.key:
        yield Problem(path, "labels are joined to predictions by key, and there is none", fix="declare data.key")
    evaluated = pipeline.evaluate.metrics
    known = set(evaluated) if evaluated else {metric for task in tasks for metric in DEFAULT_METRICS[task]}
    if rule.metric is not None and rule.metric not in METRICS:
        yield _unknown_metric((*path, "metric"), rule.metric, tasks)
    elif rule.metric is not None and rule.metric not in known:
        yield Problem(
            (*path, "metric"),
            f"{rule.metric!r} has no value at promotion, for it is not evaluated",
            allowed=", ".join(evaluated or sorted(known)),
            fix=f"add {rule.metric} to evaluate.metrics",
        )
    if isinstance(rule.labels, str) and "{" in rule.labels.replace("{window}", ""):
        yield Problem((*path, "labels"), f"{rule.labels!r} holds an unknown placeholder", allowed="{window}")
    if isinstance(rule.labels, SqlSource) and "{window}" in rule.labels.select:
        yield Problem((*path, "labels"), "a query gets its window as parameters", allowed=":start, :end")


def check_all(declarations: Sequence[Declaration]) -> Iterator[str]:
    """Find what is wrong between pipelines: a name used twice, a pool of two sizes, retraining in a circle."""
    yield from _check_pools(declarations)
    by_name: dict[str, Declaration] = {}
    for declaration in declarations:
        name = declaration.pipeline.name
        if name in by_name:
            first = by_name[name].document
            yield declaration.problem(("name",), f"the name is taken in {first.file}:{first.line(('name',))}")
        by_name.setdefault(name, declaration)
    edges = {
        name: [trigger.model for trigger in d.pipeline.retrain.triggers if isinstance(trigger, ModelTrigger)]
        for name, d in by_name.items()
    }
    told: set[frozenset[str]] = set()
    for name, declaration in by_name.items():
        cycle = _cycle(edges, name)
        if cycle and frozenset(cycle) not in told:
            told.add(frozenset(cycle))
            yield declaration.problem(
                ("retrain", "triggers"),
                f"retraining goes round in a circle: {' -> '.join((*cycle, cycle[0]))}",
                fix="leave one of these triggers out",
            )


def _check_pools(declarations: Sequence[Declaration]) -> Iterator[str]:
    sizes: dict[str, Declaration] = {}
    for declaration in declarations:
        pool = declaration.pipeline.pool
        if pool is None:
            continue
        first = sizes.setdefault(pool.name, declaration)
        slots = first.pipeline.pool.slots if first.pipeline.pool else pool.slots
        if slots != pool.slots:
            yield declaration.problem(
                ("pool", "slots"),
                f"the pool {pool.name!r} has {pool.slots} slots here and {slots} in pipeline {first.pipeline.name!r}",
                fix="give it one size, or give this pool another name",
            )


def _cycle(edges: dict[str, list[str]], start: str) -> list[str]:
    """A way from a pipeline back to itself over at least one other, or nothing."""
    stack = [(start, [start])]
    seen = set()
    while stack:
        name, way = stack.pop()
        for following in edges.get(name, ()):
            if following == start and len(way) > 1:
                return way
            if following not in seen and following != start:
                seen.add(following)
                stack.append((following, [*way, following]))
    return []


def problems_of(declaration: Declaration, family: str | None = None) -> list[str]:
    """The problems of one declaration, each in the product's one form."""
    found = check(declaration.pipeline, family)
    return [declaration.problem(p.path, p.what, allowed=p.allowed, fix=p.fix) for p in found]


def check_python(pipeline: Pipeline) -> None:
    """Hold a pipeline that was made in Python against the rules between its parts.

    Raises:
        DeclarationError: with one line for every mistake, where the pipeline was asked for its DAGs.
    """
    problems = problems_of(Declaration(pipeline, "", document_here(pipeline.model_dump(by_alias=True))))
    if problems:
        raise DeclarationError(problems)
