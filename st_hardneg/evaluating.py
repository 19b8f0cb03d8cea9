"""Evaluators of Sentence Transformers, fed with a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import Tensor

from st_hardneg.candidates import LAST_RESORT
from st_hardneg.encoders.dense import Encodings
from st_hardneg.reviewing import ReviewedDataset

if TYPE_CHECKING:
    from sentence_transformers.base.evaluation import BaseEvaluator

EvaluatorKind = Literal["ir", "triplet", "reranking", "outranks"]


class EvaluatedDataset(ReviewedDataset):
    """The part of :class:`~st_hardneg.HardNegativeDataset` that makes evaluators."""

    def to_evaluator(self, kind: EvaluatorKind = "ir", **options: Any) -> BaseEvaluator:
        """Return an evaluator of Sentence Transformers, fed with this dataset as it is now.

        Called with a SparseEncoder, a MultiVectorEncoder or a CrossEncoder, it evaluates as the evaluator of their kind
        does; a CrossEncoder can be evaluated by ``"reranking"`` and ``"outranks"``.

        Args:
            kind: ``"ir"``: an ``InformationRetrievalEvaluator`` of every anchor against the whole corpus, its positives
                being right, with the prompts that the recipe or the last ``mine`` names; ``"triplet"``: a
                ``TripletEvaluator``; ``"reranking"``: a ``RerankingEvaluator`` of each anchor's positives and negatives;
                ``"outranks"``: an :class:`~st_hardneg.evaluation.OutranksEvaluator`. All but
                the first need negatives that were mined, with a model that is not the one to be evaluated.
            **options: Further arguments of the evaluator, such as ``name``.

        Raises:
            NotMinedError: If negatives are needed and nothing was mined yet.
            ValueError: If there is no such kind.
            TypeError: If ``options`` hold the evaluator's data, which are this dataset's.
        """
        if kind not in get_args(EvaluatorKind):
            raise ValueError(f"Expected `kind` to be one of {list(get_args(EvaluatorKind))}, got {kind!r}.")
        # They import scikit-learn, which a training without them has no use for.
        from st_hardneg.evaluation import OutranksEvaluator, for_any_model

        if kind == "ir":
            return self._retrieval(options)
        if kind == "triplet":
            triplets = self.to_dataset("triplet")
            columns = tuple(list(triplets[name]) for name in triplets.column_names[:3])
            return for_any_model("TripletEvaluator", columns, options)
        samples = self._samples()
        if kind == "reranking":
            return for_any_model("RerankingEvaluator", (samples,), options)
        rows = [(one["query"], positive, one["negative"]) for one in samples for positive in one["positive"]]
        return OutranksEvaluator(*zip(*rows, strict=True), **options)

    def _retrieval(self, options: dict[str, Any]) -> BaseEvaluator:
        from st_hardneg.evaluation import for_any_model

        for parameter in ("queries", "corpus", "relevant_docs"):
            if parameter in options:
                raise TypeError(
                    f"`{parameter}` is this dataset's. Leave it out, or make the evaluator of your own data."
                )
        options = {**self._prompts(options), **options}
        pairs, corpus = self._wrapped.pairs, self.corpus
        ids = np.union1d(corpus.searched, corpus.identities[pairs.positive_ids])
        texts = dict(zip(map(str, ids.tolist()), corpus.texts.take(ids), strict=True))
        queries = {f"q{number}": text for number, text in enumerate(pairs.query_texts())}
        right = {
            f"q{number}": {str(one) for one in corpus.identities[pairs.positives_of(number)].tolist()}
            for number in range(pairs.num_queries)
        }
        return for_any_model("InformationRetrievalEvaluator", (queries, texts, right), options)

    def _prompts(self, options: Mapping[str, Any]) -> dict[str, str]:
        """Return the prompts that negatives were last mined with, where the caller gives none; else the recipe's."""
        encodings = self.live.asked_encodings or Encodings.from_config(self.config)
        found: dict[str, str] = {}
        for kind, encoding in (("query", encodings.queries), ("corpus", encodings.corpus)):
            if options.get(f"{kind}_prompt") is None and options.get(f"{kind}_prompt_name") is None:
                values = {f"{kind}_prompt": encoding.prompt, f"{kind}_prompt_name": encoding.prompt_name}
                found |= {name: value for name, value in values.items() if value is not None}
        return found

    def _samples(self) -> list[dict[str, Any]]:
        """Return anchor, positives and negatives of every query that has negatives."""
        pairs, texts = self._wrapped.pairs, self.corpus.texts
        ids = self._mined("to_evaluator()").negatives.only(self._certain_slots()).ids
        return [
            {
                "query": query,
                "positive": texts.take(pairs.positives_of(number)),
                "negative": texts.take(row[row >= 0].numpy()),
            }
            for number, (query, row) in enumerate(zip(pairs.query_texts(), ids, strict=True))
            if bool((row >= 0).any())
        ]

    def _certain_slots(self) -> Tensor:
        """Return which slots hold a negative, and no text that only stands in."""
        negatives = self._mined("to_evaluator()").negatives
        return negatives.is_present & (negatives.origins != LAST_RESORT)
