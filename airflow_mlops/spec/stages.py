"""What each stage needs to be told: the params of its Call, and the constructor of its operator.

A class here is the one place where a stage's parameters are named, typed and documented.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from airflow_mlops.spec.base import Callable, Duration, Estimator, Names, Section, Size
from airflow_mlops.spec.data_schema import DataSchema, load_schema
from airflow_mlops.spec.google import Google
from airflow_mlops.spec.metrics import Task
from airflow_mlops.spec.pipeline import DataDrift, PredictionDrift, Pruner, Sampler, Split, VersusChampion
from airflow_mlops.spec.source import Snapshots, Source, SqlSource, is_windowed
from airflow_mlops.spec.space import Space
from airflow_mlops.spec.window import Grain


def resolve(base: str, path: str) -> str:
    """Make a path relative to the declaration absolute; leave a URI as it is."""
    return path if "://" in path or os.path.isabs(path) else os.path.normpath(os.path.join(base, path))


class StageParams(Section):
    """The params of one stage.

    ``code_fields`` names those that hold paths of the user's own functions, ``path_fields`` those that hold files,
    ``uncached`` those that change nothing of what comes out, or whose content counts and not what is said here.
    """

    stage: ClassVar[str]
    code_fields: ClassVar[tuple[str, ...]] = ()
    path_fields: ClassVar[tuple[str, ...]] = ()
    uncached: ClassVar[tuple[str, ...]] = ()
    in_runtime: ClassVar[bool] = True
    """Whether the stage imports the team's code or loads a model, and so belongs into the pipeline's `runtime`."""

    def resolved(self, base: str) -> Self:
        """Make paths absolute, and read what lies in small files, so that the Call carries content where it can.

        Args:
            base: the folder that relative paths start from.
        """
        paths = {field: getattr(self, field) for field in self.path_fields}
        changes = {field: resolve(base, path) for field, path in paths.items() if isinstance(path, str)}
        return self.model_copy(update=changes) if changes else self

    def callables(self) -> list[str]:
        """The user's functions and classes that the stage will import."""
        return [value for field in self.code_fields if (value := getattr(self, field))]

    @property
    def google_connections(self) -> tuple[str, ...]:
        """The Airflow connections to Google Cloud that the stage acts by where it runs in Airflow."""
        google = getattr(self, "google", None)
        sources = (getattr(self, name, None) for name in ("source", "labels"))
        # Of a source it may be one to another database: it is asked for only by whoever acts on Google Cloud.
        named = [*([google] if google else []), *(each for each in sources if isinstance(each, SqlSource))]
        judged = getattr(self, "performance", None)
        also = judged.google_connections if isinstance(judged, StageParams) else ()
        return tuple(dict.fromkeys([*(each.connection for each in named), *also]))

    @property
    def needs_registry(self) -> bool:
        """Whether the stage asks the model registry for anything."""
        return True


class Extract(StageParams):
    """Read windows of the source into one immutable Parquet snapshot."""

    stage = "extract"
    in_runtime = False
    path_fields = ("source",)
    uncached = ("source", "settle", "snapshots")
    source: Source
    """A Parquet or CSV file or a folder of them: a path or any fsspec URI, ``{window}`` for each window's key. Or
    ``{connection: ..., query: ...}``: a SQL database."""
    format: Literal["parquet", "csv"] | None = None
    """The file format. Default: from the file's suffix."""
    time: str | None = None
    """The column that says when a row happened; rows outside the windows are left out."""
    grain: Grain = "day"
    """The calendar piece that ``{window}`` steps by."""
    last: int = Field(1, ge=1)
    """How many windows to read, the run's own being the newest."""
    settle: Duration = timedelta(0)
    """How long after its end a window may still receive late rows; one that was read earlier is not reused."""
    snapshots: Snapshots = "reuse"
    """Whether a window of a database that was read before is reused, or read anew."""

    @property
    def windowed(self) -> bool:
        """Whether the source comes in windows at all."""
        return is_windowed(self.source, self.time)

    @property
    def needs_registry(self) -> bool:
        """Extraction knows no model."""
        return False


