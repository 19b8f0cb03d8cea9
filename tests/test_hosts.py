"""What we use of the host libraries and nobody has promised: one test for each library says which name has moved."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pyarrow as pa
import pytest

from st_hardneg import hosts


def check_names(library: str) -> None:
    """Every name of a library is where the table says; all that are not are named at once."""
    missing = {}
    for name, (module, _) in hosts.NAMES.items():
        if module.split(".")[0] == library:
            try:
                hosts.__getattr__(name)
            except ImportError as error:
                missing[name] = str(error)
    assert not missing, "\n".join(missing.values())


def test_datasets():
    """Tables in memory, fingerprints, row indices, formats, and the pickler that hashes transforms."""
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    check_names("datasets")
    dataset = hosts.in_memory_dataset(pa.table({"a": [1, 2, 3]}))
    other = hosts.in_memory_dataset(pa.table({"a": [1, 2, 3]}), fingerprint="ours")
    assert dataset[:] == {"a": [1, 2, 3]} and other._fingerprint == "ours" != dataset._fingerprint
    assert isinstance(dataset.data, hosts.InMemoryTable)
    assert hosts.row_indices(dataset) is None
    assert hosts.row_indices(dataset.select([2, 0])).tolist() == [2, 0]
    hosts.set_fingerprint(dataset, "changed")
    assert dataset._fingerprint == "changed"

    replaced = dataset.select([1])
    hosts.replace_table(replaced, other.data)
    assert replaced[:] == {"a": [1, 2, 3]} and hosts.row_indices(replaced) is None

    chosen = dataset.select([2, 0])
    hosts.replace_table(chosen, other.data)
    assert chosen[:] == {"a": [1, 2, 3]} and chosen.data is other.data
    assert issubclass(hosts.InMemoryTable, hosts.TableBlock)  # a concatenation takes what is a block

    def transform(batch):
        return batch

    assert hosts.transform_of(dataset) is hosts.transform_of(object()) is None
    transformed = dataset.with_transform(transform)
    assert hosts.transform_of(transformed) is transform is hosts.transform_of(transformed.select([1]))
    assert hosts.shows_all_columns(transformed)
    assert not hosts.shows_all_columns(dataset.with_format("python", columns=["a"]))

    class Registered:
        pass

    @hosts.pklregister(Registered)
    def save(pickler, value):
        pickler.save_reduce(str, (value.name,), obj=value)

    first, second = Registered(), Registered()
    first.name, second.name = "one", "other"
    assert Hasher.hash(first) != Hasher.hash(second)
    second.name = "one"
    assert Hasher.hash(first) == Hasher.hash(second)
    assert issubclass(type(dataset), Dataset)


def test_torch():
    """A DataLoader asks a concatenation of datasets for whole batches, once it can."""
    from torch.utils.data import ConcatDataset, DataLoader

    check_names("torch")
    both = ConcatDataset([[10, 11, 12], [20, 21]])
    asked = []

    def make_reader(parts):
        def read(keys):
            asked.append(keys)
            return [[*parts[0], *parts[1]][key] for key in keys]

        return read

    hosts.read_in_batches(both, make_reader)
    assert [batch.tolist() for batch in DataLoader(both, batch_size=2)] == [[10, 11], [12, 20], [21]]
    assert asked == [[0, 1], [2, 3], [4]]
    plain = [1, 2]
    hosts.read_in_batches(plain, make_reader)
    assert not hasattr(plain, "__getitems__")


def test_transformers(tmp_path):
    """From within a callback: the trainer, the checkpoint it resumes from, its folder, and whether it shards."""
    from transformers import Trainer

    check_names("transformers")
    loop = inspect.signature(Trainer._inner_training_loop).parameters
    assert {"self", "resume_from_checkpoint"} <= set(loop), hosts.moved("Trainer._inner_training_loop", "transformers")

    class Quiet(Trainer):
        """A trainer that is nothing but its attributes."""

        def __init__(self):
            self.hp_search_backend = None
            self.hp_name = None
            self.is_fsdp_enabled = self.is_deepspeed_enabled = False
            self.args = type("Arguments", (), {"output_dir": str(tmp_path)})()

        def _inner_training_loop(self, batch_size=None, args=None, resume_from_checkpoint=None, **_):
            return self.call()

        def call(self):
            # The frames between a training loop and a callback have a `self` of their own.
            class Handler:
                def on_train_begin(self):
                    return hosts.calling_trainer(), hosts.resumed_checkpoint()

            return Handler().on_train_begin()

    trainer = Quiet()
    assert trainer._inner_training_loop(resume_from_checkpoint="there") == (trainer, "there")
    assert trainer._inner_training_loop() == (trainer, None)
    assert hosts.calling_trainer() is hosts.resumed_checkpoint() is None
    assert hosts.output_dir(trainer) == str(tmp_path)
    assert not hosts.is_sharded(trainer) and not hosts.is_sharded(None)
    trainer.is_deepspeed_enabled = True
    assert hosts.is_sharded(trainer)
    made = inspect.getsource(Trainer)
    for name in (
        "self._trial = ",
        "self.is_fsdp_enabled = ",
        "self.is_deepspeed_enabled = ",
        "self.hp_search_backend = ",
    ):
        assert name in made, hosts.moved(f"Trainer.{name[5:-3]}", "transformers")


def test_a_trial_of_a_search_has_a_folder_of_its_own(tmp_path):
    """The trainer's own rule decides, with the trial that it keeps."""
    from transformers import Trainer
    from transformers.trainer_utils import HPSearchBackend

    trainer = Trainer.__new__(Trainer)
    trainer.args = type("Arguments", (), {"output_dir": str(tmp_path)})()
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, None
    trainer._trial = type("Trial", (), {"number": 7})()
    assert hosts.output_dir(trainer) == str(tmp_path / "run-7")


