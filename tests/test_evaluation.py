from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.evaluation import NeighbourEvaluator, OutranksEvaluator
from st_hardneg.training.checks import RefreshEvaluator
from st_hardneg.training.histograms import log_histograms
from tests.training.rounds import make_args, make_model, make_negatives
from tests.training.runs import HOST_WARNINGS


def test_a_row_with_one_stronger_negative_is_not_outranked(protractor):
    """By hand: the first row wins against both, the second one loses against one of two."""
    evaluate = OutranksEvaluator(["0°", "90°"], ["10°", "120°"], [["20°", "40°"], ["100°", "180°"]], name="dev")
    found = evaluate(protractor)
    cosine = lambda degrees: math.cos(math.radians(degrees))  # noqa: E731
    margins = [cosine(10) - cosine(20), cosine(30) - cosine(10)]
    assert found == {
        "dev_outranks_all": 0.5,
        "dev_margin_to_hardest": pytest.approx(sum(margins) / 2, abs=1e-6),
    }
    assert evaluate.primary_metric == "dev_outranks_all"


def test_neighbours_by_hand(protractor):
    """0° and 10° are similar and nearest; 90° is similar to 180°, but nearest to 60°, which is called dissimilar."""
    pairs = [("0°", "10°", True), ("90°", "180°", True), ("90°", "60°", False)]
    found = NeighbourEvaluator(pairs, top_k=(1, 2))(protractor)
    assert found["neighbour_accuracy@1"] == 3 / 4  # of 180°, the nearest is 90°
    assert found["neighbour_accuracy@2"] == 1.0 or found["neighbour_accuracy@2"] == 3 / 4
    assert found["neighbour_chance@1"] == pytest.approx(1 / 4) and found["neighbour_chance@2"] == pytest.approx(1 / 2)
    assert found["nearest_is_dissimilar"] == 1.0  # 60° has 90° as its nearest, too


def test_chance_is_what_shuffling_gives():
    """The formula equals the share over many random orders."""
    rng = random.Random(0)
    texts = [f"t{number}" for number in range(12)]
    pairs = [(a, b, rng.random() < 0.3) for a, b in itertools.combinations(texts, 2)]
    evaluate = NeighbourEvaluator(pairs, top_k=(1, 3))
    hits = {1: 0, 3: 0}
    owners = sorted({a for a, _ in evaluate.similar})
    rounds = 3_000
    for _ in range(rounds):
        for owner in owners:
            others = [number for number in range(12) if number != owner]
            rng.shuffle(others)
            for k in hits:
                hits[k] += any((owner, other) in evaluate.similar for other in others[:k])
    for k, share in evaluate.chance.items():
        assert share == pytest.approx(hits[k] / rounds / len(owners), abs=0.02)


def test_evaluators_of_a_dataset(protractor):
    """Each is Sentence Transformers' own, fed with the dataset, and says what it should by hand."""
    pairs = Dataset.from_dict({"anchor": ["0°", "0°", "90°"], "positive": ["10°", "350°", "80°"]})
    found = HardNegativeDataset(pairs, ["note 40°", "note 81°", "note 89°"], MiningConfig(num_negatives=2))
    assert found.to_evaluator("ir")(protractor)["cosine_mrr@10"] == pytest.approx((1 + 1 / 3) / 2)
    found.mine(protractor, show_progress_bar=False)
    assert found.to_evaluator("triplet", name="dev")(protractor)["dev_cosine_accuracy"] < 1.0
    reranked = found.to_evaluator("reranking", at_k=10)(protractor)
    assert reranked["mrr@10"] == pytest.approx((1 + 1 / 3) / 2)
    assert found.to_evaluator("outranks")(protractor)["outranks_all"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="Expected `kind` to be one of"):
        found.to_evaluator("ndcg")


class Prompted:
    """Notes the prompts with which it is asked to encode."""

    def __init__(self, model) -> None:
        self.model, self.seen = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def encode_query(self, texts, prompt=None, prompt_name=None, **options):
        self.seen.append(("query", prompt, prompt_name))
        return self.model.encode_query(texts, **options)

    def encode_document(self, texts, prompt=None, prompt_name=None, **options):
        self.seen.append(("document", prompt, prompt_name))
        return self.model.encode_document(texts, **options)


@pytest.mark.parametrize("by", ["recipe", "mine", "caller", "nobody"])
def test_an_evaluator_has_the_prompts_of_the_mining(protractor, by):
    """Of the recipe or of `mine`, unless the caller names others; where nobody names any, the model's own."""
    pairs = Dataset.from_dict({"anchor": ["0°", "90°"], "positive": ["10°", "80°"]})
    prompts = {"query_prompt": "q: ", "corpus_prompt": "d: "}
    found = HardNegativeDataset(pairs, ["note 40°"], MiningConfig(**(prompts if by == "recipe" else {})))
    if by == "mine":
        found.mine(protractor, prompts={"anchor": "q: ", "positive": "d: "}, show_progress_bar=False)
    model = Prompted(protractor)
    found.to_evaluator(**({"query_prompt": "Q: ", "corpus_prompt": "D: "} if by == "caller" else {}))(model)
    expected = {"recipe": ("q: ", "d: "), "mine": ("q: ", "d: "), "caller": ("Q: ", "D: "), "nobody": (None, None)}[by]
    assert set(model.seen) == {("query", expected[0], None), ("document", expected[1], None)}
    with pytest.raises(TypeError, match="`queries` is this dataset's"):
        found.to_evaluator(queries={})


