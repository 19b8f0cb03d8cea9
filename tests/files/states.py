"""Hand-made states: a save holds what a mining and its dataset are, and needs no model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset

from st_hardneg.candidates import EMPTY, MINED, Mining, Negatives
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Additions, number_texts
from st_hardneg.corpus.pairs import pair_up
from st_hardneg.corpus.rows import read_rows
from st_hardneg.files.save import SavedState
from st_hardneg.report import MiningReport

ANCHORS = ["where is Oslo", "what is a fjord", "where is Oslo", "who was Grieg", "what is rakfisk"]
POSITIVES = ["Oslo is in Norway", "a drowned valley", "in the south", "a composer", "a fish dish"]


def make_state(*, corpus: bool = True, mined: bool = True, num_negatives: int = 2) -> SavedState:
    """Return a state of five rows, four queries, and blocks of every kind."""
    dataset = Dataset.from_dict(
        {"anchor": ANCHORS, "positive": POSITIVES, "negative": ["Bergen", None, "Bergen", "a painter", None]}
    )
    rows = read_rows(dataset, None, None, use_given=True)
    given = Dataset.from_dict(
        {
            "_id": [f"d{number}" for number in range(6)],
            "text": ["A composer", "the sea", "a lake", "a river", "snow", "rain"],
            "year": list(range(6)),
        }
    )
    negatives = rows.given_negatives()
    additions = Additions(
        anchors=rows.anchors,
        given=[texts for _, texts in negatives],
        further={"web": ["a page", "another page"]},
        metadata_filter=(lambda row: row["year"] < 5) if corpus else None,
        subsets={"recent": lambda row: row["year"] > 2} if corpus else {},
        synthetic=lambda texts: [[f"no {text}", f"never {text}"] for text in texts],
    )
    numbered = number_texts(rows.positives, given if corpus else None, additions=additions)
    pairs = pair_up(rows.anchors, numbered, symmetric=True, given_anchors=[anchors for anchors, _ in negatives])
    config = MiningConfig(num_negatives=num_negatives, exclude_pattern=r"^\d+$")
    state = SavedState(rows, numbered.corpus, pairs, config, ["guide"], options={"num_topics": 2})
    return replace(state, num_minings=3, mining=make_mining(state), live_rows=np.array([0, 2, 3])) if mined else state


def make_mining(state: SavedState, seed: int = 0) -> Mining:
    """Return a mining of random texts that are no right answers; the second query has an empty slot."""
    generator = torch.Generator().manual_seed(seed)
    shape = (state.pairs.num_queries, state.config.num_negatives)
    ids = torch.zeros(shape, dtype=torch.int64)
    for query in range(shape[0]):
        texts = torch.randperm(len(state.corpus), generator=generator)
        known = state.pairs.known.contains(torch.full((len(texts),), query), texts[:, None]).squeeze(1)
        ids[query] = texts[~known][: shape[1]]
    ids[1, -1] = -1
    is_there = ids >= 0
    similarities = torch.rand(shape, generator=generator).masked_fill(~is_there, -torch.inf)
    negatives = Negatives.of(
        ids,
        similarities=similarities,
        cross_encoder_scores=torch.rand(shape, generator=generator).masked_fill(~is_there, torch.nan),
        source_scores=torch.where(torch.arange(shape[1]) % 2 == 0, similarities, torch.nan).expand(shape).clone(),
        ranks=torch.where(is_there, torch.arange(shape[1]), -1),
        sources=torch.where(is_there, torch.arange(shape[1]) % 2, -1).to(torch.int8),
        origins=torch.where(is_there, MINED, EMPTY).to(torch.int8),
        steps=torch.where(is_there, 7, -1),
        first_similarities=similarities,
    )
    return Mining(
        negatives,
        positive_similarities=torch.rand(state.pairs.num_rows, generator=generator),
        positive_cross_encoder_scores=torch.rand(state.pairs.num_rows, generator=generator),
        source_names=("web", "dense"),
        report=MiningReport(refresh=2, step=7, num_rows=5, scores={"positive": {"mean": 0.5}}, notes=("a note",)),
        topics=torch.arange(shape[0], dtype=torch.int32) % 2,
    )


def values_of(mining: Mining) -> dict:
    """Return everything in a mining as plain values that can be compared; NaN as a word."""
    tables = {name: value.tolist() for name, value in vars(mining.negatives).items()}
    others = {name: value for name, value in vars(mining).items() if name != "negatives"}
    plain = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in others.items()}
    return {"tables": repr(tables), **{name: repr(value) for name, value in plain.items()}}
