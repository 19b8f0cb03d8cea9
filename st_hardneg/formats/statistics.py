"""The lines that Sentence Transformers' ``mine_hard_negatives`` prints of what it has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from st_hardneg.candidates import Mining
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids
from st_hardneg.formats.sentence_transformers import OutputFormat


@dataclass(frozen=True, eq=False)
class Outcome:
    """What ST prints of a mining: scores, what was skipped, what is missing.

    Args:
        pairs: The rows and their queries.
        mining: The negatives.
        rows: int64: the rows that were written.
        output_format: The format.
        num_written: Rows of the output.
        values: The recipe, with the caller's ``min_score``.
    """

    pairs: Pairs
    mining: Mining
    rows: Ids
    output_format: OutputFormat
    num_written: int
    values: dict[str, Any]

    def lines(self) -> Iterator[str]:
        """Yield the lines."""
        mining, rows = self.mining, self.rows
        positive = mining.positive_cross_encoder_scores
        positive = (mining.positive_similarities if positive is None else positive)[torch.from_numpy(rows)]
        negatives = mining.negatives.rows(torch.from_numpy(self.pairs.row_query[rows]))
        present = negatives.is_present
        if self.output_format == "n-tuple":
            present = present & present.all(dim=1, keepdim=True)
        difference = (positive[:, None] - negatives.scores)[present]
        negative = negatives.scores[present]
        yield f"{'Metric':<6} {'Positive':>14} {'Negative':>14} {'Difference':>14}"
        yield f"{'Count':<6} {len(positive):>14,} {len(negative):>14,} {'':>14}"
        for name, function in _METRICS.items():
            row = [
                function(values.double().numpy()) if len(values) else np.nan
                for values in (positive, negative, difference)
            ]
            yield f"{name:<6} " + " ".join(f"{value:>14.4f}" for value in row)
        for rule, count in mining.report.removed.items():
            if count and rule in ("absolute_margin", "relative_margin", "max_score", "min_score"):
                share = count / max(1, mining.report.num_candidates)
                yield f"Skipped {count:,} potential negatives ({share:.2%}) due to the {rule} of {self.values[rule]}."
        yield from self._missing()

    def _missing(self) -> Iterator[str]:
        num_negatives = self.values["num_negatives"]
        possible = {
            "triplet": len(self.rows) * num_negatives,
            "labeled-pair": self.pairs.num_queries * num_negatives + self.pairs.num_rows,
        }.get(self.output_format, len(self.rows))
        if (missing := possible - self.num_written) > 0:
            advice = ["range_max"] + (["range_min"] if self.values["range_min"] else [])
            bounds = ("absolute_margin", "relative_margin", "max_score")
            advice += [name for name in bounds if self.values[name] is not None]
            listed = advice[0] if len(advice) == 1 else ", ".join(advice[:-1]) + " and " + advice[-1]
            yield (
                f"Could not find enough negatives for {missing} samples ({missing / possible:.2%}). Consider adjusting "
                f"the {listed} parameter{'s' if len(advice) > 1 else ''} if you'd like to find more valid negatives."
            )


_METRICS: dict[str, Callable[[Any], Any]] = {
    "Mean": np.mean,
    "Median": np.median,
    "Std": lambda values: np.std(values, ddof=1) if len(values) > 1 else np.nan,
    "Min": np.min,
    "25%": lambda values: np.quantile(values, 0.25),
    "50%": np.median,
    "75%": lambda values: np.quantile(values, 0.75),
    "Max": np.max,
}
