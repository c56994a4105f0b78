"""Models in and out of MLflow: the raw-row pipeline, its code beside it, and what is known about it.

A model is written with skops, which runs no code when it is read: only types are built that this module lists, or that
come from the model's own code snapshot. The digest is of the model's content, not of the file's bytes, so training the
same rows again gives the same digest wherever it happens.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict

from airflow_mlops.call.code import code_scope
from airflow_mlops.call.store import digest_of_file
from airflow_mlops.call.wire import digest_of
from airflow_mlops.errors import CodeError, SchemaError, StoreError
from airflow_mlops.registry.files import FACTS, KNOWN, MODEL
from airflow_mlops.registry.mlflow_api import MlflowApi
from airflow_mlops.spec.metrics import Task
from airflow_mlops.stages.tables import require_columns, type_of

ROWS = "mlops/training_rows.parquet"
INPUTS = "mlops/inputs.json"
DECLARATION = "mlops/pipeline.yaml"

TRUSTED_TYPES = frozenset(
    {
        # HistGradientBoosting with categorical features holds partial(check_array); whatever else a partial may hold is
        # listed, and refused, by itself.
        "functools.partial",
        "sklearn.utils.validation.check_array",
        "numpy.dtype",
        "numpy.number",
        "scipy.interpolate._bsplines.BSpline",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        # Of scikit-learn before 1.7.
        "sklearn.compose._column_transformer._RemainderColsList",
        "sklearn.compose._column_transformer.make_column_selector",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.model_selection._split.KFold",
        "sklearn.model_selection._split.StratifiedKFold",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
    }
)
"""Types of scikit-learn, scipy and numpy that hold numbers and run nothing, and that skops does not trust by itself."""


class Facts(BaseModel):
    """What must be known about a model to use it, judge it and watch it; logged beside it."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    """The version of this form."""
    task: Task
    """What is predicted."""
    target: str
    """The column predicted."""
    columns: dict[str, str]
    """The raw columns the model takes, and their Arrow types."""
    watched: tuple[str, ...]
    """The raw columns that are features, which monitoring looks at."""
    classes: tuple[Any, ...] = ()
    """The classes in the order of the model's probabilities; the last of two is the positive one."""
    hash_columns: tuple[str, ...]
    """The columns whose hash tells whether a row was trained on."""
    window: str | None = None
    """The window that training ended with."""
    windows: int = 1
    """How many windows training read."""
    model_uri: str = ""
    """Where the model is."""
    model_digest: str = ""
    """The digest of its content."""


def user_types(names: list[str], code: Path | None) -> list[str]:
    """The names that come from the user's own snapshot."""
    if code is None:
        return []
    tops = {entry.stem if entry.suffix == ".py" else entry.name for entry in code.iterdir()}
    return [name for name in names if name.split(".")[0] in tops]


def trusted_types(data: Any, code: Path | None) -> list[str]:
    """The types of a skops file that may be built.

    Raises:
        CodeError: when the file holds another one.
    """
    from airflow_mlops.stages import skops_io

    found = skops_io.get_untrusted_types(file=data)
    trusted = [name for name in found if name in TRUSTED_TYPES] + user_types(found, code)
    other = sorted(set(found) - set(trusted))
    if other:
        raise CodeError(
            f"the model holds types that are not trusted: {', '.join(other)}",
            fix="define them in the pipeline's own package, or set train.serialization: cloudpickle, which runs code "
            "when the model is loaded",
        )
    return trusted


def model_digest(file: Path, code: Path | None = None) -> str:
    """The digest of a model's content: of its file and, where it has code of its own beside it, of that too.

    A skops file names its parts by memory addresses; they are numbered in the order they appear, so that equal models
    have equal digests. Of any other format the bytes count.
    """
    own = _file_digest(file)
    if code is None or not code.is_dir():
        return own
    files = sorted(each for each in code.rglob("*") if each.is_file() and "__pycache__" not in each.parts)
    told = [[each.relative_to(code).as_posix(), digest_of_file(each)] for each in files]
    return digest_of([own, told])


