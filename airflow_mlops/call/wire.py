"""What crosses the wire: a Call goes out, an Outcome comes back. Both are JSON, and neither holds data or secrets."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from airflow_mlops.spec.base import Described
from airflow_mlops.spec.window import Window

VERSION = 1
SHELL = "cli/"
"""What the runs of the command line begin with in Calls; those of Airflow begin with their DAG."""

Status = Literal["ok", "warn", "held", "drift", "rejected", "insufficient_data", "error"]


class Wire(Described):
    """Something that is sent: immutable, and strict about what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


def digest_of(value: Any) -> str:
    """The content digest of plain JSON values: ``sha256:`` and the hex digest of their canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")


def identity_of(pipeline: str, stage: str, window: Window | None, run: str) -> str:
    """The identity of a stage of a run: never of the try number."""
    return digest_of([pipeline, stage, window.key if window else None, run])[7:39]


class ArtifactRef(Wire):
    """A reference to data: all that XCom ever holds of it."""

    uri: str
    """Where it is, as any fsspec URI, or ``models:/...`` in the registry."""
    digest: str
    """``sha256:`` and the digest of its content."""
    kind: str
    """``dataset``, ``model``, ``model_version``, ``evaluation``, ``decision``, ``report``, ``verdict``, ``code``,
    ``params``."""
    rows: int | None = None
    """The number of rows of a dataset."""
    schema_id: str | None = None
    """The digest of a dataset's column names and types."""


class RegistryRef(Wire):
    """Which registry, without the credentials: those travel beside the Call."""

    uri: str
    """MLflow's tracking URI."""
    model: str
    """The registered model's name."""
    experiment: str
    """The experiment of its runs."""
    ui_url: str | None = None
    """Where a browser reaches it, if not at ``uri``."""


class Call(Wire):
    """One stage with everything resolved that it needs to run, anywhere."""

    version: Literal[1] = 1
    """The version of this form."""
    pipeline: str
    """The pipeline's name."""
    stage: str
    """The stage's kind, such as ``train``."""
    run: str
    """What makes this run different from any other, the same over retries."""
    window: Window | None = None
    """The run's window; None where the data comes in none."""
    inputs: dict[str, ArtifactRef] = {}
    """The artifacts that go in, by the stage's own names."""
    params: dict[str, Any] = {}
    """The stage's params; see `airflow_mlops.spec.stages`."""
    code: ArtifactRef | None = None
    """The snapshot of the user's code."""
    store: str
    """The root of the artifact store, as any fsspec URI."""
    registry: RegistryRef | None = None
    """The model registry."""
    cache: bool = True
    """Whether the outcome of an equal Call of an earlier run may be used, and this one kept for later runs."""

    @property
    def identity(self) -> str:
        """The same for every try of the same stage of the same run, and for nothing else."""
        return identity_of(self.pipeline, self.stage, self.window, self.run)

    @property
    def run_identity(self) -> str:
        """The same for every stage of one run."""
        return digest_of([self.pipeline, self.run])[7:39]

    @property
    def digest(self) -> str:
        """The content of what is asked: stage, params, window and the digests of inputs and code."""
        return digest_of(
            {
                "stage": self.stage,
                "params": self.params,
                "window": self.window.key if self.window else None,
                "inputs": {name: ref.digest for name, ref in self.inputs.items()},
                "code": self.code.digest if self.code else None,
            }
        )

    @property
    def where(self) -> str:
        """How errors name the place."""
        return f"pipeline {self.pipeline!r}, stage {self.stage!r}"

    def input(self, name: str) -> ArtifactRef:
        """The input of that name.

        Raises:
            ValueError: when the Call was made without it.
        """
        if name not in self.inputs:
            has = ", ".join(self.inputs) or "none"
            raise ValueError(f"{self.where}: the Call has no input {name!r}; it has: {has}")
        return self.inputs[name]


class Verdict(Wire):
    """What a stage decided, and why in plain words."""

    status: Status = "ok"
    """``ok``, ``warn``, ``held`` (passed, and not to be promoted), ``drift``, ``rejected``, ``insufficient_data`` or
    ``error``."""
    reasons: tuple[str, ...] = ()
    """Sentences a person understands."""

    @property
    def passed(self) -> bool:
        """Whether what follows may go on."""
        return self.status in ("ok", "warn")


class Outcome(Wire):
    """What a Call came to."""

    version: Literal[1] = 1
    """The version of this form."""
    stage: str
    """The stage's kind."""
    identity: str
    """The Call's identity."""
    call_digest: str
    """The Call's digest."""
    run: str = ""
    """The Call's run."""
    window: Window | None = None
    """The Call's window."""
    outputs: dict[str, ArtifactRef] = {}
    """The artifacts that came out, by the stage's own names."""
    metrics: dict[str, float] = {}
    """Numbers worth a column."""
    verdict: Verdict = Verdict()
    """The decision."""
    info: dict[str, str] = Field(default={})
    """Where to look: run ids, versions, links. Not part of the digest."""

    @property
    def digest(self) -> str:
        """The content of what came out: equal for equal results, wherever and whenever they were made."""
        return digest_of(
            {
                "stage": self.stage,
                "outputs": {name: ref.digest for name, ref in self.outputs.items()},
                "metrics": {name: float(value).hex() for name, value in self.metrics.items()},
                "verdict": self.verdict.status,
            }
        )
