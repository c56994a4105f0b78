"""How the model is trained."""

from typing import Any

import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier


def fit(features: Any, target: "pd.Series[Any]", params: dict[str, Any]) -> HistGradientBoostingClassifier:
    """Return a model that is fitted on these rows; `params` are those of the declaration."""
    return HistGradientBoostingClassifier(random_state=0, **params).fit(features, target)
