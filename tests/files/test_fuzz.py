"""Mutants of saves and checkpoints: read, or refused in our own words; and not all of them are the one or the other."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from st_hardneg.files import save as saves
from st_hardneg.files.save import read, save
from st_hardneg.files.tables import read_table, write_table
from st_hardneg.training.checkpoint import folder_of, read_checkpoint, write_checkpoint
from tests.files.states import make_state, values_of
from tests.fuzzing import is_ours, mutated
from tests.training.test_checkpoint_files import make_checkpoint_state

# A few seconds by default; the long run makes forty times as many mutants.
COUNTS = [pytest.param(1), pytest.param(40, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A save, which each test changes as it likes."""
    path = tmp_path_factory.mktemp("fuzz") / "saved"
    save(str(path), make_state())
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint, likewise."""
    path = tmp_path_factory.mktemp("fuzz")
    write_checkpoint(str(path), None, make_checkpoint_state())
    return path


def resume(checkpoint: Path):
    """Read a checkpoint as the training does that it is of."""
    state = make_checkpoint_state_once()
    return read_checkpoint(
        str(checkpoint),
        None,
        config=state.config,
        data_fingerprint=state.data_fingerprint,
        schedule=state.schedule,
        num_rows=5,
        num_queries=4,
        num_corpus=40,
        source_names=("dense",),
    )


make_checkpoint_state_once = functools.cache(make_checkpoint_state)


def tried(read_it, what):
    """Return what is read, or None if it is refused; what refuses it has to be ours."""
    try:
        return read_it()
    except ValueError as error:
        assert is_ours(error), (what, error)
        return None


@pytest.mark.parametrize("times", COUNTS)
@pytest.mark.parametrize("kind", ["save", "checkpoint"])
def test_json(times, kind, folder, checkpoint, monkeypatch):
    """The seed is read; a part of its mutants is, too, such as those that lack a key that has a default."""
    monkeypatch.setattr(saves, "_read_part", functools.cache(saves._read_part))  # most of the time otherwise
    rng = random.Random(times)
    if kind == "save":
        file, read_it = folder / "st_hardneg.json", lambda: read(str(folder))
    else:
        file, read_it = Path(folder_of(str(checkpoint), None), "state.json"), lambda: resume(checkpoint)
    seed = file.read_text(encoding="utf-8")
    assert tried(read_it, "the seed")
    count, accepted, cut = 120 * times, 0, 0
    for _ in range(count):
        content = mutated(rng, json.loads(seed))
        text = json.dumps(content, default=str)
        if rng.random() < 0.1:
            text, cut = text[: rng.randint(0, len(text) - 1)], cut + 1
        file.write_text(text, encoding="utf-8")
        accepted += tried(read_it, content) is not None
    file.write_text(seed, encoding="utf-8")
    print(f"{kind}: {accepted} of {count} mutants are read, {cut} were cut")
    assert 0.1 * count < accepted < 0.9 * count
    assert tried(read_it, "the seed again")


def mutated_table(rng: random.Random, table: pa.Table) -> pa.Table:
    """Return a table with a column dropped, renamed, cast or changed, or with other rows."""
    name = rng.choice(table.column_names)
    place = table.column_names.index(name)
    column = table.column(name)
    kind = rng.randrange(7)
    if kind == 0:
        return table.drop_columns([name])
    if kind == 1:
        return table.rename_columns([f"{one}x" if one == name else one for one in table.column_names])
    if kind == 2:
        return table.set_column(place, name, pa.array(rng.choice([["x"], [1], [0.5], [None], [[1]]]) * len(table)))
    if kind == 3:
        rows = rng.choices(range(len(table)), k=rng.choice([len(table)] * 3 + [0, 1, len(table) + 1]))
        return table.take(pa.array(rows, pa.int64()))
    if kind == 4:
        return table.append_column(f"{name}_too", column)
    values = column.to_pylist()
    row = rng.randrange(len(values))
    numbers = [0, 1, 3, -1, -2, 39, 40, 10**9, None]
    if isinstance(values[row], list):
        inner = list(values[row])
        one = rng.randrange(max(1, len(inner)))
        inner[one : one + 1] = rng.choice([[], [rng.choice(numbers)], [rng.choice(numbers)] * 2])
        values[row] = inner
    else:
        values[row] = rng.choice(numbers)
    try:
        return table.set_column(place, name, pa.array(values, column.type))
    except (pa.ArrowException, TypeError):
        return table.set_column(place, name, pa.array([str(value) for value in values]))


@pytest.mark.parametrize("times", COUNTS)
@pytest.mark.parametrize("name", ["negatives", "rows", "numbering"])
def test_tables(times, name, folder, monkeypatch):
    """Whatever is read can be used: numbers are in range, and no negative is right."""
    monkeypatch.setattr(saves, "_read_part", functools.cache(saves._read_part))
    rng = random.Random(times)
    file = folder / "st_hardneg.json"
    seed, table = file.read_text(encoding="utf-8"), read_table(str(folder), name)
    file.write_text(json.dumps({**json.loads(seed), "files": {}}), encoding="utf-8")
    count, accepted = 30 * times, 0
    for number in range(count):
        write_table(str(folder), name, mutated_table(rng, table))
        if (found := tried(lambda: read(str(folder)), number)) is not None:
            accepted += 1
            ids = found.mining.negatives.ids
            assert ids.shape == (4, 2) and int(ids.min()) >= -1 and int(ids.max()) < len(found.corpus)
            assert not found.pairs.known.contains(torch.arange(4), ids).any()
            assert (ids[found.pairs.row_query[found.live_rows]] >= 0).all()
            found.corpus.texts.take(found.corpus.searched)
            found.corpus.external_ids(np.arange(len(found.corpus)))
            values_of(found.mining)
    write_table(str(folder), name, table)
    file.write_text(seed, encoding="utf-8")
    print(f"{name}: {accepted} of {count} mutants are read")
    assert 0.02 * count < accepted < 0.9 * count
    assert tried(lambda: read(str(folder)), "the seed again")


FLIPPED = """
import json, random, shutil, sys
from pathlib import Path
import numpy as np
from st_hardneg.files.save import read
from tests.fuzzing import is_ours

