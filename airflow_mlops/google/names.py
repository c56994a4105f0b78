"""What things of a pipeline are called on Google Cloud, so that whoever comes next finds them."""

from __future__ import annotations

import hashlib
import re

VERSION_LABEL = "mlops_version"
"""The label with MLflow's version."""
DIGEST_LABEL = "mlops_digest"
"""The label with the first 32 digits of the model's digest: a label takes 63 characters, and a digest has 64."""
PIPELINE_LABEL = "mlops_pipeline"
"""The label with the pipeline's name, as far as a label takes it."""


def resource_id(name: str) -> str:
    """The id of a pipeline's model and endpoint: its name where that can be one, else with a few digits of its digest.

    Models take ``[a-z0-9_-]`` and endpoints no underscore, both up to 63 characters beginning with a letter.
    """
    plain = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if plain == name and len(name) <= 57:
        return f"mlops-{plain}"
    return f"mlops-{plain[:48].strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def label(text: str) -> str:
    """A text as the value of a label."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


def short(digest: str) -> str:
    """A digest as the value of a label."""
    return digest.removeprefix("sha256:")[:32]


def labels_of(pipeline: str, version: str, digest: str) -> dict[str, str]:
    """The labels of a version."""
    return {PIPELINE_LABEL: label(pipeline), VERSION_LABEL: label(version), DIGEST_LABEL: label(short(digest))}
