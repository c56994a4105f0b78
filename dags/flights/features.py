"""Features of the flights demo: raw rows in, model inputs out, the same code in training and in serving."""

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

CATEGORIES = ["carrier", "origin", "dest"]
NUMBERS = ["distance", "temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]


def build(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row of features for each row of `frame`; the target is neither needed nor passed on."""
    at = pd.to_datetime(frame["scheduled_at"])
    hour = at.dt.hour + at.dt.minute / 60
    clock = pd.DataFrame(
        {
            "hour": hour,
            "hour_sin": np.sin(2 * np.pi * hour / 24),
            "hour_cos": np.cos(2 * np.pi * hour / 24),
            "weekday": at.dt.weekday.astype("float64"),
        }
    )
    return pd.concat([frame[CATEGORIES], clock, frame[NUMBERS].astype("float64")], axis="columns")


def preprocess() -> ColumnTransformer:
    """Number the categories; one that training never saw counts as missing, as does a missing one."""
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    columns = ColumnTransformer(
        [("categories", encoder, CATEGORIES)], remainder="passthrough", verbose_feature_names_out=False
    )
    return columns.set_output(transform="pandas")


def imputed() -> ColumnTransformer:
    """For estimators that take neither texts nor missing values: one-hot categories, median and scale for the rest."""
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=100, sparse_output=False)
    return ColumnTransformer([("categories", encoder, CATEGORIES)], remainder=numbers)
