"""The data, the declaration and the DAG files that are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS, CATEGORIES = 16, 4
MODEL = "bench"
DECLARATION = """\
apiVersion: airflow-mlops/v1
name: {name}
data: {{source: rows.parquet, target: y}}
train:
  estimator: sklearn.ensemble.HistGradientBoostingClassifier
  params: {{max_iter: 100}}
"""
DAG_FILE = """\
from airflow_mlops import load_dags

load_dags("{pattern}", globals())
"""
EMPTY_DAG = """\
from airflow.sdk import dag, task

@dag(dag_id="empty", schedule=None, is_paused_upon_creation=False)
def empty():
    @task
    def nothing(before=None):
        return 1

    value = None
    for _ in range({tasks}):
        value = nothing(value)

empty()
"""


def write_rows(file: Path, rows: int) -> None:
    """Twenty columns that a model can learn from, with some nulls, and a binary target."""
    random = np.random.default_rng(7)
    numbers = random.normal(size=(rows, NUMBERS))
    codes = random.integers(0, 12, size=(rows, CATEGORIES))
    logit = 1.5 * numbers[:, 0] - numbers[:, 1] * numbers[:, 2] + 0.3 * (codes[:, 0] - 6) + np.sin(3 * numbers[:, 3])
    target = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype("int64")
    numbers[random.random(numbers.shape) < 0.02] = np.nan
    names = np.array([f"level-{code:02d}" for code in range(12)])
    columns = {f"n{index:02d}": pa.array(numbers[:, index]) for index in range(NUMBERS)}
    columns |= {f"c{index}": pa.array(names[codes[:, index]]) for index in range(CATEGORIES)}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**columns, "y": pa.array(target)}), file)


def write_declaration(folder: Path, count: int = 1) -> None:
    """One YAML file with so many pipelines."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [MODEL] if count == 1 else [f"{MODEL}-{index:03d}" for index in range(count)]
    (folder / f"{MODEL}.yaml").write_text("---\n".join(DECLARATION.format(name=name) for name in names))


def write_fleet(folder: Path, count: int) -> None:
    """One YAML document whose ``for_each`` makes so many pipelines."""
    folder.mkdir(parents=True, exist_ok=True)
    members = ", ".join(f'"{index:03d}"' for index in range(count))
    text = DECLARATION.format(name=f"{MODEL}-{{member}}") + f"for_each: {{member: [{members}]}}\n"
    (folder / f"{MODEL}.yaml").write_text(text)


def write_dag_file(folder: Path) -> Path:
    """The DAG file of a folder's pipelines."""
    file = folder / "pipelines.py"
    file.write_text(DAG_FILE.format(pattern="*.yaml"))
    return file
