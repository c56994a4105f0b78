"""The declaration of a pipeline. Every default is the one an experienced team would choose."""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.base import SEVERAL, Callable, Duration, Estimator, Names, Schedule, Section, Size
from airflow_mlops.spec.environment import merged, not_allowed
from airflow_mlops.spec.google import SUBSCRIPTION, Google, whole_name
from airflow_mlops.spec.metrics import Task
from airflow_mlops.spec.promises import Tests
from airflow_mlops.spec.source import Snapshots, Source, is_windowed
from airflow_mlops.spec.space import Space
from airflow_mlops.spec.window import Grain, grain_of

API_VERSION = "airflow-mlops/v1"
RUNTIME_BACKENDS = ("local", "subprocess")
"""The backends beside which a `runtime` may be declared."""


class Windows(Section):
    """Which windows a stage reads."""

    last: int = Field(1, ge=1)
    """How many windows, the run's own being the newest."""


class Data(Section):
    """Where the rows come from and what their columns mean."""

    source: Source
    """A Parquet or CSV file or a folder of them, as a path relative to the declaration or any fsspec URI. ``{window}``
    stands for the window's key; ``*`` matches within a folder; ``month=2013-01`` below a folder is a column.
    Or ``{connection: ..., query: ...}``: a SQL database."""
    target: str
    """The column to predict."""
    time: str | None = None
    """The column that says when a row happened; rows outside the window are left out. Times without a zone, and
    dates, are taken as UTC."""
    settle: Duration = timedelta(0)
    """How long after its end a window of a database, or of one file with ``time``, may still receive late rows."""
    snapshots: Snapshots = "reuse"
    """``reuse`` reads a window of a database once: what was read after it had settled is what later runs get.
    ``refresh`` lets each run read it anew. Files are read again whenever their content has changed."""
    key: Names = ()
    """Columns that identify a row; they are never features."""
    drop: Names = ()
    """Columns that are never features and are not watched for drift."""
    window: Grain | None = None
    """The calendar piece that ``{window}`` steps by. Default: that of ``schedule`` if it is a preset, else ``day``."""
    format: Literal["parquet", "csv"] | None = None
    """The file format. Default: from the file's suffix."""
    schema_file: str | None = Field(None, alias="schema")
    """The file of the reviewed data schema, made by ``airflow-mlops schema infer``."""

    @property
    def windowed(self) -> bool:
        """Whether the data comes in windows at all."""
        return is_windowed(self.source, self.time)


class Split(Section):
    """How test rows are set apart, before anything is fitted."""

    by: Literal["time", "group", "random"] | None = None
    """``time`` holds out the newest rows, ``group`` whole groups, ``random`` single rows.
    Default: ``time`` if ``data.time`` is declared, else ``random``."""
    test: float = Field(0.2, gt=0, lt=1)
    """The share of rows (of groups) held out."""
    group: str | None = None
    """The column that names the group, for ``by: group``."""


class Prepare(Section):
    """Features and preprocessing. Both travel with the model, so it takes raw rows wherever it is loaded."""

    features: Callable | None = None
    """A stateless function from frame to frame, the same in training and in serving. Default: the raw columns."""
    preprocess: Callable | None = None
    """A function without arguments that returns an unfitted scikit-learn transformer, fitted on training rows only.
    Default where ``features`` is not given either: median and scale for numbers, one-hot for categories."""
    split: Split = Split()
    """How test rows are set apart."""


class Train(Section):
    """The model. Exactly one of ``estimator`` and ``function``."""

    estimator: Estimator | None = None
    """The path of an estimator class with scikit-learn's interface."""
    function: Callable | None = None
    """``(X: DataFrame, y: Series, params: dict) -> fitted model``, called on features of the training rows."""
    params: dict[str, Any] = {}
    """The estimator's arguments, or what the function gets as ``params``."""
    windows: Windows = Windows()
    """Which windows training reads."""
    seed: int = 0
    """The random state, for the split and for an estimator that takes ``random_state``."""
    serialization: Literal["skops", "cloudpickle"] = "skops"
    """How the model is written. ``skops`` runs no code when the model is loaded; ``cloudpickle`` does."""

    @model_validator(mode="after")
    def _one_way(self) -> Train:
        if (self.estimator is None) == (self.function is None):
            raise ValueError("give exactly one of 'estimator' and 'function'")
        return self


Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["none", "median", "hyperband"]


