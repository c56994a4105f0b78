"""The commands of continuous delivery: ``build``, ``deploy``, ``release`` and ``diff``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_delivery(commands: Any) -> None:
    """Add the commands to a parser's subparsers."""
    building = commands.add_parser(
        "build", help="put pipelines and all that they need into one bundle, the same byte for byte for the same input"
    )
    building.add_argument("files", nargs="+", metavar="FILE", help="YAML files of pipelines, and DAG files of your own")
    building.add_argument("--out", default="dist", metavar="DIR", help="where the bundle goes (default: %(default)s)")
    building.add_argument("--name", help="the bundle's name (default: that of the first YAML file)")
    building.add_argument("--version", metavar="V", help="its version (default: by Git's tags, else by the content)")
    building.add_argument(
        "--lock", metavar="FILE", help="what pins the environment (default: requirements.lock and the like, if there)"
    )
    building.add_argument("--allow-dirty", action="store_true", help="build from files that differ from the commit")
    building.set_defaults(handler=_build)


def _build(options: argparse.Namespace) -> int:
    from airflow_mlops.delivery.build import build

    bundle = build(
        options.files,
        name=options.name,
        version=options.version,
        lock=options.lock,
        allow_dirty=options.allow_dirty,
    )
    file = bundle.write(Path(options.out))
    print(f"{file}\n  version  {bundle.manifest.version}\n  digest   {bundle.manifest.digest}")
    return 0
