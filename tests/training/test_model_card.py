"""The card of a trained model names its negatives, their recipe, the refreshes and the last report."""

from __future__ import annotations

import pytest
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import MiningCallback
from tests.training.runs import HOST_WARNINGS, make_args, make_model, make_negatives

pytestmark = [pytest.mark.training, *HOST_WARNINGS]


def test_the_card_tells_of_the_negatives(tmp_path):
    """Once, however often the negatives were refreshed, and under the tag by which such models are found."""
    model = make_model()
    found = make_negatives(model)
    args = make_args(tmp_path, save_strategy="no")
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=found.as_dataset(),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[MiningCallback(found, 4)],
    )
    trainer.train()
    (entry,) = model.model_card_data.train_datasets
    told = entry["stats_table"]
    assert told.count("* Hard negatives: ") == 1 and told.startswith("  |")
    assert (
        f"2 per row, out of {len(found.corpus.searched)} texts for 80 queries" in told
        and "refreshed 2 times, at the steps 4, 8." in told
    )
    assert '"sampling_strategy": "random"' in told and "churn" in told
    del model._create_model_card
    model.model_card_data.local_files_only = True
    model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "- hard-negatives\n" in card and "* Hard negatives: 2 per row" in card