def test_what_evaluators_refuse():
    """Lists that do not fit, rows without negatives, pairs of which none is similar."""
    with pytest.raises(ValueError, match="Expected as many anchors"):
        OutranksEvaluator(["a"], ["b", "c"], [["d"]])
    with pytest.raises(ValueError, match="got none in row 0"):
        OutranksEvaluator(["a"], ["b"], [[]])
    with pytest.raises(ValueError, match="that are similar, got none"):
        NeighbourEvaluator([("a", "b", False), ("c", "c", True)])
    with pytest.raises(ValueError, match="numbers from 1 up"):
        NeighbourEvaluator([("a", "b", True)], top_k=())
    with pytest.raises(TypeError, match="Expected an evaluator"):
        RefreshEvaluator("neighbours")


class Reporter:
    """Takes what a reporter of transformers takes."""

    def __init__(self) -> None:
        self.drawn: list[tuple] = []
        self.tb_writer = self._wandb = self._trackio = self

    def add_histogram_raw(self, tag, min, max, num, sum, sum_squares, bucket_limits, bucket_counts, global_step):
        assert len(bucket_limits) == len(bucket_counts) and num == torch.tensor(bucket_counts).sum()
        assert bucket_limits[-1] == pytest.approx(max) and min <= max and sum_squares >= 0
        self.drawn.append((tag, global_step))

    def log(self, values):
        (name, drawn), (_, step) = values.items()
        counts, edges = drawn
        assert len(edges) == len(counts) + 1
        self.drawn.append((name, step))

    def Histogram(self, np_histogram):
        return np_histogram


class TensorBoardCallback(Reporter):
    pass


class WandbCallback(Reporter):
    pass


class TrackioCallback(Reporter):
    pass


def test_histograms_reach_reporters(protractor):
    """Each takes the three of a report; others, and those that have no run, are passed over."""
    from types import SimpleNamespace

    pairs = Dataset.from_dict({"anchor": ["0°", "90°"], "positive": ["10°", "80°"]})
    found = HardNegativeDataset(pairs, ["note 40°", "note 70°"], MiningConfig(num_negatives=2))
    report = found.mine(protractor, show_progress_bar=False)
    reporters = [TensorBoardCallback(), WandbCallback(), TrackioCallback()]
    idle = TensorBoardCallback()
    idle.tb_writer = None
    handler = SimpleNamespace(callbacks=[*reporters, idle, object()])
    trainer = SimpleNamespace(callback_handler=handler, is_world_process_zero=lambda: True)
    log_histograms(report, trainer, 7)
    for reporter in reporters:
        assert reporter.drawn == [(f"mining/{name}_scores", 7) for name in ("positive", "negative", "difference")]
    assert not idle.drawn
    log_histograms(report, None, 7)


def with_warnings(test):
    for mark in HOST_WARNINGS:
        test = mark(test)
    return test


@pytest.mark.training
@with_warnings
def test_at_each_refresh_in_the_log(tmp_path, monkeypatch):
    """The check runs as the training begins and after every refresh, and histograms with it, the first included."""
    from transformers import TrainerCallback

    class Writer(TrainerCallback):
        steps: tuple = ()

        def on_train_begin(self, args, state, control, **kwargs):
            self.tb_writer = self

        def add_histogram_raw(self, tag, **values):
            Writer.steps += ((tag, values["global_step"]),)

    Writer.__name__ = "TensorBoardCallback"
    model, hard_negatives = make_model(), make_negatives()
    hard_negatives.mine(model, show_progress_bar=False)
    texts = [anchor for anchor, _ in hard_negatives.known_pairs()][:12]
    check = RefreshEvaluator(NeighbourEvaluator([(texts[i], texts[i + 1], i % 2 == 0) for i in range(11)]))
    args = make_args(tmp_path)
    callback = MiningCallback(hard_negatives, mining_steps=5)
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=hard_negatives.as_dataset(),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[Writer(), callback, check],
    )
    trainer.train()
    logged = [one for one in trainer.state.log_history if "mining/neighbour_accuracy@1" in one]
    refreshes = [one["step"] for one in trainer.state.log_history if "mining/refresh" in one]
    assert refreshes and [one["step"] for one in logged] == [0, *refreshes]
    assert all("mining/neighbour_chance@1" in one for one in logged)
    assert [step for tag, step in Writer.steps if tag == "mining/negative_scores"] == [0, *refreshes]
    assert model.training
