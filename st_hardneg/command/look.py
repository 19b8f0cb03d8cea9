"""``st-hardneg report``."""

from __future__ import annotations

import argparse

from st_hardneg.command.inputs import saved


def report(asked: argparse.Namespace) -> None:
    """Print a report and write it as a page.

    Raises:
        NotMinedError: If the dataset was not mined.
        OSError: If something cannot be read or written.
    """
    found = saved(asked.dataset).report
    page = asked.output or f"{asked.dataset.rstrip('/')}.html"
    found.save(page, projection=asked.projection)
    print(found)
    print(f"\nthe page is {page}")
