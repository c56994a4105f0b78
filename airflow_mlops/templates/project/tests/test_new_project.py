"""The team's own code."""

from pathlib import Path

import numpy as np
import pandas as pd
from new_project import features, training

ROWS = pd.read_parquet(Path(__file__).parents[1] / "pipelines" / "data" / "2024-01.parquet")


def test_a_row_has_the_same_features_alone_and_among_others() -> None:
    raw = ROWS.drop(columns="churned")
    pd.testing.assert_frame_equal(features.build(raw).iloc[[7]], features.build(raw.iloc[[7]]))


def test_more_calls_to_the_support_do_not_lower_the_risk_on_the_whole() -> None:
    columns = features.preprocess()
    model = training.fit(columns.fit_transform(features.build(ROWS)), ROWS["churned"], {"max_iter": 40})
    calm, annoyed = (
        model.predict_proba(columns.transform(features.build(ROWS.assign(support_calls=calls))))[:, 1]
        for calls in (0, 4)
    )
    assert np.mean(annoyed) > np.mean(calm) + 0.1
