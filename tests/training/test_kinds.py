"""Models of every kind that searches in their stock trainers: refreshed, seen when stated, resumed, in every loss."""

from __future__ import annotations

import copy
import json
import math
import random
from functools import partial

import pytest
import torch
from sentence_transformers.multi_vector_encoder import losses as multi_vector_losses
from sentence_transformers.sentence_transformer import losses as dense_losses
from sentence_transformers.sparse_encoder import losses as sparse_losses

from st_hardneg import LateInteraction
from st_hardneg.losses import (
    SemiHardCachedMultiVectorMultipleNegativesRankingLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardMultiVectorMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
)
from st_hardneg.training import inputs
from tests import tiny_models
from tests.conftest import WORDS, word_model
from tests.training.kinds import MODELS, TEXTS, run, splade_loss
from tests.training.runs import HOST_WARNINGS
from tests.training.test_ranks import run as run_ranks

pytestmark = [
    pytest.mark.training,
    *HOST_WARNINGS,
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning"),
]
KINDS = ("dense", "sparse", "multi-vector")


def generations(recorder, watched) -> list[set[int]]:
    """Return from which minings, by their step, the negatives of each batch can be."""
    found = []
    for batch in recorder.batches:
        possible = set(watched.negatives)
        for anchor, _, *negatives in batch:
            possible &= {step for step, texts in watched.negatives.items() if texts[anchor] == tuple(negatives)}
        found.append(possible)
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_new_negatives_reach_the_loss_at_the_step_that_is_stated(kind, workers, tmp_path):
    """With no workers exactly then; with workers, nothing old after it."""
    steps = 18
    recorder, watched, trainer = run(
        kind, tmp_path, callback={"mining_steps": 6}, max_steps=steps, dataloader_num_workers=workers
    )
    assert len(recorder.batches) == steps and [report.step for report in watched.reports] == [6, 12]
    assert all(report.churn > 0.1 for report in watched.reports)
    seen = generations(recorder, watched)
    steps_per_epoch = math.ceil(len(TEXTS[:60]) / 4)
    for number, possible in enumerate(seen, start=1):
        assert possible, f"the negatives of batch {number} are those of no mining"
        due = [s for s in (0, 6, 12) if s == 0 or watched.first_step_seen(s, trainer.args) <= number]
        # Nothing is fetched ahead over the boundary of an epoch.
        due += [12] if number > steps_per_epoch else []
        assert max(possible) >= max(due)
        if workers == 0:
            assert max(due) in possible, number


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_is_the_one_that_was_not_interrupted(kind, tmp_path):
    """The same batches reach the loss, with the same negatives, and the weights end up the same."""
    options = {"save_strategy": "steps", "save_steps": 5}
    whole, expected, trainer = run(kind, tmp_path, **options)
    resumed, watched, other = run(kind, tmp_path, resume=str(tmp_path / "out" / "checkpoint-5"), **options)
    assert resumed.batches == whole.batches[5:]
    assert watched.negatives[12 - 3] == expected.negatives[12 - 3]
    for ours, theirs in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


class Late:
    """A setting that is made when the model is there."""

    def __init__(self, retriever):
        self.retriever = retriever

    def found_for(self, model):
        return LateInteraction(model, self.retriever, first_stage_depth=30)


@pytest.mark.parametrize("has_depth", [False, True])
def test_a_retriever_finds_what_a_multi_vector_model_compares(has_depth, tmp_path):
    """It encodes the corpus once; negatives follow the model in training, and the scores are its own."""
    retriever = word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(1 + has_depth)))
    encoded = []
    infer = retriever._inference
    retriever._inference = lambda inputs, **given: encoded.append(len(inputs)) or infer(inputs, **given)

    recorder, watched, _ = run(
        "multi-vector", tmp_path, callback={"retriever": Late(retriever) if has_depth else retriever}, max_steps=8
    )
    assert [report.step for report in watched.reports] == [3, 6] and watched.reports[0].similarity == "meanmaxsim"
    assert all(report.churn > 0.0 for report in watched.reports)
    assert sum(size for size in encoded if size > 100) == len(watched.hard_negatives.corpus)
    assert all(generations(recorder, watched))


def test_a_retriever_for_a_multi_vector_model_works_in_the_foreground(tmp_path):
    """The second process has no part in it."""
    retriever = word_model(WORDS, torch.randn(200, 16))
    with pytest.raises(ValueError, match="`background` does not compare what a `retriever` finds"):
        run("multi-vector", tmp_path, callback={"retriever": retriever, "background": True})


