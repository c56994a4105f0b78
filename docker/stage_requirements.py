"""Print what the stages need of other packages, by pyproject.toml: without Airflow, and with what reaches Google Cloud.

Only the standard library is imported: it runs before anything is installed.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

IN_WORKER = re.compile(r"apache-airflow|evidently|msgspec|packaging|prometheus|psutil|starlette|uv")
"""What no stage of a runtime needs; as in `airflow_mlops.backends.runtime`, and a test compares the two."""
ON_GOOGLE = ("gcsfs", "google-auth", "google-cloud-bigquery", "google-cloud-bigquery-storage")


def needed(pyproject: Path) -> list[str]:
    """The requirements, one a line."""
    declared = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    return sorted({*(each for each in declared if not IN_WORKER.match(each)), *ON_GOOGLE})


if __name__ == "__main__":
    print("\n".join(needed(Path("pyproject.toml"))))
