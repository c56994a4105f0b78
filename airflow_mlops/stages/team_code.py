"""The team's own code as it is called here: what it raises, and what it gives back, told as its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from airflow_mlops.call.code import told
from airflow_mlops.errors import CodeError, MlopsError


@contextlib.contextmanager
def user_code(name: str) -> Iterator[None]:
    """Name the code that raised, and keep what a retry may mend as it is."""
    try:
        yield
    except (MlopsError, MemoryError, ConnectionError, TimeoutError):
        raise
    except (Exception, SystemExit) as error:
        raise CodeError(f"{name} raised {told(error)}", fix=_advice(str(error))) from error


def _advice(text: str) -> str:
    if "infinity" in text:
        return "validate the data with a schema (data.schema), or replace infinite values in prepare.features"
    if "NaN" in text:
        return "declare prepare.preprocess with an imputer, or take an estimator that handles missing values"
    if "could not convert string" in text:
        return "encode texts in prepare.preprocess, or leave prepare.preprocess out"
    return "run it on a few rows by hand: airflow-mlops run shows the whole traceback with --verbose"


def name_of(model: Any) -> str:
    """What a model is called: by the class of a pipeline's last step."""
    return type(model.steps[-1][1] if hasattr(model, "steps") else model).__name__


def predict(model: Any, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
    """What a model says of rows, one prediction for each.

    Raises:
        CodeError: when it raises, or says more or less.
    """
    name = name_of(model)
    with user_code(f"predict of {name}"):
        said = np.asarray(model.predict(rows))
    if said.shape[:1] != (len(rows),):
        many = f"{len(said)} predictions" if said.shape else repr(said.item())
        raise CodeError(f"predict of {name} gives {many} for {len(rows)} rows", allowed="one prediction for each row")
    return said
