"""Readers of other people's files, and the config: whatever comes in, out comes a value or one of our own errors."""

from __future__ import annotations

import json
import random

import pytest

from st_hardneg import MiningConfig
from st_hardneg.formats.beir import read_beir
from tests.fuzzing import anything, is_ours, mutated

# Half a second by default; the long run makes 120 000 inputs.
COUNTS = [pytest.param(1), pytest.param(40, marks=pytest.mark.slow)]


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
            assert config.window(3, is_deep=False)[1] > config.window(3, is_deep=False)[0]
    assert made > 10 * times


CORPUS = [{"_id": "d1", "title": "One", "text": "first"}, {"_id": "d2", "text": "second"}]
QUERIES = [{"_id": "q", "text": "what"}]
QRELS = [{"query-id": "q", "corpus-id": "d1", "score": 1}]


@pytest.mark.parametrize("times", COUNTS)
def test_tables_in_memory(times):
    """Rows of any shape are read, or refused with what was expected."""
    rng = random.Random(times)
    for _ in range(250 if times == 1 else 800 * times):
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
