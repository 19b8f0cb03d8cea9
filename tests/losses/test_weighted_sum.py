"""The weighted sum of losses: one embedding of the texts, each part as it would be alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    AnglELoss,
    BatchSemiHardTripletLoss,
    CachedMultipleNegativesRankingLoss,
    ContrastiveLoss,
    CoSENTLoss,
    CosineSimilarityLoss,
    GISTEmbedLoss,
    GlobalOrthogonalRegularizationLoss,
    MarginMSELoss,
    Matryoshka2dLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    OnlineContrastiveLoss,
    TripletLoss,
)
from sentence_transformers.util import dot_score
from torch import Tensor

from st_hardneg.losses import (
    SemiHardContrastiveLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
    WeightedSumLoss,
    in_batch,
)
from st_hardneg.losses.parts import LossParts

NAMES = ("anchor", "positive", "negative_1", "negative_2")


def _features(model: SentenceTransformer, rows: Dataset, names: tuple[str, ...] = NAMES) -> list[dict[str, Any]]:
    return [model.preprocess(rows[name][:16]) for name in names]


def _gradient(model: SentenceTransformer, value: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, list(model.parameters()))
    return gradient.to_dense()


def test_is_the_weighted_sum_of_its_parts(static_model: SentenceTransformer, rows: Dataset) -> None:
    """Value and gradient are those of the parts computed apart, on tuples and on the pairs made of them."""
    model = static_model
    tuple_losses = [SemiHardMultipleNegativesRankingLoss(model), SemiHardTripletLoss(model)]
    tuple_losses += [SemiHardContrastiveLoss(model), MultipleNegativesRankingLoss(model)]
    pair_losses = [ContrastiveLoss(model), OnlineContrastiveLoss(model), CosineSimilarityLoss(model)]
    pair_losses += [CoSENTLoss(model), AnglELoss(model)]
    anchors, positives, *negatives = (rows[name][:16] for name in NAMES)
    pairs = [anchors * 3, positives + negatives[0] + negatives[1]]
    triplets = [anchors * 2, positives * 2, negatives[0] + negatives[1]]
    labels = torch.tensor([1.0] * 16 + [0.0] * 32)
    weight = 0.1
    expected: Tensor = weight * TripletLoss(model)([model.preprocess(column) for column in triplets], None)
    for loss in tuple_losses:
        expected = expected + weight * loss(_features(model, rows), None)
    for loss in pair_losses:
        expected = expected + weight * loss([model.preprocess(column) for column in pairs], labels)
    parts = [*tuple_losses, *pair_losses, TripletLoss(model)]
    value = WeightedSumLoss(model, [(weight, part) for part in parts])(_features(model, rows))
    torch.testing.assert_close(value.total(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(_gradient(model, value.total()), _gradient(model, expected), atol=1e-5, rtol=1e-4)
    assert list(value) == [type(part).__name__ for part in parts]


def test_texts_are_embedded_once(static_model: SentenceTransformer, rows: Dataset) -> None:
    """The model sees each column once, however many parts there are."""
    losses = {
        "ranking": (0.6, SemiHardMultipleNegativesRankingLoss(static_model)),
        "contrastive": (0.3, SemiHardContrastiveLoss(static_model)),
        "cosine": (0.1, CosineSimilarityLoss(static_model)),
    }
    loss = WeightedSumLoss(static_model, losses)
    with mock.patch.object(static_model[0], "forward", wraps=static_model[0].forward) as forward:
        value = loss(_features(static_model, rows))
    assert forward.call_count == len(NAMES)
    assert list(value) == ["ranking", "contrastive", "cosine"]


def test_ids_and_weights_reach_the_parts(static_model: SentenceTransformer, rows: Dataset, random_ids: Any) -> None:
    """A label with ids goes whole to the losses of this package; scored pairs get the relevance as their label."""
    label, known = random_ids(16, 2)
    ranking = SemiHardMultipleNegativesRankingLoss(static_model, known_positives=known)
    cosine = CosineSimilarityLoss(static_model)
    contrastive = ContrastiveLoss(static_model)
    loss = WeightedSumLoss(static_model, {"ranking": (1, ranking), "cosine": (1, cosine), "pairs": (1, contrastive)})
    value = loss(_features(static_model, rows), label)
    alone = ranking(_features(static_model, rows), label)
    torch.testing.assert_close(value["ranking"], alone)
    columns = [rows[name][:16] for name in NAMES]
    texts = [columns[0] * 3, columns[1] + columns[2] + columns[3]]
    scores = torch.cat([(label[:, 3] / 1e6).clamp(max=1.0), torch.zeros(32)])
    taken = [row for row in range(48) if row < 16 or label[row % 16, 3 + row // 16] != -1]
    assert len(taken) < 48
    pairs = [static_model.preprocess([column[row] for row in taken]) for column in texts]
    torch.testing.assert_close(value["cosine"], cosine(pairs, scores[taken]))
    torch.testing.assert_close(value["pairs"], contrastive(pairs, (torch.tensor(taken) < 16).long()))


def test_labelled_pairs_keep_their_labels(static_model: SentenceTransformer, rows: Dataset) -> None:
    """On two columns the label goes to the parts that take labelled pairs, and weighs the rows of the others."""
    ranking, cosine = SemiHardMultipleNegativesRankingLoss(static_model), CosineSimilarityLoss(static_model)
    contrastive = SemiHardContrastiveLoss(static_model)
    loss = WeightedSumLoss(static_model, [(1.0, ranking), (0.5, cosine), (2.0, contrastive)])
    for labels in ((torch.arange(16) % 2), (torch.arange(16) % 2).float()):
        value = loss(_features(static_model, rows, NAMES[:2]), labels)
        alone = ranking(_features(static_model, rows, NAMES[:2]), labels.float())
        alone = alone + 0.5 * cosine(_features(static_model, rows, NAMES[:2]), labels.float())
        alone = alone + 2.0 * contrastive(_features(static_model, rows, NAMES[:2]), labels)
        torch.testing.assert_close(value.total(), alone)


def test_parts_that_are_sums_themselves(static_model: SentenceTransformer, rows: Dataset) -> None:
    """A nested sum, and a part that returns several values, count with the sum of theirs."""
    inner = WeightedSumLoss(static_model, [(0.5, SemiHardTripletLoss(static_model))])
    regulariser = GlobalOrthogonalRegularizationLoss(static_model)
    loss = WeightedSumLoss(static_model, {"inner": (2.0, inner), "spread": (1.0, regulariser)})
    value = loss(_features(static_model, rows))
    triplet = SemiHardTripletLoss(static_model)(_features(static_model, rows), None)
    torch.testing.assert_close(value["inner"], triplet)
    spread = regulariser(_features(static_model, rows), None)
    torch.testing.assert_close(value["spread"], torch.stack(list(spread.values())).sum())


def test_matryoshka_goes_around_the_sum(static_model: SentenceTransformer, rows: Dataset) -> None:
    """MatryoshkaLoss adds the parts up over its dimensions, part by part."""
    parts = {"ranking": (0.6, SemiHardMultipleNegativesRankingLoss(static_model))}
    parts["triplet"] = (0.4, SemiHardTripletLoss(static_model))
    value = MatryoshkaLoss(static_model, WeightedSumLoss(static_model, parts), [16, 8], [1, 0.5])(
        _features(static_model, rows), None
    )
    for name, (weight, part) in parts.items():
        alone = MatryoshkaLoss(static_model, part, [16, 8], [1, 0.5])(_features(static_model, rows), None)
        torch.testing.assert_close(value[name], weight * alone)


def _wrapped(kind: str, model: SentenceTransformer, loss: Any, kl_div_weight: float = 1.0) -> Any:
    dims: dict[str, Any] = {"matryoshka_dims": [16, 8], "matryoshka_weights": [1, 0.5]}
    layers: dict[str, Any] = {"n_layers_per_step": -1, "prior_layers_weight": 0.7, "last_layer_weight": 1.3}
    layers |= {"kl_div_weight": kl_div_weight, "kl_temperature": 0.3 if kl_div_weight else 0.0}
    if kind == "matryoshka":
        return MatryoshkaLoss(model, loss, **dims)
    if kind == "layers":
        return AdaptiveLayerLoss(model, loss, **layers)
    return Matryoshka2dLoss(model, loss, **dims, n_dims_per_step=-1, **layers)


@pytest.mark.parametrize("kind", ["matryoshka", "layers", "2d"])
@pytest.mark.parametrize("kl_div_weight", [0.0, 1.0])
def test_wrappers_go_around_the_sum(
    build_transformer_model: Callable[[], SentenceTransformer],
    rows: Dataset,
    random_ids: Any,
    kind: str,
    kl_div_weight: float,
) -> None:
    """Each part of a wrapped sum is the part wrapped alone; what the wrapper adds comes once, under its own name."""
    model = build_transformer_model().eval()
    label, known = random_ids(16, 2)
    parts = {
        "ranking": (0.6, SemiHardMultipleNegativesRankingLoss(model, known_positives=known)),
        "triplet": (0.4, SemiHardTripletLoss(model)),
        "cosine": (0.2, CosineSimilarityLoss(model)),
    }
    value = _wrapped(kind, model, WeightedSumLoss(model, parts), kl_div_weight)(_features(model, rows), label)
    assert isinstance(value, LossParts)
    for name, (weight, part) in parts.items():
        if name == "cosine":  # takes pairs, which only a sum makes of tuples
            alone = _wrapped(kind, model, WeightedSumLoss(model, {name: (weight, part)}), 0.0)
            expected = alone(_features(model, rows), label)[name]
        else:
            expected = weight * _wrapped(kind, model, part, 0.0)(_features(model, rows), label)
        torch.testing.assert_close(value[name], expected)
    if kind == "matryoshka" or not kl_div_weight:
        assert list(value) == list(parts)
        return
    # With a part that is a plain tensor, the divergence is what its weight adds.
    triplet = parts["triplet"][1]
    with_kl, without = (
        _wrapped(kind, model, triplet, weight)(_features(model, rows), label) for weight in (kl_div_weight, 0.0)
    )
    assert list(value) == [*parts, "added_by_wrapper"]
    torch.testing.assert_close(value["added_by_wrapper"], with_kl - without, atol=1e-6, rtol=1e-4)
    value.total().backward()


@pytest.mark.training
@pytest.mark.parametrize("kind", ["layers", "2d"])
def test_a_wrapped_sum_trains(
    build_transformer_model: Callable[[], SentenceTransformer], rows: Dataset, tmp_path: Path, kind: str
) -> None:
    """The trainer logs the parts and what the wrapper adds, and they add up to the loss."""
    model = build_transformer_model()
    parts = {
        "ranking": (0.6, SemiHardMultipleNegativesRankingLoss(model)),
        "triplet": (0.4, SemiHardTripletLoss(model)),
    }
    args = SentenceTransformerTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, logging_steps=1, max_steps=2, save_strategy="no"
    )
    loss = _wrapped(kind, model, WeightedSumLoss(model, parts))
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=rows, loss=loss)
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        logged = sum(entry[name] for name in (*parts, "added_by_wrapper"))
        assert logged == pytest.approx(entry["loss"], abs=2e-3)


def test_parts_are_computed_with(static_model: SentenceTransformer) -> None:
    """Parts are multiplied and divided one by one; what is added is a part of its own."""
    parts = LossParts(a=torch.tensor(1.0), b=torch.tensor(2.0))
    assert {name: value.item() for name, value in (parts * 3 / 2).items()} == {"a": 1.5, "b": 3.0}
    assert {name: value.item() for name, value in (torch.tensor(2.0) * parts).items()} == {"a": 2.0, "b": 4.0}
    assert sum([parts, parts]).total().item() == 6.0
    assert (0.0 + parts) == (parts + 0) == parts
    added = parts + torch.tensor(0.5)
    assert {name: value.item() for name, value in added.items()} == {"a": 1.0, "b": 2.0, "added_by_wrapper": 0.5}
    again = torch.tensor(0.25) + (added + parts + 1)
    assert {name: value.item() for name, value in again.items()} == {"a": 2.0, "b": 4.0, "added_by_wrapper": 1.75}
    assert list(parts) == ["a", "b"]


UNFILLED = torch.tensor([[row, row, row, 500_000, -1 if row % 2 else 20, -1 if row % 3 else 21] for row in range(16)])


@pytest.mark.parametrize("hardness", [{}, {"hardness_mode": "all_negatives", "hardness_strength": 5.0}])
def test_unfilled_slots_reach_no_part(static_model: SentenceTransformer, rows: Dataset, hardness: Any) -> None:
    """Losses of Sentence Transformers get no negative of id -1 either, and ignore row weights as they always do."""
    ranking = MultipleNegativesRankingLoss(static_model, directions=("query_to_doc", "doc_to_doc"), **hardness)
    triplet = TripletLoss(static_model, triplet_margin=1.0)
    parts = {"ranking": (1.0, ranking), "triplet": (1.0, triplet), "online": (1.0, OnlineContrastiveLoss(static_model))}
    before = UNFILLED.clone()
    value = WeightedSumLoss(static_model, parts)(_features(static_model, rows), UNFILLED)
    assert torch.equal(UNFILLED, before)
    columns = [static_model.encode(rows[name][:16], convert_to_tensor=True) for name in NAMES]
    ours = SemiHardMultipleNegativesRankingLoss(
        static_model, directions=ranking.directions, mask_hard=False, **hardness
    )
    unweighted = UNFILLED.index_fill(1, torch.tensor(3), 10**6)
    torch.testing.assert_close(value["ranking"], ours.compute_loss_from_embeddings(columns, unweighted))
    taken = [(row, column) for column in (2, 3) for row in range(16) if UNFILLED[row, 2 + column] >= 0]
    assert len(taken) == 8 + 6
    triplets = [
        torch.stack([columns[place if place < 2 else column][row] for row, column in taken]) for place in range(3)
    ]
    torch.testing.assert_close(value["triplet"], triplet.compute_loss_from_embeddings(triplets, None))
    pairs = [torch.cat([columns[0], triplets[0]]), torch.cat([columns[1], triplets[2]])]
    labels = (torch.arange(len(pairs[0])) < 16).float()
    online = parts["online"][1].compute_loss_from_embeddings(pairs, labels)
    torch.testing.assert_close(value["online"], online)


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": 3.0, "similarity_fct": dot_score},
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
        {"hardness_mode": "in_batch_negatives", "hardness_strength": 4.0},
        {"hardness_mode": "all_negatives"},
    ],
)
def test_a_ranking_part_keeps_its_parameters(static_model: SentenceTransformer, rows: Dataset, settings: Any) -> None:
    """Where all slots are filled, the part is as it is alone, although the label has ids and weights."""
    ranking = MultipleNegativesRankingLoss(static_model, **settings)
    label = UNFILLED.clone()
    label[:, 4:] = 20
    for dtype in (torch.int64, torch.int32):
        value = WeightedSumLoss(static_model, {"ranking": (1.0, ranking)})(
            _features(static_model, rows), label.to(dtype)
        )
        torch.testing.assert_close(value["ranking"], ranking(_features(static_model, rows), None))


@pytest.mark.parametrize("labels", [None, torch.ones(16), "ids"])
def test_a_gathering_part_gathers_alike_with_and_without_ids(
    static_model: SentenceTransformer, rows: Dataset, labels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices with ids and devices without gather equally often, or they would wait for each other."""
    gathered: list[Tensor] = []
    for name in ("all_gather", "all_gather_with_grad"):
        monkeypatch.setattr(in_batch, name, lambda tensor: gathered.append(tensor) or tensor)
    ranking = MultipleNegativesRankingLoss(static_model, gather_across_devices=True)
    loss = WeightedSumLoss(static_model, {"ranking": (1.0, ranking)})
    value = loss(_features(static_model, rows), UNFILLED if isinstance(labels, str) else labels)
    assert len(gathered) == len(NAMES) + 1
    if not isinstance(labels, str):
        alone = MultipleNegativesRankingLoss(static_model)(_features(static_model, rows), None)
        torch.testing.assert_close(value["ranking"], alone)


