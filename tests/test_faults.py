"""What goes wrong while mining, and what is left in order."""

from __future__ import annotations

import errno
import logging
import math

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig, MiningError
from st_hardneg.search import ExactSearcher
from tests.test_resume import make_args, make_model, make_negatives


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


def test_out_of_memory_is_met_with_smaller_batches(caplog):
    """The batch size is halved until it fits; the result is the same."""
    expected = make_negatives(make_model()).negative_ids
    model = make_model()
    tried = fail_above(model, 8)
    with caplog.at_level(logging.WARNING):
        found = make_negatives(model).negative_ids
    assert (found == expected).all() and tried[:3] == [32, 16, 8]
    assert "going on with 8" in caplog.text


def test_out_of_memory_to_the_last_is_an_error_that_does_not_restart_training(tmp_path):
    """Under `auto_find_batch_size` the error reaches the user, and training does not begin anew."""
    model = make_model()
    hard_negatives = make_negatives(model)
    before = hard_negatives.negative_ids
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
    assert (hard_negatives.negative_ids == before).all()


def test_weights_that_diverged_end_the_training_with_the_texts_named(tmp_path):
    """NaN weights are found at the next refresh; the negatives of before are intact."""
    model = make_model()
    hard_negatives = make_negatives(model)
    before = hard_negatives.negative_ids

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
    assert (hard_negatives.negative_ids == before).all()


def test_an_interrupt_in_the_middle_of_a_refresh_leaves_everything_as_it_was(monkeypatch):
    """Ctrl-C while searching: negatives, report and live view are those of before, and mining works again."""
    model = make_model()
    hard_negatives = make_negatives(model)
    view = hard_negatives.as_dataset()
    before, report, rows = hard_negatives.negative_ids, hard_negatives.report, view[:]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ExactSearcher, "search", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hard_negatives.mine(make_model(1), show_progress_bar=False)
    assert (hard_negatives.negative_ids == before).all() and hard_negatives.report is report and view[:] == rows
    hard_negatives.mine(make_model(1), show_progress_bar=False)
    assert (hard_negatives.negative_ids != before).any()


def test_a_full_disk_while_saving_leaves_the_earlier_save(tmp_path, monkeypatch):
    """The earlier save is read as before, and nothing half-written is left beside it."""
    hard_negatives = make_negatives(make_model())
    hard_negatives.save_to_disk(tmp_path / "saved")
    before = hard_negatives.negative_ids
    hard_negatives.mine(make_model(1), show_progress_bar=False)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("json.dump", full)
        with pytest.raises(OSError, match="No space left"):
            hard_negatives.save_to_disk(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (HardNegativeDataset.load_from_disk(tmp_path / "saved").negative_ids == before).all()


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
