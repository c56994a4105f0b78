"""Arguments in, exit codes out. Airflow is imported only to ask where its store and its MLflow are."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path

from airflow_mlops import __version__
from airflow_mlops.backends.local import environment
from airflow_mlops.cli.delivery import add_delivery
from airflow_mlops.cli.where import add_environment, add_model_store, add_registry, add_store
from airflow_mlops.errors import DeclarationError, MlopsError
from airflow_mlops.spec.environment import VARIABLE

STATE_FOLDER = ".airflow-mlops"


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when it is done, 1 when the answer is no or the work failed, 2 when the command line is wrong.
    """
    parser = parser_of_commands()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    _quiet(options)
    try:
        with environment({VARIABLE: options.env} if getattr(options, "env", None) else {}):
            code = int(options.handler(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who reads has seen enough (`| head`). Python writes what is left when it ends, and must not fail there again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MlopsError as error:
        if getattr(options, "verbose", False):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def parser_of_commands() -> argparse.ArgumentParser:
    """Every command with its arguments; the reference is made from it as well."""
    parser = argparse.ArgumentParser(
        prog="airflow-mlops", description="ML pipelines for Apache Airflow, from one declaration each."
    )
    parser.add_argument("--version", action="version", version=f"airflow-mlops {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    project = commands.add_parser(
        "init", help="make a project that runs at once: pipeline, code, data, tests, DAGs, CI"
    )
    project.add_argument("name", metavar="NAME", help="the name of folder, pipeline and package, such as churn")
    project.add_argument("--ci", choices=("github", "cloudbuild"), help="write what tests, builds and releases, for it")
    project.set_defaults(handler=_init)

    adopted = commands.add_parser(
        "adopt",
        help="write a first declaration from a script and a table: exit code 3 if something is left to fill in",
        description="The script is read and never run. What was found stands with the script's lines in the "
        "declaration, and what a person must look at in comments that begin with 'check:'.",
    )
    adopted.add_argument("script", metavar="SCRIPT.py", help="a training script")
    adopted.add_argument("data", metavar="DATA", help="its table: a Parquet or CSV file, a folder, or with {window}")
    adopted.add_argument("--out", default="pipelines", metavar="DIR", help="where to write (default: %(default)s)")
    adopted.add_argument("--name", metavar="NAME", help="the pipeline's name (default: by script, table or folder)")
    adopted.set_defaults(handler=_adopt)

    lint = commands.add_parser("lint", help="check declarations: every mistake at once, with file and line")
    lint.add_argument("files", nargs="+", metavar="FILE", help="a YAML file of one or more pipelines")
    lint.set_defaults(handler=_lint)

    run = commands.add_parser("run", help="run a pipeline's training here and now, without Airflow")
    run.add_argument("file", metavar="PIPELINE.yaml", help="a YAML file of one or more pipelines")
    add_environment(run)
    run.add_argument("--window", metavar="KEY", help="the window, such as 2013-02 (default: the newest there is)")
    run.add_argument("--pipeline", metavar="NAME", help="which one, where the file holds several")
    run.add_argument("--store", metavar="URI", help=f"the artifact store (default: {STATE_FOLDER}/store)")
    run.add_argument(
        "--registry",
        metavar="URI",
        help=f"MLflow's tracking URI (default: $MLFLOW_TRACKING_URI, else sqlite in {STATE_FOLDER})",
    )
    run.add_argument("--resume", metavar="RUN", help="go on with an earlier run: what it has done is not done again")
    run.add_argument("--model", metavar="VERSION", help="judge this version, such as a copied one, and train none")
    run.add_argument("--no-cache", action="store_true", help="do every stage anew, and keep nothing for later runs")
    run.add_argument(
        "--promote",
        action=argparse.BooleanOptionalAction,
        help="whether a model that passes may be promoted (default: unless the window is older than the champion's)",
    )
    run.add_argument(
        "--approve", action="store_true", help="approve of a model that passes, where the declaration asks a person"
    )
    run.add_argument("--json", action="store_true", help="print one JSON object instead of progress lines")
    run.add_argument("--verbose", action="store_true", help="show log lines and whole tracebacks")
    run.set_defaults(handler=_run)

    pools = commands.add_parser("pools", help="make the Airflow pools that limit concurrent trainings")
    pools.add_argument("files", nargs="+", metavar="FILE", help="a YAML file of one or more pipelines")
    add_environment(pools)
    pools.add_argument("--json", action="store_true", help="print them for `airflow pools import`, and make nothing")
    pools.set_defaults(handler=_pools)

    schema = commands.add_parser("schema", help="print the JSON Schema of a declaration, or infer a data schema")
    schema.set_defaults(handler=_schema)
    kinds = schema.add_subparsers(dest="kind", metavar="")
    infer = kinds.add_parser("infer", help="propose a data schema from rows, for review")
    infer.add_argument("source", metavar="SOURCE", help="a Parquet or CSV file, or a pipeline's YAML file")
    add_environment(infer)
    infer.add_argument("--window", metavar="KEY", help="the window to read, for a pipeline (default: the newest)")
    infer.add_argument("--out", metavar="FILE", help="where to write it (default: standard output)")
    infer.add_argument("--force", action="store_true", help="write over an earlier file")
    infer.set_defaults(handler=_infer)
    check = kinds.add_parser("check", help="hold a window against the data schema; of BigQuery no row is read")
    check.add_argument("file", metavar="PIPELINE.yaml", help="a YAML file of one or more pipelines")
    add_environment(check)
    check.add_argument("--window", metavar="KEY", help="the window, such as 2013-02 (default: the newest there is)")
    check.add_argument("--pipeline", metavar="NAME", help="which one, where the file holds several")
    check.set_defaults(handler=_check_schema)

    runtime = commands.add_parser("runtime", help="the environments of pipelines that have a runtime of their own")
    kinds = runtime.add_subparsers(dest="kind", metavar="COMMAND", required=True)
    build = kinds.add_parser("build", help="build them beforehand, such as when an image is made")
    build.add_argument("files", nargs="+", metavar="FILE", help="a YAML file of one or more pipelines")
    add_environment(build)
    build.set_defaults(handler=_runtime, command_name="build")
    kinds.add_parser("ls", help="list those kept here").set_defaults(handler=_runtime, command_name="ls")
    unused = kinds.add_parser("prune", help="remove those that nobody uses any more")
    unused.add_argument("--unused", default="30d", metavar="TIME", help="for how long (default: 30d)")
    unused.set_defaults(handler=_runtime, command_name="remove")

    cache = commands.add_parser("cache", help="what is kept of earlier runs, why a stage is done again, what may go")
    asked = cache.add_subparsers(dest="asked", metavar="COMMAND", required=True)
    listed = asked.add_parser("ls", help="list what is kept: stage, key, when, size, by which run")
    explained = asked.add_parser("explain", help="say of each stage whether a run would do it, and why")
    pruned = asked.add_parser("prune", help="remove old entries, and the artifacts that nothing names any more")
    explained.add_argument("file", metavar="PIPELINE.yaml", help="a YAML file of one or more pipelines")
    add_environment(explained)
    explained.add_argument("--window", metavar="KEY", help="the window (default: the newest there is)")
    explained.add_argument("--registry", metavar="URI", help="MLflow's tracking URI, as for run")
    pruned.add_argument("--older-than", metavar="AGE", default="30d", help="such as 12h or 30d (default: %(default)s)")
    pruned.add_argument("--dry-run", action="store_true", help="only say what would go")
    for each, handler in ((listed, "ls"), (explained, "explain"), (pruned, "remove")):
        each.add_argument("--pipeline", metavar="NAME", help="this pipeline only")
        each.add_argument("--store", metavar="URI", help=f"the artifact store (default: {STATE_FOLDER}/store)")
        each.set_defaults(handler=_cache, command_name=handler)

    drift = commands.add_parser(
        "drift",
        help="compare two data sets: exit code 0 no drift, 3 drift, 4 not enough data, 2 bad input",
        description="Say of every column whether it moved. REF and CUR are Parquet or CSV files, folders of them, "
        "patterns with *, or saved profiles, at any fsspec URI.",
    )
    drift.add_argument("--reference", required=True, metavar="REF", help="what is held against")
    drift.add_argument("--current", required=True, metavar="CUR", help="what is judged")
    drift.add_argument("--columns", nargs="+", metavar="NAME", help="these columns only (default: all)")
    drift.add_argument(
        "--time", metavar="NAME", help="the time column: chance is then learnt from the reference's days"
    )
    drift.add_argument("--false-alarm-rate", type=float, metavar="SHARE", help="over all columns (default: 0.01)")
    drift.add_argument("--min-rows", type=int, metavar="N", help="fewer rows decide nothing (default: 200)")
    drift.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    drift.add_argument("--html", metavar="FILE", help="write Evidently's report there")
    drift.add_argument("--save-profile", metavar="FILE", help="keep the profile of CUR there, as a later REF or CUR")
    drift.set_defaults(handler=_drift)

    asked_for = commands.add_parser("requests", help="who asked to retrain a model, why, and what came of it")
    asked_for.add_argument("pipeline", metavar="PIPELINE", help="the pipeline's name")
    asked_for.add_argument("--json", action="store_true", help="print a JSON list, with every step of each request")
    add_model_store(asked_for)
    asked_for.set_defaults(handler=_requests)

    messages = commands.add_parser("messages", help="what came from Pub/Sub, for whom, and what was set aside and why")
    messages.add_argument(
        "subscription", metavar="SUBSCRIPTION", nargs="?", help="its id or whole name (default: every one)"
    )
    messages.add_argument("--set-aside", action="store_true", help="only what nobody can use, or a part of")
    messages.add_argument("--json", action="store_true", help="print a JSON list")
    add_store(messages)
    messages.set_defaults(handler=_messages)

    history = commands.add_parser("history", help="what became of a model's versions, by what verdict and by whom")
    history.add_argument("model", metavar="MODEL", help="the model's name, which is its pipeline's")
    history.add_argument("--json", action="store_true", help="print a JSON list, with everything that is on record")
    add_model_store(history)
    history.set_defaults(handler=_history)

    rollback = commands.add_parser("rollback", help="put an earlier champion back, with its preparation and reference")
    rollback.add_argument("model", metavar="MODEL", help="the model's name, which is its pipeline's")
    rollback.add_argument("--to", metavar="VERSION", help="a version that was the champion (default: the one before)")
    rollback.add_argument("--reason", metavar="TEXT", required=True, help="why; it goes on record")
    add_registry(rollback)
    rollback.set_defaults(handler=_rollback)

    serving = commands.add_parser(
        "serve",
        help="serve a model's champion over HTTP, by MLflow's scoring protocol",
        description="Follows the ledger: promotions, rollbacks and trials take effect within seconds, and no answer is "
        "lost. Predictions are logged where monitoring reads them.",
    )
    serving.add_argument("model", metavar="MODEL", help="the model's name, which is its pipeline's")
    serving.add_argument("--port", type=int, default=8080, metavar="N", help="0: a free one (default: %(default)s)")
    serving.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="(default: %(default)s)")
    serving.add_argument("--version", metavar="N", help="serve this version only, whatever the ledger says later")
    serving.add_argument("--digest", metavar="SHA256", help="what its model must be (default: what the ledger knows)")
    serving.add_argument(
        "--files",
        metavar="URI",
        help="where the files of that version are, as a deployment elsewhere has them; no store or MLflow is asked",
    )
    serving.add_argument("--api-key-file", metavar="FILE", help="a file with the key that requests must bring")
    serving.add_argument(
        "--max-body", default="16MiB", metavar="SIZE", help="the largest request (default: %(default)s)"
    )
    serving.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="seconds a request may take (default: %(default)s)"
    )
    serving.add_argument(
        "--flush",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds between two writings of the predictions: what a crash may lose (default: %(default)s)",
    )
    serving.add_argument(
        "--log-to", default="", metavar="URI", help="the folder of predictions (default: the pipeline's)"
    )
    serving.add_argument("--no-log", action="store_true", help="log no predictions")
    serving.add_argument(
        "--allow-pickle", action="store_true", help="load models written with cloudpickle, which run code when loaded"
    )
    add_registry(serving)
    serving.set_defaults(handler=_serve)

    registry = commands.add_parser("registry", help="hold MLflow's registry against the ledger, copy a champion")
    kinds = registry.add_subparsers(dest="kind", metavar="COMMAND", required=True)
    checked = kinds.add_parser("check", help="hold aliases and versions against the ledger: exit code 1 if they differ")
    checked.add_argument("model", metavar="MODEL", nargs="?", help="the model's name (default: every model)")
    checked.add_argument("--repair", action="store_true", help="make the aliases say what the ledger says")
    checked.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    add_registry(checked)
    checked.set_defaults(handler=_registry, command_name="check")
    copied = kinds.add_parser("copy", help="copy a champion into another environment, as a candidate for its gate")
    copied.add_argument("model", metavar="MODEL", help="the model's name, which is its pipeline's")
    for side, where in (("from", "it is taken from"), ("to", "it goes to")):
        copied.add_argument(f"--{side}-store", metavar="URI", required=True, help=f"the store {where}")
        copied.add_argument(f"--{side}-registry", metavar="URI", required=True, help=f"the tracking URI {where}")
    copied.add_argument("--by", metavar="NAME", help="who does it, for the record (default: the user's name)")
    copied.set_defaults(handler=_registry, command_name="copy")

    calibrate = commands.add_parser(
        "calibrate", help="show a drift rule's false alarms and power on the source's history, before it is turned on"
    )
    calibrate.add_argument("file", metavar="PIPELINE.yaml")
    add_environment(calibrate)
    calibrate.add_argument("--pipeline", metavar="NAME", help="which one, where the file holds several")
    calibrate.add_argument(
        "--window", metavar="KEY", help="the newest window to look at (default: the newest there is)"
    )
    calibrate.add_argument("--windows", type=int, default=12, metavar="N", help="how many (default: %(default)s)")
    calibrate.add_argument("--evidently", action="store_true", help="show beside it what Evidently's preset would say")
    calibrate.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    calibrate.set_defaults(handler=_calibrate)

    replay = commands.add_parser(
        "replay",
        help="what retrain policies would have done over past windows: metric, trainings, cost, recommended settings",
        description="Walk through history without touching the registry: the declared policy (as if it were switched "
        "on), never, every window, Evidently's default and our default. The champion at the start is trained on the "
        "windows before --from. What was computed once is kept in the state folder.",
    )
    replay.add_argument("file", metavar="PIPELINE.yaml", help="a YAML file of one or more pipelines")
    add_environment(replay)
    replay.add_argument("--from", dest="first", required=True, metavar="KEY", help="the first window, such as 2013-03")
    replay.add_argument("--to", dest="last", required=True, metavar="KEY", help="the last window")
    replay.add_argument("--pipeline", metavar="NAME", help="which one, where the file holds several")
    replay.add_argument("--html", metavar="FILE", help=f"the page with the plot (default: in {STATE_FOLDER}/replay)")
    replay.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    replay.add_argument(
        "--evidently",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask Evidently as well, which takes longest",
    )
    replay.add_argument("--verbose", action="store_true", help="show log lines and whole tracebacks")
    replay.set_defaults(handler=_replay)

    add_delivery(commands)

    demo = commands.add_parser("demo", help="run the flights demo: a real Airflow and MLflow on this machine")
    demo.add_argument("--dags", default="dags", metavar="DIR", help="the folder with the demo's DAGs and data")
    demo.add_argument("--months", type=int, default=None, metavar="N", help="how many months arrive")
    demo.add_argument(
        "--keep", metavar="DIR", help="keep Airflow's home and the data there (default: a temporary folder)"
    )
    demo.set_defaults(handler=_demo)
    return parser


