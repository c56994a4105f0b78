"""``airflow-mlops replay``: what retrain policies would have done over windows that have passed.

All is trained into a store and a registry of the replay's own, in the state folder; the team's are not so much as
asked. What was trained and measured once is found again there by its content.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.source import windows_of
from airflow_mlops.call.store import Store
from airflow_mlops.cli.past import Past
from airflow_mlops.cli.run import check
from airflow_mlops.cli.where import choose_declaration
from airflow_mlops.errors import DataNotFoundError, DeclarationError
from airflow_mlops.registry.advice import Advice, Standing, advise
from airflow_mlops.registry.replay import Policy, Walk, walk
from airflow_mlops.spec import Declaration
from airflow_mlops.spec.load import to_yaml
from airflow_mlops.spec.metrics import METRICS
from airflow_mlops.spec.pipeline import DataDrift, Pipeline, Retrain
from airflow_mlops.spec.pipeline import Monitor as MonitorSection
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.stages import resolve
from airflow_mlops.spec.window import Window, grain_of, last_windows, parse_key, shift

_PRESET = {
    "hour": "@hourly",
    "day": "@daily",
    "week": "@weekly",
    "month": "@monthly",
    "quarter": "@quarterly",
    "year": "@yearly",
}
_AT_ONCE = Retrain(cooldown=timedelta(0), max_per_week=None)
_MOST = 10_000
_UNDECIDED = ""


def replay(options: argparse.Namespace, state: Path) -> int:
    """Run the command; see ``airflow-mlops replay --help``."""
    declaration = choose_declaration(options.file, options.pipeline)
    pipeline = declaration.pipeline
    if pipeline.runtime and (pipeline.runtime.python or pipeline.runtime.requirements):
        raise DeclarationError(
            [
                f"{options.file}: a replay scores models in its own process, and {pipeline.name!r} has a runtime of "
                "its own; try: a copy of the declaration without runtime, where its libraries are installed"
            ]
        )
    root = state.absolute() / "replay" / pipeline.name
    root.mkdir(parents=True, exist_ok=True)
    start, windows, missing = windows_to_walk(declaration, options.first, options.last)
    with contextlib.redirect_stdout(sys.stderr):
        check(declaration, Store(str(root / "store")))
        history = Past(declaration, root)
        try:
            walks = [
                walk(policy, history, start, windows, pipeline.data.settle)
                for policy in policies_of(declaration, start, windows, evidently=options.evidently)
            ]
        finally:
            history.close()
    metric = history.primary(start)
    settings = settings_of(declaration)
    choice = [name for name in settings if name != _UNDECIDED]
    advice = advise(walks, more_is_better=METRICS[metric].more_is_better, settings=choice)
    notes = [
        *(f"{key} is left out: it has no data" for key in missing),
        *_notes(declaration),
        *history.notes,
    ]
    found = {
        "pipeline": pipeline.name,
        "metric": metric,
        "more_is_better": METRICS[metric].more_is_better,
        "from": windows[0].key,
        "to": windows[-1].key,
        "start": start.key,
        "policies": [{**_as_json(each, advice), "what": _what(each.policy)} for each in walks],
        "recommended": {
            "policy": advice.policy,
            "reasons": list(advice.reasons),
            "settings": settings[advice.policy or _UNDECIDED],
        },
        "notes": notes,
    }
    file = Path(options.html) if options.html else root / "replay.html"
    stage_module("replay_page").write(found, file)
    print(json.dumps({**found, "html": str(file)}, indent=1) if options.json else f"{as_text(found)}\n\npage: {file}")
    return 0


def windows_to_walk(declaration: Declaration, first: str, last: str) -> tuple[Window, list[Window], list[str]]:
    """The window that the first champion knows last, those to walk through, and the keys of those without data.

    Raises:
        DeclarationError: when the data comes in no windows, or the last is before the first.
        DataNotFoundError: when there is no data for the windows, or for the first champion.
    """
    pipeline = declaration.pipeline
    data, grain = pipeline.data, pipeline.grain
    if not data.windowed:
        raise DeclarationError([f"{pipeline.name}: its data comes as one whole; try: declare data.time, or {{window}}"])
    begin, end = parse_key(grain, first), parse_key(grain, last)
    if end.start < begin.start:
        raise DeclarationError([f"--to {last} is before --from {first}"])
    wanted = [begin]
    while wanted[-1].start < end.start:
        wanted.append(shift(grain, wanted[-1], 1))
        if len(wanted) > _MOST:
            raise DeclarationError([f"--from {first} --to {last} are more than {_MOST} windows"])
    start = shift(grain, begin, -1)
    if isinstance(data.source, SqlSource) or "{window}" not in data.source:
        return start, wanted, []
    source = resolve(declaration.base, data.source)
    there = set(windows_of(source, grain))
    needed = [each.key for each in last_windows(grain, start, pipeline.train.windows.last) if each not in there]
    if needed:
        raise DataNotFoundError(
            f"the champion that the replay begins with is trained on the {pipeline.train.windows.last} windows before "
            f"{first}, and {source} has no {', '.join(needed)}",
            allowed=", ".join(each.key for each in sorted(there)) or "none: no window has arrived",
            fix="begin later: --from",
        )
    found = [each for each in wanted if each in there]
    if not found:
        raise DataNotFoundError(
            f"{source} has no window from {first} to {last}", allowed=", ".join(each.key for each in sorted(there))
        )
    return start, found, [each.key for each in wanted if each not in there]


def policies_of(declaration: Declaration, start: Window, windows: Sequence[Window], *, evidently: bool) -> list[Policy]:
    """The declared policy, as if it were switched on, and those to hold it against."""
    pipeline = declaration.pipeline
    declared = pipeline.retrain.model_copy(update={"mode": "auto"})
    # Where nothing runs the monitor, nobody hears of drift.
    judge = pipeline.monitor.data_drift if pipeline.monitor.schedule else None
    ticks = _ticks(pipeline.schedule, start.end, windows[-1].end + pipeline.data.settle)
    return [
        Policy("declared", judge, declared, ticks),
        Policy("never"),
        Policy(f"every {pipeline.grain}", every=True),
        *([Policy("evidently", "evidently", _AT_ONCE)] if evidently else ()),
        Policy("ours", DataDrift(columns=pipeline.monitor.data_drift.columns), Retrain()),
    ]


def settings_of(declaration: Declaration) -> dict[str, str]:
    """What to declare for each policy that can be chosen, as YAML in place of the keys that the declaration has.

    Evidently's verdict is shown to compare with only.
    """
    pipeline = declaration.pipeline
    monitor, retrain, grain = pipeline.monitor, pipeline.retrain, pipeline.grain
    watching = monitor.model_copy(
        update={
            "schedule": monitor.schedule or "@continuous",
            "data_drift": DataDrift(columns=monitor.data_drift.columns),
        }
    )
    only_observed = retrain.model_copy(update={"mode": "observe"})
    limits = Retrain(triggers=retrain.triggers, approval=retrain.approval)
    return {
        "declared": _written(pipeline, pipeline.schedule, monitor, retrain.model_copy(update={"mode": "auto"})),
        "never": _written(pipeline, None, monitor, only_observed),
        f"every {grain}": _written(pipeline, _PRESET[grain], monitor, only_observed),
        "ours": _written(pipeline, None, watching, limits),
        _UNDECIDED: _written(pipeline, pipeline.schedule, monitor, retrain.model_copy(update={"mode": "suggest"})),
    }


def _written(pipeline: Pipeline, schedule: str | None, monitor: MonitorSection, retrain: Retrain) -> str:
    sections = {
        "schedule": schedule,
        "monitor": monitor.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "retrain": {
            **retrain.model_dump(mode="json", by_alias=True, include={"mode", "cooldown", "max_per_week"}),
            **retrain.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        },
    }
    said = to_yaml({key: value for key, value in sections.items() if value or getattr(pipeline, key)}).rstrip()
    if grain_of(schedule) != pipeline.grain and pipeline.data.window is None:
        said += f"\n# and under data, where the schedule has said it so far: window: {pipeline.grain}"
    return said


def _ticks(schedule: str | None, after: datetime, until: datetime) -> tuple[datetime, ...]:
    """When a schedule starts trainings."""
    if schedule is None:
        return ()
    from croniter import croniter

    presets = {"@quarterly": "0 0 1 */3 *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *"}
    times = croniter(presets.get(schedule, schedule), after)
    found: list[datetime] = []
    while (at := times.get_next(datetime)) <= until:
        found.append(at)
    return tuple(found)


def _notes(declaration: Declaration) -> list[str]:
    pipeline = declaration.pipeline
    notes = []
    if pipeline.retrain.mode != "auto":
        notes.append(f"the declared policy says mode: {pipeline.retrain.mode}; it was replayed as if it said auto")
    if pipeline.monitor.schedule is None:
        notes.append(
            "no monitor.schedule is declared: the declared policy hears of no drift, and ours looks at each window"
        )
    other = sorted(pipeline.retrain.listens_to - {"drift"})
    if other:
        notes.append(f"only drift and the schedule are replayed, not: {', '.join(other)}")
    return notes


def _what(policy: str) -> str:
    """A policy in words."""
    told = {
        "declared": "what the declaration says, as if it were switched on",
        "never": "the first champion stays",
        "evidently": "whenever Evidently's default preset finds half of the columns drifted",
        "ours": "on drift by the default rule, within the default limits",
    }
    return told.get(policy, "on every window as it is complete")


def _as_json(walked: Walk, advice: Advice) -> dict[str, Any]:
    standing: Standing | None = next((each for each in advice.standings if each.policy == walked.policy), None)
    return {
        "policy": walked.policy,
        "alarms": sum(day.alarm for day in walked.days),
        "trainings": [{**each._asdict(), "at": each.at.isoformat()} for each in walked.attempts],
        "accepted": walked.accepted,
        "training_cpu_seconds": round(walked.cpu, 2),
        "judging_cpu_seconds": round(walked.judging, 2),
        "standing": standing._asdict() if standing else None,
        "windows": [{**day._asdict(), "alarm": day.alarm} for day in walked.days],
    }


def as_text(found: dict[str, Any]) -> str:
    """What was found as two tables and a recommendation."""
    policies = found["policies"]
    width = max(len(each["policy"]) for each in policies)
    lines = [
        f"{found['pipeline']}: {found['metric']} of whoever served, on windows that it had not seen; "
        f"the first champion knows up to {found['start']}",
        "",
        f"{'policy':<{width}}  alarms  trained  accepted  mean    spread  worst              train CPU s  judge CPU s",
    ]
    for each in policies:
        standing = each["standing"]
        told = (
            f"{standing['mean']:<7.4f} {standing['spread']:<7.4f} "
            f"{standing['worst']:.4f} {standing['worst_window']:<11}"
            if standing
            else f"{'not defined':<33}"
        )
        lines.append(
            f"{each['policy']:<{width}}  {each['alarms']:>6}  {len(each['trainings']):>7}  {each['accepted']:>8}  "
            f"{told}  {each['training_cpu_seconds']:>10.1f}  {each['judging_cpu_seconds']:>11.1f}"
        )
    names = [each["policy"] for each in policies]
    lines += ["", "  ".join(["window    ", *(f"{name:>12}" for name in names)])]
    for at, day in enumerate(policies[0]["windows"]):
        lines.append("  ".join([f"{day['window']:<10}", *(f"{_cell(each, at):>12}" for each in policies)]))
    lines.append("(* a new champion serves; ! the window, once complete, raised an alarm)")
    advised = found["recommended"]
    lines += [
        "",
        f"recommended: {advised['policy'] or 'nothing yet'}",
        *(f"- {reason}" for reason in advised["reasons"]),
        "",
        "to declare it, in place of schedule, monitor and retrain:",
        *(f"  {line}" for line in advised["settings"].splitlines()),
        "",
        *(f"note: {note}" for note in found["notes"]),
    ]
    return "\n".join(lines)


def _cell(policy: dict[str, Any], at: int) -> str:
    day = policy["windows"][at]
    before = policy["windows"][at - 1]["served"] if at else day["served"]
    value = "-" if day["value"] is None else f"{day['value']:.4f}"
    return f"{'*' if day['served'] != before else ''}{value}{'!' if day['alarm'] else ' '}"
