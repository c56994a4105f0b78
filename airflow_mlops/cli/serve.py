"""``airflow-mlops serve``: the model server, from the command line."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import math
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.cli.where import registry_in, require_model, store_of
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.base import parse_size

_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def serve(options: argparse.Namespace) -> int:
    """Serve a model until a signal ends it.

    Raises:
        DeclarationError: when an option is wrong.
        DeploymentError: when the address or the model cannot be had.
    """
    from airflow_mlops.serving.app import Limits
    from airflow_mlops.serving.main import serve as run
    from airflow_mlops.serving.server import Settings

    if wrong := _wrong(options):
        raise DeclarationError(wrong)
    limits = Limits(_size(options.max_body), options.timeout, _key(options.api_key_file))
    if options.digest and not options.version:
        raise DeclarationError(["--digest says what a --version must be, and none is given"])
    if options.files and not options.digest:
        raise DeclarationError(["--files are of one --version, which must be of one --digest: give both"])
    store = Store(options.files) if options.files else store_of(options, options.model)
    if options.version is None or options.digest is None:
        require_model(store, options.model)
    if limits.key is None and not options.files and not _loopback(options.host):
        print(f"warning: whoever reaches {options.host} may ask: no --api-key-file is given", file=sys.stderr)
    with _registry(options) as registry:
        settings = Settings(
            registry=registry,
            store=store,
            version=options.version,
            digest=options.digest,
            log_to=None if options.no_log or options.files else options.log_to,
            flush=options.flush,
            allow_pickle=options.allow_pickle,
            seconds=options.timeout,
            files=options.files,
        )
        # Where Airflow was asked, it has put its own handlers there, which write to standard output.
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=_LINE, force=True)
        run(settings, limits, options.host, options.port)
    return 0


def _registry(options: argparse.Namespace) -> AbstractContextManager[RegistryRef]:
    """The registry; of files that lie by themselves only the model's name."""
    if options.files:
        return nullcontext(RegistryRef(uri="", model=options.model, experiment=options.model))
    return registry_in(options, options.model)


def _wrong(options: argparse.Namespace) -> list[str]:
    """What is wrong with numbers."""
    wrong = [] if 0 <= options.port <= 65535 else [f"--port {options.port}; allowed: 0 to 65535"]
    for name in ("timeout", "flush"):
        seconds = getattr(options, name)
        if not 0 < seconds < math.inf:
            wrong.append(f"--{name} {seconds:g}; allowed: more than 0 seconds")
    if options.no_log and options.log_to:
        wrong.append("--no-log and --log-to contradict each other")
    return wrong


def _size(text: str) -> int:
    try:
        return int(parse_size(text))
    except ValueError as error:
        raise DeclarationError([f"--max-body: {error}"]) from error


def _key(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DeclarationError([f"--api-key-file {file}: {error}"]) from error
    if len(key) < 16:
        raise DeclarationError([f"--api-key-file {file}: a key has 16 characters at least"])
    return key


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
