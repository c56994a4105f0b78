"""Evidently's preset on two files, for a process of its own: whatever else were imported here, it would pay for."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pyarrow.parquet as pq


def warm() -> None:
    """Import Evidently, which is no part of what it costs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import evidently.presets  # noqa: F401


def preset(reference: str, current: str, columns: list[str]) -> dict[str, Any]:
    """Evidently's ``DataDriftPreset`` with all its defaults on two Parquet files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import Report
        from evidently.presets import DataDriftPreset

        started = time.process_time()
        try:
            sides = [pq.read_table(file, columns=columns).to_pandas() for file in (current, reference)]
            found = Report([DataDriftPreset()]).run(*sides).dict()["metrics"]
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            return {"drift": False, "share": None, "columns": [], "cpu": time.process_time() - started, "failed": said}
        count = found[0]["value"]
        moved = [
            each["config"]["column"]
            for each in found[1:]
            if _drifted(each["value"], each["config"]["threshold"], each["config"]["method"])
        ]
        share = float(count["share"])
        # The preset's own rule: as many columns as its drift_share, half of them by default.
        return {
            "drift": share >= float(found[0]["config"].get("drift_share", 0.5)),
            "share": share,
            "columns": moved,
            "cpu": time.process_time() - started,
            "failed": None,
        }


def _drifted(value: float, threshold: float, method: str) -> bool:
    return value < threshold if "p_value" in method else value >= threshold