def test_one_negative_makes_pairs_and_triplets(static_model: SentenceTransformer, rows: Dataset) -> None:
    """Also a single negative column can have unfilled slots, and a nested sum passes the label on."""
    label = UNFILLED[:, :5]
    filled = label[:, 4] >= 0
    columns = [static_model.encode(rows[name][:16], convert_to_tensor=True) for name in NAMES[:3]]
    contrastive, triplet = ContrastiveLoss(static_model), TripletLoss(static_model)
    inner = WeightedSumLoss(static_model, {"pairs": (1.0, contrastive), "triplet": (2.0, triplet)})
    value = WeightedSumLoss(static_model, {"inner": (1.0, inner)})(_features(static_model, rows, NAMES[:3]), label)
    pairs = [torch.cat([columns[0], columns[0][filled]]), torch.cat([columns[1], columns[2][filled]])]
    expected = contrastive.compute_loss_from_embeddings(pairs, (torch.arange(len(pairs[0])) < 16).float())
    expected = expected + 2 * triplet.compute_loss_from_embeddings([column[filled] for column in columns], None)
    torch.testing.assert_close(value.total(), expected)


def test_nothing_filled_in_a_whole_batch(static_model: SentenceTransformer, rows: Dataset) -> None:
    """Without a single negative, a triplet part is zero with a gradient of zero, and pairs are the positive ones."""
    label = UNFILLED.clone()
    label[:, 4:] = -1
    parts = [(1.0, TripletLoss(static_model)), (1.0, ContrastiveLoss(static_model)), (1.0, CoSENTLoss(static_model))]
    value = WeightedSumLoss(static_model, parts)(_features(static_model, rows), label)
    assert value["TripletLoss"].item() == 0.0
    assert _gradient(static_model, value["TripletLoss"]).abs().max().item() == 0.0
    pairs = _features(static_model, rows, NAMES[:2])
    alone = ContrastiveLoss(static_model)(pairs, torch.ones(16))
    torch.testing.assert_close(value["ContrastiveLoss"], alone)
    assert torch.isfinite(value["CoSENTLoss"])