def _file_digest(file: Path) -> str:
    if file.suffix != ".skops":
        return digest_of_file(file)
    with zipfile.ZipFile(file) as archive:
        schema = json.loads(archive.read("schema.json"))
        order: dict[str, str] = {}

        def number(value: Any) -> Any:
            if isinstance(value, dict):
                numbered = {}
                for key, entry in value.items():
                    if key == "__id__":
                        numbered[key] = order.setdefault(str(entry), str(len(order)))
                    elif key == "file":
                        numbered[key] = hashlib.sha256(archive.read(entry)).hexdigest()
                    else:
                        numbered[key] = number(entry)
                return numbered
            return [number(entry) for entry in value] if isinstance(value, list) else value

        canonical = number(schema)
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def read_facts(api: MlflowApi, run_id: str) -> Facts:
    """What is known about the model of a run.

    Raises:
        ModelNotFoundError: when the run has logged none.
        RegistryUnreachableError: when it cannot be fetched now.
    """
    with tempfile.TemporaryDirectory() as folder:
        return Facts.model_validate_json(api.fetch(run_id, FACTS, Path(folder)).read_bytes())


def facts_of(files: Path) -> Facts:
    """What is known about a model whose files lie in a folder, as `airflow_mlops.registry.files` puts them."""
    facts = Facts.model_validate_json(Path(files, KNOWN).read_bytes())
    return facts.model_copy(update={"model_uri": str(Path(files, MODEL))})


class Model:
    """A loaded model and the code it goes with. Use it inside `loaded`."""

    def __init__(self, estimator: Any, facts: Facts, folder: Path) -> None:
        self.estimator, self.facts, self._folder = estimator, facts, folder

    @property
    def requirements(self) -> tuple[str, ...]:
        """The pins that it was logged with, such as ``scikit-learn==1.9.1``."""
        file = self._folder / "requirements.txt"
        return tuple(sorted(file.read_text(encoding="utf-8").split())) if file.exists() else ()

    @property
    def size(self) -> int:
        """The bytes of its files, its code among them."""
        return sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file())

    @property
    def python(self) -> str | None:
        """The version of Python that it was trained with."""
        file = self._folder / "python_env.yaml"
        found = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
        return str(found["python"]) if found else None

    @property
    def gives_probabilities(self) -> bool:
        """Whether the model says how sure it is of each class."""
        return self.facts.task != "regression" and hasattr(self.estimator, "predict_proba")

    def probability(self, frame: pd.DataFrame) -> Any:
        """Probabilities of shape ``(rows, classes)``, or None for a model without them."""
        if not self.gives_probabilities:
            return None
        return self.estimator.predict_proba(frame)

    def predict(self, frame: pd.DataFrame) -> Any:
        """Labels or numbers of shape ``(rows,)``."""
        return self.estimator.predict(frame)

    def answer(self, frame: pd.DataFrame) -> tuple[Any, Any]:
        """What `predict` and `probability` give, with the features made once."""
        # Whoever only asks about a model imports this module too, and pays for no scikit-learn.
        from sklearn.pipeline import Pipeline

        if not self.gives_probabilities or type(self.estimator) is not Pipeline:
            return self.predict(frame), self.probability(frame)
        features: Any = frame
        for _, step in self.estimator.steps[:-1]:
            if step is not None and step != "passthrough":
                features = step.transform(features)
        final = self.estimator.steps[-1][1]
        return final.predict(features), final.predict_proba(features)


def fetch_model(facts: Facts, target: Path, api: MlflowApi | None) -> tuple[Path, Path]:
    """Bring a logged model here, and hold it against its digest.

    Args:
        facts: what is known about it.
        target: a folder to fetch it to.
        api: the registry that has it; None where it is in a folder here already.

    Returns:
        Its folder, and the file of the estimator in it.

    Raises:
        ModelNotFoundError: when it is gone.
        RegistryUnreachableError: when it cannot be fetched now.
        StoreError: when its content is not what its digest says.
    """
    folder = Path(facts.model_uri) if api is None else api.fetch_model(facts.model_uri, target)
    file = next((each for each in folder.iterdir() if each.suffix in (".skops", ".pkl")), None)
    if file is None or model_digest(file, folder / "code") != facts.model_digest:
        raise StoreError(
            f"the model at {facts.model_uri} is not the one that was trained: its digest differs",
            fix="somebody has changed the file: train again with cache: false, or after airflow-mlops cache prune",
        )
    return folder, file