def test_sentence_transformers():
    """Batch samplers, encoding that is shared over ranks, losses with a gradient cache, and what a log line adds up."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    check_names("sentence_transformers")
    assert {"NO_DUPLICATES_HASHED", "GROUP_BY_LABEL"} <= set(hosts.BatchSamplers.__members__)
    assert {"scale", "similarity_fct"} <= set(hosts.delegated_attributes(CachedMultipleNegativesRankingLoss))
    assert list(inspect.signature(hosts.distributed_evaluation).parameters) == ["model", "enabled"]
    # `distributed_evaluation` shares what goes through this method.
    assert callable(SentenceTransformer._inference)
    trainer = SentenceTransformerTrainer.__new__(SentenceTransformerTrainer)
    trainer.accum_loss_components = {"train": {"steps": 3}, "eval": {}}
    assert hosts.loss_components(trainer) == {"steps": 3}
    source = inspect.getsource(SentenceTransformerTrainer.__mro__[1])
    assert 'self.accum_loss_components = {"train": {}, "eval": {}}' in source
    assert callable(SentenceTransformerTrainer.track_loss_components)


def test_accelerate():
    """Objects go from rank to rank, and a dataloader reads one batch ahead, by which refreshes are told to be seen."""
    from accelerate.data_loader import DataLoaderShard

    check_names("accelerate")
    assert hosts.broadcast_object_list([{"a": 1}]) == [{"a": 1}] == hosts.gather_object([{"a": 1}])
    read = []

    class Noting(list):
        def __getitem__(self, key):
            read.append(key)
            return super().__getitem__(key)

    batches = iter(DataLoaderShard(Noting(range(4)), batch_size=1))
    next(batches)
    assert read == [0, 1]


def test_what_has_moved_is_named(monkeypatch):
    """By its full name, with the library's release, and as an ImportError, whose words reach the user."""
    monkeypatch.setitem(hosts.NAMES, "gone", ("datasets.utils", "of_another_release"))
    monkeypatch.setitem(hosts.NAMES, "gone_too", ("datasets.no_such_module", "name"))
    with pytest.raises(ImportError, match=r"`datasets.utils.of_another_release` is not there in datasets \d"):
        from st_hardneg.hosts import gone  # noqa: F401
    with pytest.raises(ImportError, match=r"`datasets.no_such_module.name` is not there in datasets \d"):
        hosts.gone_too  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'never_there'"):
        hosts.never_there  # noqa: B018
    with pytest.raises(AttributeError, match=r"`object._indices` is not there in datasets \d"):
        hosts.row_indices(object())


def test_importing_it_imports_no_host():
    """Names are looked up when they are asked for."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('hosts', {hosts.__file__!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "hosts = {'torch', 'datasets', 'transformers', 'sentence_transformers', 'accelerate', 'numpy'}\n"
        "print(sorted(hosts & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
