"""HardNegativeMiner: mining as a function for ``dataset.map(miner, batched=True)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset, List, Value
from torch import nn

from st_hardneg.arguments import checked_config, searcher_maker
from st_hardneg.candidates import Candidates, Mining
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.batches import check_batch, dataset_of_batch
from st_hardneg.corpus.identity import IDENTITIES
from st_hardneg.corpus.known import KnownPositives
from st_hardneg.corpus.labels import refuse_misread_classes
from st_hardneg.corpus.numbering import Corpus, number_texts
from st_hardneg.corpus.pairs import Pairs, pair_up
from st_hardneg.corpus.rows import read_rows
from st_hardneg.corpus.texts import TextColumn
from st_hardneg.dataset import HardNegativeDataset
from st_hardneg.encoders import DenseEncoder, Encodings, encoder_for
from st_hardneg.encoders.fingerprint import MAX_PROBES, PROBES, recipe_fingerprint, texts_fingerprint
from st_hardneg.encoders.vectors import stacked
from st_hardneg.hosts import pklregister, weights_versions
from st_hardneg.mining.engine import mine
from st_hardneg.mining.filters import has_adaptive_bounds
from st_hardneg.mining.task import Task
from st_hardneg.mining.trust import sampled_queries
from st_hardneg.sources.build import require_extras


class HardNegativeMiner:
    """Mines negatives for batches of (anchor, positive) rows: a picklable callable for ``dataset.map``.

    The corpus is encoded once, when the miner is made. ``map`` shows a function one batch at a time, so positives that
    other rows of the same anchor have are only known if they come through ``positives``.

    Works with ``datasets.Dataset.map`` and ``IterableDataset.map``, in one process or several. The function's
    fingerprint, by which ``datasets`` finds cached results, follows weights, corpus, positives and recipe.

    Args:
        model: The model to search with, as it is now. A miner whose model was trained on afterwards refuses to mine.
        corpus: Texts to search: a list, ``{id: text}``, or a Dataset with a column ``text``. None: those of
            ``positives``.
        config: Which negatives are wanted; :meth:`MiningConfig.recommended` if None. With ``shortfall="drop"``, rows with
            an empty slot are left out.
        positives: Known positives of all rows: a Dataset of (anchor, positive) rows, or a ``HardNegativeDataset``.
        anchor_column_name: The anchor column of the batches and of ``positives``; the first one if None.
        positive_column_name: The positive column; the second one if None.
        output_scores: Add ``scores``: the model's similarity of the positive and of each negative.
        use_faiss: Search with FAISS's flat index.
        batch_size: Texts encoded at once.
        **fields: Fields of :class:`MiningConfig`, laid over the recommended recipe; not together with ``config``.

    Raises:
        ValueError: If there is neither a corpus nor positives, or one of them is empty.
        TypeError: If the model cannot encode.

    Example:
        ::

            miner = HardNegativeMiner(model, corpus, num_negatives=2, positives=pairs)
            mined = pairs.map(miner, batched=True, batch_size=1000)   # adds negative_1 and negative_2
    """

    def __init__(
        self,
        model: Any,
        corpus: Any = None,
        config: MiningConfig | None = None,
        *,
        positives: Dataset | HardNegativeDataset | None = None,
        anchor_column_name: str | None = None,
        positive_column_name: str | None = None,
        output_scores: bool = False,
        use_faiss: bool = False,
        batch_size: int = 32,
        **fields: Any,
    ) -> None:
        self.config = checked_config(config, fields)
        self.output_scores = output_scores
        self.model = model
        _check_config(self.config)
        self._make_searcher = searcher_maker(None, use_faiss, 100_000)
        self._batch_size = batch_size
        self._encoder = encoder_for(model, Encodings.from_config(self.config, batch_size))
        known = positives
        if known is not None and not isinstance(known, HardNegativeDataset):
            known = HardNegativeDataset(
                known,
                corpus,
                MiningConfig(identity=self.config.identity),
                anchor_column_name=anchor_column_name,
                positive_column_name=positive_column_name,
            )
        if known is None and corpus is None:
            raise ValueError(
                "Expected a `corpus` to search or `positives` to search among, got neither. Pass one of them."
            )
        self.anchor_column_name = anchor_column_name or (known.anchor_column_name if known is not None else None)
        self.positive_column_name = positive_column_name or (known.positive_column_name if known is not None else None)
        self._key_of = IDENTITIES[self.config.identity]
        self._positives_of = self._positives_by_anchor(known)
        self._cluster_of = self._clusters_by_text(known)
        self._excluded: dict[bytes, set[bytes]] = {}
        for anchor, text in known.excluded_pairs() if known is not None else ():
            self._excluded.setdefault(self._key_of(anchor), set()).add(self._key_of(text))
        all_positives = list(dict.fromkeys(text for texts in self._positives_of.values() for text in texts))
        self._numbered = number_texts(TextColumn.of(all_positives), corpus, identity=self.config.identity)
        searched = self._numbered.corpus.searched
        texts = self._numbered.corpus.texts.take(searched)
        self._versions = weights_versions(model)
        self._probed = [*PROBES, *texts[:MAX_PROBES]]  # with words of the data: a model need not know others
        self._probes = self._probe_vectors()
        self._model_fingerprint = self._encoder.fingerprint(texts)
        shards = self._encoder.corpus(texts, show_progress_bar=True)
        self._text_clusters: torch.Tensor | None = None
        self._doubt: float | None = None
        self._kept: dict[str, Any] = {"searched vectors": stacked(shards, len(texts)), "keeps_searcher": True}
        self._doubt = self._settled_doubt(known)
        self.fingerprint = self._make_fingerprint()

    def map(self, dataset: Any, batch_size: int = 1000, **options: Any) -> Any:
        """Return ``dataset.map(self, batched=True)`` with the types of the new columns, which a stream cannot tell.

        Args:
            dataset: A Dataset or an IterableDataset of (anchor, positive) rows.
            batch_size: Rows mined at once.
            **options: Further arguments of ``map``.
        """
        if isinstance(dataset, dict):
            raise TypeError("Expected one dataset, got a DatasetDict. Map each split: `miner.map(datasets['train'])`.")
        if isinstance(dataset, IterableDataset) and dataset.features is not None:
            refuse_misread_classes(dataset.features)
        if dataset.features is not None:
            features = dataset.features.copy()
            features.update({name: Value("string") for name in self.negative_names})
            features.update({"scores": List(Value("float64"))} if self.output_scores else {})
            options = {"features": features, **options}
        return dataset.map(self, batched=True, batch_size=batch_size, **options)

    @property
    def negative_names(self) -> list[str]:
        """``negative_1`` to ``negative_n``."""
        return [f"negative_{slot + 1}" for slot in range(self.config.num_negatives)]

    def _positives_by_anchor(self, known: HardNegativeDataset | None) -> dict[bytes, list[str]]:
        found: dict[bytes, dict[str, None]] = {}
        for anchor, positive in known.known_pairs() if known is not None else ():
            found.setdefault(self._key_of(anchor), {})[positive] = None
        return {key: list(texts) for key, texts in found.items()}

    def _clusters_by_text(self, known: HardNegativeDataset | None) -> dict[bytes, int]:
        """Return what hangs together by pairs, where pairs are symmetric."""
        clusters = None if known is None else known.known_positives.text_clusters
        if known is None or clusters is None:
            return {}
        ids = np.flatnonzero(clusters.numpy() >= 0)
        texts = known.corpus.texts.take(ids)
        found = {self._key_of(text): int(clusters[number]) for text, number in zip(texts, ids, strict=True)}
        for anchor, positive in known.known_pairs():
            found[self._key_of(anchor)] = found[self._key_of(positive)]
        return found

    def _settled_doubt(self, known: HardNegativeDataset | None) -> float | None:
        """Return the strength of adaptive bounds: a batch by itself says too little, and each would say something else."""
        if not has_adaptive_bounds(self.config):
            return None
        if known is None:
            return 1.0
        anchors = list(dict.fromkeys(anchor for anchor, _ in known.known_pairs()))
        sample = [anchors[query] for query in sampled_queries(len(anchors)).tolist()]
        rows = [(anchor, text) for anchor in sample for text in self._positives_of[self._key_of(anchor)]]
        task = self._task([anchor for anchor, _ in rows], [text for _, text in rows])
        return mine(task, self._encoder, replace(self.config, shortfall="drop")).report.doubt

    def _task(self, anchors: list[str], positives: list[str]) -> Task:
        """Return the mining of these rows."""
        numbered = self._numbered.with_positives(TextColumn.of(positives))
        pairs = pair_up(TextColumn.of(anchors), numbered)
        if self._cluster_of:
            pairs = replace(pairs, known=self._with_clusters(pairs, numbered.corpus.texts))
        return Task(
            pairs,
            numbered.corpus,
            make_searcher=self._make_searcher,
            batch_size=self._batch_size,
            may_find_nothing=True,
            doubt=self._doubt,
            kept=self._kept,
            extra_filters={"labels": partial(self._keeps_labels, pairs)} if self._excluded else {},
        )

    def _keeps_labels(self, pairs: Pairs, candidates: Candidates, corpus: Corpus) -> torch.Tensor:
        """Tell which candidates nobody has excluded for their query."""
        keeps = torch.ones(candidates.corpus_ids.shape, dtype=torch.bool)
        anchors = pairs.anchors.take(pairs.first_row[candidates.query_ids.numpy()])
        for place, anchor in enumerate(anchors):
            if excluded := self._excluded.get(self._key_of(anchor)):
                ids = candidates.corpus_ids[place].clamp(min=0).numpy()
                keeps[place] = torch.tensor([self._key_of(text) not in excluded for text in corpus.texts.take(ids)])
        return keeps

    def _with_clusters(self, pairs: Pairs, texts: TextColumn) -> KnownPositives:
        # The corpus is looked up once; what a batch brings comes behind it. A query of no cluster is one by itself.
        if self._text_clusters is None:
            of_corpus = [self._cluster_of.get(self._key_of(text), -1) for some in texts.batches() for text in some]
            self._text_clusters = torch.tensor(of_corpus[: len(self._numbered.corpus)])
        first = len(self._text_clusters)
        added = texts.take(np.arange(first, len(texts)))
        behind = torch.tensor([self._cluster_of.get(self._key_of(text), -1) for text in added], dtype=torch.int64)
        alone = max(self._cluster_of.values()) + 1
        of_queries = [self._cluster_of.get(self._key_of(text), alone + i) for i, text in enumerate(pairs.query_texts())]
        return replace(
            pairs.known,
            query_clusters=torch.tensor(of_queries),
            text_clusters=torch.cat([self._text_clusters, behind]),
        )

    def _make_fingerprint(self) -> str:
        return recipe_fingerprint(
            type(self).__qualname__,
            self._model_fingerprint,
            texts_fingerprint(text for batch in self._numbered.corpus.texts.batches() for text in batch),
            sorted((key.hex(), sorted(texts)) for key, texts in self._positives_of.items()),
            sorted((key.hex(), cluster) for key, cluster in self._cluster_of.items()),
            sorted((key.hex(), sorted(text.hex() for text in texts)) for key, texts in self._excluded.items()),
            self._doubt,
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
            ValueError: If the batch lacks a column, has empty texts, or has a column of one of our names.
        """
        check_batch(batch)
        self._refuse_other_weights()
        ours = [*self.negative_names]
        ours += ["scores"] if self.output_scores else []
        if clash := sorted(set(ours) & set(batch)):
            raise ValueError(
                f"The batches have columns {clash} of their own, which the miner would overwrite. Rename them first, with "
                "`dataset.rename_column`."
            )
        anchors, positives = self._texts_of(batch)
        if not anchors:
            return {**batch, **{name: [] for name in ours}}
        # The other positives of these anchors join the batch as rows of their own, and are left out of the result.
        others = [
            (anchor, positive)
            for anchor in dict.fromkeys(anchors)
            for positive in self._positives_of.get(self._key_of(anchor), ())
        ]
        task = self._task(
            [*anchors, *(anchor for anchor, _ in others)], [*positives, *(positive for _, positive in others)]
        )
        mining, row_query = mine(task, self._encoder, self.config), task.pairs.row_query[: len(anchors)]
        columns = {**batch, **self._columns(mining, task.pairs, task.corpus.texts, len(anchors))}
        is_complete = mining.negatives.is_present.all(dim=1)[torch.from_numpy(row_query)].tolist()
        if all(is_complete):
            return columns
        return {name: list(compress(values, is_complete)) for name, values in columns.items()}

    def _texts_of(self, batch: Mapping[str, list[Any]]) -> tuple[list[str], list[str]]:
        if not len(next(iter(batch.values()))):
            return [], []
        # The reading of a whole dataset: columns by name, ids refused, labels heeded.
        rows = read_rows(dataset_of_batch(batch), self.anchor_column_name, self.positive_column_name, use_given=False)
        every = np.arange(len(rows.dataset))
        return rows.anchors.take(every), rows.positives.take(every)

    def _columns(self, mining: Mining, pairs: Pairs, texts: TextColumn, num_rows: int) -> dict[str, list[Any]]:
        rows = torch.from_numpy(pairs.row_query[:num_rows])
        negatives = mining.negatives.rows(rows)
        columns: dict[str, list[Any]] = {}
        for slot in range(negatives.ids.shape[1]):
            ids = negatives.ids[:, slot].numpy()
            columns[f"negative_{slot + 1}"] = texts.take(ids.clip(min=0))
        if self.output_scores:
            positive = mining.positive_similarities[:num_rows, None]
            columns["scores"] = torch.cat([positive, negatives.similarities], dim=1).tolist()
        return columns

    def _probe_vectors(self) -> torch.Tensor | None:
        if not isinstance(self.model, nn.Module) or not isinstance(self._encoder, DenseEncoder):
            return None
        return self._encoder.queries(self._probed).cpu()

    def _refuse_other_weights(self) -> None:
        """Raise if the model makes other vectors now. Fused optimizers and ``.data`` give weights no new version."""
        is_other = self._versions != weights_versions(self.model)
        if self._probes is not None and not is_other:
            now = self._probe_vectors()
            # Another device or number of threads rounds otherwise.
            is_other = now is None or not torch.allclose(now, self._probes, rtol=1e-3, atol=1e-4)
        if is_other:
            raise ValueError(
                "The model was trained after this miner was made, so that its vectors of the corpus are out of date. Make "
                "a new HardNegativeMiner."
            )

    def __repr__(self) -> str:
        columns = "" if self.anchor_column_name is None else f"{self.anchor_column_name!r} -> "
        columns += "" if self.positive_column_name is None else f"{self.positive_column_name!r}, "
        return (
            f"HardNegativeMiner({columns}{len(self._numbered.corpus.searched):,} texts to search, "
            f"{self.config.num_negatives} negatives each)"
        )

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_other_weights()
        # Another process indexes anew: not every index can be pickled.
        kept = {name: value for name, value in self._kept.items() if name not in ("searcher", "lexical")}
        return {**self.__dict__, "_kept": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._versions = weights_versions(self.model)  # another process counts anew


def _check_config(config: MiningConfig) -> None:
    """Raise if the recipe asks for what a batch by itself does not have."""
    if unknown := sorted(set(config.quotas) - {"dense", "lexical", "random"}):
        raise ValueError(
            f"Expected quotas for 'dense', 'lexical' and 'random' only, which is what a HardNegativeMiner has, got "
            f"{unknown}. Use a HardNegativeDataset for other sources."
        )
    for name in ("search_spaces", "replacement", "keep_candidates"):
        if getattr(config, name) != getattr(MiningConfig(), name):
            raise ValueError(
                f"Expected `{name}={getattr(MiningConfig(), name)!r}`, got {getattr(config, name)!r}, which needs all "
                "rows at once; `map` shows one batch. Use a HardNegativeDataset."
            )
    require_extras(config)


@pklregister(HardNegativeMiner)
def _save_miner(pickler: Any, miner: HardNegativeMiner) -> None:
    # `datasets` hashes a function by pickling it. A model does not pickle to the same bytes twice; the fingerprint
    # says all that results depend on. This is that pickler only; workers get the real thing.
    pickler.save_reduce(str, (f"{__name__}.HardNegativeMiner({miner.fingerprint})",), obj=miner)
