"""The candidate pool of a dataset: what was found for every anchor, and other negatives chosen from it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, TypeVar

from datasets import Dataset

from st_hardneg.arguments import checked_config
from st_hardneg.candidates import Mining, Pool
from st_hardneg.config import MiningConfig, explain_unknown_field
from st_hardneg.errors import MiningError
from st_hardneg.live.negatives import LiveNegatives
from st_hardneg.publish.candidates import candidates_dataset
from st_hardneg.wrapping import Wrapped

Self = TypeVar("Self", bound="PooledDataset")


class PooledDataset:
    """The part of :class:`~st_hardneg.HardNegativeDataset` that keeps candidates."""

    _wrapped: Wrapped
    live: LiveNegatives

    def candidates(self) -> Dataset:
        """Return all candidates that were kept, a row per anchor, in the layout that ST's ``resolve_ids`` reads.

        Returns:
            A dataset of ``query_id``, ``document_ids`` and ``scores`` (the model's similarity): first the right answers,
            ``num_positives`` of them, then the candidates in the order in which each source found them; and in lists as
            long, ``ranks`` (place in its source, from 0; -1 for right answers) and ``sources``. Where there are any, a
            cross encoder's and a source's own scores have columns of their own.

        Raises:
            NotMinedError: If nothing was mined yet.
            MiningError: If the recipe keeps no candidates.
        """
        return candidates_dataset(self._mining_with_pool(), self._wrapped.pairs, self._wrapped.corpus)

    def choose(self: Self, config: MiningConfig | None = None, **fields: Any) -> Self:
        """Choose other negatives from the candidates that were kept, without encoding or searching.

        Args:
            config: Which negatives are wanted.
            **fields: Fields of :class:`MiningConfig`, laid over this dataset's recipe; not together with ``config``.

        Returns:
            A dataset of the same texts with the negatives, and the report, that a first mining with this recipe would have
            had. This one stays as it is.

        Raises:
            NotMinedError: If nothing was mined yet.
            MiningError: If no candidates are kept, or too few for what the recipe looks at.
            ValueError: If the recipe searches other texts, or asks what was not measured.

        Example::

            hard_negatives = HardNegativeDataset(pairs, keep_candidates=200)
            hard_negatives.mine(model)
            for margin in (0.0, 0.05, 0.1):
                print(hard_negatives.choose(relative_margin=margin).report)
        """
        mining = self._mining_with_pool()
        if config is None:
            unknown = next((name for name in fields if name not in MiningConfig.__dataclass_fields__), None)
            if unknown is not None:
                raise TypeError(explain_unknown_field(unknown))
            config, fields = replace(self._wrapped.config, **fields), {}
        recipe = checked_config(config, fields)
        chosen = copy.copy(self)
        chosen._wrapped = replace(self._wrapped, config=recipe)
        chosen.live = LiveNegatives(self._wrapped.pairs, self._wrapped.corpus, recipe.num_negatives)
        found: Mining = chosen.compute_mining(mining.pool)  # type: ignore[attr-defined]
        report = replace(found.report, model=mining.report.model)
        chosen.live.load(replace(found, report=report), 1, None)
        return chosen

    def _mining_with_pool(self) -> Mining:
        mining: Mining = self._mined("candidates()")  # type: ignore[attr-defined]
        if not isinstance(mining.pool, Pool):
            raise MiningError(
                "No candidates are kept. Mine with `keep_candidates=100`, for example: "
                "`HardNegativeDataset(pairs, keep_candidates=100)`."
            )
        return mining