def _quiet(options: argparse.Namespace) -> None:
    """No telemetry, and no progress bars of other people's libraries among our lines."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    level = logging.INFO if getattr(options, "verbose", False) else logging.ERROR
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", logging.getLevelName(level))
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")


def _lint(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.lint import lint

    problems = lint(options.files)
    for problem in problems:
        print(problem)
    files = f"{len(options.files)} file{'s' if len(options.files) > 1 else ''}"
    print(
        f"{files}: {f'{len(problems)} problems' if len(problems) != 1 else '1 problem'}" if problems else f"{files}: ok"
    )
    return 1 if problems else 0


def _init(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.init import init

    return init(options)


def _adopt(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.adopt import adopt

    return adopt(options)


def _run(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.run import run

    return run(options, Path(STATE_FOLDER))


def _runtime(options: argparse.Namespace) -> int:
    from airflow_mlops.cli import runtime

    return int(getattr(runtime, options.command_name)(options))


def _cache(options: argparse.Namespace) -> int:
    from airflow_mlops.cli import cache

    return int(getattr(cache, options.command_name)(options, Path(STATE_FOLDER)))


def _drift(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.drift import drift

    return drift(options)


def _requests(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.requests import show

    return show(options)


def _messages(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.messages import show

    return show(options)


def _history(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.history import show

    return show(options)


def _rollback(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.rollback import roll_back

    return roll_back(options)


def _serve(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.serve import serve

    return serve(options)


def _registry(options: argparse.Namespace) -> int:
    from airflow_mlops.cli import registry

    return int(getattr(registry, options.command_name)(options))


def _calibrate(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.calibrate import calibrate

    return calibrate(options)


def _replay(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.replay import replay

    return replay(options, Path(STATE_FOLDER))


def _pools(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.pools import declared_pools, make_pools

    pools = declared_pools(options.files)
    if options.json:
        print(json.dumps(pools, indent=2))
        return 0
    if pools:
        make_pools(pools)
    for name, pool in pools.items():
        print(f"pool {name}: {pool['slots']} slots")
    if not pools:
        print("no pipeline here has a pool")
    return 0


def _schema(options: argparse.Namespace) -> int:
    from airflow_mlops.spec.fleet import declaration_schema

    print(json.dumps(declaration_schema(), indent=2))
    return 0


def _check_schema(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.check_schema import check_schema

    return check_schema(options)


def _infer(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.infer import infer

    text = infer(options.source, options.window)
    if options.out:
        out = Path(options.out)
        if out.exists() and not options.force:
            raise DeclarationError(
                [f"{out}: is there already, and may hold corrections; try: --force, or another --out"]
            )
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DeclarationError([f"{out}: cannot be written: {error.strerror or error}"]) from error
        print(f"wrote {options.out}: review it, and name it in the pipeline's data.schema", file=sys.stderr)
    else:
        print(text, end="")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from airflow_mlops.cli.demo import demo

    return demo(Path(options.dags), months=options.months, keep=Path(options.keep) if options.keep else None)
