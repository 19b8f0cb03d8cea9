"""Cross encoders in training: what a retriever finds, they rescore; what reaches their losses, and at which step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses
from transformers import TrainerCallback

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.search import ExactSearcher
from st_hardneg.training.inputs import OF_CROSS_ENCODERS
from st_hardneg.training.rescoring import TrainedCrossEncoder
from st_hardneg.training.timing import first_step_seen
from tests import tiny_models
from tests.conftest import other_model
from tests.training.runs import HOST_WARNINGS, TEXTS

pytestmark = [pytest.mark.training, *HOST_WARNINGS]

LAYOUTS = {
    "BinaryCrossEntropyLoss": "labeled-pair",
    "MSELoss": "labeled-pair",
    "CrossEntropyLoss": "labeled-pair",
    "LambdaLoss": "labeled-list",
    "ListNetLoss": "labeled-list",
    "ListMLELoss": "labeled-list",
    "PListMLELoss": "labeled-list",
    "RankNetLoss": "labeled-list",
    "ADRMSELoss": "labeled-list",
    "MultipleNegativesRankingLoss": "n-tuple",
    "CachedMultipleNegativesRankingLoss": "n-tuple",
    "MarginMSELoss": "n-tuple",
}
WITH_SCORES = ("MSELoss", "MarginMSELoss", "LambdaLoss")


def make_negatives(dense, **options) -> HardNegativeDataset:
    """Return 40 rows, mined by a draw from the 12 nearest of 200 texts."""
    pairs = Dataset.from_dict({"anchor": TEXTS[:40], "positive": TEXTS[80:120]})
    recipe = MiningConfig(num_negatives=2, sampling_strategy="random", range_max=12)
    found = HardNegativeDataset(pairs, [*TEXTS[80:120], *TEXTS[160:]], recipe, **options)
    found.mine(dense, show_progress_bar=False)
    return found


def make_args(folder, **options) -> CrossEncoderTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 0.02,
        "logging_steps": 1,
        "use_cpu": True,
    }
    return CrossEncoderTrainingArguments(output_dir=str(folder), **{**defaults, **options})


def texts_of(found: HardNegativeDataset) -> dict[str, list[str]]:
    """Return the negatives of each anchor that are in force."""
    ids = found.negative_ids
    return {anchor: found.corpus.texts.take(row) for anchor, row in zip(TEXTS[:40], ids, strict=True)}


class States(TrainerCallback):
    """Notes the negatives that are in force from each step on."""

    def __init__(self, found: HardNegativeDataset) -> None:
        self.found, self.states = found, {0: texts_of(found)}

    def on_step_end(self, args, state, control, **_):
        if (now := texts_of(self.found)) != next(reversed(self.states.values())):
            self.states[state.global_step] = now


def pairs_of(layout: str, inputs: list) -> list[tuple[str, str]]:
    """Return the pairs of anchor and negative that are in a batch; every text of these is a negative of its anchor."""
    if layout == "n-tuple":
        return [(anchor, text) for column in inputs[2:] for anchor, text in zip(inputs[0], column, strict=True)]
    if layout == "labeled-list":
        return [(anchor, text) for anchor, texts in zip(*inputs, strict=True) for text in texts[1:]]
    positives = dict(zip(TEXTS[:40], TEXTS[80:120], strict=True))
    return [(anchor, text) for anchor, text in zip(*inputs, strict=True) if positives[anchor] != text]


def train(folder, name: str = "MultipleNegativesRankingLoss", *, dense=None, resume=None, **options):
    """Train with refreshes every three steps, and return the batches, the callback, the states and the dataset."""
    model = tiny_models.cross_encoder(folder / "model", num_labels=2 if name == "CrossEntropyLoss" else 1)
    dense = dense or other_model(1)
    extra = {"teacher": tiny_models.cross_encoder(folder / "teacher", seed=5)} if name in WITH_SCORES else {}
    found = make_negatives(dense, **extra)
    loss = getattr(losses, name)(model)
    batches: list[tuple] = []
    loss.register_forward_pre_hook(lambda _, args, options: batches.append(args), with_kwargs=True)
    callback, states = MiningCallback(found, 3, retriever=dense), States(found)
    dataset = found.as_dataset(LAYOUTS[name], with_scores=bool(extra))
    trainer = CrossEncoderTrainer(
        model=model,
        args=make_args(folder / "out", **options),
        train_dataset=dataset,
        loss=loss,
        callbacks=[callback, states],
    )
    trainer.train(resume_from_checkpoint=resume)
    return batches, callback, states.states, found


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_loss_reads_new_negatives_at_the_stated_step(name, tmp_path):
    """Batches hold the negatives in force; after a refresh at step 3, all of those of step 5 are new."""
    batches, callback, states, found = train(tmp_path, name)
    assert [report.step for report in callback.reports] == [3, 6, 9] and set(states) == {0, 3, 6, 9}
    args = make_args(tmp_path)
    for step, (inputs, labels) in enumerate(batches, start=1):
        of = max(at for at in states if at == 0 or first_step_seen(at, args) <= step)
        pairs = pairs_of(LAYOUTS[name], inputs)
        assert all(text in states[of][anchor] for anchor, text in pairs), step
        if name == "BinaryCrossEntropyLoss":
            assert labels.tolist() == [int((anchor, text) not in pairs) for anchor, text in zip(*inputs, strict=True)]
    assert sum(len(pairs_of(LAYOUTS[name], inputs)) for inputs, _ in batches) > 20
    assert bool(found.live.mining.negatives.cross_encoder_scores.isfinite().all())
    assert len(found.as_dataset("labeled-pair")) == 40 * 3 and len(found.as_dataset("labeled-list")) == 40


def test_no_loss_is_left_out():
    """Every loss of the installed release is trained with above."""
    assert {name for name in losses.__all__ if name.endswith("Loss")} == set(LAYOUTS)
    assert {name: (layout,) for name, layout in LAYOUTS.items()} == OF_CROSS_ENCODERS


def test_workers_read_nothing_old_after_the_stated_step(tmp_path):
    """With two workers and their queues, the bound is the stated one, and something new is read soon."""
    options = {"dataloader_num_workers": 2, "max_steps": 24}
    batches, _, states, _ = train(tmp_path, "LambdaLoss", **options)
    args = make_args(tmp_path, **options)
    assert first_step_seen(3, args) == 3 + 1 + 2 * 2 + 1
    for at in (3, 6, 9, 12):
        first = first_step_seen(at, args)
        older = [states[before] for before in states if before < at]
        newer = [states[after] for after in states if after >= at]
        for step, (inputs, _) in enumerate(batches, start=1):
            pairs = pairs_of("labeled-list", inputs)
            if step < at + 1:
                assert all(any(text in state[anchor] for state in older) for anchor, text in pairs)
            if step >= first:
                assert all(any(text in state[anchor] for state in newer) for anchor, text in pairs), (at, step)


@pytest.mark.parametrize(("name", "at"), [("BinaryCrossEntropyLoss", 4), ("MarginMSELoss", 3), ("LambdaLoss", 7)])
def test_a_resumed_training_is_the_same(name, at, tmp_path):
    """Texts, labels and scores of every later batch, the negatives, and their cross encoder's scores."""
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole, _, _, expected = train(tmp_path, name, **saving)
    resumed, callback, _, found = train(tmp_path, name, resume=str(tmp_path / "out" / f"checkpoint-{at}"), **saving)
    assert [inputs for inputs, _ in resumed] == [inputs for inputs, _ in whole[at:]]
    for (_, ours), (_, theirs) in zip(resumed, whole[at:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    for column in ("ids", "cross_encoder_scores", "teacher_scores"):
        ours, theirs = (getattr(one.live.mining.negatives, column) for one in (found, expected))
        # The uninterrupted run keeps scores of pairs, so that others are scored beside each other.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert [report.step for report in callback.reports] == [3, 6, 9]


def test_candidates_are_found_once_and_rescored_at_each_refresh(tmp_path, monkeypatch):
    """After the first refresh the retriever encodes nothing and nothing is searched; scores are those of the moment."""
    dense, encoded, searched = other_model(1), [], []
    encode, search = dense.encode, ExactSearcher.search

    def counted_encode(inputs, *args, **options):
        encoded.extend(inputs)
        return encode(inputs, *args, **options)

    def counted_search(self, embeddings, k):
        searched.append(len(embeddings))
        return search(self, embeddings, k)

    monkeypatch.setattr(dense, "encode", counted_encode)
    monkeypatch.setattr(ExactSearcher, "search", counted_search)
    counts, moments = [], []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            counts.append((len(encoded), sum(searched)))
            if state.global_step in (3, 6, 9):
                negatives = callback_of.live.mining.negatives
                texts = [list(zip([anchor] * 2, row, strict=True)) for anchor, row in texts_of(callback_of).items()]
                flat = [pair for row in texts for pair in row]
                rescored = TrainedCrossEncoder(model).predict(flat, show_progress_bar=False)
                moments.append((negatives.cross_encoder_scores.flatten().numpy(), rescored))

    model = tiny_models.cross_encoder(tmp_path / "model")
    callback_of = make_negatives(dense)
    trainer = CrossEncoderTrainer(
        model=model,
        args=make_args(tmp_path),
        train_dataset=callback_of.as_dataset("labeled-list"),
        loss=losses.LambdaLoss(model),
        callbacks=[MiningCallback(callback_of, 3, retriever=dense), Watch()],
    )
    trainer.train()
    assert counts[2] > counts[1] and counts[2][1] == counts[9][1]
    probes = 3 + 8  # what tells that the retriever is still the same
    assert counts[9][0] - counts[2][0] <= 2 * 2 * probes
    for told, now in moments:
        np.testing.assert_allclose(told, now, atol=1e-5)
    assert not np.allclose(moments[0][0], moments[2][0], atol=1e-3)


def test_the_cross_encoder_is_left_in_the_mode_in_which_it_was_found(tmp_path):
    """Modules, one of which is frozen in eval mode, and random numbers are as they were."""
    model = tiny_models.cross_encoder(tmp_path / "model")
    model.train()
    model.model.bert.embeddings.eval()
    before = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found = make_negatives(other_model(1))
    found.compute_mining(other_model(1), rescorer=TrainedCrossEncoder(model), show_progress_bar=False)
    assert torch.equal(torch.rand(1), expected)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_a_budget_bounds_what_is_rescored(tmp_path):
    """The nearest candidates of each query come first; too small a budget is refused with the least that would do."""
    scored = []

    class Counting:
        def predict(self, pairs, **_):
            scored.extend(pairs)
            return torch.tensor([len(text) / 100 for _, text in pairs])

    dense = other_model(1)
    found = make_negatives(dense, cross_encoder=Counting(), rescoring_budget=2 * 40 + 40 * 5)
    assert 40 + 40 * 5 <= len(scored) == len(set(scored)) <= 2 * 40 + 40 * 5
    found.mine(dense, show_progress_bar=False)
    assert len(scored) <= 2 * 40 + 40 * 5  # the scores are kept, as the cross encoder is the same
    with pytest.raises(ValueError, match=r"`rescoring_budget` to reach for 2 candidates .* 160 pairs, got 100"):
        make_negatives(dense, cross_encoder=Counting(), rescoring_budget=100)


def test_prompts_are_those_of_the_training(tmp_path):
    """One for all pairs is trained and rescored with; one for a column, which the trainer would not use, is refused."""
    model, dense = tiny_models.cross_encoder(tmp_path / "model"), other_model(1)
    used, preprocess = set(), model.preprocess

    def noted(pairs, prompt=None, **options):
        used.add((model.training, prompt))
        return preprocess(pairs, prompt=prompt, **options)

    model.preprocess = noted
    found = make_negatives(dense)

    def trainer(**options):
        return CrossEncoderTrainer(
            model=model,
            args=make_args(tmp_path / "out", max_steps=4, **options),
            train_dataset=found.as_dataset("labeled-list"),
            loss=losses.LambdaLoss(model),
            callbacks=[MiningCallback(found, 3, retriever=dense)],
        )

    trainer(prompts="w7 ").train()
    assert {(True, "w7 "), (False, "w7 ")} <= used and (False, None) not in used
    with pytest.raises(ValueError, match=r"`prompts` .* go by column, \['anchor'\], .* Pass `prompts='w7 '`"):
        trainer(prompts={"anchor": "w7 "}).train()
    with pytest.raises(ValueError, match=r"`router_mapping` .* go by column, \['negative_1'\]"):
        trainer(router_mapping={"negative_1": "document"}).train()