class ValidateData(StageParams):
    """Hold rows against the data schema: hard rules stop the run, soft ones warn, single bad rows are set aside."""

    stage = "validate_data"
    in_runtime = False
    path_fields = ("data_schema",)
    data_schema: DataSchema | str | None = Field(None, alias="schema")
    """The schema, or the file that holds it. Default: only the target and the row count are checked."""
    target: str | None = None
    """The column to predict; it must be there, with no nulls."""
    time: str | None = None
    """The time column; it must be there and hold times."""
    windows: int = Field(1, ge=1)
    """How many windows the rows span, for the number of rows per window."""

    def resolved(self, base: str) -> Self:
        """Read the schema's file as well."""
        located = super().resolved(base)
        if isinstance(located.data_schema, str):
            return located.model_copy(update={"data_schema": load_schema(located.data_schema)})
        return located

    def callables(self) -> list[str]:
        """The functions of the schema's checks; known once the schema's file was read."""
        checks = self.data_schema.checks if isinstance(self.data_schema, DataSchema) else ()
        return [check.function for check in checks if check.function]

    @property
    def needs_registry(self) -> bool:
        """Only where rows are held against the champion's."""
        return isinstance(self.data_schema, DataSchema) and self.data_schema.needs_champion


class Prepare(StageParams):
    """Check the feature function's contract and set test rows apart."""

    stage = "prepare"
    code_fields = ("features",)
    target: str
    """The column to predict."""
    features: Callable | None = None
    """The stateless feature function; its contract is checked on a sample."""
    time: str | None = None
    """The time column, for a split by time."""
    split: Split = Split()
    """How test rows are set apart."""
    seed: int = 0
    """The seed of a split by group or at random."""

    @property
    def needs_registry(self) -> bool:
        """Preparation knows no model."""
        return False


class ModelParams(StageParams):
    """What the model is made of: the same for every stage that fits it."""

    code_fields = ("features", "preprocess", "function", "estimator")
    uncached = ("declaration",)
    target: str
    """The column to predict."""
    estimator: Estimator | None = None
    """The path of an estimator class with scikit-learn's interface."""
    function: Callable | None = None
    """``(X, y, params) -> fitted model``; instead of ``estimator``."""
    model_params: dict[str, Any] = {}
    """The estimator's arguments, or what the function gets as ``params``."""
    features: Callable | None = None
    """The stateless feature function; it becomes the first step of the model."""
    preprocess: Callable | None = None
    """Returns an unfitted transformer; it becomes the second step of the model."""
    exclude: Names = ()
    """Raw columns that are no features: keys, times, groups. A feature function still sees them."""
    drop: Names = ()
    """Raw columns that the model never sees."""
    group: str | None = None
    """The column of a split by group; whole groups count as seen in training."""
    ml_task: Task | None = None
    """What is predicted. Default: told from the estimator and the target."""
    seed: int = 0
    """The random state of an estimator that takes one."""


class Tune(ModelParams):
    """Search for the model's parameters by cross-validation inside the training rows."""

    stage = "tune"
    # Mapped tasks name their DAG run here; an identical run finds what each of them has done.
    uncached = ("study",)
    space: Space = Field(min_length=1)
    """What each parameter may be."""
    trials: int = Field(50, ge=1, le=10_000)
    """How many points of the space are tried."""
    sampler: Sampler = "tpe"
    """How the next point is chosen."""
    pruner: Pruner = "none"
    """Which trials end before their last fold."""
    folds: int = Field(3, ge=2, le=20)
    """How many parts of the training rows take their turn as validation rows."""
    metric: str | None = None
    """The metric. Default: the primary one of the task."""
    time: str | None = None
    """The column that orders the folds; each is validated by a model of the rows before it."""
    jobs: int = Field(1, ge=1, le=64)
    """How many trials run at once, each on its share of the cores."""
    timeout: Duration | None = None
    """How long after the first trial the last one may begin."""
    parts: int = Field(1, ge=1, le=1000)
    """Over how many tasks the trials are spread."""
    part: int | None = Field(None, ge=0)
    """Which of these this is. Default: the one that sees to what the others left, and tells what is best."""
    study: str | None = None
    """The run that the study belongs to. Default: the Call's own, and of mapped tasks the DAG run that they are of."""

    @model_validator(mode="after")
    def _one_of_the_parts(self) -> Tune:
        if self.part is not None and self.part >= self.parts:
            raise ValueError(f"there is no part {self.part} of {self.parts}; allowed: 0 to {self.parts - 1}")
        return self


