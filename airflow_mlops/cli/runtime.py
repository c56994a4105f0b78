"""``airflow-mlops runtime``: the environments that pipelines have declared, built beforehand, listed, removed."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from airflow_mlops.backends import carrier
from airflow_mlops.backends.runtime import environments, interpreter, prune, runtimes_folder
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import load_declarations
from airflow_mlops.spec.base import format_size, parse_duration


def build(options: argparse.Namespace) -> int:
    """Build, or look at, the interpreter of every pipeline of these files that has a runtime."""
    for file in options.files:
        for declaration in load_declarations(file):
            pipeline = declaration.pipeline
            if pipeline.runtime is None:
                print(f"{pipeline.name}: the worker's own interpreter")
                continue
            _, settings = carrier("local", None, pipeline.runtime, declaration.base)
            print(f"{pipeline.name}: {interpreter(settings.get('python'), settings.get('requirements'))}", flush=True)
    return 0


def ls(options: argparse.Namespace) -> int:
    """List the environments, the one last used first."""
    found = environments()
    if not found:
        print(f"no environment was built in {runtimes_folder('environments')} yet")
    for each in found:
        used = f"{datetime.fromtimestamp(each.used, UTC):%Y-%m-%d %H:%M}"
        words = " ".join(line for line in each.requirements.splitlines() if line.strip() and not line.startswith("#"))
        print(f"{used}  {format_size(each.size):>9}  {each.folder}  {words[:80]}")
    return 0


def remove(options: argparse.Namespace) -> int:
    """Remove the environments that were not used for so long."""
    try:
        unused = parse_duration(options.unused)
    except ValueError as error:
        raise DeclarationError([f"--unused: {error}"]) from error
    gone = prune(unused.total_seconds() / 86_400)
    print(f"removed {len(gone)} environments, {format_size(sum(each.size for each in gone))}")
    return 0
