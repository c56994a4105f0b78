"""``airflow-mlops serve``: the model server, from the command line."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
from pathlib import Path

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

    limits = Limits(_size(options.max_body), options.timeout, _key(options.api_key_file))
    store = store_of(options)
    if options.digest and not options.version:
        raise DeclarationError(["--digest says what a --version must be, and none is given"])
    if options.version is None or options.digest is None:
        require_model(store, options.model)
    if limits.key is None and not _loopback(options.host):
        print(f"warning: whoever reaches {options.host} may ask: no --api-key-file is given", file=sys.stderr)
    with registry_in(options, options.model) as registry:
        settings = Settings(
            registry=registry,
            store=store,
            version=options.version,
            digest=options.digest,
            log_to=None if options.no_log else options.log_to,
            flush=options.flush,
            allow_pickle=options.allow_pickle,
            seconds=options.timeout,
        )
        # Where Airflow was asked, it has put its own handlers there, which write to standard output.
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=_LINE, force=True)
        run(settings, limits, options.host, options.port)
    return 0


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
