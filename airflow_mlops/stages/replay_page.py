"""The page of a replay: the recommendation, the table of policies, and the metric over time."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Plot

from airflow_mlops.errors import DataError
from airflow_mlops.stages.document import Bullets, Code, Document, Figure, Section, Table, Text, as_html

_MOST_TICKS = 12


def write(found: dict[str, Any], file: Path) -> None:
    """Write the page, whole or not at all.

    Args:
        found: what ``airflow-mlops replay --json`` prints.
        file: where to.

    Raises:
        DataError: when it cannot be written.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        beside.write_text(as_html(page_of(found)), encoding="utf-8")
        os.replace(beside, file)
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def page_of(found: dict[str, Any]) -> Document:
    """The page as a document."""
    advised = found["recommended"]
    metric = f"mean {found['metric']}"
    head = ["policy", "retrains", "alarms", "trained", "accepted", metric, "spread", "worst", "training CPU s"]
    rows = []
    for each in found["policies"]:
        standing = each["standing"]
        told = (
            [f"{standing['mean']:.4f}", f"{standing['spread']:.4f}", f"{standing['worst']:.4f}"]
            if standing
            else ["-"] * 3
        )
        counts = [str(each["alarms"]), str(len(each["trainings"])), str(each["accepted"])]
        rows.append([each["policy"], each["what"], *counts, *told, f"{each['training_cpu_seconds']:.1f}"])
    trainings = [
        [each["policy"], one["window"], "accepted" if one["accepted"] else "turned away", one["why"], one["said"]]
        for each in found["policies"]
        for one in each["trainings"]
    ]
    served = [
        [day["window"], *(_value(each["windows"][at]) for each in found["policies"])]
        for at, day in enumerate(found["policies"][0]["windows"])
    ]
    names = [each["policy"] for each in found["policies"]]
    title = f"{found['metric']} of the champion of the moment"
    return Document(
        f"Replay of {found['pipeline']}, {found['from']} to {found['to']}",
        [
            Text(f"Recommended: {advised['policy'] or 'nothing yet'}."),
            Bullets(advised["reasons"]),
            Text("To declare it, in place of schedule, monitor and retrain:"),
            Code(advised["settings"]),
        ],
        [
            Section("Policies", [Table(head, rows, words=2)]),
            Section(
                f"{title} (! an alarm when the window was complete)",
                [Figure(title, "metric.png", plot(found)), Table(["window", *names], served)],
            ),
            Section(
                "Trainings", [Table(["policy", "window", "gate", "asked by", "what the gate said"], trainings, words=5)]
            ),
            *([Section("Notes", [Bullets(found["notes"])])] if found["notes"] else ()),
        ],
    )


def _value(day: dict[str, Any]) -> str:
    value = "-" if day["value"] is None else f"{day['value']:.4f}"
    return f"{value} !" if day["alarm"] else value


def plot(found: dict[str, Any]) -> bytes:
    """The metric by window, a line a policy, with a dot where a new champion begins to serve; as PNG."""
    figure = Plot(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    keys = [day["window"] for day in found["policies"][0]["windows"]]
    for place, each in enumerate(found["policies"]):
        values = [float("nan") if day["value"] is None else day["value"] for day in each["windows"]]
        # Lines that lie on each other are told apart by their dashes.
        (line,) = axes.plot(
            range(len(keys)), values, label=each["policy"], linestyle=(place, (4, place)), linewidth=1.8
        )
        served = [day["served"] for day in each["windows"]]
        new = [at for at in range(1, len(keys)) if served[at] != served[at - 1]]
        axes.plot(new, [values[at] for at in new], "o", color=line.get_color())
    step = max(1, -(-len(keys) // _MOST_TICKS))
    axes.set_xticks(range(0, len(keys), step), keys[::step], rotation=30)
    axes.set(xlabel="window (a dot: a new champion)", ylabel=found["metric"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
