"""``st-hardneg review export`` and ``review apply``."""

from __future__ import annotations

import argparse

from st_hardneg.command.inputs import load_cross_encoder, saved
from st_hardneg.command.mine import check_writable
from st_hardneg.reviewing import ProposalRule


def export(asked: argparse.Namespace) -> None:
    """Write the most doubtful texts.

    Raises:
        HardNegativeError: If there are none.
        ValueError: If a number or the ending is wrong.
        OSError: If something cannot be read or written.
    """
    if asked.number < 1:
        raise ValueError(f"Expected `--number` to be at least 1, got {asked.number}.")
    names = ("lowest_percentile", "max_shared_words")
    bounds = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    rule = None
    if asked.cross_encoder is not None:
        rule = ProposalRule(load_cross_encoder(asked.cross_encoder), **bounds)
    elif bounds:
        raise ValueError(
            "`--lowest-percentile` and `--max-shared-words` say when a cross encoder proposes a label. Name one with "
            "`--cross-encoder`, or leave them out."
        )
    found = saved(asked.dataset).to_review(asked.output, asked.number, rule=rule)
    proposed = sum(bool(one["proposal"]) for one in found)
    print(f"{len(found):,} doubtful texts in {asked.output}" + (f", {proposed:,} with a proposal" if rule else ""))
    labels = "labels.jsonl" if asked.output.endswith(".html") else asked.output
    print(f"label them, then: st-hardneg review apply {asked.dataset} {labels} --output {asked.dataset}")


def apply(asked: argparse.Namespace) -> None:
    """Make labels part of a dataset.

    Raises:
        ValueError: If the labels have mistakes.
        OSError: If something cannot be read or written.
    """
    check_writable(asked.output)
    found = saved(asked.dataset)
    reviewed = found.with_labels(asked.labels, accept_proposals=asked.accept_proposals)
    reviewed.save_to_disk(asked.output)
    print(f"{len(reviewed) - len(found):,} further right answers; saved to {asked.output}")
    print(f"mine it again: st-hardneg mine {asked.output} --model MODEL --output {asked.output}")
