"""HardNegativeMiner: mining as a function for ``dataset.map(miner, batched=True)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from datasets.utils._dill import pklregister
from sentence_transformers import SimilarityFunction

from st_hardneg.candidates import DENSE
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.given import checked_config, default_searcher, similarity_name
from st_hardneg.corpus.numbering import Corpus, number_texts
from st_hardneg.corpus.pairs import Pairs, pair_up
from st_hardneg.corpus.texts import TextColumn, check_text_column, same_text_key
from st_hardneg.dataset import HardNegativeDataset
from st_hardneg.encoders.dense import Encodings, encode
from st_hardneg.encoders.fingerprint import recipe_fingerprint, texts_fingerprint, weights_fingerprint
from st_hardneg.mining.engine import Mined, Recipe, mine_negatives
from st_hardneg.mining.scoring import Embeddings, Scoring, encoded_texts
from st_hardneg.search import Searcher
from st_hardneg.sources import DenseSource, LexicalIndex, LexicalSource, RandomSource, Source, Space

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class HardNegativeMiner:
    """Mines negatives for batches of (anchor, positive) rows: a picklable callable for ``dataset.map``.

    The corpus is encoded once, when the miner is made. ``map`` shows a function one batch at a time, so positives that
    other rows of the same anchor have are only known if they come through ``positives``.

    Works with ``datasets.Dataset.map`` and ``IterableDataset.map``, in one process or several. The function's
    fingerprint, by which ``datasets`` finds cached results, follows weights, corpus, positives and config.

    Args:
        model: The model to search with. It is kept as it is; train it further and make a new miner.
        corpus: Texts to search: a list, or a Dataset with a column ``text``. None: those of ``positives``.
        config: How to mine. ``shortfall="drop"`` leaves None in empty slots; if the first rows may have nothing else,
            tell ``map`` the types: ``features=``.
        positives: Known positives of all rows: a Dataset of (anchor, positive) rows, or a ``HardNegativeDataset``.
        anchor_column_name: The anchor column of the batches and of ``positives``; the first one if None.
        positive_column_name: The positive column; the second one if None.
        output_scores: Add ``scores``: the model's similarity of the positive and of each negative.

    Raises:
        ValueError: If there is neither a corpus nor positives, or one of them is empty.
        TypeError: If the model is no Sentence Transformer.

    Example:
        ::

            miner = HardNegativeMiner(model, corpus, MiningConfig(num_negatives=2), positives=pairs)
            mined = pairs.map(miner, batched=True, batch_size=1000)   # adds negative_1 and negative_2
    """

    def __init__(
        self,
        model: SentenceTransformer,
        corpus: Sequence[str] | Dataset | None,
        config: MiningConfig | None = None,
        *,
        positives: Dataset | HardNegativeDataset | None = None,
        anchor_column_name: str | None = None,
        positive_column_name: str | None = None,
        output_scores: bool = False,
    ) -> None:
        self.config = checked_config(config)
        self.output_scores = output_scores
        self.model = model
        self._similarity = similarity_name(model)
        _check_config(self.config)
        default_searcher(self.config)  # a missing extra is an error now, not in the middle of a map
        known = positives
        if known is not None and not isinstance(known, HardNegativeDataset):
            known = HardNegativeDataset(
                known, corpus, anchor_column_name=anchor_column_name, positive_column_name=positive_column_name
            )
        if known is None and corpus is None:
            raise ValueError(
                "Expected a `corpus` to search or `positives` to search among, got neither. Pass one of them."
            )
        self.anchor_column_name = anchor_column_name or (known.anchor_column_name if known is not None else None)
        self.positive_column_name = positive_column_name or (known.positive_column_name if known is not None else None)
        self._positives_of = _positives_by_anchor(known)
        all_positives = list(dict.fromkeys(text for texts in self._positives_of.values() for text in texts))
        self._numbered = number_texts(TextColumn.of(all_positives), corpus)
        self._lexical_index = LexicalIndex(self._numbered.corpus) if "lexical" in self.config.quotas else None
        self._encodings = Encodings.from_config(self.config)
        searched = self._numbered.corpus.searched
        texts = self._numbered.corpus.texts.take(searched)
        self._embeddings = encode(model, texts, self._encodings.corpus, show_progress_bar=True)
        self._searcher: Searcher | None = None
        self.fingerprint = self._make_fingerprint()

    def _make_fingerprint(self) -> str:
        return recipe_fingerprint(
            type(self).__qualname__,
            weights_fingerprint(self.model),
            texts_fingerprint(text for batch in self._numbered.corpus.texts.batches() for text in batch),
            sorted((key.hex(), sorted(texts)) for key, texts in self._positives_of.items()),
            self.config.to_dict(),
            self.output_scores,
            self.anchor_column_name,
            self.positive_column_name,
        )

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Mine one batch.

        Args:
            batch: Columns of the batch; all of them are returned again.

        Returns:
            The batch's columns, ``negative_1`` to ``negative_n``, and ``scores`` if asked for.

        Raises:
            MiningError: If a query has too few negatives and ``shortfall="error"``.
            ValueError: If the batch lacks a column or has empty texts.
        """
        anchors, positives = self._texts_of(batch)
        if not anchors:
            return {**batch, **{f"negative_{slot + 1}": [] for slot in range(self.config.num_negatives)}}
        # The other positives of these anchors join the batch as rows of their own, and are left out of the result.
        others = [
            (anchor, positive)
            for anchor in dict.fromkeys(anchors)
            for positive in self._positives_of.get(same_text_key(anchor), ())
        ]
        numbered = self._numbered.with_positives(TextColumn.of([*positives, *(positive for _, positive in others)]))
        pairs = pair_up(TextColumn.of([*anchors, *(anchor for anchor, _ in others)]), numbered)
        scoring = Scoring(
            self._embed(pairs, numbered.corpus),
            pairs,
            numbered.corpus,
            with_positive_similarity=self.config.max_positive_similarity is not None,
        )
        mined = mine_negatives(scoring, self._sources(scoring), Recipe(self.config))
        return {**batch, **self._columns(mined, len(anchors))}

    def _texts_of(self, batch: Mapping[str, list[Any]]) -> tuple[list[str], list[str]]:
        names = list(batch)
        if len(names) < 2:
            raise ValueError(
                f"Expected batches with an anchor and a positive column, got the columns {names}. Call "
                "`dataset.map(miner, batched=True)` on a dataset of pairs."
            )
        anchor = self.anchor_column_name or names[0]
        positive = self.positive_column_name or names[1]
        if any(isinstance(batch.get(name), str) for name in (anchor, positive)):
            raise ValueError("Expected a batch of rows, got a single one. Call `dataset.map(miner, batched=True)`.")
        if not len(batch[names[0]]):
            return [], []
        rows = Dataset.from_dict({name: list(batch[name]) for name in (anchor, positive) if name in batch})
        check_text_column(rows, anchor, "anchor_column_name")
        check_text_column(rows, positive, "positive_column_name")
        return list(batch[anchor]), list(batch[positive])

    def _embed(self, pairs: Pairs, corpus: Corpus) -> Embeddings:
        """Return embeddings of the corpus, the batch's queries, and those of its positives that are not searched."""
        queries = encode(self.model, pairs.query_texts(), self._encodings.queries)
        encoded, corpus_row = encoded_texts(pairs, corpus)
        others = encoded[len(corpus.searched) :]
        texts = self._embeddings
        if len(others):
            texts = torch.cat([texts, encode(self.model, corpus.texts.take(others), self._encodings.corpus)])
        pairwise = SimilarityFunction.to_similarity_pairwise_fn(self._similarity)
        return Embeddings(queries, texts, corpus_row, pairwise)

    def _ready_searcher(self) -> Searcher:
        if self._searcher is None:
            self._searcher = default_searcher(self.config)
            self._searcher.index(self._embeddings, self._similarity)
        return self._searcher

    def _sources(self, scoring: Scoring) -> dict[str, Source]:
        searched, quotas = self._numbered.corpus.searched, self.config.quotas
        sources: dict[str, Source] = {"dense": DenseSource(scoring, (Space(self._ready_searcher(), searched, DENSE),))}
        if self._lexical_index is not None:
            sources["lexical"] = LexicalSource(scoring, self._lexical_index)
        if "random" in quotas:
            sources["random"] = RandomSource(scoring, (searched,), quotas["random"], self.config.seed, refresh=0)
        return sources

    def _columns(self, mined: Mined, num_rows: int) -> dict[str, list[Any]]:
        scoring = mined.scoring
        query = scoring.pairs.row_query[:num_rows]
        ids = mined.negatives.corpus_ids.numpy()[query]
        columns: dict[str, list[Any]] = {}
        for slot in range(ids.shape[1]):
            found = scoring.corpus.texts.take(ids[:, slot].clip(min=0))
            columns[f"negative_{slot + 1}"] = [
                text if number >= 0 else None for text, number in zip(found, ids[:, slot], strict=True)
            ]
        if self.output_scores:
            rows = torch.from_numpy(query)
            own = torch.from_numpy(scoring.pairs.row_positive[:num_rows])[:, None]
            positive = scoring.embeddings.similarity_of_pairs(rows, own)
            columns["scores"] = torch.cat([positive, mined.negatives.similarities[rows]], dim=1).tolist()
        return columns

    def __getstate__(self) -> dict[str, Any]:
        # Another process indexes anew: not every index can be pickled.
        return {**self.__dict__, "_searcher": None}


