"""What is written by id is trained on by Sentence Transformers' own means."""

from __future__ import annotations

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import resolve_ids

from st_hardneg import HardNegativeDataset, MiningConfig


@pytest.mark.training
def test_ids_are_trained_on_through_resolve_ids(bag_of_words, word_pairs, tmp_path):
    """The exported folder, its texts looked up batch by batch; scores left out, as this loss takes no labels."""
    hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    folder = hard_negatives.export(tmp_path / "ids", "ids")
    train, queries, documents = (
        Dataset.from_parquet(f"{folder}/{name}.parquet", cache_dir=str(tmp_path / "cache"))
        for name in ("train", "queries", "documents")
    )
    train.set_transform(resolve_ids({"query_id": queries, "document_ids": documents}, keep_columns=()))
    first = train[0]
    assert list(first) == ["query", "document_1", "document_2", "document_3", "document_4"]
    expected = hard_negatives.to_dataset("n-tuple")[0]
    assert list(first.values()) == list(expected.values())
    before = bag_of_words[0].embedding.weight.detach().clone()
    trainer = SentenceTransformerTrainer(
        model=bag_of_words,
        args=SentenceTransformerTrainingArguments(
            str(tmp_path), max_steps=2, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True
        ),
        train_dataset=train,
        loss=MultipleNegativesRankingLoss(bag_of_words),
    )
    trainer.train()
    assert trainer.state.global_step == 2 and not before.equal(bag_of_words[0].embedding.weight)
