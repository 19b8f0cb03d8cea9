"""Pushing a plain dataset to the Hub."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

PROVENANCE = "provenance"
"""Name of the configuration that says where the negatives come from."""


def push_mined(dataset: Dataset, provenance: Dataset, repo_id: str, config_name: str, **options: Any) -> Any:
    """Push the negatives, and beside them where they come from.

    Args:
        dataset: What to train on.
        provenance: One row per row: ids, scores, ranks and sources.
        repo_id: The dataset repository.
        config_name: Configuration of ``dataset``.
        **options: Arguments of ``datasets.Dataset.push_to_hub``.

    Returns:
        What ``push_to_hub`` returned for ``dataset``.
    """
    pushed = dataset.push_to_hub(repo_id, config_name, **options)
    beside = PROVENANCE if config_name == "default" else f"{config_name}-{PROVENANCE}"
    # The first configuration that is pushed becomes the default one only if it is called so; never this one.
    provenance.push_to_hub(repo_id, beside, **options)
    return pushed
