"""Several processes that train together: what one of them has found, all of them get."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from st_hardneg.encoders.ranks import from_first_rank
from st_hardneg.hosts import gather_object

if TYPE_CHECKING:
    from st_hardneg.dataset import HardNegativeDataset


def start_from_first_rank(datasets: Iterable[HardNegativeDataset]) -> None:
    """Let every rank begin with the negatives of rank 0: weights that round differently mine differently.

    Raises:
        ValueError: On all ranks, if the live view of one of them has other rows.
    """
    for hard_negatives in datasets:
        first = from_first_rank(hard_negatives.live.starting_state())
        problem = None
        try:
            hard_negatives.live.start_from(first)
        except ValueError as error:
            problem = str(error)
        # If one rank raised alone, the others would wait for it until their time-out.
        if found := [one for one in gather_object([problem]) if one is not None]:
            raise ValueError(found[0])
