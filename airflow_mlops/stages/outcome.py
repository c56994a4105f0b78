"""How a stage writes its Outcome."""

from __future__ import annotations

from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Verdict


def outcome_of(
    call: Call,
    *,
    outputs: dict[str, ArtifactRef] | None = None,
    metrics: dict[str, float] | None = None,
    verdict: Verdict | None = None,
    info: dict[str, str | None] | None = None,
) -> Outcome:
    """The Outcome of a Call; entries of ``info`` that are None are left out."""
    return Outcome(
        stage=call.stage,
        identity=call.identity,
        call_digest=call.digest,
        run=call.run,
        window=call.window,
        outputs=outputs or {},
        metrics=metrics or {},
        verdict=verdict or Verdict(),
        info={name: value for name, value in (info or {}).items() if value is not None},
    )