@pytest.mark.parametrize("kind", ["sparse", "multi-vector"])  # for dense models see test_ranks.py
def test_two_ranks_are_alike(kind, tmp_path):
    """The same negatives and weights on both, the rows of one process, and the encoding shared."""
    for processes in (2, 1):
        done = run_ranks(tmp_path, processes, kind, script="ranks_kinds_script.py")
        assert done.returncode == 0, done.stderr[-4000:]
    first, second, alone = (
        json.loads((tmp_path / f"{kind}-{name}.json").read_text(encoding="utf-8"))
        for name in ("0-of-2", "1-of-2", "0-of-1")
    )
    assert first["steps"] == second["steps"] == alone["steps"] == [3, 6]
    # The second rank applies what the first has mined.
    assert first["negatives"] == second["negatives"] and first["negatives"]["3"] != first["negatives"]["0"]
    assert torch.equal(torch.tensor(first["weights"]), torch.tensor(second["weights"]))
    # The last batch of an epoch is filled up where ranks share it.
    batches = zip(first["batches"][:7], second["batches"], alone["batches"], strict=False)
    for ours, theirs, whole in batches:
        assert sorted(row[:2] for row in [*ours, *theirs]) == sorted(row[:2] for row in whole)
    assert 0.3 < sum(first["encoded"]) / (sum(first["encoded"]) + sum(second["encoded"])) < 0.7


def cached_splade(model):
    inner = sparse_losses.SparseMultipleNegativesRankingLoss(model)
    weights = {"document_regularizer_weight": 3e-5, "query_regularizer_weight": 5e-5}
    return sparse_losses.CachedSpladeLoss(model, inner, mini_batch_size=2, **weights)


PAIRS, SCORES = {"output_format": "labeled-pair"}, {"with_scores": True}


def matryoshka(model):
    return dense_losses.MatryoshkaLoss(model, ranking(model), [16, 8])


ranking = dense_losses.MultipleNegativesRankingLoss


DENSE_LOSSES = {
    "MultipleNegativesRankingLoss": (dense_losses.MultipleNegativesRankingLoss, 2, {}),
    "CachedMultipleNegativesRankingLoss": (
        lambda m: dense_losses.CachedMultipleNegativesRankingLoss(m, mini_batch_size=2),
        2,
        {},
    ),
    "symmetric ranking": (
        lambda m: dense_losses.MultipleNegativesRankingLoss(
            m, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        ),
        2,
        {},
    ),
    "TripletLoss": (dense_losses.TripletLoss, 1, {}),
    "GISTEmbedLoss": (lambda m: dense_losses.GISTEmbedLoss(m, copy.deepcopy(m)), 1, {}),
    "CachedGISTEmbedLoss": (lambda m: dense_losses.CachedGISTEmbedLoss(m, copy.deepcopy(m)), 2, {}),
    "MatryoshkaLoss": (matryoshka, 2, {}),
    "AdaptiveLayerLoss": (lambda m: dense_losses.AdaptiveLayerLoss(m, ranking(m)), 2, {}),
    "Matryoshka2dLoss": (lambda m: dense_losses.Matryoshka2dLoss(m, ranking(m), [16, 8]), 2, {}),
    "MultipleNegativesSymmetricRankingLoss": (dense_losses.MultipleNegativesSymmetricRankingLoss, 2, {}),
    "CachedMultipleNegativesSymmetricRankingLoss": (
        lambda m: dense_losses.CachedMultipleNegativesSymmetricRankingLoss(m, mini_batch_size=2),
        2,
        {},
    ),
    "GlobalOrthogonalRegularizationLoss": (dense_losses.GlobalOrthogonalRegularizationLoss, 2, {}),
    "SoftmaxLoss": (lambda m: dense_losses.SoftmaxLoss(m, 16, 2), 2, PAIRS),
    **{
        name: (getattr(dense_losses, name), 2, PAIRS)
        for name in (*("ContrastiveLoss", "OnlineContrastiveLoss", "CoSENTLoss", "AnglELoss", "CosineSimilarityLoss"),)
    },
    "MarginMSELoss": (dense_losses.MarginMSELoss, 2, SCORES),
    "DistillKLDivLoss": (dense_losses.DistillKLDivLoss, 2, SCORES),
}
SPARSE_LOSSES = {
    "ranking": (lambda m: splade_loss(m, sparse_losses.SparseMultipleNegativesRankingLoss(m)), 2, {}),
    "triplet": (lambda m: splade_loss(m, sparse_losses.SparseTripletLoss(m)), 1, {}),
    "cached": (cached_splade, 2, {}),
    "autoencoder": (sparse_losses.CSRLoss, 2, {}),
    "documents only": (
        lambda m: sparse_losses.SpladeLoss(
            m,
            sparse_losses.SparseMultipleNegativesRankingLoss(m),
            document_regularizer_weight=3e-5,
            use_document_regularizer_only=True,
        ),
        2,
        {},
    ),
    **{
        name: (lambda m, name=name: splade_loss(m, getattr(sparse_losses, name)(m)), 2, PAIRS)
        for name in ("SparseCoSENTLoss", "SparseAnglELoss", "SparseCosineSimilarityLoss")
    },
    "margin MSE": (lambda m: splade_loss(m, sparse_losses.SparseMarginMSELoss(m)), 2, SCORES),
    "KL divergence": (lambda m: splade_loss(m, sparse_losses.SparseDistillKLDivLoss(m)), 2, SCORES),
    "semi-hard ranking": (
        lambda m: splade_loss(m, SemiHardMultipleNegativesRankingLoss(m, scale=1.0, similarity_fct=_dot)),
        2,
        {},
    ),
    "semi-hard triplet": (lambda m: splade_loss(m, SemiHardTripletLoss(m)), 2, {}),
}
MULTI_VECTOR_LOSSES = {
    "ranking": (lambda m: multi_vector_losses.MultiVectorMultipleNegativesRankingLoss(m), 2, {}),
    "cached": (
        lambda m: multi_vector_losses.CachedMultiVectorMultipleNegativesRankingLoss(m, mini_batch_size=2),
        2,
        {},
    ),
    "margin MSE": (lambda m: multi_vector_losses.MultiVectorMarginMSELoss(m), 2, SCORES),
    "KL divergence": (lambda m: multi_vector_losses.MultiVectorDistillKLDivLoss(m), 2, SCORES),
    "semi-hard ranking": (SemiHardMultiVectorMultipleNegativesRankingLoss, 2, {}),
    "semi-hard cached": (
        lambda m: SemiHardCachedMultiVectorMultipleNegativesRankingLoss(m, mini_batch_size=2),
        2,
        {},
    ),
}
OTHER_MODELS = {
    **dict.fromkeys(("AdaptiveLayerLoss", "Matryoshka2dLoss"), partial(tiny_models.dense, num_layers=3)),
    "autoencoder": tiny_models.autoencoded,
}
LOSSES = {"dense": DENSE_LOSSES, "sparse": SPARSE_LOSSES, "multi-vector": MULTI_VECTOR_LOSSES}


