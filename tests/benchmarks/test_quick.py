"""The benchmarks run through on few rows. Nothing here looks at a number: how long a thing takes is no test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)


def test_the_cheap_parts_end_in_a_table(tmp_path: Path) -> None:
    done = benchmarks("--quick", "--rows", "1000", "--keep", str(tmp_path), "import", "drift")
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("against the peer") :].splitlines()[2:]
    assert [line.split("  ")[0] for line in table if not line.startswith(" ")] == [
        "import airflow_mlops / bare interpreter",
        "drift of 1,000 rows x 20, a saved reference / Evidently's preset",
        "drift of 1,000 rows x 20, memory",
        "drift of 1,000 rows x 20, Wasserstein against Evidently's",
        "drift of 1,000 rows x 20, Jensen-Shannon against Evidently's",
        "profile of 1,000 rows x 20",
    ]


def test_an_unknown_part_is_named() -> None:
    done = benchmarks("imports")
    assert done.returncode == 2
    assert "no such part: imports" in done.stderr