class Tune(Section):
    """The search for the model's parameters, by cross-validation inside the training rows; test rows stay unseen."""

    space: Space = Field(min_length=1, examples=[{"learning_rate": {"low": 0.01, "high": 0.3, "log": True}}])
    """What each parameter may be: a range ``{low: 0.01, high: 0.3, log: true}`` or ``{choices: [a, b]}``. What is found
    best goes over ``train.params``."""
    trials: int = Field(50, ge=1, le=10_000)
    """How many points of the space are tried. A grid ends when all of it is tried."""
    sampler: Sampler = "tpe"
    """How the next point is chosen: ``tpe`` learns from those before it, ``random`` and ``grid`` do not."""
    pruner: Pruner = "none"
    """Which trials end before their last fold: ``median`` those that are worse than half of the others after as many
    folds, ``hyperband`` by rounds. ``none`` measures each on every fold."""
    folds: int = Field(3, ge=2, le=20)
    """How many parts of the training rows take their turn as validation rows. Where test rows are held out by time,
    each part is measured by a model of the rows before it; where by group, groups stay whole."""
    metric: str | None = None
    """The metric. Default: the primary one, the first of ``evaluate.metrics``."""
    jobs: int = Field(1, ge=1, le=64)
    """How many trials run at once in a worker, each on its share of the cores. With more than one, the order in which
    they end decides what the sampler learns, and two runs may find different points."""
    as_tasks: int | None = Field(None, ge=2, le=1000)
    """Over how many mapped Airflow tasks the trials are spread. Default: one task does them all."""
    timeout: Duration | None = None
    """How long after the first trial the last one may begin. Default: no limit."""


class Evaluate(Section):
    """What is measured on the held-out rows."""

    metrics: Names = ()
    """The metrics; the first is the primary one. Default: the usual ones of the task."""
    slices: Names = ()
    """Raw columns whose every value is also measured by itself, with confidence intervals."""
    fairness: Names = ()
    """Raw columns, such as ``sex``, between whose values the model's differences are measured. They are slices too."""
    min_rows: int = Field(30, ge=10)
    """A slice of fewer rows is named as too small and not measured."""
    importance_rows: int = Field(500, ge=0)
    """How many held-out rows the permutation importance of raw columns is measured on, at most; ``0``: it is not."""
    plots: bool = True
    """Whether to draw plots: ROC, precision and recall, confusion, calibration, or residuals; slices and importance."""


class VersusChampion(Section):
    """The comparison with the champion, on held-out rows that neither model trained on."""

    metric: str | None = None
    """The metric compared. Default: the primary one."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """The confidence of the paired bootstrap's one-sided bound."""
    margin: float = Field(0.0, ge=0)
    """By how much the challenger may be worse and still pass. ``0``: it must be better."""
    resamples: int = Field(1000, ge=200, le=100_000)
    """Bootstrap resamples."""
    min_rows: int = Field(200, ge=10)
    """Fewer comparable rows than this decide nothing, and the champion stays."""


class ValidateModel(Section):
    """The gate. A model that does not pass changes nothing."""

    min: dict[str, float] = {}
    """The least value of a metric where more is better."""
    max: dict[str, float] = {}
    """The greatest value of a metric where less is better, or of a difference between the values of a column that
    ``evaluate.fairness`` names: ``fairness.sex.tpr_difference``."""
    versus_champion: VersusChampion | None = VersusChampion()
    """The comparison with the champion; ``null`` compares with the absolute limits only."""


class DriftRule(Section):
    """When rows count as moved from the champion's reference: chance does not explain it, and it is far enough."""

    false_alarm_rate: float = Field(0.01, ge=1e-6, lt=0.5)
    """The chance of an alarm on a window without drift, over all columns together. The thresholds for it are found on
    the reference, for windows of this size and length; ``airflow-mlops calibrate`` shows them."""
    min_effect: float = Field(0.1, ge=0)
    """How far a column of numbers must move to count, in standard deviations of the reference (normed Wasserstein)."""
    min_category_effect: float = Field(0.1, ge=0, le=1)
    """How far a column of categories (Jensen-Shannon distance, at most 0.83) or a share of nulls must move to count."""
    min_rows: int = Field(200, ge=20)
    """Fewer rows than this decide nothing."""
    columns: Names = ()
    """The columns watched. Default: every raw feature column."""


