"""``st-hardneg push``."""

from __future__ import annotations

import argparse

from st_hardneg.command.inputs import saved


def run(asked: argparse.Namespace) -> None:
    """Publish a mined dataset, or write what would be published to a folder.

    Raises:
        HardNegativeError: If it cannot be pushed.
        OSError: If something cannot be read or written.
    """
    done = saved(asked.dataset).push_to_hub(
        asked.repo_id,
        asked.config_name,
        split=asked.split,
        private=asked.private,
        revision=asked.revision,
        commit_message=asked.commit_message,
        output_format=asked.format,
        dry_run=asked.dry_run,
    )
    print(f"written to {done}; nothing was pushed" if asked.dry_run else f"pushed to {asked.repo_id}: {done}")
