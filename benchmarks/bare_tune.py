"""The peer: what a careful person writes by hand to tune a model with Optuna, each trial a nested MLflow run.

``python bare_tune.py ROWS.parquet TRACKING_URI NAME TRIALS``
"""

from __future__ import annotations

import sys

import mlflow
import optuna
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


def main(source: str, uri: str, name: str, trials: int) -> None:
    """Search, log, tell the best."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(name)
    rows = pd.read_parquet(source)
    features, target = rows.drop(columns="y"), rows["y"]
    numbers = list(features.select_dtypes(include="number").columns)
    texts = [column for column in features.columns if column not in numbers]
    impute = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    encode = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=50, sparse_output=False)

    def objective(trial: optuna.Trial) -> float:
        params = {
            "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.3, log=True),
            "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 7, 31),
        }
        model = make_pipeline(
            ColumnTransformer([("numbers", impute, numbers), ("texts", encode, texts)]),
            HistGradientBoostingClassifier(max_iter=30, random_state=0, **params),
        )
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        value = float(cross_val_score(model, features, target, cv=folds, scoring="roc_auc").mean())
        with mlflow.start_run(nested=True):
            mlflow.log_params(params)
            mlflow.log_metric("roc_auc", value)
        return value

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    with mlflow.start_run():
        study.optimize(objective, n_trials=trials)
        mlflow.log_metric("roc_auc", study.best_value)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