class Train(ModelParams):
    """Fit the model on training rows and log it, with all that it needs, to MLflow."""

    stage = "train"
    serialization: Literal["skops", "cloudpickle"] = "skops"
    """How the model is written."""
    windows: int = Field(1, ge=1)
    """How many windows the rows span; kept with the model, for what is compared with it per window."""
    time: str | None = None
    """The time column, by which the drift reference is cut into blocks: rows of one day resemble each other."""
    declaration: str | None = None
    """The pipeline's own YAML, logged with the run."""


class Register(StageParams):
    """Make the trained model a version of the registered model, once."""

    stage = "register"
    in_runtime = False


class Evaluate(StageParams):
    """Measure the model on held-out rows, and score the champion on the same rows."""

    stage = "evaluate"
    metrics: Names = ()
    """The metrics; the first is the primary one. Default: the usual ones of the task."""
    slices: Names = ()
    """Raw columns whose every value is also measured by itself, with confidence intervals."""
    fairness: Names = ()
    """Raw columns between whose values the differences of the model are measured; they are slices too."""
    min_rows: int = Field(30, ge=10)
    """A slice of fewer rows is named as too small and not measured."""
    importance_rows: int = Field(500, ge=0)
    """How many rows the permutation importance is measured on, at most; ``0``: it is not."""
    plots: bool = True
    """Whether to draw plots."""
    versus_champion: bool = True
    """Whether the champion is scored too, for the gate."""
    time: str | None = None
    """The time column, by which the reference of the predictions is cut into blocks."""


class ValidateModel(StageParams):
    """The gate: absolute limits, and the comparison with the champion by a paired bootstrap."""

    stage = "validate_model"
    in_runtime = False
    min: dict[str, float] = {}
    """The least value of a metric where more is better."""
    max: dict[str, float] = {}
    """The greatest value of a metric where less is better, or of a difference ``fairness.COLUMN.DIFFERENCE``."""
    versus_champion: VersusChampion | None = VersusChampion()
    """The comparison with the champion; ``None`` compares with the absolute limits only."""
    seed: int = 0
    """The seed of the bootstrap."""
    promote: bool | None = None
    """Whether a model that passes may be promoted. Default: unless the run's window is older than the champion's."""


class Approve(StageParams):
    """Ask a person whether a version that passed its gate may become the champion, and write the answer down."""

    stage = "approve"
    in_runtime = False
    users: Names = ()
    """The ids of the Airflow users who may answer. Default: everybody who may answer in this DAG."""
    timeout: Duration = timedelta(days=3)
    """How long the question waits. Silence means no."""
    approved: bool | None = None
    """The answer; without one the verdict is ``held``, with the question."""
    by: str | None = None
    """Who has answered; None where nobody did."""
    why: str = ""
    """What they said to it."""


class ValidateServing(StageParams):
    """Serve the candidate in a clean process, and hold what it answers against what training saw."""

    stage = "validate_serving"
    in_runtime = False
    target: str = "local"
    """Where it will be served: a name entered in the entry points ``airflow_mlops.deployments``."""
    tolerance: float = Field(1e-6, ge=0)
    """How far a served number may lie from what training saw, in absolute value or, above 1, as a share."""
    max_latency_ms: float | None = Field(None, gt=0)
    """What one answer in a hundred, to one row, may take at most, in milliseconds. Default: any time."""
    max_size: Size | None = None
    """How large the model's files may be. Default: any size."""
    allow_pickle: bool = False
    """Whether a model that was written with cloudpickle, and runs code when it is loaded, may be served."""
    timeout: Duration = timedelta(minutes=2)
    """How long the server may take to come up."""
    google: Google | None = None
    """The pipeline's section of Google Cloud, for a target there. Default: none."""


