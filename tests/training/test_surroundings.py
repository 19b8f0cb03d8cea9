"""Several datasets with one corpus, routes, and adapters, with models of each kind: mined and refreshed by brute force."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
    cross_encoder,
)
from sentence_transformers.base.modules import Router
from sentence_transformers.cross_encoder import evaluation as cross_encoder_evaluation
from sentence_transformers.cross_encoder import losses as cross_encoder_losses
from sentence_transformers.multi_vector_encoder import evaluation as multi_vector_evaluation
from sentence_transformers.sentence_transformer import evaluation as sentence_transformer_evaluation
from sentence_transformers.sparse_encoder import evaluation as sparse_evaluation
from transformers import BertModel, TrainerCallback

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from tests import tiny_models
from tests.conftest import WORDS, other_model, random_texts, word_model
from tests.training import kinds
from tests.training.runs import HOST_WARNINGS

pytestmark = [
    pytest.mark.training,
    *HOST_WARNINGS,
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning"),
]

TEXTS = list(dict.fromkeys(random_texts(100, seed=9, length=3)))[:90]
CORPUS = TEXTS[40:]
POSITIVES = dict(zip(TEXTS[:40], CORPUS[:40], strict=True))
MODELS = {**kinds.MODELS, "cross": tiny_models.cross_encoder}
TRAINERS = {
    **kinds.TRAINERS,
    "cross": (cross_encoder.CrossEncoderTrainer, cross_encoder.CrossEncoderTrainingArguments),
}


OF_KIND = {
    "dense": sentence_transformer_evaluation.RerankingEvaluator,
    "sparse": sparse_evaluation.SparseRerankingEvaluator,
    "multi-vector": multi_vector_evaluation.MultiVectorRerankingEvaluator,
    "cross": cross_encoder_evaluation.CrossEncoderRerankingEvaluator,
}


def ranking_loss(kind: str, model: Any) -> Any:
    """Return the usual loss of a kind."""
    if kind == "cross":
        return cross_encoder_losses.MultipleNegativesRankingLoss(model)
    return kinds.ranking_loss(kind, model)


def all_scores(kind: str, model: Any, anchors: list[str]) -> torch.Tensor:
    """Return the scores of anchors with all texts of the corpus, by the model's own methods."""
    was_training = model.training
    if kind == "cross":
        pairs = [(anchor, text) for anchor in anchors for text in CORPUS]
        task = {"task": "document"} if isinstance(model[0], Router) else {}
        scores = torch.as_tensor(model.predict(pairs, show_progress_bar=False, **task)).view(len(anchors), -1)
    else:
        options = {"show_progress_bar": False} | ({"convert_to_sparse_tensor": False} if kind == "sparse" else {})
        found = [model.encode_query(anchors, **options), model.encode_document(CORPUS, **options)]
        scores = model.similarity(*found)
    model.train(was_training)
    return torch.as_tensor(scores)