class WindowDrift(DriftRule):
    """When windows, one after another, count as drifted from a reference."""

    consecutive: int | None = Field(None, ge=1, le=100)
    """How many windows in a row must find the same column moved before it is drift; until then the verdict is
    ``warn``. Only windows that share no time confirm each other. Default: 1 for windows of a week and longer, where
    waiting for another one costs more than a training that the gate turns away, and 2 for shorter ones."""
    within: int | None = Field(None, ge=1, le=100)
    """Among how many windows these must lie, as in ``{consecutive: 2, within: 3}``. Default: as many, so in a row."""

    @model_validator(mode="after")
    def _possible(self) -> WindowDrift:
        if self.within is not None and self.within < (self.consecutive or 1):
            raise ValueError("'within' must be at least 'consecutive'")
        return self


class DataDrift(WindowDrift):
    """When a window counts as drifted from the champion's reference."""

    multivariate: bool = False
    """Whether a classifier also tries to tell the window's rows from those of the champion's training, which sees
    columns that no longer go together. It gets half of ``false_alarm_rate``, and looks at 20,000 rows of each side at
    most."""


class PredictionDrift(WindowDrift):
    """When a window of logged predictions counts as drifted from what the model said of its held-out rows."""

    columns: Names = ()
    """The columns of the predictions that are watched. Default: the probabilities, or, of a model without any,
    ``prediction``."""


class Performance(Section):
    """When the champion counts as worse than it was at its promotion, by labels that come later."""

    metric: str | None = None
    """The metric, one of those evaluated. Default: the primary one."""
    labels: Source | None = Field(None, examples=["labels/{window}.parquet"])
    """Where the labels are: rows of ``data.key`` and ``data.target``, in any of the forms of ``data.source``. Default:
    the pipeline's own source, read again when the target has come."""
    label_delay: Duration = timedelta(0)
    """How long after a window's end its labels are complete. Until then it is not looked at."""
    drop: float = Field(0.03, ge=0)
    """The loss that is worth a retraining, in the metric's own unit; of ``rmse``, ``mae`` and ``median_ae``, whose unit
    is the target's, as a share of the value at promotion."""
    min_labels: int = Field(200, ge=20)
    """Fewer labelled predictions than this decide nothing, and the window is looked at again when more have come."""
    confidence: float = Field(0.95, ge=0.8, le=0.99)
    """The confidence of the interval of the loss, all of which must lie above ``drop``."""


class Monitor(Section):
    """How the champion is watched."""

    schedule: Schedule | None = None
    """When the monitor DAG runs: a cron expression, a preset, or ``@continuous`` to judge each window as it arrives."""
    windows: Windows = Windows()
    """Which windows are judged together."""
    data_drift: DataDrift = DataDrift()
    """When a window counts as drifted."""
    prediction_drift: PredictionDrift | None = None
    """When the predictions of a window count as drifted. Default: they are not watched."""
    performance: Performance | None = None
    """When the champion counts as worse than it was. Default: no labels are waited for."""
    poll: Duration = timedelta(seconds=5)
    """How often to look whether the window's data is there. A look lists folders and reads no data. Where requests
    cost money make it longer: on an object store a look is some six, 100,000 a day at ``5s`` and 8,600 at ``1m``."""
    quiet: Duration = timedelta(minutes=5)
    """How long after its last prediction a window that was served counts as whole. Those of batch prediction are."""
    timeout: Duration = timedelta(days=7)
    """How long to wait for the window's data."""


class Canary(Section):
    """A share of the requests for the candidate, until it has stood long enough."""

    canary: int = Field(ge=1, le=99)
    """How many of a hundred requests the candidate answers."""


class RollbackOn(Section):
    """What ends a candidate's trial: it is withdrawn, and the run fails with the reason."""

    error_rate: float | None = Field(0.02, ge=0, lt=1)
    """The share of its requests that may fail."""
    disagreement: float | None = Field(None, ge=0, lt=1)
    """With ``shadow``: the share of rows that it may answer otherwise than the champion. Default: any."""
    metric_drop: float | None = Field(None, ge=0)
    """How far its metric may lie behind the champion's, in the metric's unit, by the labels of ``monitor.performance``
    that have come when the trial ends; too few of them decide nothing. Default: labels are not waited for."""
    p99_ms: float | None = Field(None, gt=0)
    """What one answer in a hundred may take at most, in milliseconds. Default: any time."""


