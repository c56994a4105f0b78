#!/usr/bin/env python3
"""Make the secrets of compose.yaml that are not there yet, each a file in the folder ``secrets`` beside it.

Nothing but Python's standard library is needed. Containers run as users of their own and must be able to read the
files; what keeps others out is the folder, which only its owner may enter.
"""

import argparse
import base64
import os
import secrets
from pathlib import Path

# Passwords are part of addresses, so they are hexadecimal.
SECRETS = {
    "postgres_password": lambda: secrets.token_hex(24),
    "airflow_db_password": lambda: secrets.token_hex(24),
    "celery_db_password": lambda: secrets.token_hex(24),
    "mlflow_db_password": lambda: secrets.token_hex(24),
    "redis_password": lambda: secrets.token_hex(24),
    "fernet_key": lambda: base64.urlsafe_b64encode(os.urandom(32)).decode(),
    "jwt_secret": lambda: secrets.token_hex(32),
    "api_secret_key": lambda: secrets.token_hex(32),
    "admin_password": lambda: secrets.token_urlsafe(18),
    "serving_key": lambda: secrets.token_hex(24),
}


def main() -> None:
    """Make what is missing, and say what was made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "secrets")
    folder = parser.parse_args().folder
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    for name, make in SECRETS.items():
        file = folder / name
        if not file.exists():
            # Without a line end: some readers would take it for a part.
            file.write_text(make())
            print(f"made {file}")
        file.chmod(0o444)


if __name__ == "__main__":
    main()
