"""What the parts of a recipe do to each other: policies, sources, stages, prompts, files."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, load_from_disk
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.candidates import Negatives, find_in_row, is_repeated
from tests.conftest import WORDS, random_texts, word_model
from tests.training.runs import make_args, make_model, make_negatives

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.*:FutureWarning"),
]
TEXTS = list(dict.fromkeys(random_texts(500, seed=8, length=2)))


def other_model(seed: int):
    return word_model(WORDS, torch.randn(200, 8, generator=torch.Generator().manual_seed(seed)))


def train(folder, callbacks, dataset, model, **options) -> list[dict]:
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(folder, save_strategy="no", **options),
        train_dataset=dataset,
        loss=MultipleNegativesRankingLoss(model),
        callbacks=callbacks,
    )
    trainer.train()
    return trainer.state.log_history


def test_repeated_negatives_are_repeated_again_at_a_refresh():
    """A live view stays complete where a row has one negative only, which is repeated."""
    pairs = Dataset.from_dict({"anchor": ["w1", "w2"], "positive": ["w11", "w12"]})
    hard_negatives = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=2, shortfall="repeat"))
    hard_negatives.mine(other_model(0), show_progress_bar=False)
    hard_negatives.as_dataset()
    for seed in (1, 2):
        report = hard_negatives.mine(other_model(seed), show_progress_bar=False)
        assert hard_negatives.negative_ids.tolist() == [[1, 1], [0, 0]]
        assert (report.num_mined, report.num_repeated, report.num_missing) == (2, 2, 0)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_draws_never_bring_a_text_that_stays(rate):
    """Where draws run out, because a filter lets few texts pass, no row has a text twice."""
    pairs = Dataset.from_dict({"anchor": TEXTS[:40], "positive": TEXTS[40:80]})
    corpus = [*TEXTS[80:300], *(f"{text} good" for text in TEXTS[300:303])]
    config = MiningConfig(num_negatives=2, random_rate=rate, range_max=300, exclude_pattern="^(?!.* good$)")
    hard_negatives = HardNegativeDataset(pairs, corpus, config)
    hard_negatives.mine(other_model(0), show_progress_bar=False)
    ids = hard_negatives.negative_ids
    assert (ids >= 220).all() and (ids < 223).all() and (ids[:, 0] != ids[:, 1]).all()


@pytest.mark.parametrize("damage", ["positive", "ragged"])
def test_negatives_in_files_are_checked(tmp_path, damage):
    """A save in which a row's negative is its positive, or rows have lists of other lengths, is refused."""
    hard_negatives = make_negatives(make_model())
    hard_negatives.save_to_disk(tmp_path / "saved")
    table = load_from_disk(str(tmp_path / "saved" / "negatives")).data.table
    ids = hard_negatives.negative_ids.tolist()
    if damage == "positive":
        ids[3][0] = int(hard_negatives._pairs.row_positive[3])
    else:
        ids[0].append(ids[1].pop())
    place = table.column_names.index("negative_ids")
    changed = table.set_column(place, "negative_ids", pa.array(ids, type=table.schema.field(place).type))
    folder = tmp_path / "saved" / "negatives"
    Dataset(changed).save_to_disk(str(tmp_path / "changed"))
    folder.rename(tmp_path / "before")
    (tmp_path / "changed").rename(folder)
    with pytest.raises(ValueError, match="got a damaged one"):
        HardNegativeDataset.load_from_disk(tmp_path / "saved")


def test_look_ups_in_rows_equal_brute_force():
    """Repeats and look-ups in hundreds of random rows; what is below 0 is never found."""
    rng = np.random.default_rng(0)
    values, others = (torch.from_numpy(rng.integers(-1, 9, (300, width))) for width in (7, 5))
    found, place = find_in_row(values, others)
    repeated = is_repeated(values)
    for row, (mine, theirs) in enumerate(zip(values.tolist(), others.tolist(), strict=True)):
        for column, value in enumerate(mine):
            assert found[row, column] == (value >= 0 and value in theirs)
            if found[row, column]:
                assert place[row, column] == theirs.index(value)
            assert repeated[row, column] == (value >= 0 and value in mine[:column])
    nothing = torch.zeros(3, 0, dtype=torch.int64)
    assert not find_in_row(torch.zeros(3, 2, dtype=torch.int64), nothing)[0].any()
    empty = Negatives.none(2, 3)
    assert empty.corpus_ids.tolist() == [[-1] * 3] * 2 and not empty.is_present.any()


def test_wide_rows_take_no_quadratic_memory():
    """500 negatives a row from two sources, twice: memory for all pairs of a row would be gigabytes."""
    import resource

    pairs = Dataset.from_dict({"anchor": TEXTS[:60], "positive": TEXTS[60:120]})
    corpus = [f"{one} {number}" for number, one in enumerate(TEXTS * 5)]
    config = MiningConfig(num_negatives=500, random_rate=0.5, sources={"dense": 400, "random": 100})
    hard_negatives = HardNegativeDataset(pairs, corpus, config)
    hard_negatives.mine(other_model(0), show_progress_bar=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hard_negatives.mine(other_model(1), show_progress_bar=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
    ids = torch.from_numpy(hard_negatives.negative_ids)
    assert bool((ids >= 0).all()) and not bool(is_repeated(ids).any())
