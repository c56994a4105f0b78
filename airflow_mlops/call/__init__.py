"""What crosses the wire, and the door it goes through: Call, Outcome, references, identity, dispatch, the runner."""

from airflow_mlops.call.store import Store, create_if_absent
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, RegistryRef, Verdict, digest_of

__all__ = ["ArtifactRef", "Call", "Outcome", "RegistryRef", "Store", "Verdict", "create_if_absent", "digest_of"]
