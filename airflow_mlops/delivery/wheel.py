"""The user's code as a wheel, from names and contents alone."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping

from airflow_mlops.delivery.bundle import packed


def wheel(name: str, version: str, files: Mapping[str, bytes]) -> tuple[str, bytes]:
    """A pure Python wheel.

    Args:
        name: the distribution's name.
        version: its version, as PEP 440 normalises it.
        files: the modules by their path.

    Returns:
        The wheel's file name, and the wheel.
    """
    stem = f"{re.sub(r'[-_.]+', '_', name).lower()}-{version}"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: airflow-mlops\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    held = {**files, **{f"{stem}.dist-info/{key}": text.encode() for key, text in about.items()}}
    record = f"{stem}.dist-info/RECORD"
    lines = [f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in sorted(held.items())]
    return f"{stem}-py3-none-any.whl", packed({**held, record: "".join([*lines, f"{record},,\n"]).encode()})


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