class BruteForce(TrainerCallback):
    """Finds the two nearest texts of each anchor right after each refresh, and compares them with what is in force."""

    def __init__(self, kind: str, datasets: list[HardNegativeDataset], steps: tuple[int, ...] = (3, 6)) -> None:
        self.kind, self.datasets, self.steps = kind, datasets, steps
        self.found: list[list[list[str]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step not in self.steps:
            return
        for hard_negatives in self.datasets:
            rows = hard_negatives.to_dataset("n-tuple")
            scores = all_scores(self.kind, model, list(rows["anchor"]))
            own = [CORPUS.index(text) for text in rows["positive"]]
            scores[torch.arange(len(own)), own] = -torch.inf
            self.found.append([hard_negatives.corpus.texts.take(row) for row in hard_negatives.negative_ids])
            found = torch.tensor([[CORPUS.index(text) for text in texts] for texts in self.found[-1]])
            # By score, as of equal ones it does not matter which is first.
            expected = scores.topk(2).values
            torch.testing.assert_close(scores.gather(1, found), expected, atol=1e-5, rtol=1e-5)


def make_negatives(model: Any, rows: range, corpus: Any = None) -> HardNegativeDataset:
    """Return mined rows of the texts; a cross encoder's are mined by another model."""
    anchors = [TEXTS[row] for row in rows]
    pairs = Dataset.from_dict({"anchor": anchors, "positive": [POSITIVES[anchor] for anchor in anchors]})
    found = HardNegativeDataset(pairs, corpus or CORPUS, MiningConfig(num_negatives=2, range_max=len(CORPUS) + 1))
    found.mine(RETRIEVER if isinstance(model, CrossEncoder) else model, show_progress_bar=False)
    return found


RETRIEVER = other_model(1)


def train(
    kind: str, folder: Any, model: Any, dataset: Any, loss: Any, datasets: list[Any], **options: Any
) -> BruteForce:
    """Train 7 steps with refreshes at 3 and 6, each of which is compared with brute force."""
    trainer_class, args_class = TRAINERS[kind]
    brute = BruteForce(kind, datasets)
    defaults = {
        "per_device_train_batch_size": 5,
        "max_steps": 7,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 0.02,
        "use_cpu": True,
    }
    callback = MiningCallback(mining_steps=3, retriever=RETRIEVER if kind == "cross" else None)
    trainer_class(
        model=model,
        args=args_class(output_dir=str(folder / "out"), **{**defaults, **options}),
        train_dataset=dataset,
        loss=loss,
        callbacks=[callback, brute],
    ).train()
    assert [report.step for report in callback.reports] == [3] * len(datasets) + [6] * len(datasets)
    assert brute.found[0] != brute.found[len(datasets)], "the model has learned nothing, so that the test says nothing"
    return brute


@pytest.mark.parametrize("kind", MODELS)
def test_two_datasets_with_one_corpus(kind, tmp_path):
    """Two views in a DatasetDict, whose datasets share a corpus: each is refreshed, and its own loss reads it."""
    model = MODELS[kind](tmp_path / "model")
    first = make_negatives(model, range(25))
    second = make_negatives(model, range(25, 40), first.corpus)
    losses = {name: ranking_loss(kind, model) for name in ("a", "b")}
    batches: list[tuple[str, list[tuple[str, ...]]]] = []
    for name, loss in losses.items():
        note(loss, name, batches)
    mined = [found.corpus.texts.take(row) for found in (first, second) for row in found.negative_ids]
    views = DatasetDict({"a": first.as_dataset(), "b": second.as_dataset()})
    brute = train(kind, tmp_path, model, views, losses, [first, second])
    states = [dict(zip(TEXTS[:40], negatives, strict=True)) for negatives in (mined, brute.found[0] + brute.found[1])]
    assert len(batches) == 7 and {name for name, _ in batches} == {"a", "b"}
    for step, (name, batch) in enumerate(batches, start=1):
        for anchor, positive, *negatives in batch:
            assert (TEXTS.index(anchor) < 25) == (name == "a") and positive == POSITIVES[anchor]
            # What was mined at step 3 is read from step 5 on.
            assert negatives == states[step >= 5][anchor], step


def note(loss: Any, name: str, batches: list[tuple[str, list[tuple[str, ...]]]]) -> None:
    """Let a loss add its name and the texts of each batch to a list."""
    words = [*tiny_models.SPECIAL, *tiny_models.WORDS]

    def texts(column: Any) -> list[str]:
        if isinstance(column, (list, tuple)):
            return list(column)
        return [kinds._text(words, ids) for ids in column["input_ids"].tolist()]

    def add(_: Any, given: Any) -> None:
        batches.append((name, list(zip(*map(texts, given[0]), strict=True))))

    loss.register_forward_pre_hook(add)


def test_a_dataset_dict_goes_in_split_by_split():
    """A DatasetDict itself is no dataset of pairs: the error says what to do."""
    pairs = Dataset.from_dict({"anchor": TEXTS[:2], "positive": CORPUS[:2]})
    with pytest.raises((TypeError, ValueError), match=r"DatasetDict.*(split|one)"):
        HardNegativeDataset(DatasetDict({"train": pairs}), num_negatives=1)


# --- evaluators -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_evaluators_of_the_dataset_suit_every_kind_of_model(kind, tmp_path):
    """In the stock trainer, in its own words: as the evaluator of the kind does, or as the scores of all pairs say."""
    model = MODELS[kind](tmp_path / "model")
    found = make_negatives(model, range(40))
    own = found.to_evaluator("reranking", name="own", write_csv=False)
    kinds_own = OF_KIND[kind](own.samples, name="own", write_csv=False)
    outranks = found.to_evaluator("outranks")
    trainer_class, args_class = TRAINERS[kind]
    args = args_class(
        output_dir=str(tmp_path), per_device_train_batch_size=5, max_steps=3, eval_strategy="steps", eval_steps=3,
        save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False, use_cpu=True,
    )  # fmt: skip
    trainer = trainer_class(
        model=model, args=args, train_dataset=found.as_dataset(), loss=ranking_loss(kind, model), evaluator=own,
    )  # fmt: skip
    trainer.train()
    logged = {key: value for log in trainer.state.log_history for key, value in log.items() if "own_" in key}
    expected = kinds_own(model)
    assert len(expected) > 2 and logged == {f"eval_{key}": pytest.approx(value) for key, value in expected.items()}
    assert own.primary_metric == kinds_own.primary_metric
    rows = found.to_dataset("n-tuple")
    scores = all_scores(kind, model, list(rows["anchor"]))
    places = [
        [CORPUS.index(text) for text in texts] for texts in zip(*(rows[n] for n in rows.column_names[1:]), strict=True)
    ]
    taken = scores.gather(1, torch.tensor(places))
    assert outranks(model)["outranks_all"] == pytest.approx(float((taken[:, 0] > taken[:, 1:].amax(1)).float().mean()))
    if kind == "cross":
        with pytest.raises(ValueError, match=r"no TripletEvaluator for a CrossEncoder.*to_evaluator\(\"reranking\"\)"):
            found.to_evaluator("triplet")(model)
    else:
        assert found.to_evaluator("ir")(model) and found.to_evaluator("triplet")(model)


# --- routes -----------------------------------------------------------------------------------------------------------


def routed(kind: str, folder: Any) -> Any:
    """Return a model with modules of its own for queries and for documents, or, for pairs, with one route."""
    if kind == "dense":
        query = word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(3)))
        document = tiny_models.dense(folder / "documents")
        modules = Router.for_query_document([query[0]], list(document))
        return SentenceTransformer(modules=[modules], device="cpu")
    if kind == "sparse":
        query, document = tiny_models.static_sparse(), tiny_models.splade(folder / "documents")
        return SparseEncoder(modules=[Router.for_query_document(list(query), list(document))], device="cpu")
    if kind == "multi-vector":
        query, document = (tiny_models.colbert(folder / str(seed), seed) for seed in (0, 1))
        return MultiVectorEncoder(modules=[Router.for_query_document(list(query), list(document))], device="cpu")
    whole = tiny_models.cross_encoder(folder / "pairs")
    return CrossEncoder(modules=[Router({"document": list(whole)})], device="cpu", num_labels=1)


