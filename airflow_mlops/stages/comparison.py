"""Whether a model beats the champion on rows that neither was trained on: a paired bootstrap of what both said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from airflow_mlops.call.wire import Verdict
from airflow_mlops.errors import GateError
from airflow_mlops.spec.pipeline import VersusChampion
from airflow_mlops.stages.bootstrap import Comparison, Scores, compare


def versus(
    evaluation: dict[str, Any], table: pa.Table, rule: VersusChampion, seed: int
) -> tuple[Verdict, Comparison | None]:
    """Compare with the champion; the verdict with its reason, and the comparison unless too few rows are new to both.

    Args:
        evaluation: what the evaluation found.
        table: its scored rows.
        rule: by what, how sure, and on how many rows at least.
        seed: the seed of the bootstrap.

    Raises:
        GateError: when the metric was not evaluated, or the champion was not scored.
    """
    metric = rule.metric or evaluation["primary"]
    if metric not in evaluation["metrics"]:
        raise GateError(
            f"the gate asks for {metric!r}, which was not evaluated", allowed=", ".join(evaluation["metrics"])
        )
    champion = evaluation["champion"]
    if "champion.seen" not in table.column_names:
        raise GateError(
            f"the evaluation has not scored champion {champion}",
            fix="let it: versus_champion=True of the evaluation, or compare with absolute limits only",
        )
    fresh = table.filter(pa.array(~table["champion.seen"].to_numpy(zero_copy_only=False)))
    if fresh.num_rows < rule.min_rows:
        reason = (
            f"only {fresh.num_rows} of {table.num_rows} held-out rows are new to champion {champion}, fewer than "
            f"{rule.min_rows}, so the two cannot be compared"
        )
        return Verdict(status="insufficient_data", reasons=(reason,)), None
    found = compare(
        metric,
        scores_of(fresh, "challenger"),
        scores_of(fresh, "champion"),
        confidence=rule.confidence,
        resamples=rule.resamples,
        seed=seed,
    )
    better = found.lower > -rule.margin
    doubt = "" if better else f", which does not rule out one of {-rule.margin or 0:g} or less"
    reason = (
        f"{metric} {found.challenger:.4f} against {found.champion:.4f} of champion {champion} on {found.rows:,} rows "
        f"that neither has seen: the gain of {found.gain:+.4f} is with {rule.confidence:.0%} confidence "
        f"{found.lower:+.4f} or more{doubt}"
    )
    return Verdict(status="ok" if better else "rejected", reasons=(reason,)), found


def scores_of(table: pa.Table, who: str) -> Scores:
    """The scored rows of ``challenger`` or ``champion``, as the evaluation wrote them."""
    names = [name for name in table.column_names if name.startswith(f"{who}.probability.")]
    names.sort(key=lambda name: int(name.rpartition(".")[2]))
    probability = np.column_stack([table[name].to_numpy() for name in names]) if names else None
    return Scores(table["truth"].to_numpy(), table[f"{who}.prediction"].to_numpy(), probability)
