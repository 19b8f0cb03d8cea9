"""What the card of a trained model says of its negatives: mined from what, by which recipe, refreshed when, how well."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from st_hardneg.report import MiningReport
from st_hardneg.training.targets import Target

TAG = "hard-negatives"
_START = "* Hard negatives: "


def tell_card(model: Any, targets: Iterable[Target], reported: Sequence[tuple[Target, MiningReport]] = ()) -> None:
    """Let the card of a model tell of what it is trained on; what it told before of the same datasets is replaced.

    Args:
        model: The model in training.
        targets: The datasets whose negatives are refreshed.
        reported: The reports of this training so far.
    """
    card = getattr(model, "model_card_data", None)
    if card is None or not hasattr(card, "add_tags"):
        return
    card.add_tags(TAG)
    entries = [entry for entry in getattr(card, "train_datasets", []) if isinstance(entry, dict)]
    for place, target in enumerate(targets):
        named = [entry for entry in entries if target.dataset_name and entry.get("name") == target.dataset_name]
        for entry in (named or entries[place : place + 1])[:1]:
            before = str(entry.get("stats_table") or "").partition(_START)[0]
            reports = [report for of, report in reported if of is target]
            entry["stats_table"] = f"{before}{_told(target, reports)}"


def _told(target: Target, reports: Sequence[MiningReport]) -> str:
    owner = target.hard_negatives
    last = owner.report
    steps = [report.step for report in reports]
    refreshed = "mined before the training"
    if steps:
        shown = ", ".join(f"{step:,}" for step in steps[:10]) + (", …" if len(steps) > 10 else "")
        refreshed = f"refreshed {len(steps):,} times, at the steps {shown}"
    recipe = json.dumps(last.config, ensure_ascii=False, default=str)
    figures = {name.removeprefix("mining/"): value for name, value in last.metrics().items()}
    told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return (
        f"{_START}{owner.config.num_negatives} per row, out of {len(owner.corpus.searched):,} texts for "
        f"{owner.num_queries:,} queries, by `st_hardneg`; {refreshed}.\n"
        f"  <details><summary>Recipe and last report</summary>\n\n  ```json\n  {recipe}\n  ```\n\n  {told}\n\n"
        "  </details>\n"
    )
