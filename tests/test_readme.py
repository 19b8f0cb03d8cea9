"""The examples of the README and of the guides run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss
from tests import tiny_models
from tests.conftest import WORDS, random_texts, word_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples" / "guides").glob("*.md"))]


def examples() -> list[object]:
    """Return the Python blocks of all pages."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for number, code in enumerate(blocks):
            is_slow = "background=" in code or page.stem == "trainers"
            marks = [pytest.mark.training] if is_slow else []
            found.append(pytest.param(page, code, id=f"{page.stem}-{number}", marks=marks))
    return found


def small_language_model() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Return a random GPT-2 that knows the words of the tests."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    config = GPT2Config(vocab_size=202, n_positions=512, n_embd=16, n_layer=1, n_head=2, eos_token_id=0)
    config.bos_token_id = config.pad_token_id = 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config), tokenizer


def other_kinds(folder: Path) -> dict[str, object]:
    """Return tiny models of the other kinds that there are trainers for, and their arguments."""
    from sentence_transformers import cross_encoder, multi_vector_encoder, sparse_encoder

    options = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "max_steps": 7, "use_cpu": True}
    options["per_device_train_batch_size"] = 4
    return {
        "splade": tiny_models.splade(folder / "splade"),
        "colbert": tiny_models.colbert(folder / "colbert"),
        "reranker": tiny_models.cross_encoder(folder / "reranker"),
        "teacher": tiny_models.cross_encoder(folder / "teacher", seed=1),
        "sparse_args": sparse_encoder.SparseEncoderTrainingArguments(str(folder), **options),
        "colbert_args": multi_vector_encoder.MultiVectorEncoderTrainingArguments(str(folder), **options),
        "reranker_args": cross_encoder.CrossEncoderTrainingArguments(str(folder), **options),
    }


@pytest.fixture
def names(bag_of_words, tmp_path) -> dict[str, object]:
    """What the pages say that their examples start from."""
    texts = list(dict.fromkeys(random_texts(400, seed=3)))
    pairs = Dataset.from_dict({"anchor": texts[:40], "positive": [f"{text} in 1998" for text in texts[:40]]})
    corpus = Dataset.from_dict(
        {
            "text": texts[80:300],
            "year": [2010 + number % 14 for number in range(220)],
            "domain": ["draft" if number % 10 == 0 else "final" for number in range(220)],
        }
    )
    options = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "max_steps": 7, "use_cpu": True}
    return {
        "model": bag_of_words,
        "teacher": word_model(WORDS, bag_of_words[0].embedding.weight.detach()[1:].flip(1)),
        "pairs": pairs,
        "corpus": corpus,
        "args": SentenceTransformerTrainingArguments(str(tmp_path), **options),
        "loss": MultipleNegativesRankingLoss(bag_of_words),
        "language_model": small_language_model(),
        "cache_dir": str(tmp_path / "cache"),
        "HardNegativeDataset": HardNegativeDataset,
        "MiningCallback": MiningCallback,
        "MiningConfig": MiningConfig,
        "SentenceTransformerTrainer": SentenceTransformerTrainer,
        "SemiHardMultipleNegativesRankingLoss": SemiHardMultipleNegativesRankingLoss,
    }


def as_tried(code: str, names: dict[str, object], tmp_path: Path) -> str:
    """Put a small model in the place of one on the Hub, and a folder in the place of the Hub."""
    if '"sentence-transformers/all-MiniLM-L6-v2"' in code:
        names["model"].save_pretrained(str(tmp_path / "model"))
        code = code.replace('"sentence-transformers/all-MiniLM-L6-v2"', repr(str(tmp_path / "model")))
        code = re.sub(r"model\.max_seq_length = .*", "", code)  # the small one reads all of a text
        code = re.sub(r"SentenceTransformerTrainingArguments\(.*\),", "args,", code)
        names["pairs"].to_csv(str(tmp_path / "pairs.csv"))
    return re.sub(r'push_to_hub\("[^"]*"\)', 'push_to_hub("me/name", dry_run=True)', code)


@pytest.mark.parametrize(("page", "code"), examples())
def test_each_example_runs(page, code, names, tmp_path, monkeypatch):
    """Those of the guides have at most 12 lines; callbacks and trainers that they make are tried out, too."""
    if page.stem != "README":
        assert len(code.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    if page.stem == "trainers":
        names.update(other_kinds(tmp_path))
    if "hard_negatives" in code and "hard_negatives =" not in code:
        names["hard_negatives"] = HardNegativeDataset(names["pairs"], names["corpus"])
        names["hard_negatives"].mine(names["model"], show_progress_bar=False)
    exec(compile(as_tried(code, names, tmp_path), str(page), "exec"), names)
    trainer = names.get("trainer")
    if trainer is None and "callback" in names:
        hard_negatives = names.get("hard_negatives")
        if hard_negatives is None:
            hard_negatives = HardNegativeDataset(names["pairs"], names["corpus"])
        hard_negatives.mine(names["model"], show_progress_bar=False)
        names["callback"].mining_steps = 1
        trainer = SentenceTransformerTrainer(
            model=names["model"],
            args=names["args"],
            train_dataset=hard_negatives.as_dataset(),
            loss=names["loss"],
            callbacks=[names["callback"]],
        )
    elif "callback" in names:
        names["callback"].mining_steps = 3
    if trainer is not None:
        if trainer.state.global_step == 0:
            trainer.train()
        assert trainer.state.global_step > 0
        # A few steps are over before a second process has mined, or a refresh is worth it.
        may_be_none = "background=" in code or "refresh_when=" in code
        assert "callback" not in names or names["callback"].reports or may_be_none