class Trial(StageParams):
    """Give a candidate a share of the traffic beside the champion, or compare it in the champion's shadow."""

    stage = "trial"
    in_runtime = False
    target: str = "local"
    """Where it is served: a name entered in the entry points ``airflow_mlops.deployments``."""
    share: int = Field(0, ge=0, le=99)
    """How many of a hundred requests it answers; ``0``: its answers are only compared, and never returned."""
    bake: Duration = timedelta(minutes=10)
    """How long it must hold."""
    min_requests: int = Field(100, ge=1)
    """How many requests, or compared rows, it must have seen by then; until it has, the trial goes on."""
    timeout: Duration = timedelta(days=1)
    """How long it may take to see them."""
    error_rate: float | None = Field(0.02, ge=0, lt=1)
    """The share of its requests that may fail."""
    disagreement: float | None = Field(None, ge=0, lt=1)
    """The share of compared rows that it may answer otherwise than the champion. Default: any."""
    max_p99_ms: float | None = Field(None, gt=0)
    """What one answer in a hundred may take at most, in milliseconds. Default: any time."""
    metric_drop: float | None = Field(None, ge=0)
    """How far its metric may lie behind the champion's, by the labels that have come when the trial ends."""
    performance: MonitorPerformance | None = None
    """Where these labels are, how they are joined, the metric, and how many tell."""
    wait: bool = False
    """Whether the stage waits until the trial is over; else its verdict is ``held`` until then."""
    google: Google | None = None
    """The pipeline's section of Google Cloud, for a target there. Default: none."""

    def resolved(self, base: str) -> Self:
        """Make the paths of labels and predictions absolute."""
        return self.model_copy(update={"performance": self.performance.resolved(base)}) if self.performance else self

    @model_validator(mode="after")
    def _labels_for_the_metric(self) -> Trial:
        if self.metric_drop is not None and self.performance is None:
            raise ValueError("'metric_drop' is judged by labels: give 'performance' too")
        return self


class Deploy(StageParams):
    """See that what serves follows the ledger and answers as training did; else put the champion before back."""

    stage = "deploy"
    in_runtime = False
    target: str = "local"
    """Where it is served: a name entered in the entry points ``airflow_mlops.deployments``."""
    tolerance: float = Field(1e-6, ge=0)
    """How far a served number may lie from what training saw, in absolute value or, above 1, as a share."""
    timeout: Duration = timedelta(minutes=2)
    """How long what serves may take to follow."""
    google: Google | None = None
    """The pipeline's section of Google Cloud, for a target there. Default: none."""


class Promote(StageParams):
    """Make a version that passed its gate the champion, by compare-and-set on the ledger."""

    stage = "promote"
    in_runtime = False
    gate: ValidateModel | None = None
    """The gate that the verdict's evidence is put through once more. Default: the one that the verdict names."""
    needs_approval: bool = False
    """Whether a person must have approved, by the ledger."""
    google: Google | None = None
    """The pipeline's section of Google Cloud, where the version is mirrored. Default: none."""


class Rollback(StageParams):
    """Put an earlier champion back, with its preparation and its drift reference."""

    stage = "rollback"
    in_runtime = False
    version: str | None = None
    """The version, which was the champion once. Default: the one before."""
    reason: str
    """Why; it goes on record."""
    by: str | None = None
    """The person who wants it; None where no person does."""
    google: Google | None = None
    """The pipeline's section of Google Cloud. Default: the one that a run has declared before."""

    @field_validator("version", mode="before")
    @classmethod
    def _none_if_empty(cls, version: Any) -> Any:
        # A form's empty field, and a template of it.
        return str(version).strip() or None if isinstance(version, (str, int)) else version


