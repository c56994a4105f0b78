"""The commands of continuous integration and delivery: ``test``, ``build``, ``deploy``, ``release`` and ``diff``."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlops.cli.where import add_environment
from airflow_mlops.errors import DeclarationError, DeliveryError, MlopsError
from airflow_mlops.spec.promises import LEAST_ROWS

if TYPE_CHECKING:
    from airflow_mlops.delivery.bundle import Bundle
    from airflow_mlops.delivery.places import Action, Place
    from airflow_mlops.delivery.settings import Target

FILE = "deploy.yaml"


def add_delivery(commands: Any) -> None:
    """Add the commands to a parser's subparsers."""
    testing = commands.add_parser(
        "test", help="check on a sample what pipelines promise: code, data, features, model, DAGs; exit code 1 if not"
    )
    testing.add_argument("files", nargs="+", metavar="FILE", help="YAML files of pipelines")
    add_environment(testing)
    testing.add_argument("--sample", type=_rows, metavar="ROWS", help="how many rows are used (default: tests.rows)")
    testing.add_argument("--junit", type=_new_file, metavar="FILE", help="write the checks there as JUnit's XML")
    testing.add_argument("--github", action="store_true", help="also print what failed as annotations of GitHub")
    testing.set_defaults(handler=_test)

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

    deploying = commands.add_parser(
        "deploy", help="put a bundle into an environment, wait until Airflow has loaded it, and run its smoke runs"
    )
    deploying.add_argument("bundle", metavar="BUNDLE", help="the file that `build` has made")
    deploying.add_argument("--env", required=True, metavar="NAME", help="the environment, one of deploy.yaml")
    _add_common(deploying)
    deploying.set_defaults(handler=_deploy)

    releases = commands.add_parser("release", help="what runs in which environment, and taking it on or back")
    kinds = releases.add_subparsers(dest="kind", metavar="COMMAND", required=True)
    listed = kinds.add_parser("list", help="what runs where, since when, and by whom")
    listed.add_argument("environment", nargs="?", metavar="ENV", help="this one only, with all that was released there")
    listed.add_argument("--json", action="store_true", help="print a JSON object with every entry of the logs")
    promoted = kinds.add_parser("promote", help="deploy what runs in one environment, byte for byte, in another")
    promoted.add_argument("origin", metavar="FROM", help="the environment that it runs in")
    promoted.add_argument("environment", metavar="TO", help="the environment that it goes to")
    back = kinds.add_parser("rollback", help="go back to the release before, or take a half-finished one back")
    back.add_argument("environment", metavar="ENV", help="the environment")
    for each, handler in ((listed, _list), (promoted, _promote), (back, _rollback)):
        _add_common(each)
        each.add_argument("--name", help="the bundle's name (default: the only one there)")
        each.set_defaults(handler=handler)

    differing = commands.add_parser(
        "diff", help="what differs between two environments: releases, and keys of the declarations"
    )
    differing.add_argument("environments", nargs=2, metavar="ENV", help="the two environments")
    differing.add_argument(
        "--files", nargs="+", metavar="FILE", help="compare these declarations, and not what runs there"
    )
    differing.add_argument("--name", help="the bundle's name (default: the only one there)")
    differing.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    differing.add_argument("--config", default=FILE, metavar="FILE", help="(default: %(default)s)")
    differing.set_defaults(handler=_diff)


def _rows(text: str) -> int:
    # As for `tests.rows`.
    if not text.isdecimal() or int(text) < LEAST_ROWS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows; allowed: {LEAST_ROWS} or more")
    return int(text)


def _new_file(text: str) -> Path:
    """A file that can be written when the work is done."""
    file = Path(text)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; allowed: a file")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {file.parent} to write in")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} may not be written")
    return file


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default=FILE, metavar="FILE", help="the environments (default: %(default)s)")
    parser.add_argument("--by", metavar="NAME", help="who does it, for the record (default: the user's name)")


