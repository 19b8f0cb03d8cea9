"""The semi-hard ranking loss with a gradient cache equals the one without."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss
from torch import Tensor, nn

from st_hardneg.corpus.pairs import KnownPositives
from st_hardneg.losses import SemiHardCachedMultipleNegativesRankingLoss, SemiHardMultipleNegativesRankingLoss

TEXTS = [
    ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9", "w1 w2", "w20 w21"],
    ["w1 w2 w10", "w4 w5 w11", "w6 w7", "w1 w12", "w20 w22 w23"],
    ["w1 w2 w10", "w13", "w6 w14", "w2 w15", "w24 w25"],
    ["w30", "w31 w32 w5", "w33", "w1 w2 w12", "w26"],
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"mask_hard": False},
    {"margin": 0.3, "max_positive_similarity": 0.9},
    {"margin": 0.6, "definition": "facenet", "mask_mode": "in_batch_negatives"},
    {"hardness_mode": "all_negatives", "hardness_strength": 5.0},
    {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"), "mask_mode": "hard_negatives"},
    {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction", "scale": 7.0},
]


def _value_and_gradients(model: SentenceTransformer, loss: nn.Module, labels: Tensor | None) -> list[Tensor]:
    model.eval().zero_grad()
    value = loss([model.preprocess(column) for column in TEXTS], labels)
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("mini_batch", [{"mini_batch_size": 2}, {"mini_batch_num_tokens": 8}])
def test_equals_the_loss_without_a_cache(
    build_transformer_model: Callable[[], SentenceTransformer],
    random_ids: Callable[..., tuple[Tensor, KnownPositives]],
    settings: dict[str, Any],
    mini_batch: dict[str, int],
) -> None:
    """Value and gradient agree to 1e-5, with and without ids, weights, and MatryoshkaLoss around it."""
    model = build_transformer_model()
    label, known = random_ids(5, 2)
    for labels, has_ids, is_matryoshka in itertools.chain(
        ((label, True, m) for m in (False, True)),
        ((values, False, m) for values in (None, torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0])) for m in (False, True)),
    ):
        results = []
        for build in (
            lambda **kwargs: SemiHardCachedMultipleNegativesRankingLoss(model, **mini_batch, **kwargs),
            lambda **kwargs: SemiHardMultipleNegativesRankingLoss(model, **kwargs),
        ):
            loss = build(**settings, known_positives=known if has_ids else None)
            wrapped = MatryoshkaLoss(model, loss, [16, 8], [1.0, 0.3]) if is_matryoshka else loss
            results.append(_value_and_gradients(model, wrapped, labels))
            results[-1].append(torch.tensor(list(loss.diagnostics.pop().values())))
        for cached, uncached in zip(*results, strict=True):
            torch.testing.assert_close(cached, uncached, atol=1e-5, rtol=1e-4)


def test_equals_sentence_transformers_with_the_masks_off(
    build_transformer_model: Callable[[], SentenceTransformer],
) -> None:
    """Value and gradient are those of the cached loss of the same name."""
    model = build_transformer_model()
    for settings in SETTINGS[-3:]:
        shared = {name: value for name, value in settings.items() if name != "mask_mode"}
        ours = SemiHardCachedMultipleNegativesRankingLoss(model, mini_batch_size=2, mask_hard=False, **shared)
        theirs = CachedMultipleNegativesRankingLoss(model, mini_batch_size=2, **shared)
        results = zip(_value_and_gradients(model, ours, None), _value_and_gradients(model, theirs, None), strict=True)
        for our_result, their_result in results:
            torch.testing.assert_close(our_result, their_result, atol=1e-6, rtol=1e-5)


def test_nothing_left_is_a_loss_and_gradient_of_zero(
    build_transformer_model: Callable[[], SentenceTransformer],
) -> None:
    """Where all negatives are masked, every column still gets a gradient, of zero."""
    model = build_transformer_model()
    loss = SemiHardCachedMultipleNegativesRankingLoss(model, mini_batch_size=2, margin=0.0)
    value, *gradients = _value_and_gradients(model, loss, None)
    assert value.item() == 0.0
    assert gradients
    assert max(gradient.abs().max().item() for gradient in gradients) == 0.0


@pytest.mark.parametrize("with_backward", [True, False])
def test_the_sum_over_many_rows_does_not_overflow(
    build_transformer_model: Callable[[], SentenceTransformer], with_backward: bool
) -> None:
    """In half precision the value is that of the loss without a cache, of the same dtype."""
    model = build_transformer_model()
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(64, 8, generator=generator, dtype=torch.float16).mul(20).requires_grad_() for _ in range(2)]
    settings: dict[str, Any] = {"scale": 5.0, "similarity_fct": lambda a, b: a @ b.T, "mask_hard": False}
    cached = SemiHardCachedMultipleNegativesRankingLoss(model, mini_batch_size=40, **settings)
    weights = torch.linspace(0.5, 1.5, 64)
    value = cached.calculate_loss([[column] for column in columns], weights, with_backward=with_backward)
    expected = SemiHardMultipleNegativesRankingLoss(model, **settings).compute_loss_from_embeddings(columns, weights)
    assert 40 * expected.item() > torch.finfo(torch.float16).max > expected.item()
    assert value.dtype == expected.dtype == torch.float16
    assert value.item() == pytest.approx(expected.item(), rel=2e-3)
    assert value.requires_grad != with_backward


def test_parameters_can_be_read_and_set(build_transformer_model: Callable[[], SentenceTransformer]) -> None:
    """The parameters live in the wrapped loss, can be changed through the outer one, and reach the model card."""
    loss = SemiHardCachedMultipleNegativesRankingLoss(build_transformer_model(), margin=0.3, mini_batch_size=8)
    loss.margin = 0.1
    loss.mask_hard = False
    loss.scale = 5.0
    assert (loss.loss.margin, loss.loss.mask_hard, loss.loss.scale) == (0.1, False, 5.0)
    assert (loss.margin, loss.mask_mode, loss.definition) == (0.1, "all_negatives", "half-open")
    assert (loss.known_positives, loss.max_positive_similarity) == (None, None)
    config = loss.get_config_dict()
    assert (config["mini_batch_size"], config["margin"], config["mask_hard"]) == (8, 0.1, False)
    assert "gao2021scaling" in loss.citation
    assert "schroff2015facenet" in loss.citation


def test_the_recommended_loss_has_the_dataset_s_right_answers(
    build_transformer_model: Callable[[], SentenceTransformer],
    random_ids: Callable[..., tuple[Tensor, KnownPositives]],
) -> None:
    """Its model, its right answers, and every change that is asked for."""
    model, (_, known) = build_transformer_model(), random_ids(5, 2)
    hard_negatives = SimpleNamespace(known_positives=known)
    loss = SemiHardCachedMultipleNegativesRankingLoss.recommended(model, hard_negatives, mini_batch_size=3, margin=0.2)
    assert (loss.model, loss.loss.model) == (model, model)
    assert loss.known_positives is known
    assert (loss.mask_hard, loss.mini_batch_size, loss.margin) == (False, 3, 0.2)


def test_parameters_reach_the_losses_that_use_them(build_transformer_model: Callable[[], SentenceTransformer]) -> None:
    """Those of the mini-batches here, those of the ranking in the loss within."""
    model = build_transformer_model()
    plain = SemiHardCachedMultipleNegativesRankingLoss(model)
    assert (plain.mini_batch_num_tokens, plain.show_progress_bar, plain.gather_across_devices) == (None, False, False)
    loss = SemiHardCachedMultipleNegativesRankingLoss(
        model, mini_batch_num_tokens=17, show_progress_bar=True, gather_across_devices=True
    )
    assert (loss.mini_batch_num_tokens, loss.show_progress_bar) == (17, True)
    assert loss.loss.gather_across_devices


def test_the_progress_bar_is_named(
    build_transformer_model: Callable[[], SentenceTransformer], capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts the mini-batches of the loss, and is shown only if asked for."""
    for shown in (False, True):
        loss = SemiHardCachedMultipleNegativesRankingLoss(
            build_transformer_model(), mini_batch_size=2, show_progress_bar=shown
        )
        loss.calculate_loss([[torch.eye(5)], [torch.eye(5)]])
        assert ("Calculating loss: 100%" in capsys.readouterr().err) is shown
