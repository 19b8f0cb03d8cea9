"""The semi-hard ranking losses of multi-vector models, compared with Sentence Transformers' own and with plain loops."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from sentence_transformers.multi_vector_encoder.losses import (
    CachedMultiVectorMultipleNegativesRankingLoss,
    MultiVectorMultipleNegativesRankingLoss,
)
from sentence_transformers.multi_vector_encoder.scoring import colbert_scores, mean_colbert_scores
from sentence_transformers.util.similarity import maxsim

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.losses import (
    SemiHardCachedMultiVectorMultipleNegativesRankingLoss,
    SemiHardMultiVectorMultipleNegativesRankingLoss,
)
from tests.conftest import random_texts, whole
from tests.tiny_models import colbert

TEXTS = random_texts(20, seed=5, length=4)
COLUMNS = [[*TEXTS[:4], "w1 w2"], TEXTS[4:9], TEXTS[9:14], TEXTS[14:19]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return colbert(tmp_path_factory.mktemp("model"))


def features_of(model, columns=COLUMNS) -> list[dict]:
    tasks = ["query", *["document"] * (len(columns) - 1)]
    return [{**model.preprocess(texts, task=task), "task": task} for texts, task in zip(columns, tasks, strict=True)]


def value_and_gradient(loss, model, labels=None) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    value = loss(features_of(model), labels)
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


PAIRS_OF_LOSSES = [
    (SemiHardMultiVectorMultipleNegativesRankingLoss, MultiVectorMultipleNegativesRankingLoss, {}),
    (
        SemiHardMultiVectorMultipleNegativesRankingLoss,
        MultiVectorMultipleNegativesRankingLoss,
        {"score_mini_batch_size": 2, "scale": 0.5, "similarity_fct": mean_colbert_scores},
    ),
    (
        SemiHardCachedMultiVectorMultipleNegativesRankingLoss,
        CachedMultiVectorMultipleNegativesRankingLoss,
        {"mini_batch_size": 2},
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS_OF_LOSSES)
def test_with_nothing_masked_it_is_sentence_transformers_loss(model, ours, theirs, options):
    """Value and gradient; the similarity is what it was afterwards."""
    loss = ours(model, mask_hard=False, **options)
    found, expected = value_and_gradient(loss, model), value_and_gradient(theirs(model, **options), model)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert loss.similarity_fct is options.get("similarity_fct", colbert_scores)
    assert loss.get_config_dict() == theirs(model, **options).get_config_dict() | {
        "mask_hard": False,
        "margin": None,
        "mask_mode": "all_negatives",
        "known_positives": False,
    }


def reference(model, *, mask_hard=True, margin=None, mask_mode="all_negatives", mean=True) -> float:
    """Return the loss as a plain loop over rows and candidates computes it."""
    queries = model.encode_query(COLUMNS[0])
    columns = [model.encode_document(texts) for texts in COLUMNS[1:]]
    total = 0.0
    for row, query in enumerate(queries):
        num_tokens = len(query) if mean else 1
        positive = float(maxsim([query], [columns[0][row]]))
        kept = [positive]
        for number, column in enumerate(columns):
            for other, document in enumerate(column):
                if number == 0 and other == row:
                    continue
                score = float(maxsim([query], [document]))
                is_own = other == row
                judged = {"all_negatives": True, "hard_negatives": is_own, "in_batch_negatives": not is_own}[mask_mode]
                hard = mask_hard and score >= positive - 1e-5
                easy = margin is not None and (positive - score) / num_tokens > margin
                if not (judged and (hard or easy)):
                    kept.append(score)
        total += float(torch.tensor(kept).logsumexp(0)) - positive
    return total / len(queries)


@pytest.mark.parametrize("mask_mode", ["all_negatives", "hard_negatives", "in_batch_negatives"])
@pytest.mark.parametrize("options", [{}, {"mask_hard": False, "margin": 0.05}, {"margin": 0.1}])
def test_what_is_left_out_is_what_a_plain_loop_leaves_out(model, options, mask_mode):
    """Hard by the sum, easy by the mean over the query's tokens, in both losses and whatever is scored at a time."""
    expected = reference(model, mask_mode=mask_mode, **options)
    options = {**options, "mask_mode": mask_mode}
    for loss in (
        SemiHardMultiVectorMultipleNegativesRankingLoss(model, **options),
        SemiHardMultiVectorMultipleNegativesRankingLoss(model, score_mini_batch_size=2, **options),
        SemiHardCachedMultiVectorMultipleNegativesRankingLoss(model, mini_batch_size=2, **options),
    ):
        value, gradient = value_and_gradient(loss, model)
        assert float(value) == pytest.approx(expected, abs=1e-4) and gradient.isfinite().all()
        shares = loss.diagnostics.pop()
        assert (shares["masked_hard"] + shares["masked_easy"] > 0) or mask_mode == "hard_negatives"


