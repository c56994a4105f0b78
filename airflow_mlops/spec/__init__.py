"""What the user said: the declaration of a pipeline, from YAML or from Python, and nothing that runs it."""

from airflow_mlops.spec.data_schema import DataSchema, dump_schema, load_schema
from airflow_mlops.spec.load import Declaration, dump_pipeline, load_declarations, load_pipeline
from airflow_mlops.spec.pipeline import Pipeline
from airflow_mlops.spec.plan import (
    Node,
    monitor_node,
    performance_node,
    predict_plan,
    prediction_drift_node,
    train_plan,
)
from airflow_mlops.spec.window import Window

__all__ = [
    "DataSchema",
    "Declaration",
    "Node",
    "Pipeline",
    "Window",
    "dump_pipeline",
    "dump_schema",
    "load_declarations",
    "load_pipeline",
    "load_schema",
    "monitor_node",
    "performance_node",
    "predict_plan",
    "prediction_drift_node",
    "train_plan",
]
