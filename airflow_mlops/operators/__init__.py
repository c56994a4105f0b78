"""The stages as operators, each importable alone into a team's own DAG."""

from airflow_mlops.operators.approval import ApproveModelOperator, ApproveRetrainingOperator
from airflow_mlops.operators.assets import model_asset, predictions_asset, retrain_asset, suggestion_asset
from airflow_mlops.operators.deployment import (
    DeployModelOperator,
    RollbackModelOperator,
    TrialModelOperator,
    ValidateServingOperator,
)
from airflow_mlops.operators.stages import (
    BatchPredictOperator,
    EvaluateModelOperator,
    ExtractDataOperator,
    PrepareDataOperator,
    PromoteModelOperator,
    RegisterModelOperator,
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
    "DeployModelOperator",
    "EvaluateModelOperator",
    "ExtractDataOperator",
    "PrepareDataOperator",
    "PromoteModelOperator",
    "RegisterModelOperator",
    "RollbackModelOperator",
    "StartRunOperator",
    "TrainModelOperator",
    "TrialModelOperator",
    "TuneModelOperator",
    "ValidateDataOperator",
    "ValidateModelOperator",
    "ValidateServingOperator",
    "model_asset",
    "predictions_asset",
    "retrain_asset",
    "suggestion_asset",
]