def _check_config(config: MiningConfig) -> None:
    """Raise if the config asks for what a batch by itself does not have."""
    unknown = sorted(set(config.quotas) - {"dense", "lexical", "random"})
    if unknown:
        raise ValueError(
            f"Expected quotas for 'dense', 'lexical' and 'random' only, which is what a HardNegativeMiner has, got "
            f"{unknown}. Use a HardNegativeDataset for other sources."
        )
    for name in ("search_spaces", "replacement", "num_topics"):
        if getattr(config, name) != getattr(MiningConfig(), name):
            raise ValueError(
                f"Expected `{name}={getattr(MiningConfig(), name)!r}`, got {getattr(config, name)!r}, which needs all "
                "rows at once; `map` shows one batch. Use a HardNegativeDataset."
            )


def _positives_by_anchor(known: HardNegativeDataset | None) -> dict[bytes, list[str]]:
    if known is None:
        return {}
    found: dict[bytes, dict[str, None]] = {}
    for anchor, positive in known.known_pairs():
        found.setdefault(same_text_key(anchor), {})[positive] = None
    return {key: list(texts) for key, texts in found.items()}


@pklregister(HardNegativeMiner)
def _save_miner(pickler: Any, miner: HardNegativeMiner) -> None:
    # `datasets` hashes a function by pickling it. A model does not pickle to the same bytes twice; the fingerprint
    # says all that results depend on. This is that pickler only; workers get the real thing.
    pickler.save_reduce(str, (f"{__name__}.HardNegativeMiner({miner.fingerprint})",), obj=miner)
