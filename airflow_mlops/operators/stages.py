"""The stage operators: each names its stage, its inputs and its arguments, and does nothing else.

What an argument means is said once, in `airflow_mlops.spec.stages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.configuration import conf

from airflow_mlops.call.store import VALIDATIONS, Store
from airflow_mlops.hooks.mlflow import store_root
from airflow_mlops.operators.assets import model_asset, predictions_asset, retrain_alias, retrain_asset
from airflow_mlops.operators.base import GateOperator, StageOperator, run_key
from airflow_mlops.operators.links import CARD_URL, RUN_URL, VALIDATION_URL
from airflow_mlops.operators.retraining import policy_of, reconsider, request_of
from airflow_mlops.operators.window import promotion_of_run
from airflow_mlops.registry.requests import Requests
from airflow_mlops.spec import stages

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.call.wire import Call, Outcome
    from airflow_mlops.spec.window import Window


class ExtractDataOperator(StageOperator):
    """Read windows of the source into one immutable Parquet snapshot.

    A window of a database is read once: the rows that were there after it had settled are what every later run gets. A
    retry or cleared task of the same run always gets the same rows of a database.

    :param source: a Parquet or CSV file or a folder of them, as a path relative to the DAG file or any fsspec URI;
        ``{window}`` stands for each window's key. Or a database: ``{"connection": CONN_ID, "query": "SELECT ..."}`` or
        ``{"connection": CONN_ID, "table": "schema.table"}``, the id of an Airflow connection of type ``postgres`` or
        ``sqlite``; ``:start`` and ``:end`` in the query are the window, as bound parameters. (templated)
    :param format: ``parquet`` or ``csv``. Default: from the file's suffix.
    :param time: the column that says when a row happened; rows outside the windows are left out (by a database itself).
        Times without a zone, and dates, are taken as UTC.
    :param grain: the calendar piece that windows step by: hour, day, week, month, quarter, year.
    :param last: how many windows to read, the run's own being the newest.
    :param settle: how long after its end a window of a database may still receive late rows.
    :param snapshots: ``reuse`` takes a window of a database as it was first read after it had settled, ``refresh``
        reads it anew in every run.
    """

    stage = stages.Extract
    links = ()

    def __init__(
        self,
        *,
        source: str | Mapping[str, Any],
        format: Literal["parquet", "csv"] | None = None,
        time: str | None = None,
        grain: str = "day",
        last: int = 1,
        settle: timedelta | str = timedelta(0),
        snapshots: Literal["reuse", "refresh"] = "reuse",
        **kwargs: Any,
    ) -> None:
        settings = {
            "source": source,
            "format": format,
            "time": time,
            "grain": grain,
            "last": last,
            "settle": settle,
            "snapshots": snapshots,
        }
        super().__init__(settings=settings, **kwargs)


class ValidateDataOperator(StageOperator):
    """Hold rows against the data schema: hard rules fail the task, soft ones warn, single bad rows are set aside.

    Its output ``data`` is the rows that go on; where the schema declares no ``quarantine``, all of them. The link
    *Validation report* leads to what was found, also where it failed the task. Where the schema declares ``skew`` with
    ``on_skew: retrain``, values that have moved make a retrain request: a task with a ``start`` has its own run answer
    it, any other updates the asset ``x-mlops://PIPELINE/retrain`` (not without ``pipeline``).

    :param data: the output of `ExtractDataOperator`. (templated)
    :param data_schema: the schema's file, relative to the DAG file. Default: only the target and infinities are
        checked.
    :param target: the column to predict; it must be there, with no nulls.
    :param time: the time column; it must be there and hold times.
    :param windows: how many windows the rows span, for the number of rows per window.
    :param retrain: the policy that the request of a task without ``start`` is held against, with the keys of the
        declaration's ``retrain``.
    """

    stage = stages.ValidateData
    links = (VALIDATION_URL,)
    inputs = ("data",)

    def __init__(
        self,
        *,
        data: Any,
        data_schema: str | None = None,
        target: str | None = None,
        time: str | None = None,
        windows: int = 1,
        retrain: Mapping[str, Any] | None = None,
        pipeline: str | None = None,
        start: Any = None,
        **kwargs: Any,
    ) -> None:
        self.retrain = dict(retrain or {})
        self.alias = retrain_alias(pipeline) if pipeline and start is None else None
        if self.alias is not None:
            kwargs.setdefault("outlets", [self.alias])
            kwargs.setdefault("inlets", [retrain_asset(str(pipeline))])
        settings = {"data": data, "data_schema": data_schema, "target": target, "time": time, "windows": windows}
        super().__init__(settings=settings, pipeline=pipeline, start=start, **kwargs)

    def carry(self, context: Context, call: Call) -> Outcome:
        """Say where the report will be: a run that stops here needs it most."""
        root = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
        page = f"{root}/mlops/dags/{self.dag.dag_id}/validations/{call.identity}"
        context["ti"].xcom_push(key=VALIDATION_URL, value=page)
        return super().carry(context, call)

    def finish(self, context: Context, outcome: Outcome) -> dict[str, Any]:
        """Ask for a retraining where values have moved and the schema wants one."""
        store = Store(store_root(self.store))
        # What was found in another run has its page, and this run's link leads there.
        page = outcome.outputs["page"].model_dump(mode="json")
        store.create_json({"run": run_key(context), "page": page}, VALIDATIONS, f"{outcome.identity}.json")
        if outcome.info.get("skew") == "retrain":
            wish = request_of(outcome, self.pipeline_name, "skew")
            if self.start:
                # The run trains on these very rows: it answers the request itself.
                Requests(store, self.pipeline_name).take(wish, run_key(context))
            else:
                policy = policy_of(self.retrain, f"{type(self).__name__} {self.pipeline_name!r}")
                reconsider(context, store, self.pipeline_name, policy, self.alias, wish)
        return super().finish(context, outcome)


class PrepareDataOperator(StageOperator):
    """Check the feature function's contract and set test rows apart.

    :param data: the output of `ExtractDataOperator`. (templated)
    :param target: the column to predict.
    :param features: the stateless feature function, ``package.module:function``.
    :param time: the time column, for a split by time.
    :param split: ``{"by": "time" | "group" | "random", "test": 0.2, "group": COLUMN}``. Default: by time where ``time``
        is given, else at random.
    :param seed: the seed of a split by group or at random.
    """

    stage = stages.Prepare
    links = ()
    inputs = ("data",)

    def __init__(
        self,
        *,
        data: Any,
        target: str,
        features: str | None = None,
        time: str | None = None,
        split: Mapping[str, Any] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        split = {"by": "time" if time else "random", **(split or {})}
        settings = {"data": data, "target": target, "features": features, "time": time, "split": split, "seed": seed}
        super().__init__(settings=settings, **kwargs)


class TuneModelOperator(StageOperator):
    """Search for the model's parameters with Optuna, by cross-validation inside the training rows.

    The output goes into `TrainModelOperator` as ``tuned``. The study lies in the store and outlives its workers: a task
    that comes back goes on with the trials that were interrupted. Every trial is a run in MLflow, below the run of the
    pipeline.

    To spread the trials over mapped tasks, let ``partial(..., parts=4).expand(part=[0, 1, 2, 3])`` come before a task
    with the same arguments and without ``part``, which tells what is best.

    :param train: the output of `PrepareDataOperator`. (templated)
    :param target: the column to predict.
    :param space: what each parameter may be: ``{"learning_rate": {"low": 0.01, "high": 0.3, "log": True}, "loss":
        {"choices": ["a", "b"]}}``. (templated)
    :param estimator: the path of an estimator class with scikit-learn's interface; or give ``function``.
    :param function: ``(X, y, params) -> fitted model``, as ``package.module:function``.
    :param model_params: the params that are not searched. (templated)
    :param trials: how many points of the space are tried. (templated)
    :param sampler: ``tpe``, ``random`` or ``grid``.
    :param pruner: ``none``, ``median`` or ``hyperband``.
    :param folds: how many parts of the training rows take their turn as validation rows.
    :param metric: the metric. Default: the primary one of the task.
    :param time: the column that orders the folds; each is validated by a model of the rows before it.
    :param jobs: how many trials run at once in the task, each on its share of the cores.
    :param timeout: how long after the first trial the last one may begin: ``2h`` or a ``timedelta``.
    :param parts: over how many tasks the trials are spread.
    :param part: which of these this is, from 0. Default: the one that sees to what the others left, and tells what is
        best. (templated)
    :param study: the run that the study belongs to. Default: the DAG run, for all of its mapped tasks together.
        (templated)
    :param features: the stateless feature function; it becomes the first step of the model.
    :param preprocess: a function that returns an unfitted transformer; it becomes the second step.
    :param exclude: raw columns that are no features: keys and times.
    :param drop: raw columns that the model never sees.
    :param group: the column of a split by group; whole groups are validated together.
    :param ml_task: ``binary``, ``multiclass`` or ``regression``. Default: told from the estimator and the target.
    :param seed: the seed of the sampler and the folds, and the random state of an estimator that takes one.
    """

    stage = stages.Tune
    inputs = ("train",)
    part: Any
    study: str | None

    def __init__(
        self,
        *,
        train: Any,
        target: str,
        space: Mapping[str, Any],
        estimator: str | None = None,
        function: str | None = None,
        model_params: Mapping[str, Any] | None = None,
        trials: int = 50,
        sampler: str = "tpe",
        pruner: str = "none",
        folds: int = 3,
        metric: str | None = None,
        time: str | None = None,
        jobs: int = 1,
        timeout: Any = None,
        parts: int = 1,
        part: int | None = None,
        study: str | None = None,
        features: str | None = None,
        preprocess: str | None = None,
        exclude: Sequence[str] = (),
        drop: Sequence[str] = (),
        group: str | None = None,
        ml_task: str | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        settings = {
            "train": train,
            "target": target,
            "space": space,
            "estimator": estimator,
            "function": function,
            "model_params": dict(model_params or {}),
            "trials": trials,
            "sampler": sampler,
            "pruner": pruner,
            "folds": folds,
            "metric": metric,
            "time": time,
            "jobs": jobs,
            "timeout": timeout,
            "parts": parts,
            "part": part,
            "study": study,
            "features": features,
            "preprocess": preprocess,
            "exclude": list(exclude),
            "drop": list(drop),
            "group": group,
            "ml_task": ml_task,
            "seed": seed,
        }
        super().__init__(settings=settings, **kwargs)

    def make_call(self, context: Context, window: Window | None = None) -> Call:
        """The Call; mapped tasks of one run work on one study."""
        call = super().make_call(context, window)
        if self.part is None or self.study:
            return call
        run = context["dag_run"]
        return call.model_copy(update={"params": {**call.params, "study": f"{run.dag_id}/{run.run_id}"}})


class TrainModelOperator(StageOperator):
    """Fit the model on training rows and log it, with all that it needs, to MLflow.

    :param train: the output of `PrepareDataOperator`. (templated)
    :param target: the column to predict.
    :param estimator: the path of an estimator class with scikit-learn's interface; or give ``function``.
    :param function: ``(X, y, params) -> fitted model``, as ``package.module:function``.
    :param model_params: the estimator's arguments, or what the function gets as ``params``. (templated)
    :param features: the stateless feature function; it becomes the first step of the model.
    :param preprocess: a function that returns an unfitted transformer; it becomes the second step.
    :param data: the output of `ExtractDataOperator`, for the drift reference. Default: the training rows. (templated)
    :param tuned: the output of `TuneModelOperator`; what it found goes over ``model_params``. (templated)
    :param exclude: raw columns that are no features: keys and times.
    :param drop: raw columns that the model never sees.
    :param group: the column of a split by group.
    :param windows: how many windows the rows span; kept with the model.
    :param time: the time column, by which the drift reference is cut into blocks.
    :param ml_task: ``binary``, ``multiclass`` or ``regression``. Default: told from the estimator and the target.
    :param seed: the random state of an estimator that takes one.
    :param serialization: ``skops``, which runs no code when the model is loaded, or ``cloudpickle``.
    :param declaration: the pipeline's own YAML, logged with the run.
    """

    stage = stages.Train
    inputs = ("train", "data", "tuned")
    untemplated = frozenset({"declaration"})

    def __init__(
        self,
        *,
        train: Any,
        target: str,
        estimator: str | None = None,
        function: str | None = None,
        model_params: Mapping[str, Any] | None = None,
        features: str | None = None,
        preprocess: str | None = None,
        data: Any = None,
        tuned: Any = None,
        exclude: Sequence[str] = (),
        drop: Sequence[str] = (),
        group: str | None = None,
        windows: int = 1,
        time: str | None = None,
        ml_task: str | None = None,
        seed: int = 0,
        serialization: Literal["skops", "cloudpickle"] = "skops",
        declaration: str | None = None,
        **kwargs: Any,
    ) -> None:
        settings = {
            "train": train,
            "data": data,
            "tuned": tuned,
            "target": target,
            "estimator": estimator,
            "function": function,
            "model_params": dict(model_params or {}),
            "features": features,
            "preprocess": preprocess,
            "exclude": list(exclude),
            "drop": list(drop),
            "group": group,
            "windows": windows,
            "time": time,
            "ml_task": ml_task,
            "seed": seed,
            "serialization": serialization,
            "declaration": declaration,
        }
        super().__init__(settings=settings, **kwargs)


class RegisterModelOperator(StageOperator):
    """Make the trained model a version of the registered model, once.

    :param model: the output of `TrainModelOperator`. (templated)
    """

    stage = stages.Register
    inputs = ("model",)
    ui_color = "#ede9fe"

    def __init__(self, *, model: Any, **kwargs: Any) -> None:
        super().__init__(settings={"model": model}, **kwargs)


class EvaluateModelOperator(StageOperator):
    """Measure the model on held-out rows, score the champion on the same rows, and log the model card.

    :param test: the output of `PrepareDataOperator`. (templated)
    :param model: the output of `TrainModelOperator`. (templated)
    :param report: the output of `ValidateDataOperator`, whose warnings the model card repeats. (templated)
    :param metrics: the metrics; the first is the primary one. Default: the usual ones of the task.
    :param slices: raw columns whose every value is also measured by itself, with confidence intervals.
    :param fairness: raw columns between whose values the differences of the model are measured; they are slices too.
    :param min_rows: a slice of fewer rows is named as too small and not measured.
    :param importance_rows: how many rows the permutation importance is measured on, at most; 0: it is not.
    :param plots: whether to draw plots.
    :param versus_champion: whether the champion is scored too, for the gate.
    :param time: the time column, by which the reference of the predictions is cut into blocks.
    """

    stage = stages.Evaluate
    inputs = ("test", "model", "report")
    links = (RUN_URL, CARD_URL)

    def __init__(
        self,
        *,
        test: Any,
        model: Any,
        report: Any = None,
        metrics: Sequence[str] = (),
        slices: Sequence[str] = (),
        fairness: Sequence[str] = (),
        min_rows: int = 30,
        importance_rows: int = 500,
        plots: bool = True,
        versus_champion: bool = True,
        time: str | None = None,
        **kwargs: Any,
    ) -> None:
        settings = {
            "test": test,
            "model": model,
            "report": report,
            "metrics": list(metrics),
            "slices": list(slices),
            "fairness": list(fairness),
            "min_rows": min_rows,
            "importance_rows": importance_rows,
            "plots": plots,
            "versus_champion": versus_champion,
            "time": time,
        }
        super().__init__(settings=settings, **kwargs)


class ValidateModelOperator(GateOperator):
    """The gate: a model that does not pass skips what follows; the task itself succeeds.

    :param evaluation: the output of `EvaluateModelOperator`. (templated)
    :param version: the output of `RegisterModelOperator`, which becomes the challenger if it passes. (templated)
    :param min: the least value of a metric where more is better.
    :param max: the greatest value of a metric where less is better, or of a difference between the values of a column
        of ``fairness``, as in ``{"fairness.sex.tpr_difference": 0.1}``.
    :param versus_champion: ``{"metric": ..., "confidence": 0.95, "margin": 0, ...}``; ``None`` compares with the
        absolute limits only.
    :param seed: the seed of the bootstrap.
    :param promote: whether a model that passes may be promoted; where not, its verdict is ``held``. The DAG param or
        conf key ``promote`` of the run stands over it. Default: no in a backfill, else unless the run's window is older
        than the champion's.
    """

    stage = stages.ValidateModel
    links = (RUN_URL, CARD_URL)
    inputs = ("evaluation", "version")
    promote: bool | None
    ui_color = "#fef3c7"

    def __init__(
        self,
        *,
        evaluation: Any,
        version: Any = None,
        min: Mapping[str, float] | None = None,
        max: Mapping[str, float] | None = None,
        versus_champion: Mapping[str, Any] | Literal[True] | None = True,
        seed: int = 0,
        promote: bool | None = None,
        **kwargs: Any,
    ) -> None:
        settings = {
            "evaluation": evaluation,
            "version": version,
            "min": dict(min or {}),
            "max": dict(max or {}),
            "versus_champion": {} if versus_champion is True else versus_champion,
            "seed": seed,
            "promote": promote,
        }
        super().__init__(settings=settings, **kwargs)

    def make_call(self, context: Context, window: Window | None = None) -> Call:
        """The Call, with what this run was told about promoting."""
        self.promote = promotion_of_run(context, self.promote)
        return super().make_call(context, window)


class PromoteModelOperator(StageOperator):
    """Make a version that passed its gate the champion, and update the asset ``x-mlops://PIPELINE/model``.

    The verdict is not taken at its word: it is computed anew from the evidence that it names. Without ``pipeline`` no
    asset is updated.

    :param version: the output of `RegisterModelOperator`. (templated)
    :param decision: the output of `ValidateModelOperator`, or of `ApproveModelOperator`. (templated)
    :param gate: the gate that the evidence is put through, with the arguments of `ValidateModelOperator`. Default: the
        one that the verdict names.
    :param needs_approval: whether a person must have approved, by the ledger.
    :param google: the section ``google`` of a declaration, where the version is mirrored to the Vertex AI Model
        Registry: ``{"project": ..., "region": ..., "image": ...}``.
    """

    stage = stages.Promote
    links = (RUN_URL, CARD_URL)
    untemplated = frozenset({"google"})
    inputs = ("version", "decision")
    ui_color = "#dcfce7"

    def __init__(
        self,
        *,
        version: Any,
        decision: Any,
        gate: Mapping[str, Any] | None = None,
        needs_approval: bool = False,
        google: Mapping[str, Any] | None = None,
        pipeline: str | None = None,
        **kwargs: Any,
    ) -> None:
        if pipeline:
            kwargs.setdefault("outlets", [model_asset(pipeline)])
        gate = dict(gate) if gate is not None else None
        google = dict(google) if google is not None else None
        settings = {
            "version": version,
            "decision": decision,
            "gate": gate,
            "needs_approval": needs_approval,
            "google": google,
        }
        super().__init__(settings=settings, pipeline=pipeline, **kwargs)

    def finish(self, context: Context, outcome: Outcome) -> dict[str, Any]:
        """Tell those that wait for a new champion which one it is; nothing where it was the champion before."""
        if "unchanged" in outcome.info:
            # An outlet is updated by every success of its task, and no champion is new here.
            self.outlets = []
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = {"version": outcome.info["version"]}
        return super().finish(context, outcome)


class BatchPredictOperator(StageOperator):
    """Score rows with the champion, write one partition, and update the asset ``x-mlops://PIPELINE/predictions``.

    The partition is the one file ``DESTINATION/window=KEY/predictions.parquet``, which is replaced whole: a rerun
    changes no other window, and a reader sees the old rows or the new ones. Each row holds the kept columns,
    ``prediction``, ``probability`` (of the second of two classes) or ``probability.CLASS`` for each of several, and
    ``model``, ``model_version``, ``run`` and ``window``. Without ``pipeline`` no asset is updated; else the event's
    extra has ``version``, ``run``, ``window``, ``rows`` and ``uri``.

    :param data: the output of `ExtractDataOperator`. (templated)
    :param destination: the folder of predictions, as a path relative to the DAG file or any fsspec URI. Default:
        ``predictions/PIPELINE`` in the store. (templated)
    :param keep: columns of the input that are copied beside the predictions: keys and times.
    :param job: ``stage`` scores in the stage, wherever that runs; ``vertex`` has a batch prediction job of Vertex AI do
        it.
    :param google: the section ``google`` of a declaration, for such a job.
    """

    stage = stages.BatchPredict
    inputs = ("data",)
    untemplated = frozenset({"google"})
    ui_color = "#e0f2fe"

    def __init__(
        self,
        *,
        data: Any,
        destination: str | None = None,
        keep: Sequence[str] = (),
        job: str = "stage",
        google: Mapping[str, Any] | None = None,
        pipeline: str | None = None,
        **kwargs: Any,
    ) -> None:
        if pipeline:
            kwargs.setdefault("outlets", [predictions_asset(pipeline)])
        google = dict(google) if google is not None else None
        settings = {"data": data, "destination": destination, "keep": list(keep), "job": job, "google": google}
        super().__init__(settings=settings, pipeline=pipeline, **kwargs)

    def finish(self, context: Context, outcome: Outcome) -> dict[str, Any]:
        """Tell those that wait for predictions which they are."""
        predictions = outcome.outputs["predictions"]
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = {
                "version": outcome.info["champion"],
                "run": outcome.run,
                "window": outcome.window.key if outcome.window else None,
                "rows": predictions.rows,
                "uri": predictions.uri,
            }
        return super().finish(context, outcome)
