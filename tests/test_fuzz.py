"""Readers of other people's files, and the config: whatever comes in, out comes a value or one of our own errors."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest

from st_hardneg import MiningConfig
from st_hardneg.files.save import _checked_content, mining_from, negatives_dataset, read
from st_hardneg.formats.beir import read_beir
from st_hardneg.training.checkpoint import _content
from tests.test_soak import mining_of

# Half a second by default; the long run makes 120 000 inputs.
COUNTS = [pytest.param(1), pytest.param(40, marks=pytest.mark.slow)]


def anything(rng: random.Random, depth: int = 2) -> Any:
    """Return a JSON value, or something that JSON does not know."""
    leaves = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice([0, 1, -1, 3, 2**31, 2**63, 2**70, 10**19]),
        lambda: rng.choice([0.0, 0.5, -1.5, 1e308, float("nan"), float("inf")]),
        lambda: "".join(rng.choices(string.printable + "é\u2028\ud800", k=rng.randint(0, 6))),
        lambda: rng.choice(["top", "random", "raw", "(", "a{9}", "../..", "Flat"]),
        lambda: object(),
    ]
    if depth and rng.random() < 0.3:
        if rng.random() < 0.5:
            return [anything(rng, depth - 1) for _ in range(rng.randint(0, 3))]
        return {str(anything(rng, 0)): anything(rng, depth - 1) for _ in range(rng.randint(0, 3))}
    return rng.choice(leaves)()


def mutated(rng: random.Random, value: Any) -> Any:
    """Return a JSON-like value with something in it changed, dropped or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.2:
            return {name: one for name, one in value.items() if name != key}
        if kind < 0.3:
            return {**value, str(anything(rng, 0)): anything(rng)}
        return {**value, key: mutated(rng, value[key])}
    return anything(rng)


def is_ours(error: Exception) -> bool:
    """Tell whether an error says what was expected."""
    return isinstance(error, (ValueError, TypeError)) and any(
        word in str(error) for word in ("Expected", "Cannot keep", "has no effect")
    )


@pytest.mark.parametrize("times", COUNTS)
def test_configs(times):
    """`MiningConfig` and `from_dict` refuse what they cannot use, and what they take survives JSON."""
    rng = random.Random(times)
    fields = MiningConfig().to_dict()
    made = 0
    for _ in range(1500 * times):
        values = {name: fields[name] for name in rng.sample(list(fields), 4)}
        for name in rng.sample(list(fields), rng.randint(1, 3)):
            values[name] = anything(rng)
        try:
            config = MiningConfig.from_dict(values)
        except (ValueError, TypeError) as error:
            assert is_ours(error), (values, error)
        else:
            made += 1
            assert MiningConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
            assert config.window(3)[1] > config.window(3)[0]
    assert made > 10 * times


CORPUS = [{"_id": "d1", "title": "One", "text": "first"}, {"_id": "d2", "text": "second"}]
QUERIES = [{"_id": "q", "text": "what"}]
QRELS = [{"query-id": "q", "corpus-id": "d1", "score": 1}]


@pytest.mark.parametrize("times", COUNTS)
def test_tables_in_memory(times):
    """Rows of any shape are read, or refused with what was expected."""
    rng = random.Random(times)
    for _ in range(800 * times):
        tables = [list(table) for table in (CORPUS, QUERIES, QRELS)]
        table = rng.choice(tables)
        place = rng.randrange(len(table))
        table[place] = mutated(rng, table[place])
        try:
            pairs, documents = read_beir(*tables)
        except (ValueError, TypeError) as error:
            assert is_ours(error), (tables, error)
        else:
            assert len(pairs) == 1 and len(documents) >= 1


@pytest.mark.parametrize("times", COUNTS)
def test_tables_in_files(times, tmp_path):
    """Bytes flipped, lines cut, anything: read, or refused."""
    rng = random.Random(times)
    raw = {
        "corpus.jsonl": "".join(json.dumps(row) + "\n" for row in CORPUS).encode(),
        "queries.jsonl": "".join(json.dumps(row) + "\n" for row in QUERIES).encode(),
        "qrels.tsv": b"query-id\tcorpus-id\tscore\nq\td1\t1\n",
    }
    for _ in range(250 * times):
        for name, content in raw.items():
            (tmp_path / name).write_bytes(content)
        name = rng.choice(list(raw))
        content = bytearray(raw[name])
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / name).write_bytes(bytes(content[: rng.randint(1, len(content))]))
        try:
            read_beir(*(tmp_path / name for name in raw))
        except (ValueError, TypeError) as error:
            assert is_ours(error), (bytes(content), error)


STATE = {
    "format": 1,
    "anchor_column_name": "anchor",
    "positive_column_name": "positive",
    "config": MiningConfig().to_dict(),
    "needs": [],
    "num_minings": 1,
    "cross_domain": ["further"],
    "metadata_sources": ["recent"],
    "has_view": True,
    "corpus_fingerprint": "0" * 32,
    "report": {},
}
CHECKPOINT = {
    "format": 1,
    "num_minings": 1,
    "mined_at": 3,
    "reports": [{}],
    "report": {},
    "config": {},
    "data_fingerprint": "0",
    "schedule": None,
    "digest": "0",
}


@pytest.mark.parametrize("times", COUNTS)
def test_states(times, tmp_path):
    """The JSON of saves and checkpoints, mutated and cut: read, or called damaged."""
    rng = random.Random(times)
    file = tmp_path / "st_hardneg.json"
    for number in range(450 * times):
        is_save = number % 2 == 0
        content = mutated(rng, STATE if is_save else CHECKPOINT)
        text = json.dumps(content, default=str)
        file.write_text(text[: rng.randint(0, len(text))] if rng.random() < 0.2 else text, encoding="utf-8")
        try:
            if is_save:
                if isinstance(content, dict):
                    _checked_content("folder", content)
                read(str(tmp_path))
            else:
                _content("folder", str(file))
        except ValueError as error:
            assert is_ours(error), (content, error)


def test_negatives_of_other_shapes():
    """Columns dropped, renamed, cast or of other lengths, and a report of other fields: called damaged."""
    import pyarrow as pa

    good = negatives_dataset(mining_of(1), None)
    report = mining_of(1).report.to_dict()
    shape = (len(good), 3)
    mining_from("folder", good, report, shape, 10, 5)
    broken = [
        *(good.remove_columns([name]) for name in good.column_names),
        *(good.rename_column(name, "other") for name in good.column_names),
        *(
            type(good)(good.data.table.set_column(i, name, pa.array(["x"] * len(good))))
            for i, name in enumerate(good.column_names)
        ),
        *(
            type(good)(good.data.table.set_column(i, name, pa.nulls(len(good), good.data.column(name).type)))
            for i, name in enumerate(good.column_names[:5])
        ),
    ]
    for dataset in broken:
        with pytest.raises(ValueError, match="got a damaged one"):
            mining_from("folder", dataset, report, shape, 10, 5)
    for arguments in (
        (good, {}, shape, 10, 5),
        (good, report, (4, 3), 10, 5),
        (good, report, shape, 1, 5),
        (good, report, shape, 10, 1),
    ):
        with pytest.raises(ValueError, match="got a damaged one"):
            mining_from("folder", *arguments)
