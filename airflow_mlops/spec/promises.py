"""``tests``: what a pipeline promises of a model that is trained on a sample, checked before it runs anywhere."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from airflow_mlops.spec.base import Duration, Names, Section, Size
from airflow_mlops.spec.metrics import METRICS

LEAST_ROWS = 20
"""Fewer rows than that train nothing."""


class Tests(Section):
    """What ``airflow-mlops test`` checks besides what it checks of every pipeline."""

    sample: str | None = Field(None, examples=["samples/churn.parquet"])
    """A Parquet or CSV file of raw rows, relative to the declaration; a bundle takes it along. Default: the newest
    window of ``data.source``."""
    rows: int = Field(2000, ge=LEAST_ROWS)
    """How many rows of the sample are used, spread evenly over it."""
    golden: str | None = Field(None, examples=["samples/golden.csv"])
    """A file of rows whose right answers are known, with the target, that ``min`` and ``max`` are measured on. Default:
    the rows of the sample that the split holds out."""
    min: dict[str, float] = {}
    """The least value of a metric where more is better."""
    max: dict[str, float] = {}
    """The greatest value of a metric where less is better."""
    better_than_constant: bool = True
    """Whether the model must beat the best constant answer there: by log loss (without probabilities by accuracy), of
    numbers by RMSE."""
    monotone: dict[str, Literal["increasing", "decreasing"]] = {}
    """How the answer moves with a raw column of numbers, all else equal: the average answer over the sample, with the
    column at each of its deciles. Of the probability of the second class, or of the number."""
    invariant: Names = ()
    """Raw columns that change no answer when their values are shuffled among the rows."""
    max_size: Size | None = None
    """How large the model's files may be. Default: ``deploy.max_size``."""
    max_latency_ms: float | None = Field(None, gt=0)
    """What an answer to one row may take in the middle (median), in milliseconds of CPU time, which a busy machine does
    not make longer. Default: ``deploy.max_latency_ms``."""
    max_parse: Duration = timedelta(seconds=10)
    """How much CPU time a fresh interpreter may take to load the pipeline's DAGs, beyond importing Airflow."""

    @field_validator("min", "max")
    @classmethod
    def _protects(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        right = [name for name, metric in METRICS.items() if metric.more_is_better is (info.field_name == "min")]
        if wrong := [name for name in value if name not in right]:
            raise ValueError(f"{', '.join(map(repr, wrong))} is no metric for it; allowed: {', '.join(right)}")
        return value
