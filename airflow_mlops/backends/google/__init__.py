"""Where a Call runs on Google Cloud. Vertex AI is asked by REST: no client of it is imported."""

from airflow_mlops.backends.google.vertex import VertexBackend

__all__ = ["VertexBackend"]
