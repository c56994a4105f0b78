"""Where a Call runs: find, submit, status, logs, cancel, collect."""

from airflow_mlops.backends.base import TERMINAL, Backend, Handle, State, backend_of, carrier, relay

__all__ = ["TERMINAL", "Backend", "Handle", "State", "backend_of", "carrier", "relay"]