def _test(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.test import test

    return test(options)


def _build(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.lint import lint
    from airflow_mlops.delivery.build import build

    if problems := lint([file for file in options.files if not file.endswith(".py")]):
        raise DeclarationError(problems)
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


def _deploy(options: argparse.Namespace) -> int:
    from airflow_mlops.delivery.bundle import read_bundle
    from airflow_mlops.delivery.settings import target_of

    target = target_of(options.config, options.env)
    return _release(options, target, options.env, read_bundle(options.bundle), Path(options.bundle).name, "deploy")


def _promote(options: argparse.Namespace) -> int:
    from airflow_mlops.delivery.environment import place_of
    from airflow_mlops.delivery.release import running_bundle
    from airflow_mlops.delivery.settings import target_of

    origin, target = target_of(options.config, options.origin), target_of(options.config, options.environment)
    if options.origin == options.environment:
        raise DeliveryError(f"{options.origin} is what it is taken on from", fix="name another environment")
    place = place_of(origin)
    bundle = running_bundle(place, _name(place, options.origin, options.name), options.origin)
    return _release(options, target, options.environment, bundle, options.origin, "promote")


def _release(
    options: argparse.Namespace, target: Target, environment: str, bundle: Bundle, source: str, action: Action
) -> int:
    from airflow_mlops.delivery.airflow import Watcher
    from airflow_mlops.delivery.environment import declarations_in, place_of
    from airflow_mlops.delivery.release import deploy

    declarations_in(bundle, environment)
    started, begun = time.monotonic(), datetime.now(UTC)
    entry = deploy(
        place_of(target),
        bundle,
        environment,
        by=_who(options),
        source=source,
        watch=Watcher(target, environment),
        timeout=target.timeout,
        action=action,
    )
    if entry.at < begun:
        print(f"{bundle.manifest.name} {entry.version} runs in {environment} since {entry.at:%Y-%m-%d %H:%M} UTC")
        print(f"  digest   {entry.digest}")
        return 0
    smoke = ", ".join(each.dag for each in target.smoke) or "none declared"
    print(f"{bundle.manifest.name} {entry.version} runs in {environment} ({time.monotonic() - started:.1f} s)")
    print(f"  digest   {entry.digest}\n  smoke    {smoke}")
    return 0


def _rollback(options: argparse.Namespace) -> int:
    from airflow_mlops.delivery.airflow import Watcher
    from airflow_mlops.delivery.environment import place_of
    from airflow_mlops.delivery.release import rollback
    from airflow_mlops.delivery.settings import target_of

    target = target_of(options.config, options.environment)
    place = place_of(target)
    entry, told = rollback(
        place,
        _name(place, options.environment, options.name),
        options.environment,
        by=_who(options),
        watch=Watcher(target, options.environment),
        timeout=target.timeout,
    )
    print(told if entry is None else f"{told}; {entry.version} runs in {options.environment}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from airflow_mlops.delivery.bundle import short
    from airflow_mlops.delivery.environment import place_of
    from airflow_mlops.delivery.release import running, unfinished
    from airflow_mlops.delivery.settings import read_settings, target_of

    only = options.environment
    targets = {only: target_of(options.config, only)} if only else read_settings(options.config).environments
    logs, unknown = {}, False
    for environment, target in targets.items():
        try:
            place = place_of(target)
            names = [name for name in place.names() if options.name in (None, name)]
            logs[environment] = {name: place.look(name).entries for name in names}
        except MlopsError as error:
            if only:
                raise
            # Of the others it can be told.
            print(f"{environment}: {error}", file=sys.stderr)
            unknown = True
    if options.json:
        told = {
            environment: {name: [each.model_dump(mode="json") for each in entries] for name, entries in found.items()}
            for environment, found in logs.items()
        }
        print(json.dumps(told, indent=1))
        return int(unknown)
    for environment, found in logs.items():
        print(f"{environment}: {'' if found else 'nothing was released there'}".rstrip())
        for name, entries in found.items():
            now, half = running(entries), unfinished(entries)
            for entry in entries if only else filter(None, [now]):
                mark = "*" if now and entry.number == now.number else " "
                reason = f": {' '.join(entry.reason.split())}" if entry.reason else ""
                print(
                    f" {mark}{name} {entry.version} {short(entry.digest)}  {entry.action} {entry.kind}"
                    f"  {entry.at:%Y-%m-%d %H:%M} UTC by {entry.by} from {entry.source}{reason}"
                )
            if half:
                print(f"  {name} {half.version} is half-finished, since {half.at:%Y-%m-%d %H:%M} UTC by {half.by}")
            elif not now:
                print(f"  {name}: nothing runs")
    return int(unknown)


def _diff(options: argparse.Namespace) -> int:
    from airflow_mlops.delivery.differences import differences, of_files
    from airflow_mlops.delivery.environment import place_of
    from airflow_mlops.delivery.settings import target_of

    first, second = options.environments
    if options.files:
        told = of_files(options.files, first, second)
    else:
        places = [place_of(target_of(options.config, each)) for each in (first, second)]
        bundles = [
            place.bundle(*_running(place, environment, options.name))
            for place, environment in zip(places, (first, second), strict=True)
        ]
        told = differences(bundles[0], first, bundles[1], second)
    if options.json:
        print(json.dumps(told, indent=1))
        return 0
    for subject, keys in told.items():
        for key, values in keys.items():
            print(f"{subject}: {key}\n  {first:<10} {_shown(values[0])}\n  {second:<10} {_shown(values[1])}")
    if not told:
        print(f"{first} and {second} do not differ")
    return 0


def _shown(value: Any) -> str:
    return "(not set)" if value is None else value if isinstance(value, str) else json.dumps(value)


def _who(options: argparse.Namespace) -> str:
    return str(options.by or getpass.getuser())


def _name(place: Place, environment: str, name: str | None) -> str:
    """The name that is meant: the one given, or the only one.

    Raises:
        DeliveryError: when there is none, or several.
    """
    names = place.names()
    if name in names or (name is None and len(names) == 1):
        return name or names[0]
    if not names:
        raise DeliveryError(f"nothing was released in {environment}", fix="airflow-mlops deploy")
    what = f"{environment} has no releases of {name!r}" if name else f"{environment} has releases of {len(names)} names"
    raise DeliveryError(what, allowed=", ".join(names), fix="--name NAME")


def _running(place: Place, environment: str, name: str | None) -> tuple[str, str]:
    """The name and the digest of what runs in an environment.

    Raises:
        DeliveryError: when nothing does.
    """
    from airflow_mlops.delivery.release import running

    name = _name(place, environment, name)
    entry = running(place.look(name).entries)
    if entry is None:
        raise DeliveryError(f"no release of {name!r} runs in {environment}", fix="airflow-mlops deploy")
    return name, entry.digest