class Deploy(Section):
    """How a version that passed its gate comes to be served."""

    target: str = "local"
    """Where: a name entered in the entry points ``airflow_mlops.deployments``. ``local`` is ``airflow-mlops serve``."""
    strategy: Literal["replace", "shadow"] | Canary = "replace"
    """``replace`` serves it when it is promoted. ``{canary: 10}`` gives it ten of a hundred requests first, and
    ``shadow`` asks it beside the champion and returns the champion's answers only."""
    bake: Duration = timedelta(minutes=10)
    """How long a canary or shadow must hold before it is promoted."""
    min_requests: int = Field(100, ge=1)
    """How many requests (of a shadow: rows) it must have seen by then; until it has, the trial goes on."""
    timeout: Duration = timedelta(days=1)
    """How long it may take to see them."""
    rollback_on: RollbackOn = RollbackOn()
    """What ends the trial before that."""
    max_latency_ms: float | None = Field(None, gt=0)
    """What one answer in a hundred, to one row, may take at most before it is deployed at all. Default: any time."""
    max_size: Size | None = None
    """How large the model's files may be. Default: any size."""
    tolerance: float = Field(1e-6, ge=0)
    """How far a served number may lie from what training saw, in absolute value or, above 1, as a share."""
    allow_pickle: bool = False
    """Whether a model with ``serialization: cloudpickle``, which runs code when it is loaded, may be served. Servers
    must be told so too: ``airflow-mlops serve --allow-pickle``."""


class ModelTrigger(Section):
    """Retrain when another pipeline has promoted a model."""

    kind: ClassVar = "model"

    model: str
    """The other pipeline's name."""


class PubsubTrigger(Section):
    """Retrain when a message says so."""

    kind: ClassVar = "pubsub"

    pubsub: str = Field(pattern=SUBSCRIPTION, examples=["retrain-requests"])
    """A subscription of Pub/Sub: an id in ``google.project``, or ``projects/P/subscriptions/S``. Messages with the
    attribute ``model=NAME`` or ``models=A,B`` are for those pipelines, any other for all that name the subscription;
    ``window=2013-03`` names the window. A notification of Cloud Storage is for those whose ``data.source`` it is."""


OwnTrigger = Literal["drift", "prediction_drift", "performance", "skew"]


def _kind_of(trigger: Any) -> str:
    if isinstance(trigger, PubsubTrigger) or (isinstance(trigger, dict) and "pubsub" in trigger):
        return "PubsubTrigger"
    return "ModelTrigger" if isinstance(trigger, (dict, ModelTrigger)) else "own"


Trigger = Annotated[
    Annotated[OwnTrigger, Tag("own")]
    | Annotated[ModelTrigger, Tag("ModelTrigger")]
    | Annotated[PubsubTrigger, Tag("PubsubTrigger")],
    Discriminator(_kind_of),
]
"""``drift``, ``prediction_drift``, ``performance``, ``skew``, ``{model: NAME}`` or ``{pubsub: SUBSCRIPTION}``; told
apart first, so that a mistake is reported once."""


class Approval(Section):
    """Who is asked, and for how long: before a promotion, or with ``mode: suggest`` before a training."""

    users: Names = ()
    """The ids of the Airflow users who may answer. Default: everybody who may answer in this DAG."""
    timeout: Duration = timedelta(days=3)
    """How long the question waits. Silence means no."""

    @field_validator("timeout")
    @classmethod
    def _some_time(cls, value: timedelta) -> timedelta:
        if not value:
            raise ValueError("nobody can answer in no time; give a duration such as 3d")
        return value