class BatchPredict(StageParams):
    """Score rows with the champion and write one partition of predictions."""

    stage = "batch_predict"
    path_fields = ("destination",)
    destination: str | None = None
    """The folder of predictions: a path or any fsspec URI. Default: ``predictions/<pipeline>`` in the store."""
    keep: Names = ()
    """Columns of the input that are copied beside the predictions: keys and times."""
    job: Literal["stage", "vertex"] = "stage"
    """``stage`` scores in the stage, wherever that runs; ``vertex`` has a batch prediction job of Vertex AI do it."""
    google: Google | None = None
    """The pipeline's section of Google Cloud, for such a job. Default: none."""


class Monitor(StageParams):
    """Compare a window's rows with the champion's reference."""

    stage = "monitor"
    in_runtime = False
    path_fields = ("source",)
    source: Source
    """Where the window's rows come from, as in extraction."""
    format: Literal["parquet", "csv"] | None = None
    """The file format. Default: from the file's suffix."""
    time: str | None = None
    """The time column, as in extraction."""
    grain: Grain = "day"
    """The calendar piece that ``{window}`` steps by."""
    last: int = Field(1, ge=1)
    """How many windows are judged together."""
    settle: Duration = timedelta(0)
    """How long after its end a window may still receive late rows, as in extraction."""
    snapshots: Snapshots = "reuse"
    """Whether a window of a database that was read before is reused, as in extraction."""
    data_drift: DataDrift = DataDrift()
    """When a window counts as drifted."""

    @property
    def extract(self) -> Extract:
        """The extraction that brings the window's rows."""
        return Extract.model_construct(**{name: getattr(self, name) for name in Extract.model_fields})


class MonitorPredictions(StageParams):
    """Compare a window's logged predictions with what the model said of its held-out rows."""

    stage = "monitor_predictions"
    in_runtime = False
    path_fields = ("destination",)
    destination: str | None = None
    """The folder of predictions, as in batch prediction."""
    time: str | None = None
    """The time column, where predictions keep it."""
    grain: Grain = "day"
    """The calendar piece that windows step by."""
    prediction_drift: PredictionDrift = PredictionDrift()
    """When a window counts as drifted."""
    quiet: Duration = timedelta(minutes=5)
    """How long after its last prediction a window that was served counts as whole."""


class MonitorPerformance(StageParams):
    """Hold labels that came later against logged predictions, and the metric against its value at promotion."""

    stage = "monitor_performance"
    in_runtime = False
    path_fields = ("destination", "labels")
    labels: Source
    """Where the labels are, as in extraction."""
    key: Names = Field(min_length=1)
    """The columns by which labels and predictions are joined; predictions keep them."""
    target: str
    """The column of the labels."""
    destination: str | None = None
    """The folder of predictions, as in batch prediction."""
    format: Literal["parquet", "csv"] | None = None
    """The format of the labels' files. Default: from their suffix."""
    time: str | None = None
    """The labels' time column; rows outside the window are left out. Default: all are read."""
    grain: Grain = "day"
    """The calendar piece that windows step by."""
    label_delay: Duration = timedelta(0)
    """How long after a window's end its labels are complete."""
    metric: str | None = None
    """The metric. Default: the primary one of the task."""
    drop: float = Field(0.03, ge=0)
    """The loss that is worth a retraining: in the metric's unit, or of ``rmse``, ``mae`` and ``median_ae`` a share."""
    min_labels: int = Field(200, ge=20)
    """Fewer labelled predictions than this decide nothing."""
    confidence: float = Field(0.95, ge=0.8, le=0.99)
    """The confidence of the interval of the loss."""
    quiet: Duration = timedelta(minutes=5)
    """How long after its last prediction a window that was served counts as whole."""

    @property
    def extract(self) -> Extract:
        """The extraction that brings the labels; a database is asked anew, for they come late."""
        same = {name: getattr(self, name) for name in ("format", "time", "grain")}
        return Extract(source=self.labels, snapshots="refresh", **same)


Trial.model_rebuild()
