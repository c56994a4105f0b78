"""Rows of a file as requests to a server: what the demo and the benchmarks have instead of real clients."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from airflow_mlops.deployments import Endpoint
from airflow_mlops.stages.golden import as_json


def send_file(url: str, file: Path, rows: int = 500) -> dict[str, int]:
    """Ask for the predictions of every row of a Parquet file, so many a request; how many each version answered.

    Raises:
        DeploymentError: when the server does not answer one of them.
    """
    answered: Counter[str] = Counter()
    with Endpoint(url) as endpoint, pq.ParquetFile(file) as source:
        for batch in source.iter_batches(rows):
            data = [[as_json(value) for value in row.values()] for row in batch.to_pylist()]
            answer = endpoint.ask(batch.schema.names, data)
            answered[answer.version] += len(answer.predictions)
    return dict(answered)
