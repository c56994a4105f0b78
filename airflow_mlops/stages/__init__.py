"""The ML, one file a stage: pandas, scikit-learn, MLflow and Evidently live here, and Airflow does not.

Each module has one public function, ``run(call, params, store) -> Outcome``.
"""
