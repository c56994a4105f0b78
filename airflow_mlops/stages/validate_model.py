"""The gate: absolute limits, and whether the model beats the champion on rows that neither was trained on.

The rows were scored by the evaluation. numpy and Arrow are loaded only where there is something to compare: a model
that is the champion already is held against the absolute limits alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome, Verdict
from airflow_mlops.errors import GateError
from airflow_mlops.registry.ledger import Entry
from airflow_mlops.registry.models import CARD_TAG, MODEL_DIGEST_TAG, NOTE_TAG, ModelRegistry
from airflow_mlops.registry.requests import Requests
from airflow_mlops.spec.stages import ValidateModel
from airflow_mlops.spec.window import Window, window_of_key
from airflow_mlops.stages.card import log_card
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.register import version_of

if TYPE_CHECKING:
    import pyarrow as pa

    from airflow_mlops.stages.bootstrap import Comparison

log = logging.getLogger(__name__)


def run(call: Call, params: ValidateModel, store: Store) -> Outcome:
    """Judge an evaluation; output ``decision``. A model that passes becomes the challenger; a rejection is recorded.

    A model that must not be promoted (see `why_held`) leaves the challenger and the ledger as they are.
    """
    evaluation = store.fetch_json(call.input("evaluation"))
    registry = ModelRegistry.of(call, store)
    holder = registry.champion()
    champion: str | None = evaluation["champion"]
    already = holder is not None and holder.tags.get(MODEL_DIGEST_TAG) == evaluation["model"]
    if holder is not None and already:
        champion = holder.version
    verdict, comparison = judge(evaluation, lambda: scored_rows(evaluation, store), params, already=already)
    held = why_held(params.promote, call.window, registry.ledger.promotion())
    held = held or _why_not_again(params.promote, registry.ledger.taken_away(evaluation["model"]))
    unchanged = already and verdict.passed
    if held and verdict.passed:
        verdict = Verdict(status="held", reasons=(*verdict.reasons, held))
    version = version_of(call.inputs["version"]) if "version" in call.inputs else None
    body = {
        "status": verdict.status,
        "reasons": list(verdict.reasons),
        "model": evaluation["model"],
        "champion": champion,
        "metrics": evaluation["metrics"],
        "measured": {name: measured_of(evaluation)[name] for name in (*params.min, *params.max)},
        "comparison": comparison._asdict() if comparison else None,
        "evaluation": call.input("evaluation").digest,
        "params": params.model_dump(mode="json"),
    }
    decision = store.put_json(body, "decision")
    own_run = registry.find_run(call)
    run_id = own_run or (registry.api.version(registry.ref.model, version).run_id if version else registry.run_of(call))
    metrics = {}
    if comparison:
        metrics = {
            f"gate.{name}": getattr(comparison, name) for name in ("champion", "challenger", "gain", "lower", "upper")
        }
    sentence = " ".join(f"{reason[:1].upper()}{reason[1:]}." for reason in verdict.reasons)
    requests = Requests(store, registry.ref.model)
    taken = [each for each in requests.all() if each.run == call.run]
    answered = {"mlops.requests": "; ".join(each.told for each in taken)} if taken else {}
    # Of the champion all is said already, unless it was trained once more.
    card = holder.tags.get(CARD_TAG) if holder else None
    if own_run or not unchanged:
        registry.api.log(
            run_id,
            metrics=metrics,
            tags={"mlops.verdict": verdict.status, NOTE_TAG: f"**{verdict.status}**: {sentence}", **answered},
        )
        card = log_card(call, store, registry, evaluation, run_id=run_id, version=version, decision=body)
    if verdict.passed and version is not None and not already:
        registry.set_challenger(version)
    elif not verdict.passed and not held:
        registry.ledger.record(
            "rejection",
            version=version or "unregistered",
            champion_before=champion,
            decision=decision.digest,
            reasons=verdict.reasons,
            requests=tuple(each.request.id for each in taken),
            run=call.run,
            window=call.window.key if call.window else None,
            card=card,
        )
    if not verdict.passed:
        requests.settle(call.run, f"{verdict.status}: {sentence}")
    if version is not None and not unchanged:
        registry.api.tag_version(registry.ref.model, version, {"mlops.verdict": verdict.status})
        registry.api.describe_version(registry.ref.model, version, f"{sentence}\n\n[Model card]({card})")
    return outcome_of(
        call,
        outputs={"decision": decision},
        metrics={
            **evaluation["metrics"],
            **({"gain": comparison.gain, "lower": comparison.lower} if comparison else {}),
        },
        verdict=verdict,
        info={
            "run_id": run_id,
            "version": version,
            "champion": champion,
            "mlflow_url": registry.run_url(run_id),
            "card_url": card,
        },
    )


def scored_rows(evaluation: dict[str, Any], store: Store) -> pa.Table:
    """The held-out rows that an evaluation has scored."""
    from airflow_mlops.stages.tables import read_table

    return read_table(store.ref("predictions", evaluation["predictions"], ".parquet"), store)


def why_held(promote: bool | None, window: Window | None, promotion: Entry | None) -> str | None:
    """Why a model of this run is not promoted even if it passes its gate, or None where it may be.

    Args:
        promote: what the run was told: yes, no, or nothing.
        window: the window that the run is about.
        promotion: the ledger's entry about the champion; None before there is one.
    """
    if promote is False:
        return "not promoted: the run was told not to, or is a backfill, which promotes only with `promote: true`"
    if promote or window is None or promotion is None or promotion.window is None:
        return None
    if window.end >= window_of_key(promotion.window).end:
        return None
    return (
        f"not promoted: this run is about the past window {window.key}, and champion {promotion.version} knows "
        f"{promotion.window}; to promote it all the same, run it with `promote: true`"
    )


def _why_not_again(promote: bool | None, taken_away: Entry | None) -> str | None:
    """Why a model that a rollback took the title from does not get it back by being trained once more."""
    if promote or taken_away is None:
        return None
    return (
        f"not promoted: a rollback took the title from this very model ({'; '.join(taken_away.reasons)}); "
        "to promote it all the same, run it with `promote: true`"
    )


def judge(
    evaluation: dict[str, Any], scored: Callable[[], pa.Table], params: ValidateModel, *, already: bool = False
) -> tuple[Verdict, Comparison | None]:
    """Decide from an evaluation and its scored rows alone; nothing is changed.

    Args:
        evaluation: what the evaluation found.
        scored: reads its scored rows, where they are needed.
        params: the limits and the rule of comparison.
        already: whether the model is the champion, so that only the absolute limits are left to ask.

    Raises:
        GateError: when a limit names a metric that was not evaluated, or the comparison cannot be computed.
    """
    found = measured_of(evaluation)
    for name in (*params.min, *params.max):
        if name not in found:
            raise GateError(f"the gate asks for {name!r}, which was not evaluated", allowed=", ".join(found))
    unknown = [name for name in (*params.min, *params.max) if found[name] is None]
    if unknown:
        reason = f"fewer than two values have enough rows to tell {', '.join(unknown)}"
        return Verdict(status="insufficient_data", reasons=(reason,)), None
    measured = {name: value for name, value in found.items() if value is not None}
    failed = [
        *(
            f"{name} {measured[name]:.4f} is below {least:g}"
            for name, least in params.min.items()
            if measured[name] < least
        ),
        *(
            f"{name} {measured[name]:.4f} is above {most:g}"
            for name, most in params.max.items()
            if measured[name] > most
        ),
    ]
    if failed:
        return Verdict(status="rejected", reasons=tuple(failed)), None
    if already:
        return Verdict(status="ok", reasons=("it is the champion already",)), None
    if params.versus_champion is None or evaluation["champion"] is None:
        within = "it is within the absolute limits" if params.min or params.max else "no absolute limit is declared"
        what = "there is no champion yet" if params.versus_champion else "no comparison with the champion is declared"
        return Verdict(status="ok", reasons=(f"{what}, and {within}",)), None
    from airflow_mlops.stages.comparison import versus

    return versus(evaluation, scored(), params.versus_champion, params.seed)


def measured_of(evaluation: dict[str, Any]) -> dict[str, float | None]:
    """What a limit may name: the metrics, and each difference; None for one that the rows do not tell."""
    return {
        **evaluation["metrics"],
        **{
            f"fairness.{column}.{name}": found["value"]
            for column, differences in evaluation.get("fairness", {}).items()
            for name, found in differences.items()
        },
    }
