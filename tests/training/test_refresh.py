"""Refreshes: what fails in one changes nothing, and what is found is what the model of the moment finds."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig, MiningError
from st_hardneg.live.table import NegativeTable
from st_hardneg.search import ExactSearcher
from st_hardneg.strategies import Softmax
from tests.conftest import WORDS, word_model
from tests.training.runs import HOST_WARNINGS, ids_of, make_args, make_model, make_negatives, run, table_of, train

pytestmark = [pytest.mark.training, *HOST_WARNINGS]
STEPS, EVERY, FAULT = 9, 3, 6


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The batches and the negatives of a run to which nothing happens."""
    batches, hard_negatives, _ = run(tmp_path_factory.mktemp("whole"), max_steps=STEPS, save_strategy="no")
    return batches, ids_of(hard_negatives)


class Watched(MiningCallback):
    """Notes everything that a failing refresh must not change, just before the refresh at which the fault comes."""

    def __init__(self, inject, hard_negatives=None, mining_steps=EVERY):
        super().__init__(hard_negatives, mining_steps=mining_steps)
        self.inject = inject
        self.before = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == FAULT:
            self.running = self.trainer  # the callback itself does not hold it
            self.before = snapshot(self.running, self.hard_negatives, self)
            self.inject(kwargs["model"])
        super().on_step_end(args, state, control, **kwargs)


def snapshot(trainer, hard_negatives, callback) -> dict:
    """Return the state of the training and of the negatives, to be compared with ``==``."""
    model, mining = trainer.model, hard_negatives.live.mining
    return {
        "step": trainer.state.global_step,
        "weights": [parameter.detach().tolist() for parameter in model.parameters()],
        "optimizer": repr(trainer.optimizer.state_dict()),
        "modes": [module.training for module in model.modules()],
        "random": (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()),  # noqa: NPY002
        "negatives": (mining.negatives.ids.tolist(), mining.negatives.similarities.tolist()),
        "report": id(hard_negatives.report),
        "table": [table_of(hard_negatives, previous=previous) for previous in (False, True)],
        "generation": hard_negatives.live.view.table.generation,
        "minings": hard_negatives.live.num_minings,
        "view": hard_negatives.as_dataset()[:],
        "reports": [report.step for report in callback.reports],
        "metrics": [entry["step"] for entry in trainer.state.log_history if "mining/refresh" in entry],
    }


def raise_(error):
    def fail(*_, **__):
        raise error

    return fail


def nan_embeddings(model):
    infer = model._inference
    model._inference = lambda inputs, **options: infer(inputs, **options) * torch.nan


def interrupted_encoding(model):
    """Ctrl-C after the queries were encoded, before the corpus is."""
    infer, calls = model._inference, []

    def once(inputs, **options):
        calls.append(inputs)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return infer(inputs, **options)

    model._inference = once


