"""The stages as operators, each importable alone into a team's own DAG."""

from airflow_mlops.operators.approval import ApproveModelOperator, ApproveRetrainingOperator
from airflow_mlops.operators.assets import model_asset, predictions_asset, retrain_asset, suggestion_asset
from airflow_mlops.operators.stages import (
    BatchPredictOperator,
    EvaluateModelOperator,
    ExtractDataOperator,
    PrepareDataOperator,
    PromoteModelOperator,
    RegisterModelOperator,
    RollbackModelOperator,
    TrainModelOperator,
    TuneModelOperator,
    ValidateDataOperator,
    ValidateModelOperator,
)
from airflow_mlops.operators.start import StartRunOperator

__all__ = [
    "ApproveModelOperator",
    "ApproveRetrainingOperator",
    "BatchPredictOperator",
    "EvaluateModelOperator",
    "ExtractDataOperator",
    "PrepareDataOperator",
    "PromoteModelOperator",
    "RegisterModelOperator",
    "RollbackModelOperator",
    "StartRunOperator",
    "TrainModelOperator",
    "TuneModelOperator",
    "ValidateDataOperator",
    "ValidateModelOperator",
    "model_asset",
    "predictions_asset",
    "retrain_asset",
    "suggestion_asset",
]