def test_right_answers_and_stand_ins_are_left_out_by_their_ids(model):
    """A text that another row's positive is; and a slot whose id is -1."""
    rows = [("a 1", COLUMNS[1][0]), ("a 1", COLUMNS[1][1]), ("b", COLUMNS[1][2]), ("c", "x"), ("d", "y")]
    pairs = Dataset.from_dict({"anchor": [a for a, _ in rows], "positive": [p for _, p in rows]})
    dataset = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=2))
    known = dataset.known_positives
    row_query, row_positive = dataset._wrapped.pairs.row_query, dataset._wrapped.pairs.row_positive
    ids = [[row, int(row_query[row]), int(row_positive[row]), 1_000_000, -1, 0] for row in range(5)]
    loss = SemiHardMultiVectorMultipleNegativesRankingLoss.recommended(model, dataset)
    assert loss.known_positives is known and not loss.mask_hard
    value_and_gradient(loss, model, torch.tensor(ids))
    shares = loss.diagnostics.pop()
    # Of 5 x 14 negatives: the first negative of all five rows for every row, and for the rows of one anchor each other's
    # positives, and text 0, the positive of the first row, wherever it stands as the second negative.
    assert shares["masked_unfilled"] == pytest.approx(25 / 70)
    assert shares["masked_known_positive"] == pytest.approx((2 + 2 * 5) / 70)
    with pytest.raises(ValueError, match="Expected a label with ids, because `known_positives` was given"):
        value_and_gradient(loss, model)
    weighted = torch.tensor([[*row[:3], 500_000, *row[4:]] for row in ids])
    with pytest.raises(ValueError, match="Expected rows that all weigh 1"):
        value_and_gradient(loss, model, weighted)


def test_all_masked_costs_nothing(model):
    """No value, no gradient, no NaN."""
    for kind in (
        SemiHardMultiVectorMultipleNegativesRankingLoss,
        SemiHardCachedMultiVectorMultipleNegativesRankingLoss,
    ):
        value, gradient = value_and_gradient(kind(model, margin=0.0), model)
        assert float(value) == pytest.approx(0.0, abs=1e-6)
        assert gradient.abs().max() < 1e-6


def test_parameters_are_checked(model):
    """As those of the other losses."""
    with pytest.raises(ValueError, match=r"`mask_mode` to be one of .* Got 'none'"):
        SemiHardMultiVectorMultipleNegativesRankingLoss(model, mask_mode="none")
    with pytest.raises(ValueError, match="margin"):
        SemiHardMultiVectorMultipleNegativesRankingLoss(model, margin=-1.0)
    message = (
        "Expected `known_positives` to be a KnownPositives or None. Got set. Pass `hard_negatives.known_positives`."
    )
    with pytest.raises(TypeError, match=whole(message)):
        SemiHardCachedMultiVectorMultipleNegativesRankingLoss(model, known_positives=set())
