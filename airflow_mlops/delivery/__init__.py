"""How a tested pipeline reaches an environment: bundles, releases, and where they lie.

No Airflow is imported here: a running one is asked by its REST API.
"""