@pytest.mark.parametrize("kind", MODELS)
def test_queries_and_documents_by_modules_of_their_own(kind, tmp_path):
    """Both are mined and refreshed through their own routes, and both learn."""
    model = routed(kind, tmp_path)
    model._create_model_card = lambda *_, **__: None
    found = make_negatives(model, range(40))
    dataset, loss = found.as_dataset(), ranking_loss(kind, model)
    routes = {"anchor": "query", **dict.fromkeys(("positive", "negative_1", "negative_2"), "document")}
    if kind == "cross":  # its routes are by dataset
        dataset, loss, routes = DatasetDict({"a": dataset}), {"a": loss}, {"a": "document"}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(kind, tmp_path, model, dataset, loss, [found], router_mapping=routes)
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)]
    assert all(any(f".{route}." in name for name in changed) for route in model[0].sub_modules)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_with_adapters(kind, tmp_path):
    """Only the adapters of peft are trained, and what is mined follows them."""
    peft = pytest.importorskip("peft")
    model = MODELS[kind](tmp_path / "model")
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, next(module for module in model.modules() if isinstance(module, BertModel)))
    adapters = {name for name, parameter in model.named_parameters() if "lora_" in name and parameter.requires_grad}
    found = make_negatives(model, range(40))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(kind, tmp_path, model, found.as_dataset(), ranking_loss(kind, model), [found], learning_rate=0.2)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert adapters & changed and not any("base_layer" in name for name in changed)
