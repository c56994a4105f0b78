"""A pipeline's DAGs: train, monitor and predict, tied by assets."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import reduce
from operator import or_
from typing import Any

from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, AssetWatcher, CronTriggerTimetable, Param

from airflow_mlops.operators import deployment
from airflow_mlops.operators import stages as operators
from airflow_mlops.operators.approval import ApproveModelOperator, ApproveRetrainingOperator
from airflow_mlops.operators.assets import messages_asset, model_asset, retrain_asset, suggestion_asset
from airflow_mlops.operators.publish import publishing
from airflow_mlops.operators.retraining import listener_of
from airflow_mlops.operators.start import StartRunOperator
from airflow_mlops.sensors import DataDriftSensor, ModelPerformanceSensor, PredictionDriftSensor
from airflow_mlops.spec import (
    dump_pipeline,
    monitor_node,
    performance_node,
    predict_plan,
    prediction_drift_node,
    train_plan,
)
from airflow_mlops.spec.google import STORE_TAG
from airflow_mlops.spec.pipeline import ModelTrigger, Pipeline
from airflow_mlops.spec.plan import Node, callables_of, carried_by
from airflow_mlops.spec.stages import StageParams
from airflow_mlops.triggers import PubsubTrigger

_OPERATORS: dict[str, type[Any]] = {
    operator.stage.stage: operator
    for operator in (
        operators.ExtractDataOperator,
        operators.ValidateDataOperator,
        operators.PrepareDataOperator,
        operators.TuneModelOperator,
        operators.TrainModelOperator,
        operators.RegisterModelOperator,
        operators.EvaluateModelOperator,
        operators.ValidateModelOperator,
        deployment.ValidateServingOperator,
        ApproveModelOperator,
        deployment.TrialModelOperator,
        operators.PromoteModelOperator,
        deployment.DeployModelOperator,
        operators.BatchPredictOperator,
    )
}
_HEAVY = frozenset({"tune", "train"})
"""The stages that take a slot of the pipeline's pool."""
_IN_TURN = "airflow_mlops.ui.turn.InTurn"
"""A name: the scheduler alone loads the class, from the plugin."""
_WINDOW_HELP = "The window's key, such as {example}. Empty: the one the run is about by itself."
_PROMOTE_HELP = (
    "Whether a model that passes its gate may be promoted. Empty: not in a backfill, nor for a window older than the "
    "champion's."
)
_VERSION_HELP = "A version that was the champion once. Empty: the one before this one."
_START = "{{ ti.xcom_pull(task_ids='start') | tojson }}"
"""What the start task found. A template draws no arrow from it to every task of the graph."""
_EXAMPLES = {
    "hour": "2013-03-01T05",
    "day": "2013-03-01",
    "week": "2013-W09",
    "month": "2013-03",
    "quarter": "2013-Q1",
    "year": "2013",
}


def build_dags(pipeline: Pipeline, base: str) -> dict[str, DAG]:
    """Make the DAGs ``NAME.train``, ``monitor``, ``predict`` and ``rollback``, and what else is declared.

    ``NAME.retrain`` asks a person; ``NAME.monitor_predictions`` and ``NAME.monitor_performance`` watch predictions.

    Args:
        pipeline: the declaration.
        base: the folder that its relative paths start from.
    """
    dags = [_train_dag(pipeline, base), _monitor_dag(pipeline, base), _predict_dag(pipeline, base)]
    dags.append(_rollback_dag(pipeline, base))
    dags += _predictions_dags(pipeline, base)
    if pipeline.retrain.mode == "suggest":
        dags.append(_retrain_dag(pipeline))
    return {dag.dag_id: dag for dag in dags}


def _dag(pipeline: Pipeline, what: str, schedule: Any, doc: str, params: dict[str, Param] | None = None) -> DAG:
    store = _store(pipeline)
    return DAG(
        dag_id=f"{pipeline.name}.{what}",
        schedule=schedule,
        # A start in the past would make Airflow run the last tick as soon as the DAG is seen; see _cron.
        start_date=datetime(2000, 1, 1, tzinfo=UTC) if schedule == "@continuous" else None,
        catchup=False,
        max_active_runs=1,
        # Airflow's pages find the store of its own by the tag.
        tags={"mlops", what, pipeline.name, *pipeline.tags, *([f"{STORE_TAG}{store}"] if store else [])},
        description=f"{doc} of {pipeline.name}",
        doc_md=_doc(pipeline, doc),
        params=params,
        default_args={
            "owner": pipeline.owner,
            "retries": pipeline.retries,
            "retry_delay": pipeline.retry_delay,
            **_publishing(pipeline),
        },
    )


def _publishing(pipeline: Pipeline) -> dict[str, Any]:
    google = pipeline.google
    return publishing(google.topic_name, google.connection, pipeline.name, google.store) if google else {}


