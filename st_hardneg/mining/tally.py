"""What the filters removed, counted chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from st_hardneg.candidates import Candidates


class Tally:
    """Counts, chunk by chunk, what the filters remove."""

    def __init__(self) -> None:
        self.num_candidates = 0
        self.num_kept = 0
        self.removed: dict[str, int] = {}
        self.removed_alone: dict[str, int] = {}

    def count(self, candidates: Candidates, masks: Mapping[str, Tensor], keep: Tensor) -> None:
        """Add one chunk: its candidates, each rule's keep-mask, and all of them together."""
        present = candidates.is_present
        self.num_candidates += int(present.sum())
        self.num_kept += int(keep.sum())
        removed_by = torch.zeros(present.shape, dtype=torch.int16)
        for mask in masks.values():
            removed_by += ~mask
        for rule, mask in masks.items():
            removes = ~mask & present
            self.removed[rule] = self.removed.get(rule, 0) + int(removes.sum())
            self.removed_alone[rule] = self.removed_alone.get(rule, 0) + int((removes & (removed_by == 1)).sum())