class Retrain(Section):
    """What starts a training besides the schedule and a person.

    Scheduled and manual runs are not limited by it; they answer the requests that wait.
    """

    mode: Literal["auto", "suggest", "observe"] = "auto"
    """``auto`` starts a training by itself; ``suggest`` asks a person in Airflow first, with the evidence; ``observe``
    only records what would have been asked for."""
    triggers: tuple[Trigger, ...] = ("drift", "prediction_drift", "performance", "skew")
    """What may ask: ``drift`` of the data; ``prediction_drift``; ``performance`` that has dropped; ``skew``, where the
    data schema says ``on_skew: retrain``; ``{model: NAME}``, another pipeline's promotions; and ``{pubsub:
    SUBSCRIPTION}``, messages of Pub/Sub."""
    cooldown: Duration = timedelta(hours=24)
    """How long after a start, a promotion, a rejection, or a person's no nothing else is started or suggested."""
    max_per_week: int | None = Field(3, ge=1)
    """How many trainings may be started in any 7 days. ``null``: no limit."""
    approval: Approval = Approval()
    """Who is asked with ``mode: suggest``, and how long the question waits."""

    @property
    def listens_to(self) -> frozenset[str]:
        """The kinds of reasons that may ask, as `Request.trigger` names them."""
        return frozenset(each if isinstance(each, str) else each.kind for each in self.triggers)


def _not_continuous(value: str | None) -> str | None:
    if value == "@continuous":
        raise ValueError("only monitoring can run '@continuous'; use a cron expression or a preset")
    return value


class Predict(Section):
    """Batch prediction with the champion."""

    schedule: Annotated[Schedule | None, AfterValidator(_not_continuous)] = None
    """When the predict DAG runs. Default: by hand, or when a team's own DAG asks."""
    output: str | None = None
    """Where predictions go, as a folder. Default: ``predictions/<name>`` in the store."""
    job: Literal["stage", "vertex"] = "stage"
    """``stage`` scores in the stage, wherever that runs; ``vertex`` has a batch prediction job of Vertex AI do it, for
    models whose rows need many machines at once."""


class Runtime(Section):
    """Where the stages run that import the team's code or load a model: in a process of their own, without Airflow.

    Extraction, the checks of the data, monitoring and the registry stay in the worker: they do neither.
    """

    python: str | None = Field(None, min_length=1, examples=["/opt/envs/churn/bin/python"])
    """The interpreter, as a path relative to the declaration; it must have what the stages need. Default: that of the
    environment made of ``requirements``, else the worker's own."""
    requirements: str | None = Field(None, min_length=1, examples=["requirements.txt"])
    """Instead, a requirements file, relative to the declaration. Its environment is built by uv where it is first used,
    together with what the stages need, and kept."""
    memory: Size | None = None
    """The most memory that a stage and its children may use; one that uses more is ended, and not tried again.
    Default: no limit."""

    @model_validator(mode="after")
    def _one_way(self) -> Runtime:
        if self.python and self.requirements:
            raise ValueError("give one of 'python' and 'requirements', not both")
        if not (self.python or self.requirements or self.memory):
            raise ValueError("give 'python', 'requirements' or 'memory'")
        return self


class Pool(Section):
    """The Airflow pool that tuning and training wait in. Pipelines that name the same one share its slots."""

    name: str = Field(min_length=1, max_length=256)
    """The pool's name. ``airflow-mlops pools`` makes the pool; Airflow runs no task of a pool that is not there."""
    slots: int = Field(ge=1)
    """How many of these tasks run at a time, over all pipelines of the pool."""