def _window(pipeline: Pipeline) -> dict[str, Param]:
    """The param by which a person chooses the window."""
    help_ = _WINDOW_HELP.format(example=_EXAMPLES[pipeline.grain])
    return {"window": Param(None, type=["null", "string"], description=help_)}


def _doc(pipeline: Pipeline, what: str) -> str:
    described = f"{pipeline.description}\n\n" if pipeline.description else ""
    declared = dump_pipeline(pipeline.model_copy(update={"description": ""}))
    return f"## {what} of `{pipeline.name}`\n\n{described}```yaml\n{declared}```\n"


def _cron(schedule: str) -> CronTriggerTimetable:
    """A schedule that starts with its next tick: deploying a pipeline trains nothing."""
    return CronTriggerTimetable(schedule, timezone="UTC", run_immediately=False)


def _turn(pipeline: Pipeline, stage: str) -> dict[str, Any]:
    """Where a heavy task waits, and by which rule it is its turn."""
    if pipeline.pool is None or stage not in _HEAVY:
        return {}
    return {"pool": pipeline.pool.name, "weight_rule": _IN_TURN}


def _common(pipeline: Pipeline, base: str) -> dict[str, Any]:
    return {
        "pipeline": pipeline.name,
        "base": base,
        "store": _store(pipeline),
        "registry_conn_id": pipeline.registry,
    }


def _store(pipeline: Pipeline) -> str | None:
    """The root of the pipeline's store, where it is declared."""
    return pipeline.google.store if pipeline.google else None


def _backend(pipeline: Pipeline, params: StageParams) -> dict[str, Any]:
    """What carries a stage, as operators take it."""
    backend, options = carried_by(pipeline, params)
    return {"backend": backend, "backend_options": options}


def _add_tasks(dag: DAG, pipeline: Pipeline, base: str, plan: tuple[Node, ...], *, answers_requests: bool) -> None:
    """The start task and a task for every node of a plan, wired as the plan says."""
    extract: Any = plan[0].params
    start = StartRunOperator(
        task_id="start",
        dag=dag,
        pipeline=pipeline.name,
        source=extract.model_dump()["source"],
        time=extract.time,
        settle=extract.settle,
        grain=extract.grain,
        callables=callables_of(plan, base),
        upstream_models=_upstream(pipeline),
        subscriptions=pipeline.subscriptions,
        retrain=_policy(pipeline),
        answers_requests=answers_requests,
        isolated=pipeline.runtime is not None,
        store=_store(pipeline),
        base=base,
    )
    runtime = pipeline.runtime.model_dump(exclude_none=True) if pipeline.runtime else None
    tasks: dict[str, Any] = {}
    for node in plan:
        given: dict[str, Any] = {name: tasks[stage].output for name, (stage, _) in node.inputs.items()}
        arguments = {
            "dag": dag,
            "start": _START if given else start.output,
            "cache": pipeline.cache,
            **node.params.model_dump(),
            **given,
            **_common(pipeline, base),
            **_backend(pipeline, node.params),
            "runtime": runtime if node.params.in_runtime else None,
            **_turn(pipeline, node.stage),
        }
        parts = getattr(node.params, "parts", 1)
        before = []
        if parts > 1:
            # They leave nothing to do for the task of the stage, which tells what is best.
            del arguments["part"]
            mapped = operators.TuneModelOperator.partial(task_id=f"{node.stage}_trials", **arguments)
            before.append(mapped.expand(part=list(range(parts))))
        tasks[node.stage] = _OPERATORS[node.stage](task_id=node.stage, **arguments)
        for each in before:
            each.set_downstream(tasks[node.stage])


def _upstream(pipeline: Pipeline) -> list[str]:
    """The pipelines whose promotions ask for a retraining."""
    return [each.model for each in pipeline.retrain.triggers if isinstance(each, ModelTrigger)]


def _asking(pipeline: Pipeline) -> list[Asset]:
    """What asks for a retraining from outside: other pipelines' models, and messages."""
    assets = [model_asset(name) for name in _upstream(pipeline)]
    if pipeline.subscriptions:
        data = pipeline.data.model_dump()
        listener = listener_of(pipeline.name, data["source"], pipeline.data.time, pipeline.grain).model_dump()
        connection = {"connection": pipeline.google.connection} if pipeline.google else {}
        watchers = [
            AssetWatcher(name=each, trigger=PubsubTrigger(each, **listener, **connection))
            for each in pipeline.subscriptions
        ]
        assets.append(messages_asset(pipeline.name, watchers))
    return assets


def _policy(pipeline: Pipeline) -> dict[str, Any]:
    """The retrain policy, as operators take it."""
    return pipeline.retrain.model_dump(mode="json")


def _any_of(assets: list[Asset]) -> Any:
    """What a DAG is scheduled on that any of these assets starts; None where there is none."""
    return reduce(or_, assets) if assets else None