@contextmanager
def loaded(facts: Facts, target: Path, api: MlflowApi | None, *, allow_pickle: bool = True) -> Iterator[Model]:
    """Load a model with its own code, whatever other code of the same name is loaded, for as long as the scope lasts.

    Args:
        facts: what is known about it.
        target: a folder to fetch it to.
        api: the registry that has it; None where it is in a folder here already.
        allow_pickle: whether one that was written with cloudpickle, and runs code when it is read, may be.

    Raises:
        ModelNotFoundError: when it is gone.
        RegistryUnreachableError: when it cannot be fetched now.
        StoreError: when its content is not what its digest says.
        CodeError: when it holds types that are not trusted.
    """
    # Before the scope of the model's own code, which takes back what was imported in it.
    from airflow_mlops.stages import skops_io

    folder, file = fetch_model(facts, target, api)
    code = folder / "code"
    with code_scope(code if code.is_dir() else None) as scope:
        if file.suffix == ".skops":
            estimator = skops_io.load(file, trusted=trusted_types(file, scope))
        elif not allow_pickle:
            raise CodeError(
                f"the model at {facts.model_uri} was written with cloudpickle, which runs code when it is read",
                fix="--allow-pickle, or train.serialization: skops and train again",
            )
        else:
            import cloudpickle

            estimator = cloudpickle.loads(file.read_bytes())
        yield Model(estimator, facts, folder)


def raw_rows(table: pa.Table, facts: Facts) -> pd.DataFrame:
    """The raw columns that a model takes, with the types it was trained on.

    Raises:
        SchemaError: when a column is missing or of another type.
    """
    require_columns(table.column_names, dict.fromkeys(facts.columns, "the model takes it"))
    columns = []
    for name, wanted in facts.columns.items():
        values = table[name]
        if str(values.type) != wanted:
            kind = arrow_type(wanted)
            if not takes(kind, values.type):
                raise SchemaError(
                    f"the column {name!r} holds {values.type}, and the model was trained on {wanted}",
                    fix="mend the data, or train a model on data of this form",
                )
            if not (pa.types.is_floating(values.type) and pa.types.is_integer(kind)):
                values = _cast(name, values, kind)
        columns.append(values)
    frame: pd.DataFrame = pa.table(columns, names=list(facts.columns)).to_pandas()
    return frame


def takes(wanted: pa.DataType, found: pa.DataType) -> bool:
    """Whether a model that was trained on one type takes values of another."""
    both = type_of(found), type_of(wanted)
    numbers = both[0] in ("integer", "number", "boolean") and both[1] in ("integer", "number")
    return numbers or both[0] == both[1] or pa.types.is_null(found)


def _cast(name: str, values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        # A finer clock is no other column: what is below the model's unit is cut off.
        return values.cast(kind, safe=not pa.types.is_timestamp(kind))
    except pa.ArrowInvalid as error:
        raise SchemaError(
            f"the column {name!r} holds values that do not fit into {kind}, which the model was trained on: {error}",
            fix="mend the data, or train a model on data of this form",
        ) from error


def arrow_type(text: str) -> pa.DataType:
    """The Arrow type that prints as this text; tables here hold plain types only."""
    simple = {"bool": pa.bool_(), "double": pa.float64(), "float": pa.float32(), "halffloat": pa.float16()}
    if text in simple:
        return simple[text]
    if text.startswith("timestamp["):
        unit, _, zone = text.removeprefix("timestamp[").rstrip("]").partition(", tz=")
        return pa.timestamp(unit, zone or None)
    if text.startswith("date"):
        return pa.date32() if "32" in text else pa.date64()
    if text.startswith("decimal"):
        precision, scale = text[text.index("(") + 1 : -1].split(",")
        return pa.decimal128(int(precision), int(scale))
    return pa.type_for_alias(text)
