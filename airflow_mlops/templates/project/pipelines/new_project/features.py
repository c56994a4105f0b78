"""Raw rows in, model inputs out: the same code when the model is trained and when it is served."""

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder

CATEGORIES = ["plan"]
NUMBERS = ["tenure_months", "monthly_charge", "support_calls", "data_gb"]


def build(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row of features for each row of `frame`, each from its own row alone; the target is not there."""
    features = frame[CATEGORIES + NUMBERS].copy()
    features["charge_per_gb"] = frame["monthly_charge"] / (1.0 + frame["data_gb"])
    features["log_tenure"] = np.log1p(frame["tenure_months"])
    features["paperless"] = frame["paperless"].astype("int64")
    return features


def preprocess() -> ColumnTransformer:
    """Return what is learned from the training rows and from no others, not fitted yet."""
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return ColumnTransformer([("categories", encoder, CATEGORIES)], remainder="passthrough")