folder, count = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(count)
files = sorted(path for path in folder.rglob("*") if path.is_file())
state = folder / "st_hardneg.json"
seed = state.read_text()
read(str(folder))  # the seed
accepted = 0
for number in range(count):
    if number % 2:  # as if a stranger had made the files look whole
        state.write_text(json.dumps({**json.loads(seed), "files": {}}))
    path = rng.choice(files)
    raw = path.read_bytes()
    changed = bytearray(raw)
    for _ in range(rng.choice([1, 1, 4])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    path.unlink()  # what is mapped into memory stays as it was
    path.write_bytes(bytes(changed[: len(raw) if rng.random() < 0.8 else rng.randrange(len(raw))]))
    try:
        found = read(str(folder))
        try:
            found.corpus.texts.take(np.arange(len(found.corpus)))
            found.rows.dataset.to_dict()
        except UnicodeDecodeError:
            pass  # a text that was changed; the file system knows of that
        accepted += 1
    except ValueError as error:
        assert is_ours(error), (path, error)
    path.unlink()
    path.write_bytes(raw)
    state.write_text(seed)
print(accepted)
"""


@pytest.mark.training
@pytest.mark.parametrize("times", COUNTS)
def test_bytes(times, folder, tmp_path):
    """Bytes of any file changed or cut: read, or refused; in a process of its own, for Arrow may crash."""
    shutil.copytree(folder, tmp_path / "saved")
    count = 50 * times
    done = subprocess.run(
        [sys.executable, "-c", FLIPPED, str(tmp_path / "saved"), str(count)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    accepted = int(done.stdout.split()[-1])
    print(f"{accepted} of {count} mutants are read")
    assert 0 < accepted < count