class Pipeline(Section):
    """One pipeline, one model. Only ``name``, ``data`` and ``train`` are required."""

    api_version: Literal["airflow-mlops/v1"] = Field("airflow-mlops/v1", alias="apiVersion")
    """The version of this format."""
    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")
    """The pipeline's name; its DAGs, experiment and registered model go by it."""
    description: str = ""
    """What the model is for, in Markdown."""
    owner: str = "mlops"
    """Who answers for it, as Airflow shows it."""
    tags: Names = ()
    """Further tags of its DAGs."""
    schedule: Annotated[Schedule | None, AfterValidator(_not_continuous)] = None
    """When training runs: a cron expression or a preset. Default: by hand and by retrain requests."""
    task: Task | None = None
    """What is predicted. Default: told from the estimator and the target."""
    data: Data
    """Where the rows come from."""
    prepare: Prepare = Prepare()
    """Features, preprocessing and the split."""
    train: Train
    """The model."""
    tune: Tune | None = None
    """The search for the model's parameters. Default: ``train.params`` are used as they are."""
    evaluate: Evaluate = Evaluate()
    """What is measured."""
    validate_model: ValidateModel = ValidateModel()
    """The gate."""
    approval: Approval | None = None
    """The person between the gate and the promotion. Default: what passes its gate is promoted."""
    deploy: Deploy | None = None
    """How a new champion comes to be served. Default: nothing is asked to serve it."""
    monitor: Monitor = Monitor()
    """How the champion is watched."""
    retrain: Retrain = Retrain()
    """What starts a training."""
    tests: Tests = Tests()
    """What ``airflow-mlops test`` holds a model to that it trains on a sample, before any of this runs anywhere."""
    predict: Predict = Predict()
    """Batch prediction."""
    pool: Pool | None = None
    """The limit of concurrent trainings, shared by pipelines that name the same pool. Default: Airflow's own limits."""
    backend: str = "local"
    """Where the stages run: a name entered in the entry points ``airflow_mlops.backends``."""
    google: Google | None = None
    """Where and on what it runs on Google Cloud, for ``backend: vertex`` and ``deploy.target: vertex``."""
    runtime: Runtime | None = None
    """An interpreter or environment of its own for what the team's code needs. Default: the worker's."""
    registry: str = "mlflow_default"
    """The Airflow connection of type ``mlflow``."""
    cache: bool = True
    """Whether a stage that an earlier run has done with the same code, params, inputs and libraries is not done again.
    ``false`` where the team's functions read what is not in their arguments."""
    retries: int = Field(2, ge=0)
    """How often a task is tried again after an error that a retry can mend."""
    retry_delay: Duration = timedelta(minutes=1)
    """How long to wait before that."""
    environments: dict[str, dict[str, Any]] = Field({}, examples=[{"prod": {"backend": "vertex"}}])
    """What differs in an environment, by its name: keys of the declaration laid over it where Airflow's configuration
    says ``[airflow_mlops] environment = NAME`` (on the shell, ``--env NAME``)."""

    @field_validator("environments")
    @classmethod
    def _may_differ(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        wrong = [((name, *path), what) for name, overlay in value.items() for path, what in not_allowed(overlay)]
        if wrong:
            text = "; ".join(what for _, what in wrong)
            raise PydanticCustomError(SEVERAL, "{text}", {"text": text, "problems": wrong})
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _told(cls, value: Any, make: ModelWrapValidatorHandler[Pipeline], info: ValidationInfo) -> Pipeline:
        """Tell mistakes as those of a file are told; who reads a file has the lines, and says so by a context."""
        try:
            return make(value)
        except ValidationError as error:
            if info.context is not None:
                raise
            raise import_module("airflow_mlops.spec.load").declared_wrongly(cls, value, error) from None

    @property
    def grain(self) -> Grain:
        """The calendar piece that the pipeline's windows step by."""
        return self.data.window or grain_of(self.schedule)

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The subscriptions whose messages may ask for a retraining, by their whole names."""
        project = self.google.project if self.google else ""
        named = (each.pubsub for each in self.retrain.triggers if isinstance(each, PubsubTrigger))
        return tuple(dict.fromkeys(whole_name(project, "subscriptions", each) for each in named))

    def in_environment(self, name: str | None) -> Pipeline:
        """The pipeline as it is in an environment; where it declares none, or none is asked for, as it is.

        Raises:
            DeclarationError: when it declares environments and none of that name, or what that one says is wrong.
        """
        if not name or not self.environments:
            return self
        if name not in self.environments:
            raise DeclarationError(
                [f"pipeline {self.name!r}: there is no environment {name!r}; allowed: {', '.join(self.environments)}"]
            )
        shared = self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"environments"})
        return Pipeline.model_validate(merged(shared, self.environments[name]))

    def dags(self, base: str | None = None) -> dict[str, Any]:
        """Make the pipeline's DAGs by id, ready for ``globals().update(...)``.

        Args:
            base: the folder that relative paths start from. Default: the calling file's.

        Raises:
            DeclarationError: with one line for every mistake between the parts of the declaration.
        """
        # The factory stands above this layer; it is looked up only when somebody in Airflow asks.
        factory = import_module("airflow_mlops.factory")
        pipeline = self.in_environment(factory.configured_environment())
        import_module("airflow_mlops.spec.wiring").check_python(pipeline)
        return dict(factory.build_dags(pipeline, base or factory.calling_folder()))