@pytest.mark.parametrize("labels", [None, UNFILLED])
@pytest.mark.parametrize("build", [BatchSemiHardTripletLoss, MarginMSELoss])
def test_parts_that_need_another_label_say_so(
    static_model: SentenceTransformer, rows: Dataset, build: Any, labels: Tensor | None
) -> None:
    """A part that takes classes or scores is refused a label with ids, or none."""
    loss = WeightedSumLoss(static_model, {"other": (1.0, build(static_model))})
    message = (
        f"'other' is a {build.__name__}, which needs classes or scores in the label. "
        f"Got {'no label' if labels is None else 'a label with ids'}. "
        "Train without this part, or on a dataset with the label that it needs."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        loss(_features(static_model, rows), labels)


def _refused(model: SentenceTransformer, losses: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        WeightedSumLoss(model, losses)


def test_parts_that_embed_themselves_are_refused(
    build_transformer_model: Callable[[], SentenceTransformer],
) -> None:
    """Losses with a cache or a guide, and wrappers, cannot be parts, and the error says what to do."""
    model = build_transformer_model()
    for part in (
        CachedMultipleNegativesRankingLoss(model),
        GISTEmbedLoss(model, model),
        MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [16]),
    ):
        kind = type(part).__name__
        _refused(
            model,
            [(1.0, part)],
            f"{kind!r} is a {kind}, which embeds the texts itself, so it cannot be a part. Use the loss without a "
            "gradient cache or a guide, and put wrappers such as `MatryoshkaLoss` around the `WeightedSumLoss`.",
        )


def test_a_sum_that_cannot_be_meant_is_refused(build_static_model: Callable[..., SentenceTransformer]) -> None:
    """No parts, a weight that is none, a name that is taken and a second model are errors."""
    model = build_static_model()
    part = SemiHardTripletLoss(model)
    _refused(
        model,
        {},
        "Expected at least one part in `losses`, as `{name: (weight, loss)}` or `[(weight, loss)]`. Got none.",
    )
    for weight in (-0.5, float("nan")):
        _refused(
            model,
            {"triplet": (weight, part)},
            f"Expected the weight of 'triplet' to be a finite number of at least 0. Got {weight!r}.",
        )
    _refused(
        model,
        {"loss": (1.0, part)},
        "A part cannot be named 'loss', because the log has another figure of that name. The names "
        "['loss', 'steps', 'epoch', 'grad_norm', 'learning_rate', 'added_by_wrapper'] are taken.",
    )
    _refused(
        model,
        [(1.0, SemiHardTripletLoss(build_static_model()))],
        "'SemiHardTripletLoss' was built with another model than the `WeightedSumLoss`, which embeds the texts for its "
        "parts. Build every part with the same model.",
    )
    assert WeightedSumLoss(model, {"off": (0, part)}).weights == {"off": 0.0}
    for parts in ({"a": (part, 1.0)}, {"a": part}, [part], {"a": (1.0,)}, [(1.0, "loss")], [("1", part)]):
        with pytest.raises(
            TypeError, match=r"(?s)^Expected `losses` as .* Put the weight, a number, in front of its loss.$"
        ):
            WeightedSumLoss(model, parts)


def test_pairs_without_labels_are_refused(static_model: SentenceTransformer, rows: Dataset) -> None:
    """A part that takes labelled pairs needs negatives or labels."""
    loss = WeightedSumLoss(static_model, {"cosine": (1.0, CosineSimilarityLoss(static_model))})
    message = (
        "'cosine' is a CosineSimilarityLoss, which needs negatives or a label for each pair. "
        "Got 2 columns without either. Mine negatives first, or add a label column."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        loss(_features(static_model, rows, NAMES[:2]))


def test_the_model_card_gets_all_parts(static_model: SentenceTransformer) -> None:
    """Weights, settings and papers of the parts are offered to the model card; equal classes are numbered."""
    parts = [(0.5, SemiHardTripletLoss(static_model)), (0.5, SemiHardTripletLoss(static_model, triplet_margin=1))]
    config = WeightedSumLoss(static_model, parts).get_config_dict()["losses"]
    assert list(config) == ["SemiHardTripletLoss", "SemiHardTripletLoss_2"]
    assert config["SemiHardTripletLoss_2"]["weight"] == 0.5
    assert config["SemiHardTripletLoss_2"]["loss"] == "SemiHardTripletLoss"
    assert config["SemiHardTripletLoss_2"]["triplet_margin"] == 1
    assert WeightedSumLoss(static_model, parts).citation == SemiHardTripletLoss(static_model).citation
