"""Names and tokens from outside, in a training: a name is no path, and a token stays where it belongs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from datasets import DatasetDict
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import MiningCallback
from tests.training.runs import HOST_WARNINGS, make_args, make_model, make_negatives

pytestmark = [pytest.mark.training, *HOST_WARNINGS]
TOKEN = "hf_ThisIsASecretThatNobodyMayRead"


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_training_with_such_names_writes_into_its_checkpoints_only(tmp_path):
    """The trainer's own names go along; what is written lies in the output folder."""
    model = make_model()
    members = {name: make_negatives(model) for name in ("../../evil", "/st_hardneg_evil")}
    output = tmp_path / "one" / "two" / "output"
    SentenceTransformerTrainer(
        model=model,
        args=make_args(output, max_steps=3, save_steps=3),
        train_dataset=DatasetDict({name: member.as_dataset() for name, member in members.items()}),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[MiningCallback(mining_steps=2)],
    ).train()
    written = list((output / "checkpoint-3" / "hard_negatives").iterdir())
    assert len(written) == 2 and all((folder / "state.json").is_file() for folder in written)
    assert {path.split("/")[0] for path in files_under(tmp_path)} == {"one"}
    assert not any("evil" in path for path in files_under(tmp_path))
    assert not Path("/st_hardneg_evil").exists()


def test_a_token_stays_out_of_logs_reports_and_checkpoints(tmp_path, caplog, capsys):
    """The trainer's arguments hold it; nothing of ours does."""
    model = make_model()
    hard_negatives = make_negatives(model)
    callback = MiningCallback(hard_negatives, mining_steps=2)
    with caplog.at_level(logging.DEBUG):
        trainer = SentenceTransformerTrainer(
            model=model,
            args=make_args(tmp_path / "output", max_steps=3, save_steps=3, hub_token=TOKEN),
            train_dataset=hard_negatives.as_dataset(),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[callback],
        )
        trainer.train()
    shown = [caplog.text, *capsys.readouterr(), repr(trainer.state.log_history), str(callback.reports[0])]
    assert not any(TOKEN in text for text in [*shown, repr(callback.reports[0].to_dict()), repr(vars(hard_negatives))])
    folder = tmp_path / "output" / "checkpoint-3" / "hard_negatives"
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) == 3 and not any(TOKEN.encode() in path.read_bytes() for path in written)
