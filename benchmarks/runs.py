"""``airflow-mlops run`` against a bare script that does the same, both with one real MLflow server."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from airflow_mlops.cli.services import Services, fetch
from benchmarks.cost import MIB, Cost, compiled, python
from benchmarks.data import MODEL, write_declaration, write_rows
from benchmarks.table import Row, Table

MORE_S = 2.0
COMMAND = "import sys; from airflow_mlops.cli import main; sys.exit(main())"


def measure(table: Table, home: Path, rows: int, repeat: int, *, warm_up: bool, ours: bool) -> Cost:
    """Measure the bare script, and the pipeline before and after it has a champion; return the bare script's cost."""
    print(f"\nairflow-mlops run and a bare script, {rows:,} rows, {repeat} times each", flush=True)
    write_rows(home / "rows.parquet", rows)
    write_declaration(home)
    environment = compiled(home / "pycache" if warm_up else None)
    bare: list[Cost] = []
    first: list[Cost] = []
    second: list[Cost] = []
    with Services(home, home, environment=environment) as services:
        services.start_mlflow()
        services.wait("mlflow", lambda: fetch(f"{services.mlflow_url}/health") is not None, 120)
        for number in range(repeat + warm_up):
            bare.append(_bare(home, services.mlflow_url, environment, f"bare-{number}"))
            if ours:
                first.append(_run(home, services.mlflow_url, environment, number))
                second.append(_run(home, services.mlflow_url, environment, number, iterations=101))
    # The first round compiled what it imported.
    bare, first, second = bare[warm_up:], first[warm_up:], second[warm_up:]
    peer = middle(bare)
    if ours:
        _report(table, "airflow-mlops run, no champion yet", first, bare, MORE_S)
        _report(table, "airflow-mlops run, against a champion", second, bare, None)
    return peer


def _report(table: Table, what: str, ours: list[Cost], bare: list[Cost], most: float | None) -> None:
    """Compare round by round, so that a machine that grows busier counts for both."""
    cost, peer = middle(ours), middle(bare)
    rounds = (f"{each.cpu:.2f} / {base.cpu:.2f}" for each, base in zip(ours, bare, strict=True))
    print(f"  rounds, ours / bare: {', '.join(rounds)}")
    over = median(each.cpu - base.cpu for each, base in zip(ours, bare, strict=True))
    table.difference(f"{what} / bare script", peer.cpu + over, peer.cpu, most)
    table.add(
        Row(
            "  wall, peak memory",
            f"{cost.wall:.1f} s, {cost.rss / MIB:.0f} MiB",
            f"{peer.wall:.1f} s, {peer.rss / MIB:.0f} MiB",
        )
    )


def _bare(home: Path, uri: str, environment: dict[str, str], name: str) -> Cost:
    script = str(Path(__file__).with_name("bare.py"))
    return python(script, str(home / "rows.parquet"), uri, name, environment=environment)[0]


def _run(home: Path, uri: str, environment: dict[str, str], number: int, iterations: int = 100) -> Cost:
    """One run of the pipeline; each number has a model of its own, so that its first run has no champion.

    Other iterations make another model: an equal one would not be trained again.
    """
    folder = home / f"round-{number}"
    folder.mkdir(exist_ok=True)
    if not (folder / "rows.parquet").exists():
        (folder / "rows.parquet").hardlink_to(home / "rows.parquet")
    text = (home / f"{MODEL}.yaml").read_text().replace("max_iter: 100", f"max_iter: {iterations}")
    (folder / f"{MODEL}.yaml").write_text(text.replace(f"name: {MODEL}", f"name: {MODEL}-{number}"))
    return command_run(folder, home, uri, environment)


def command_run(folder: Path, home: Path, uri: str, environment: dict[str, str]) -> Cost:
    """Run the pipeline that is declared in a folder by ``airflow-mlops run``."""
    cost, printed = python(
        *("-c", COMMAND, "run"),
        *(str(folder / f"{MODEL}.yaml"), "--store", str(home / "store"), "--registry", uri, "--json"),
        environment=environment,
    )
    summary = json.loads(printed)
    assert summary["status"] in ("promoted", "rejected"), printed
    return cost


def middle(costs: list[Cost]) -> Cost:
    """The run with the median CPU time."""
    wanted = median(each.cpu for each in costs)
    return min(costs, key=lambda each: abs(each.cpu - wanted))
