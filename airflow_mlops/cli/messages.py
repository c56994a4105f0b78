"""``airflow-mlops messages``: what came from Pub/Sub, who it was for, and what was set aside, with the reason."""

from __future__ import annotations

import argparse
import json
from typing import Any

from airflow_mlops.cli.where import store_of
from airflow_mlops.errors import RegistryError
from airflow_mlops.registry.messages import Inbox, Stand, stands, subscriptions_in


def show(options: argparse.Namespace) -> int:
    """Print the messages of a subscription that are kept, oldest first.

    Returns:
        1 when nothing is received at the moment, which is told; else 0.

    Raises:
        RegistryError: when the store knows no such subscription.
    """
    store = store_of(options)
    known = subscriptions_in(store)
    wanted = [each for each in known if options.subscription in (None, each, each.rpartition("/")[2])]
    if not wanted and (options.subscription or not options.json):
        raise RegistryError(
            f"{store.root} holds no messages{f' of {options.subscription!r}' if options.subscription else ''}",
            allowed=", ".join(known) or None,
            fix="--store URI",
        )
    trouble, found = 0, []
    for name in wanted:
        inbox = Inbox(store, name)
        inbox.load()
        told = inbox.trouble()
        trouble += told is not None
        every = stands([message for _, message in inbox.known()], inbox.listeners())
        shown = [each for each in every if each.problem or not options.set_aside]
        if options.json:
            messages = [as_json(each) for each in shown]
            found.append({"subscription": name, "trouble": told, "messages": messages})
            continue
        print(f"{name}: {', '.join(sorted(each.model for each in inbox.listeners())) or 'nobody'} listens")
        if told:
            print(f"  nothing is received since {told['at'][:19]}: {told['what']}")
        of_nobody = [each for each in shown if not (each.models or each.problem)]
        for each in shown:
            if each not in of_nobody:
                print("\n".join(_lines(each)))
        if of_nobody:
            print(f"  {len(of_nobody)} more were for nobody, such as files that no pipeline reads")
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return 1 if trouble else 0


def as_json(stand: Stand) -> dict[str, Any]:
    """A message as plain JSON values."""
    return {
        **stand.message.model_dump(mode="json", exclude={"problem"}),
        "for": list(stand.models),
        "set_aside": stand.problem,
    }


def _lines(stand: Stand) -> list[str]:
    message = stand.message
    who = f"for {', '.join(stand.models) or 'nobody'}"
    what = message.file or message.text
    lines = [f"  {message.id}  {message.published:%Y-%m-%d %H:%M:%S}  {who}{f': {what}' if what else ''}"]
    if stand.problem:
        lines.append(f"    set aside: {stand.problem}")
    return lines