def _dot(a, b):
    from sentence_transformers.util import dot_score

    return dot_score(a, b)


def losses_in(module) -> set[str]:
    """Return the names of all losses of a kind that this release of Sentence Transformers has."""
    found = {name: getattr(module, name) for name in module.__all__ if name.endswith("Loss")}
    assert all(issubclass(one, torch.nn.Module) for one in found.values()) and len(found) > 3
    return set(found)


@pytest.mark.filterwarnings("ignore:.*Symmetric:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "module"), list(zip(KINDS, (dense_losses, sparse_losses, multi_vector_losses), strict=True))
)
def test_no_loss_is_left_out(kind, module, tmp_path):
    """Every loss of the installed release is trained with below, alone or inside another, or is refused in words."""
    model = (tiny_models.autoencoded if kind == "sparse" else MODELS[kind])(tmp_path)
    made = [make(model) for make, _, _ in LOSSES[kind].values()]
    parts = [type(part) for loss in made for part in loss.modules()]
    trained = {part.__name__ for part in parts if part.__module__.startswith(module.__name__)}
    assert losses_in(module) - trained == losses_in(module) & set(inputs.UNUSED)


@pytest.mark.filterwarnings("ignore:.*Symmetric:DeprecationWarning")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in LOSSES for name in LOSSES[kind]])
def test_every_loss_trains_on_the_live_view(kind, name, tmp_path):
    """A finite loss at every step, new negatives on the way, and the scores of a teacher where a loss wants some."""
    make, number, view = LOSSES[kind][name]
    teacher = word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(1)))
    recorder, watched, trainer = run(
        kind,
        tmp_path,
        make_model=OTHER_MODELS.get(name),
        make_loss=make,
        config={"num_negatives": number, **({"teacher": teacher} if view is SCORES else {})},
        view=view,
        max_steps=7,
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 7 and all(math.isfinite(value) for value in losses)
    assert [report.step for report in watched.reports] == [3, 6]
    if view is PAIRS:
        check_pairs(recorder, watched)
        return
    assert all(generations(recorder, watched))
    assert all(len(row) == 2 + number for batch in recorder.batches for row in batch)
    if view is SCORES:
        for batch, labels in zip(recorder.batches, recorder.labels, strict=True):
            for (anchor, *texts), scores in zip(batch, labels, strict=True):
                expected = teacher.similarity(teacher.encode_query([anchor]), teacher.encode_document(texts))[0]
                torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=0)


def check_pairs(recorder, watched) -> None:
    """Make sure that rows with label 1 are pairs of the dataset, and others the negatives of the mining in force."""
    positives = dict(zip(TEXTS[:60], TEXTS[60:120], strict=True))
    for step, (batch, labels) in enumerate(zip(recorder.batches, recorder.labels, strict=True), start=1):
        # Of the minings at 0, 3 and 6, whose negatives are read at steps 1, 5 and 8.
        negatives = watched.negatives[0 if step < 5 else 3]
        for (anchor, text), label in zip(batch, labels, strict=True):
            assert text == positives[anchor] if label == 1 else text in negatives[anchor], step


def test_runs_are_repeatable(tmp_path):
    """Nothing here draws from a generator that is not seeded."""
    random.seed(1)
    first, *_ = run("sparse", tmp_path / "a", max_steps=5)
    random.seed(2)
    second, *_ = run("sparse", tmp_path / "b", max_steps=5)
    assert first.batches == second.batches
