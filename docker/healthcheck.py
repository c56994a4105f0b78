#!/usr/bin/env -S python3 -I
"""Ask a server whether it is well: ``healthcheck URL [PART...]``; its JSON must call each part healthy.

With the standard library only: it runs every few seconds, and Airflow's own checks load all of Airflow to do the same.
"""

import json
import sys
import urllib.request


def main() -> int:
    """0 when all is well; else 1, and what is not."""
    url, parts = sys.argv[1], sys.argv[2:]
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=8) as answer:
            body = answer.read()
        found = json.loads(body) if parts else {}
        ill = [part for part in parts if found.get(part, {}).get("status") != "healthy"]
    except (OSError, ValueError, AttributeError) as error:
        print(f"{url}: {error}")
        return 1
    if ill:
        print(f"{url}: not healthy: {', '.join(ill)}")
    return 1 if ill else 0


if __name__ == "__main__":
    sys.exit(main())
