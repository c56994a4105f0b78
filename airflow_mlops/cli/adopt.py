"""A script and a table become a first declaration with its schema and code, for a person to review."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any, get_args

from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.source import windows_of
from airflow_mlops.cli.adopting.decide import Decided
from airflow_mlops.cli.adopting.draft import Called, declaration, features_file, training_file
from airflow_mlops.cli.adopting.names import Names, parse
from airflow_mlops.cli.adopting.script import Reader
from airflow_mlops.cli.infer import newest, proposed, rows_of
from airflow_mlops.cli.init import check_package_name, write_new
from airflow_mlops.errors import CodeError, DataError, DataNotFoundError
from airflow_mlops.spec.stages import Extract
from airflow_mlops.spec.window import Grain, Window

INCOMPLETE = 3

_SAY_NOTHING = {
    "code",
    "data",
    "dataset",
    "df",
    "fit",
    "main",
    "model",
    "notebook",
    "script",
    "src",
    "train",
    "training",
}


def adopt(options: argparse.Namespace) -> int:
    """Run the command; see ``airflow-mlops adopt --help``."""
    tree, lines = parse(options.script)
    name = options.name or _name(options.script, options.data)
    check_package_name(name)
    out = Path(options.out)
    params, window, table = _read(options.data)
    looks = stage_module("column_looks").looks(table)
    source = options.data if "://" in options.data else os.path.relpath(options.data, out)
    grain = params.grain if window else None
    script, data = os.path.basename(options.script), os.path.basename(options.data.rstrip("/"))
    called = Called(name, script, data, source, grain, table.num_rows)
    try:
        names = Names(tree)
        decided = Decided(Reader(names, list(looks), lines).read(), names, looks)
        texts = {
            f"{name}.yaml": declaration(decided, called),
            f"{name}/features.py": features_file(decided, called),
            f"{name}/training.py": training_file(decided, called),
        }
    except RecursionError:
        raise CodeError(
            f"{options.script} is nested too deeply to be read", fix="start from airflow-mlops init"
        ) from None
    texts[f"{name}/schema.yaml"] = proposed(
        table, key=decided.key, time=decided.time, target=decided.target, window=window
    )
    if texts[f"{name}/features.py"] or texts[f"{name}/training.py"]:
        texts[f"{name}/__init__.py"] = ""
    files = {out / file: text.encode() for file, text in texts.items() if text is not None}
    write_new(files)
    _tell(out / f"{name}.yaml", files, decided.missing)
    return INCOMPLETE if decided.missing else 0


def _name(script: str, data: str) -> str:
    """The first of the names of script, table and folder that says something."""
    folder = os.path.basename(os.path.dirname(os.path.abspath(script)))
    for given in (Path(script).stem, re.sub(r"\{.*|\..*", "", os.path.basename(data.rstrip("/"))), folder):
        name = re.sub(r"\W+", "_", given.lower(), flags=re.ASCII).strip("_")
        words = [word for word in name.split("_") if word not in _SAY_NOTHING and not word.isdigit()]
        if words and re.fullmatch(r"[a-z][a-z0-9_]*", "_".join(words)):
            return "_".join(words)[:50]
    return "adopted"


def _read(data: str) -> tuple[Extract, Window | None, Any]:
    """What is read, the newest window where there are windows, and its rows."""
    params = Extract(source=data)
    if "{window}" in data:
        grains: tuple[Grain, ...] = get_args(Grain)
        there = [grain for grain in grains if windows_of(data, grain)]
        params = Extract(source=data, grain=there[0] if there else params.grain)
    try:
        window = newest(params)
        table = rows_of(params, window)
    except DataNotFoundError as error:
        raise DataNotFoundError(
            error.what, fix="name a table that is there, or windows as DATA/{window}.csv"
        ) from error
    if table.num_columns == 1 and re.search(r"[;\t|]", table.column_names[0]):
        raise DataError(f"{data} is not separated by commas", fix="write it with commas, or as Parquet")
    return params, window, table


def _tell(file: Path, written: dict[Path, bytes], missing: list[str]) -> None:
    print(f"wrote {', '.join(str(path) for path, text in written.items() if text)}")
    if missing:
        print(f"  fill in  {', '.join(missing)}")
    print(f"  check    {written[file].count(b'check: ')} lines of {file} that say `check:`, and the schema")
    print(f"  next     airflow-mlops lint {file} && airflow-mlops run {file}")