def _train_dag(pipeline: Pipeline, base: str) -> DAG:
    assets = [retrain_asset(pipeline.name)] if pipeline.retrain.triggers else []
    if pipeline.retrain.mode != "suggest":
        assets += _asking(pipeline)
    schedule = _any_of(assets)
    if pipeline.schedule:
        timetable = _cron(pipeline.schedule)
        schedule = AssetOrTimeSchedule(timetable=timetable, assets=schedule) if assets else timetable
    promote = Param(None, type=["null", "boolean"], description=_PROMOTE_HELP)
    dag = _dag(pipeline, "train", schedule, "Training", {**_window(pipeline), "promote": promote})
    _add_tasks(dag, pipeline, base, train_plan(pipeline), answers_requests=True)
    return dag


def _retrain_dag(pipeline: Pipeline) -> DAG:
    """A DAG of its own, so that a question that waits holds up neither monitoring nor trainings."""
    dag = _dag(pipeline, "retrain", _any_of([suggestion_asset(pipeline.name), *_asking(pipeline)]), "Retraining")
    ApproveRetrainingOperator(
        task_id="approve",
        dag=dag,
        pipeline=pipeline.name,
        retrain=_policy(pipeline),
        source=pipeline.data.model_dump()["source"],
        grain=pipeline.grain,
        windows=pipeline.train.windows.last,
        estimator=pipeline.train.estimator or pipeline.train.function,
        upstream_models=_upstream(pipeline),
        store=_store(pipeline),
        subscriptions=pipeline.subscriptions,
        time=pipeline.data.time,
    )
    return dag


def _rollback_dag(pipeline: Pipeline, base: str) -> DAG:
    """By hand only: whoever triggers it says why."""
    params = {
        "version": Param(None, type=["null", "string"], description=_VERSION_HELP),
        # Without a default the form does not let a run start before it is filled in.
        "reason": Param(type="string", minLength=1, description="Why; it goes on record."),
    }
    dag = _dag(pipeline, "rollback", None, "Rollback", params)
    # Only the ledger and the registry are spoken to.
    deployment.RollbackModelOperator(
        task_id="rollback",
        dag=dag,
        version="{{ params.version or '' }}",
        reason="{{ params.reason }}",
        google=pipeline.google.model_dump(mode="json") if pipeline.google else None,
        **_common(pipeline, base),
    )
    return dag


def _predict_dag(pipeline: Pipeline, base: str) -> DAG:
    schedule = _cron(pipeline.predict.schedule) if pipeline.predict.schedule else None
    dag = _dag(pipeline, "predict", schedule, "Batch prediction", _window(pipeline))
    _add_tasks(dag, pipeline, base, predict_plan(pipeline), answers_requests=False)
    return dag


def _monitor_dag(pipeline: Pipeline, base: str) -> DAG:
    dag = _dag(pipeline, "monitor", _when_monitored(pipeline), "Monitoring", _window(pipeline))
    params: Any = monitor_node(pipeline).params
    DataDriftSensor(
        task_id="data_drift",
        source=params.model_dump()["source"],
        format=params.format,
        time=params.time,
        grain=params.grain,
        last=params.last,
        settle=params.settle,
        snapshots=params.snapshots,
        data_drift=params.data_drift.model_dump(),
        **_watching(dag, pipeline, base, params),
    )
    return dag


def _predictions_dags(pipeline: Pipeline, base: str) -> list[DAG]:
    """A DAG each: labels come weeks after the data, and a run that waits for them must hold up nobody."""
    dags = []
    predictions, performance = prediction_drift_node(pipeline), performance_node(pipeline)
    if predictions is not None:
        dag = _dag(
            pipeline, "monitor_predictions", _when_monitored(pipeline), "Monitoring predictions", _window(pipeline)
        )
        PredictionDriftSensor(
            task_id="prediction_drift",
            **predictions.params.model_dump(),
            **_watching(dag, pipeline, base, predictions.params),
        )
        dags.append(dag)
    if performance is not None:
        dag = _dag(
            pipeline, "monitor_performance", _when_monitored(pipeline), "Monitoring performance", _window(pipeline)
        )
        params: Any = performance.params
        watching = _watching(dag, pipeline, base, params)
        watching["timeout"] += params.label_delay.total_seconds()
        ModelPerformanceSensor(task_id="performance", **params.model_dump(), **watching)
        dags.append(dag)
    return dags


def _when_monitored(pipeline: Pipeline) -> Any:
    schedule = pipeline.monitor.schedule
    return _cron(schedule) if schedule and schedule != "@continuous" else schedule


def _watching(dag: DAG, pipeline: Pipeline, base: str, params: StageParams) -> dict[str, Any]:
    """What all sensors are told."""
    return {
        "dag": dag,
        "retrain": _policy(pipeline),
        "poke_interval": pipeline.monitor.poll.total_seconds(),
        "timeout": pipeline.monitor.timeout.total_seconds(),
        **_common(pipeline, base),
        **_backend(pipeline, params),
    }