FAULTS = {
    "out of memory": (
        lambda patch, model: setattr(model, "_inference", raise_(torch.OutOfMemoryError("CUDA out of memory."))),
        MiningError,
        "enough memory to encode one text at a time",
    ),
    "diverged": (lambda patch, model: nan_embeddings(model), MiningError, "Expected finite embeddings"),
    "interrupt while encoding": (lambda patch, model: interrupted_encoding(model), KeyboardInterrupt, None),
    "interrupt while searching": (
        lambda patch, model: patch.setattr(ExactSearcher, "search", raise_(KeyboardInterrupt())),
        KeyboardInterrupt,
        None,
    ),
    "interrupt while writing": (
        lambda patch, model: patch.setattr(NegativeTable, "write", raise_(KeyboardInterrupt())),
        KeyboardInterrupt,
        None,
    ),
    "a broken index": (
        lambda patch, model: patch.setattr(ExactSearcher, "search", raise_(RuntimeError("index on fire"))),
        RuntimeError,
        "index on fire",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refresh_that_fails_changes_nothing_and_the_run_can_be_resumed(tmp_path, monkeypatch, uninterrupted, fault):
    """At the second refresh; judged by weights, optimizer, modes, random states, negatives, tables, views and files."""
    inject, error, message = FAULTS[fault]
    with monkeypatch.context() as patch:
        callback = Watched(lambda model: inject(patch, model))
        with pytest.raises(error, match=message):
            run(tmp_path, callback=callback, max_steps=STEPS, auto_find_batch_size=True)
        patch.undo()
        assert callback.before["reports"] == callback.before["metrics"] == [EVERY]
        assert callback.before["negatives"][0] == callback.before["table"][0] != callback.before["table"][1]
        after = snapshot(callback.running, callback.hard_negatives, callback)
        assert {name for name in after if after[name] != callback.before[name]} == set()
    assert sorted(os.listdir(tmp_path)) == [f"checkpoint-{step}" for step in range(1, FAULT)]
    batches, resumed, _ = run(tmp_path, resume=True, max_steps=STEPS, save_strategy="no")
    assert batches == uninterrupted[0][FAULT - 1 :] and ids_of(resumed) == uninterrupted[1]


def test_an_interrupt_while_the_table_is_written_leaves_old_or_new_but_no_mixture():
    """Ctrl-C may come between any two lines, and most likely when the long copy is over: all parts tell the same."""
    model, hard_negatives = make_model(), make_negatives(make_model())
    hard_negatives.as_dataset()
    outcomes, line = [], 1
    while True:
        before, minings = ids_of(hard_negatives), hard_negatives.live.num_minings
        mining = hard_negatives.compute_mining(model, show_progress_bar=False)
        seen = 0

        def trace(frame, event, _):
            nonlocal seen
            if frame.f_code is NegativeTable.write.__code__ and event in ("line", "return"):
                seen += 1
                if seen == line:  # noqa: B023 - called within this round only
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        tracing = sys.gettrace()
        try:
            sys.settrace(trace)
            hard_negatives.live.apply(mining)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(tracing)
        is_new = hard_negatives.live.num_minings > minings
        outcomes.append(is_new)
        assert ids_of(hard_negatives) == (mining.negatives.ids.tolist() if is_new else before), line
        assert table_of(hard_negatives) == ids_of(hard_negatives), line
        line += 1
    assert set(outcomes) == {False, True}


# --- compiled models ----------------------------------------------------------------------------------------------


class Independent(MiningCallback):
    """Mines beside every refresh, with a new model that has the weights of the moment."""

    def __init__(self, hard_negatives, mining_steps=EVERY):
        super().__init__(hard_negatives, mining_steps=mining_steps)
        self.found, self.expected = [], []

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step % self.mining_steps == 0 and state.global_step < state.max_steps:
            alone, trained = make_model(), getattr(kwargs["model"], "_orig_mod", kwargs["model"])
            with torch.no_grad():
                alone[0].embedding.weight.copy_(trained[0].embedding.weight)
            self.found.append(ids_of(self.hard_negatives))
            self.expected.append(ids_of(make_negatives(alone, sampling_strategy="top")))


@pytest.mark.parametrize("how", ["arguments", "arguments, aot_eager", "in place", "wrapped"])
def test_a_compiled_model_is_mined_with_as_it_is_at_the_moment(tmp_path, how):
    """However it is compiled, every refresh finds what an uncompiled model with the same weights finds."""
    model = make_model()
    hard_negatives = make_negatives(model, sampling_strategy="top")
    options = {"save_strategy": "no", "max_steps": STEPS}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trained = model
    if how.startswith("arguments"):
        options |= {"torch_compile": True, "torch_compile_backend": "aot_eager" if "aot" in how else "eager"}
    elif how == "in place":
        model.compile(backend="eager")
    else:
        trained = torch.compile(model, backend="eager")
    initial = ids_of(hard_negatives)
    # Mining by hand takes the wrapper, too.
    hard_negatives.mine(trained, show_progress_bar=False)
    assert ids_of(hard_negatives) == initial
    callback = Independent(hard_negatives)
    trainer = SentenceTransformerTrainer(
        model=trained,
        args=make_args(tmp_path, **options),
        train_dataset=hard_negatives.as_dataset(),
        loss=MultipleNegativesRankingLoss(trained),
        callbacks=[callback],
    )
    trainer.train()
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0  # it was compiled, indeed
    torch._dynamo.reset()
    assert len(callback.found) == 2
    for found, expected in zip(callback.found, callback.expected, strict=True):
        assert found == expected != initial
    assert callback.found[0] != callback.found[1]


# --- memory, weights, adapters ----------------------------------------------------------------------------------------


def fail_above(model, batch_size: int) -> list[int]:
    """Let the model run out of memory with more texts at once than this; return the sizes that were tried."""
    tried: list[int] = []
    infer = model._inference

    def limited(inputs, **options):
        tried.append(options["batch_size"])
        if options["batch_size"] > batch_size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return infer(inputs, **options)

    model._inference = limited
    return tried


def test_out_of_memory_to_the_last_is_an_error_that_does_not_restart_training(tmp_path):
    """Under `auto_find_batch_size` the error reaches the user, and training does not begin anew."""
    model = make_model()
    hard_negatives = make_negatives(model)
    before = ids_of(hard_negatives)
    begun = []

    class Counter(MiningCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            begun.append(state.global_step)
            super().on_train_begin(args, state, control, **kwargs)

    fail_above(model, 0)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path, auto_find_batch_size=True, save_strategy="no"),
        train_dataset=hard_negatives.as_dataset(),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[Counter(hard_negatives, mining_steps=3)],
    )
    with pytest.raises(MiningError, match="Expected enough memory to encode one text at a time"):
        trainer.train()
    assert begun == [0] and trainer.state.global_step == 3
    assert ids_of(hard_negatives) == before


def test_weights_that_diverged_end_the_training_with_the_texts_named(tmp_path):
    """NaN weights are found at the next refresh; the negatives of before are intact."""
    model = make_model()
    hard_negatives = make_negatives(model)
    before = ids_of(hard_negatives)

    class Diverge(MultipleNegativesRankingLoss):
        def forward(self, sentence_features, labels):
            with torch.no_grad():
                model[0].embedding.weight[:] = math.nan
            return super().forward(sentence_features, labels)

    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path, save_strategy="no"),
        train_dataset=hard_negatives.as_dataset(),
        loss=Diverge(model),
        callbacks=[MiningCallback(hard_negatives, mining_steps=3)],
    )
    with pytest.raises(MiningError, match="The weights may have diverged"):
        trainer.train()
    assert ids_of(hard_negatives) == before


