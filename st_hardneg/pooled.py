"""The candidate pool of a dataset: what was found for every anchor, and other negatives chosen from it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, TypeVar

import torch
from datasets import Dataset

from st_hardneg.arguments import checked_config
from st_hardneg.candidates import Mining, Pool, is_repeated
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
    _given_pool: Pool | None = None

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
        names = self._wrapped.task.source_names if self.live.mining is None else self.live.mining.source_names
        return candidates_dataset(self._pool(), names, self._wrapped.pairs, self._wrapped.corpus)

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
        pool = self._pool()
        if config is None:
            unknown = next((name for name in fields if name not in MiningConfig.__dataclass_fields__), None)
            if unknown is not None:
                raise TypeError(explain_unknown_field(unknown))
            config, fields = replace(self._wrapped.config, **fields), {}
        recipe = checked_config(config, fields)
        chosen = copy.copy(self)
        chosen._wrapped = replace(self._wrapped, config=recipe)
        chosen.live = LiveNegatives(self._wrapped.pairs, self._wrapped.corpus, recipe.num_negatives)
        found: Mining = chosen.compute_mining(pool)  # type: ignore[attr-defined]
        model = {} if self.live.mining is None else self.live.mining.report.model
        chosen.live.load(replace(found, report=replace(found.report, model=model)), 1, None)
        return chosen

    def keep_pool(self, pool: Pool | None) -> None:
        """Keep candidates that others have found, until they are mined."""
        if pool is None:
            return
        identities, parts = torch.from_numpy(self._wrapped.corpus.identities), {}
        for name, part in pool.parts.items():
            # A text that stands there under two ids is one candidate.
            ids = torch.where(part.ids < 0, -1, identities[part.ids.clamp(min=0)])
            ids = ids.masked_fill(is_repeated(ids), -1)
            order = (ids < 0).long().argsort(dim=1, stable=True)
            missing = ids.gather(1, order) < 0
            parts[name] = replace(
                part,
                ids=ids.gather(1, order),
                similarities=part.similarities.gather(1, order).masked_fill(missing, -torch.inf),
                sources=part.sources.gather(1, order).masked_fill(missing, -1),
            )
        self._given_pool = replace(pool, parts=parts)

    def _pool(self) -> Pool:
        if self.live.mining is None and self._given_pool is not None:
            return self._given_pool
        mining: Mining = self._mined("candidates()")  # type: ignore[attr-defined]
        if mining.pool is None:
            raise MiningError(
                "No candidates are kept. Mine with `keep_candidates=100`, for example: "
                "`HardNegativeDataset(pairs, keep_candidates=100)`."
            )
        return mining.pool
