"""Names, ids and tokens from outside, and files from others."""

from __future__ import annotations

import ast
import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import st_hardneg
from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.training.checkpoint import folder_of
from tests.training.runs import TEXTS, make_args, make_model, make_negatives, run

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.*:FutureWarning"),
]
EVIL = ["../../evil", "/evil", "..", ".", "C:\\evil", "a/b", "nul\0", "\ud800", "x" * 5000, ""]
TOKEN = "hf_ThisIsASecretThatNobodyMayRead"


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_name_of_a_dataset_never_becomes_a_path(tmp_path):
    """Whatever it is, its state lies in a folder of plain letters, and each name has its own."""
    folders = {folder_of(str(tmp_path), name) for name in EVIL}
    assert len(folders) == len(EVIL)
    for folder in folders:
        assert Path(folder).parent == tmp_path / "hard_negatives" and Path(folder).name.isalnum()


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


def test_an_id_of_a_corpus_never_becomes_a_path(tmp_path):
    """Ids are kept as they are, in Arrow, and nothing is written beside the save."""
    ids = [name for name in EVIL if "\ud800" not in name]
    corpus = Dataset.from_dict({"_id": ids, "text": TEXTS[160 : 160 + len(ids)]})
    pairs = Dataset.from_dict({"anchor": TEXTS[:20], "positive": TEXTS[80:100]})
    hard_negatives = HardNegativeDataset(pairs, corpus, MiningConfig(num_negatives=2))
    hard_negatives.mine(make_model(), show_progress_bar=False)
    folder = tmp_path / "one" / "saved"
    hard_negatives.save_to_disk(folder)
    loaded = HardNegativeDataset.load_from_disk(folder)
    named = {name for row in loaded.provenance()["negative_ids"] for name in row}
    assert named & set(ids) and loaded.corpus.id_column == "_id"
    assert {path.split("/")[0] for path in files_under(tmp_path)} == {"one"}
    assert {path.split("/")[1] for path in files_under(folder.parent) if "/" in path} <= {
        "pairs",
        "corpus",
        "negatives",
        "st_hardneg.json",
    }


def test_tokens_stay_out_of_logs_reports_and_files(tmp_path, monkeypatch, caplog, capsys):
    """A token goes to `datasets`, and nowhere else: neither when pushing, nor when it fails, nor in a checkpoint."""
    model = make_model()
    hard_negatives = make_negatives(model)
    pushed = []
    with caplog.at_level(logging.DEBUG):
        monkeypatch.setattr(Dataset, "push_to_hub", lambda self, *_, **options: pushed.append(options["token"]))
        hard_negatives.push_to_hub("me/x", token=TOKEN)
        monkeypatch.setattr(Dataset, "push_to_hub", lambda self, *_, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError) as failed:
            hard_negatives.push_to_hub("me/x", token=TOKEN)
        callback = MiningCallback(hard_negatives, mining_steps=2)
        trainer = SentenceTransformerTrainer(
            model=model,
            args=make_args(tmp_path / "output", max_steps=3, save_steps=3, hub_token=TOKEN),
            train_dataset=hard_negatives.as_dataset(),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[callback],
        )
        trainer.train()
    assert pushed == [TOKEN, TOKEN]
    hard_negatives.save_to_disk(tmp_path / "saved")
    shown = [
        caplog.text,
        *capsys.readouterr(),
        repr(hard_negatives),
        str(failed.value),
        repr(trainer.state.log_history),
    ]
    shown += [str(callback.reports[0]), json.dumps(callback.reports[0].to_dict()), repr(vars(hard_negatives))]
    assert not any(TOKEN in text for text in shown)
    ours = [tmp_path / "saved", tmp_path / "output" / "checkpoint-3" / "hard_negatives"]
    written = [path for folder in ours for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 8 and not any(TOKEN.encode() in path.read_bytes() for path in written)


def test_nothing_is_unpickled_when_files_are_read(tmp_path, monkeypatch):
    """A save and a checkpoint are read with every way to unpickle out of order."""
    hard_negatives = make_negatives(make_model())
    hard_negatives.save_to_disk(tmp_path / "saved")
    _, trained, _ = run(tmp_path / "output", max_steps=4, save_steps=4)

    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    from st_hardneg.training.checkpoint import read_checkpoint

    with monkeypatch.context() as patch:
        for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
            patch.setattr(module, name, refuse)
        loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved")
        state = read_checkpoint(
            str(tmp_path / "output" / "checkpoint-4"),
            None,
            config=trained.config.to_dict(),
            data_fingerprint=trained.data_fingerprint,
            schedule=None,
            num_rows=len(trained),
            num_corpus=len(trained.corpus),
            num_sources=len(trained.source_names),
        )
    assert (loaded.negative_ids == hard_negatives.negative_ids).all()
    assert state is not None and state.mining.negative_ids.shape == (80, 2)


def test_no_code_from_files_is_run():
    """The package calls nothing that unpickles or evaluates, and loads arrays without pickles only."""
    forbidden = {"eval", "exec", "compile_command", "__import__", "import_module", "Unpickler", "trust_remote_code"}
    calls = []
    for path in Path(st_hardneg.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {name.split(".")[0] for name in names} & {"pickle", "dill", "joblib", "shelve", "marshal"}, (
                    path
                )
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called.endswith(".eval") and not node.args:
                continue  # a torch module's evaluation mode
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called.split(".")[-1] not in forbidden and "trust_remote_code" not in keywords, (path, node.lineno)
            if called in ("np.load", "numpy.load", "torch.load", "yaml.load"):
                calls.append(called)
                assert called == "np.load" and keywords.get("allow_pickle") == "False", (path, node.lineno)
    assert calls == ["np.load"]  # the drop-in's cache of embeddings; the check sees it