def test_a_model_wrapped_by_peft_is_mined_with(tmp_path):
    """Adapters count: mining sees the weights that training changes."""
    pytest.importorskip("peft")
    try:  # the host's own check, which is stricter than what peft's versions promise
        from transformers.utils.peft_utils import check_peft_version

        check_peft_version(min_version="0.22.0")
    except (ImportError, ValueError) as error:
        pytest.skip(f"transformers does not take this peft ({error})")
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [f"w{number}" for number in range(60)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = BertConfig(vocab_size=62, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "bert")
    transformer = Transformer(str(tmp_path / "bert"))
    model = SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")
    model.add_adapter(LoraConfig(r=4, target_modules=["query", "value"]))
    pairs = Dataset.from_dict({"anchor": words[:20], "positive": words[20:40]})
    hard_negatives = HardNegativeDataset(pairs, words[40:], MiningConfig(num_negatives=2))
    untrained = hard_negatives.mine(model, show_progress_bar=False)
    callback = MiningCallback(hard_negatives, mining_steps=4)
    SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path / "out", max_steps=6, learning_rate=0.5, save_strategy="no"),
        train_dataset=hard_negatives.as_dataset(),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[callback],
    ).train()
    (report,) = callback.reports
    assert report.scores["positive"]["mean"] != pytest.approx(untrained.scores["positive"]["mean"], abs=1e-4)
    alone = HardNegativeDataset(pairs, words[40:], MiningConfig(num_negatives=2))
    # The last refresh was at step 4; two steps later the adapters score otherwise.
    later = alone.mine(model, show_progress_bar=False)
    assert later.scores["positive"]["mean"] != pytest.approx(report.scores["positive"]["mean"], abs=1e-6)


# --- another model in place of the one in training --------------------------------------------------------------------


def test_a_teacher_mines_in_place_of_the_model(tmp_path):
    """With `retriever=`, negatives come from the teacher, however the student changes."""
    model = make_model()
    teacher = word_model(WORDS, torch.randn(len(WORDS), 8, generator=torch.Generator().manual_seed(9)))
    pairs = Dataset.from_dict({"anchor": WORDS[:50], "positive": WORDS[50:100]})
    hard_negatives = HardNegativeDataset(pairs, WORDS[100:], MiningConfig(num_negatives=2))
    hard_negatives.mine(model, show_progress_bar=False)
    callback = MiningCallback(hard_negatives, mining_steps=3, retriever=teacher)
    train(tmp_path, [callback], hard_negatives.as_dataset(), model, max_steps=5)
    alone = HardNegativeDataset(pairs, WORDS[100:], MiningConfig(num_negatives=2))
    alone.mine(teacher, show_progress_bar=False)
    assert ids_of(hard_negatives) == ids_of(alone)


@pytest.mark.parametrize(
    ("config", "schedule", "is_idle"),
    [
        ({"sampling_strategy": "top"}, None, True),
        ({"sampling_strategy": "random"}, None, False),
        ({"sampling_strategy": Softmax(0.1)}, None, False),
        ({"sampling_strategy": "top", "random_rate": 0.1}, None, False),
        ({"sampling_strategy": "top", "sources": {"dense": 1, "random": 1}}, None, False),
        ({"sampling_strategy": "top"}, {"range_min": 1}, False),
    ],
)
def test_a_frozen_model_that_finds_the_same_again_is_said(tmp_path, caplog, config, schedule, is_idle):
    """With nothing drawn and nothing scheduled, no refresh after the first changes anything."""
    model = make_model()
    hard_negatives = make_negatives(model, **config)
    callback = MiningCallback(hard_negatives, mining_steps=1, retriever=make_model(3), schedule=schedule)
    with caplog.at_level(logging.WARNING, "st_hardneg"):
        train(tmp_path, [callback], hard_negatives.as_dataset(), model, max_steps=4)
    assert caplog.text.count("finds the same negatives again") == int(is_idle)
    changes = [report.churn for report in callback.reports if report.step > 1]
    assert (max(changes) == 0.0) == (is_idle or schedule is not None)
