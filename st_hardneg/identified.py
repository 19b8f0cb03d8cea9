"""What identifies the rows and the corpus of a dataset, so that several processes can mine it together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

from st_hardneg.candidates import Mining
from st_hardneg.encoders.dense import Encodings
from st_hardneg.encoders.fingerprint import recipe_fingerprint, texts_fingerprint
from st_hardneg.encoders.ranks import mined_together
from st_hardneg.live.negatives import LiveNegatives
from st_hardneg.wrapping import Wrapped


class IdentifiedDataset:
    """The part of :class:`~st_hardneg.HardNegativeDataset` that tells it from others, and shares it with others."""

    _wrapped: Wrapped
    live: LiveNegatives

    @cached_property
    def data_fingerprint(self) -> str:
        """What identifies the rows, the corpus and the order of both."""
        pairs, texts = self._wrapped.pairs, self._wrapped.corpus.texts
        anchors = texts_fingerprint(text for some in pairs.anchors.batches() for text in some)
        positives = hashlib.blake2b(pairs.row_positive.tobytes(), digest_size=16).hexdigest()
        return recipe_fingerprint(
            texts_fingerprint(text for some in texts.batches() for text in some), anchors, positives
        )

    def _mined_over_ranks(self, model: Any, encodings: Encodings, compute: Callable[..., Mining]) -> Mining:
        """Mine on the first rank, with the texts shared out over all ranks; see ``mine(over_ranks=True)``."""
        task = self._wrapped.task

        def data() -> str:
            before = (self.live.num_minings, self.live.must_fill is not None)
            both = (encodings.queries, encodings.corpus)
            how = [(one.task, one.prompt_name, one.prompt, one.batch_size) for one in both]
            return recipe_fingerprint(self.data_fingerprint, self._wrapped.config.to_dict(), before, how)

        models = [model, task.cross_encoder, task.teacher, None if task.guide is None else task.guide.model]
        return mined_together(lambda ping: compute(between_chunks=ping), models, data)
