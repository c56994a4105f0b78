"""The peer: what a careful person writes by hand with scikit-learn and MLflow to train, evaluate and register a model.

``python bare.py ROWS.parquet TRACKING_URI NAME``
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow.models import infer_signature
from sklearn import metrics as sk
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

TRUSTED = ["numpy.dtype", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]
PARAMS = {"max_iter": 100, "random_state": 0}


def main(source: str, uri: str, name: str) -> None:
    """Train, evaluate, log, register, promote."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(name)
    rows = pd.read_parquet(source)
    features = rows.drop(columns="y")
    train, test, y_train, y_test = train_test_split(features, rows["y"], test_size=0.2, random_state=0)
    numbers = list(features.select_dtypes(include="number").columns)
    texts = [column for column in features.columns if column not in numbers]
    impute = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    encode = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=50, sparse_output=False)
    model = make_pipeline(
        ColumnTransformer([("numbers", impute, numbers), ("texts", encode, texts)]),
        HistGradientBoostingClassifier(**PARAMS),
    )
    model.fit(train, y_train)
    probability = model.predict_proba(test)
    positive = probability[:, 1]
    with mlflow.start_run(), tempfile.TemporaryDirectory() as folder:
        mlflow.log_params(PARAMS)
        mlflow.log_metrics(
            {
                "roc_auc": float(sk.roc_auc_score(y_test, positive)),
                "average_precision": float(sk.average_precision_score(y_test, positive)),
                "log_loss": float(sk.log_loss(y_test, probability)),
                "accuracy": float(sk.accuracy_score(y_test, probability.argmax(axis=1))),
            }
        )
        _plots(np.asarray(y_test), positive, Path(folder))
        mlflow.log_artifacts(folder, "plots")
        example = train.head(5)
        logged = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(example, model.predict(example)),
            input_example=example,
            serialization_format=mlflow.sklearn.SERIALIZATION_FORMAT_SKOPS,
            skops_trusted_types=TRUSTED,
            pip_requirements=[f"{each}=={version(each)}" for each in ("mlflow", "scikit-learn", "skops", "pandas")],
            registered_model_name=name,
        )
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", logged.registered_model_version)
    print("roc_auc", sk.roc_auc_score(y_test, positive))


def _new(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _plots(truth: np.ndarray[Any, Any], positive: np.ndarray[Any, Any], folder: Path) -> None:
    wrong, right, _ = sk.roc_curve(truth, positive)
    figure, axes = _new(f"ROC, area {sk.auc(wrong, right):.3f}", "false positive rate", "true positive rate")
    axes.plot(wrong, right)
    figure.savefig(folder / "roc.png", dpi=110)
    precision, recall, _ = sk.precision_recall_curve(truth, positive)
    figure, axes = _new("Precision and recall", "recall", "precision")
    axes.plot(recall, precision)
    figure.savefig(folder / "precision_recall.png", dpi=110)
    table = sk.confusion_matrix(truth, positive > 0.5)
    figure, axes = _new("Confusion", "predicted", "true")
    axes.imshow(table / table.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    for row, counts in enumerate(table):
        for column, count in enumerate(counts):
            axes.text(column, row, f"{count:,}", ha="center", va="center")
    figure.savefig(folder / "confusion.png", dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
