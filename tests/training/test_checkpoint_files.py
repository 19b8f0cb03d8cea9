"""The files of a checkpoint: what comes back, what is refused, and what is called damaged."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from st_hardneg.config import MiningConfig
from st_hardneg.files.folders import write_folder
from st_hardneg.files.tables import read_table, write_table
from st_hardneg.training import checkpoint as checkpoints
from st_hardneg.training.checkpoint import CheckpointState, folder_of, read_checkpoint, write_checkpoint
from tests.files.states import make_state, values_of

EVIL = ["../../evil", "/evil", "..", ".", "C:\\evil", "a/b", "nul\0", "\ud800", "x" * 5000, ""]


def make_checkpoint_state(**changes) -> CheckpointState:
    """Return the state of a hand-made mining."""
    state = make_state()
    made = CheckpointState(
        mining=state.mining,
        previous_ids=np.array([[0, 1], [-2, 3], [-41, 5], [-1, -1]]),
        live_rows=np.array([0, 2, 3]),
        num_minings=3,
        mined_at=7,
        reports=[state.mining.report.to_dict()],
        config=state.config.to_dict(),
        data_fingerprint="rows and corpus",
        schedule=["hard", 0.5],
        epoch_topics=torch.tensor([1, 0, 1, 0], dtype=torch.int32),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def state() -> CheckpointState:
    """A state that no test changes."""
    return make_checkpoint_state()


def read_back(checkpoint, state: CheckpointState, name: str | None = None, **changes) -> CheckpointState | None:
    """Read as the training does that the state is of."""
    expected = {
        "config": state.config,
        "data_fingerprint": state.data_fingerprint,
        "schedule": state.schedule,
        "num_rows": 5,
        "num_queries": 4,
        "num_corpus": 40,
        "source_names": state.mining.source_names,
    }
    return read_checkpoint(str(checkpoint), name, **{**expected, **changes})


def rewrite(checkpoint, **changes) -> None:
    """Change keys of the JSON file; those that are ... are taken out."""
    path = Path(folder_of(str(checkpoint), None), "state.json")
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}), encoding="utf-8")


def check_same(found: CheckpointState, state: CheckpointState) -> None:
    """Compare everything."""
    assert values_of(found.mining) == values_of(state.mining)
    for name in ("previous_ids", "live_rows", "epoch_topics"):
        one, other = getattr(found, name), getattr(state, name)
        assert (one is None) == (other is None) and (one is None or (one.dtype == other.dtype and (one == other).all()))
    for name in ("num_minings", "mined_at", "reports", "config", "data_fingerprint", "schedule"):
        assert getattr(found, name) == getattr(state, name)


@pytest.mark.parametrize("changes", [{}, {"epoch_topics": None, "mined_at": None, "reports": [], "schedule": None}])
def test_everything_comes_back(tmp_path, changes):
    """Also over an earlier one, and nothing is left beside it."""
    state = make_checkpoint_state(**changes)
    for _ in range(2):
        write_checkpoint(str(tmp_path), None, state)
    check_same(read_back(tmp_path, state), state)
    assert len(list((tmp_path / "hard_negatives").iterdir())) == 1


def test_each_dataset_has_a_folder_of_its_own(tmp_path, state):
    """A name never becomes a path: its state lies in a folder of plain letters."""
    for number, name in enumerate(EVIL):
        write_checkpoint(str(tmp_path), name, replace(state, num_minings=number + 1))
    assert [read_back(tmp_path, state, name).num_minings for name in EVIL] == list(range(1, len(EVIL) + 1))
    folders = list((tmp_path / "hard_negatives").iterdir())
    assert len(folders) == len(EVIL) and all(folder.name.isalnum() for folder in folders)
    assert [path.name for path in tmp_path.iterdir()] == ["hard_negatives"]


def test_a_checkpoint_without_this_dataset(tmp_path, state):
    """There is nothing to go on with, unless it is known that there was."""
    assert read_back(tmp_path, state) is None
    with pytest.raises(ValueError, match="got none: writing them was interrupted"):
        read_back(tmp_path, state, was_refreshed=True)
    write_checkpoint(str(tmp_path), "another", state)
    assert read_back(tmp_path, state, was_refreshed=True) is None


@pytest.mark.parametrize("left", ["an empty folder", "a part", "an empty folder under another name"])
def test_negatives_that_are_missing_are_refused(tmp_path, state, left):
    """They were refreshed before the checkpoint; going on with others would go unnoticed."""
    write_checkpoint(str(tmp_path), None, state)
    folder = folder_of(str(tmp_path), None)
    if left == "a part":
        os.unlink(os.path.join(folder, "state.json"))
    else:
        shutil.rmtree(folder)
        # As a process leaves it that is killed between the two renames.
        os.makedirs(folder if left == "an empty folder" else f"{folder}.st_hardneg-retired-x/save")
    with pytest.raises(ValueError, match="got none: writing them was interrupted"):
        read_back(tmp_path, state)


def test_a_failure_leaves_an_empty_folder(tmp_path, state, monkeypatch):
    """The next read knows that there was a try."""
    monkeypatch.setattr(checkpoints, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_checkpoint(str(tmp_path), None, state)
    assert [list(folder.iterdir()) for folder in (tmp_path / "hard_negatives").iterdir()] == [[]]
    with pytest.raises(ValueError, match="got none: writing them was interrupted"):
        read_back(tmp_path, state)


def test_what_differs_is_named(tmp_path, state):
    """Recipe, data, schedule."""
    write_checkpoint(str(tmp_path), None, state)
    other = MiningConfig(num_negatives=3, seed=7, exclude_pattern=r"^\d+$").to_dict()
    with pytest.raises(ValueError, match=r"got another one: `num_negatives` was 2 and is 3; `seed` was 0 and is 7"):
        read_back(tmp_path, state, config=other)
    with pytest.raises(ValueError, match="Expected the rows and the corpus with which"):
        read_back(tmp_path, state, data_fingerprint="others")
    with pytest.raises(ValueError, match=r"Expected the schedule with which .*\['hard', 0.5\], got None"):
        read_back(tmp_path, state, schedule=None)


@pytest.mark.parametrize("key", sorted(set(checkpoints.KEYS) - {"format", "config", "data_fingerprint", "schedule"}))
def test_a_key_that_is_missing_takes_its_default(tmp_path, state, key):
    """An earlier version did not write it."""
    write_checkpoint(str(tmp_path), None, state)
    rewrite(tmp_path, **{key: ...})
    read_back(tmp_path, state)


@pytest.mark.parametrize("name", sorted(MiningConfig().to_dict()))
def test_a_field_of_the_recipe_that_is_missing_is_its_default(tmp_path, state, name):
    """It had no effect then: no changed recipe, unless it is another one now."""
    write_checkpoint(str(tmp_path), None, state)
    config = {key: value for key, value in state.config.items() if key != name}
    rewrite(tmp_path, config=config)
    if state.config[name] == MiningConfig().to_dict()[name]:
        check_same(replace(read_back(tmp_path, state), config=state.config), state)
    else:
        with pytest.raises(ValueError, match=f"got another one: `{name}` was"):
            read_back(tmp_path, state)


def test_columns_of_another_version(tmp_path, state, caplog):
    """One that is missing holds what stands for nothing, one that is not known is named."""
    write_checkpoint(str(tmp_path), None, state)
    folder = folder_of(str(tmp_path), None)
    table = read_table(folder, "negatives").drop_columns(["steps", "previous_ids"])
    write_table(folder, "negatives", table.append_column("tides", pa.array([1] * 4)))
    rewrite(tmp_path, files={}, moon="full")
    found = read_back(tmp_path, state)
    assert found.mining.negatives.steps.tolist() == [[-1, -1]] * 4
    assert found.previous_ids.tolist() == state.mining.negatives.ids.tolist()
    assert "['tides'], which this version" in caplog.text and "['moon'], which this version" in caplog.text


def test_sources_are_read_by_name(tmp_path, state):
    """A later version has one more built-in source, and the same names."""
    write_checkpoint(str(tmp_path), None, state)
    found = read_back(tmp_path, state, source_names=("elastic", "dense"))
    assert found.mining.source_names == ("elastic", "dense", "web")
    assert found.mining.negatives.sources.tolist() == [[2, 1], [2, -1], [2, 1], [2, 1]]


DAMAGE = {
    "format": [2, "1", None, 1.0],
    "num_minings": [0, -1, 2**40, "3", None, True],
    "mined_at": [-1, 1.5, "x"],
    "reports": [None, {}, [1], [{"removed": 3}]],
    "report": [[], None, {"scores": {"positive": {"mean": "high"}}}, {"num_rows": "five"}],
    "config": [None, []],
    "data_fingerprint": [None, 3, ...],
    "files": [[], {"negatives.arrow": [1, "0"]}, {"lost.arrow": [1, "0"]}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in DAMAGE.items() for value in values])
def test_damaged_keys_are_refused(tmp_path, state, key, value):
    """Another kind of value, or one that says that a file has changed."""
    write_checkpoint(str(tmp_path), None, state)
    rewrite(tmp_path, **{key: value})
    with pytest.raises(ValueError, match=r"got a damaged one|save of format 1"):
        read_back(tmp_path, state)


def test_a_json_file_that_is_none(tmp_path, state):
    """Cut, nested without end, something else."""
    write_checkpoint(str(tmp_path), None, state)
    path = Path(folder_of(str(tmp_path), None), "state.json")
    for text in ("", "{", "[" * 100_000, "[]", "7", "null", '{"format": 1}', "\ud800"):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ValueError, match="got a damaged one"):
            read_back(tmp_path, state)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("previous_ids", [[40, 0]] * 4),
        ("previous_ids", [[-42, 0]] * 4),
        ("previous_ids", [[0]] * 4),
        ("epoch_topics", [4, 0, 0, 0]),
        ("epoch_topics", [-1, 0, 0, 0]),
        ("epoch_topics", [None, 0, 0, 0]),
        ("epoch_topics", [0.5, 0, 0, 0]),
        ("epoch_topics", ["a"] * 4),
        ("ids", [[40, 0]] * 4),
    ],
)
def test_columns_that_cannot_be_are_damage(tmp_path, state, name, values):
    """Also where the file passes for the one that was written; and where it does not, anything that has changed."""
    write_checkpoint(str(tmp_path), None, state)
    folder = folder_of(str(tmp_path), None)
    table = read_table(folder, "negatives")
    kind = table.schema.field(name).type
    array = pa.array(values) if isinstance(values[0], (float, str)) else pa.array(values, kind)
    write_table(folder, "negatives", table.set_column(table.column_names.index(name), name, array))
    for changes in ({}, {"files": {}}):
        rewrite(tmp_path, **changes)
        with pytest.raises(ValueError, match="got a damaged one"):
            read_back(tmp_path, state)


def test_other_shapes_are_damage(tmp_path, state):
    """Rows, queries and texts of another dataset whose fingerprint is forged."""
    write_checkpoint(str(tmp_path), None, state)
    for changes in ({"num_rows": 6}, {"num_queries": 5}, {"num_corpus": 3}):
        with pytest.raises(ValueError, match="got a damaged one"):
            read_back(tmp_path, state, **changes)


def test_negatives_that_have_changed_are_found(tmp_path, state):
    """Other ids that could be there."""
    write_checkpoint(str(tmp_path), None, state)
    folder = folder_of(str(tmp_path), None)
    table = read_table(folder, "negatives")
    ids = pa.array([[1, 2]] * 4, table.schema.field("ids").type)
    write_table(folder, "negatives", table.set_column(table.column_names.index("ids"), "ids", ids))
    with pytest.raises(ValueError, match=r"\['negatives.arrow'\] are not the files that were written"):
        read_back(tmp_path, state)


def test_a_folder_that_was_moved_for_a_moment_is_found(tmp_path, state):
    """A process was killed when it wrote a checkpoint over an earlier one."""
    write_checkpoint(str(tmp_path), None, state)
    folder = folder_of(str(tmp_path), None)
    os.makedirs(f"{folder}.st_hardneg-retired-x")
    os.replace(folder, f"{folder}.st_hardneg-retired-x/save")
    check_same(read_back(tmp_path, state), state)


def test_writing_is_in_one_piece(tmp_path, state, monkeypatch):
    """Through the one function that does so."""
    calls = []
    monkeypatch.setattr(
        checkpoints, "write_folder", lambda path, write: (calls.append(path), write_folder(path, write))
    )
    write_checkpoint(str(tmp_path), None, state)
    assert calls == [folder_of(str(tmp_path), None)]
