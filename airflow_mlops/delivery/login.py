"""Who asks an environment's Airflow: by a token, or by a user and a password that bring one.

Each is said by a variable, or by the file that a variable with ``_FILE`` names. Those that end in the environment's
name, such as ``AIRFLOW_API_TOKEN_PROD``, come before those that are for all.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from airflow_mlops.errors import DeliveryError

TOKEN, USER, PASSWORD = "AIRFLOW_API_TOKEN", "AIRFLOW_API_USER", "AIRFLOW_API_PASSWORD"
"""The variables."""
HOW = f"set {TOKEN}, or {USER} and {PASSWORD}; or {TOKEN}_FILE and {PASSWORD}_FILE, which name files that hold them"


class Said(NamedTuple):
    """A value, and the variable that said it."""

    variable: str
    value: str


class User(NamedTuple):
    """Somebody whom Airflow knows by a password."""

    name: Said
    password: Said


class Login(NamedTuple):
    """A token, or a user; nothing for an Airflow that asks nobody who they are."""

    token: Said | None = None
    user: User | None = None


def login_of(environment: str) -> Login:
    """How to log in to an environment's Airflow.

    Raises:
        DeliveryError: when a user is there without a password or a password without a user, or a file cannot be read.
    """
    own = "_" + re.sub(r"\W", "_", environment, flags=re.ASCII).upper()
    for suffix in (own, ""):
        if token := _said(TOKEN + suffix):
            return Login(token)
        user, password = _said(USER + suffix), _said(PASSWORD + suffix)
        if user or password:
            user, password = user or _said(USER), password or _said(PASSWORD)
            if user and password:
                return Login(user=User(user, password))
            there = user or password
            missing = PASSWORD if user else USER
            raise DeliveryError(f"{there and there.variable} is set without {missing}", fix=HOW)
    return Login()


def _said(variable: str) -> Said | None:
    if value := os.environ.get(variable):
        return Said(variable, value)
    variable = f"{variable}_FILE"
    if not (file := os.environ.get(variable)):
        return None
    try:
        with open(file, encoding="utf-8") as source:
            value = source.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is no text"
        raise DeliveryError(f"{variable}: {file} cannot be read: {what}", fix=HOW) from error
    if not value:
        raise DeliveryError(f"{variable}: {file} is empty", fix=HOW)
    return Said(variable, value)
