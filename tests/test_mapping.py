"""HardNegativeMiner in `dataset.map`."""

from __future__ import annotations

import pickle

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets.fingerprint import Hasher

from st_hardneg import HardNegativeDataset, HardNegativeMiner, MiningConfig
from tests.conftest import WORDS, random_texts, word_model

CORPUS = random_texts(60, seed=4)


def test_map_equals_the_dataset(bag_of_words, word_pairs):
    """Batch by batch, `map` finds what the dataset finds at once, and leaves out the rows that lack a negative."""
    config = MiningConfig(num_negatives=2, relative_margin=0.1)
    whole = HardNegativeDataset(word_pairs, CORPUS, config)
    whole.mine(bag_of_words, show_progress_bar=False)
    expected = whole.to_dataset("n-tuple", output_scores=True).to_list()
    assert 0 < len(expected) < len(word_pairs)
    for batch_size in (7, 1000):
        miner = HardNegativeMiner(bag_of_words, CORPUS, config, positives=word_pairs, output_scores=True)
        mined = word_pairs.map(miner, batched=True, batch_size=batch_size)
        assert mined.column_names == ["anchor", "positive", "negative_1", "negative_2", "scores"]
        for row, other in zip(mined, expected, strict=True):
            assert row.pop("scores") == pytest.approx(other["scores"], abs=1e-6)
            assert row == {name: text for name, text in other.items() if name != "scores"}


def test_positives_of_rows_outside_of_the_batch_are_excluded(protractor):
    """A batch of one row knows the positives that other rows of the anchor have, but only through `positives`."""
    pairs = Dataset.from_dict({"anchor": ["q 0°", "Q 0°"], "positive": ["p 5°", "s 10°"]})
    corpus = ["s 10°", "x 20°"]
    with_them = HardNegativeMiner(protractor, corpus, MiningConfig(num_negatives=1), positives=pairs)
    assert pairs.map(with_them, batched=True, batch_size=1)["negative_1"][:] == ["x 20°", "x 20°"]
    without = HardNegativeMiner(protractor, corpus, MiningConfig(num_negatives=1))
    assert pairs.map(without, batched=True, batch_size=1)["negative_1"][:] == ["s 10°", "x 20°"]


def test_in_a_stream_and_in_several_processes(bag_of_words, word_pairs):
    """An IterableDataset and `num_proc=2` give the same rows."""
    miner = HardNegativeMiner(bag_of_words, CORPUS, MiningConfig(num_negatives=2), positives=word_pairs)
    expected = word_pairs.map(miner, batched=True).to_list()
    assert list(word_pairs.to_iterable_dataset().map(miner, batched=True, batch_size=10)) == expected
    assert word_pairs.map(miner, batched=True, num_proc=2).to_list() == expected
    assert pickle.loads(pickle.dumps(miner))(word_pairs[:3]) == miner(word_pairs[:3])


def test_the_fingerprint_follows_weights_corpus_positives_and_config(bag_of_words, word_pairs):
    """Equal miners hash alike; any difference in what results depend on shows."""

    def hashed(seed=0, corpus=CORPUS, positives=None, **config) -> str:
        model = word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(seed)))
        miner = HardNegativeMiner(model, corpus, MiningConfig(**config), positives=positives)
        return Hasher.hash(miner)

    same = hashed()
    assert hashed() == same
    others = [hashed(seed=1), hashed(corpus=CORPUS[1:]), hashed(positives=word_pairs), hashed(num_negatives=2)]
    assert len({same, *others}) == 5


def test_map_finds_its_cache_and_no_other_one(bag_of_words, word_pairs, tmp_path):
    """On a dataset on disk, the same miner loads the cached result; other weights compute anew."""
    from datasets import load_from_disk

    word_pairs.save_to_disk(str(tmp_path / "pairs"))
    pairs = load_from_disk(str(tmp_path / "pairs"))
    results = []
    for seed in (0, 0, 1):
        model = word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(seed)))
        results.append(pairs.map(HardNegativeMiner(model, CORPUS), batched=True))
    assert results[0].cache_files == results[1].cache_files != results[2].cache_files
    assert results[0]["negative_1"][:] == results[1]["negative_1"][:] != results[2]["negative_1"][:]


@pytest.mark.parametrize("is_stream", [False, True])
def test_rows_with_an_empty_slot_are_left_out(protractor, is_stream):
    """None is no text: what is trained on has none, and a batch in which nothing is found is an empty one."""
    pairs = Dataset.from_dict({"anchor": ["q 0°", "r 0°"], "positive": ["p 5°", "x 20°"], "number": [1, 2]})
    if is_stream:
        pairs = pairs.to_iterable_dataset()
    miner = HardNegativeMiner(protractor, ["x 20°", "y 30°"], MiningConfig(num_negatives=2))
    found = {"anchor": "q 0°", "positive": "p 5°", "number": 1, "negative_1": "x 20°", "negative_2": "y 30°"}
    for batch_size in (1, 2):
        assert list(pairs.map(miner, batched=True, batch_size=batch_size)) == [found]
    repeating = HardNegativeMiner(protractor, ["x 20°", "y 30°"], MiningConfig(num_negatives=2, shortfall="repeat"))
    rows = list(pairs.map(repeating, batched=True))
    assert [row["negative_2"] for row in rows] == ["y 30°", "y 30°"]


def test_a_stream_gets_the_types_of_the_new_columns(bag_of_words, word_pairs):
    """`miner.map(stream)` says which columns come, which a stream cannot find out by itself, and a trainer asks for."""
    stream = word_pairs.to_iterable_dataset()
    miner = HardNegativeMiner(bag_of_words, CORPUS, MiningConfig(num_negatives=1), output_scores=True)
    mined = miner.map(stream)
    assert list(mined.features) == ["anchor", "positive", "negative_1", "scores"]
    expected = miner.map(word_pairs)
    assert expected.features == mined.features
    for row, other in zip(mined, expected, strict=True):
        assert row == other


def test_a_model_that_is_trained_on_is_refused(bag_of_words, word_pairs):
    """The corpus was encoded with the weights of before: queries of today do not go with it."""
    miner = HardNegativeMiner(bag_of_words, CORPUS, MiningConfig(num_negatives=1))
    miner(word_pairs[:3])
    optimizer = torch.optim.SGD(bag_of_words.parameters(), lr=0.1)
    bag_of_words[0].embedding.weight.sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="The model was trained after this miner was made"):
        miner(word_pairs[:3])
    with pytest.raises(ValueError, match="The model was trained after this miner was made"):
        pickle.dumps(miner)


def test_weights_that_are_written_behind_torch_s_back_are_seen(bag_of_words, word_pairs):
    """An average of weights is copied through `.data`, which counts no version."""
    miner = HardNegativeMiner(bag_of_words, CORPUS, MiningConfig(num_negatives=1))
    before = miner(word_pairs[:3])
    weight = bag_of_words[0].embedding.weight
    weight.data.mul_(1.0)
    assert miner(word_pairs[:3]) == before
    weight.data.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)))
    with pytest.raises(ValueError, match="The model was trained after this miner was made"):
        miner(word_pairs[:3])


@pytest.mark.parametrize("kind", [{"fused": True}, {"foreach": True}])
def test_a_miner_of_a_model_that_an_optimizer_has_moved_refuses(kind):
    """A fused optimizer, which trainers take by default, writes weights without a new version; words of the data tell."""
    model = word_model(WORDS, torch.randn(len(WORDS), 16, generator=torch.Generator().manual_seed(0)))
    miner = HardNegativeMiner(model, [f"{WORDS[i]} {WORDS[i + 1]}" for i in range(40)], num_negatives=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **kind)
    model(model.preprocess([WORDS[0]]))["sentence_embedding"].sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="The model was trained after this miner was made"):
        miner({"anchor": [WORDS[7]], "positive": [WORDS[8]]})


def test_a_miner_says_what_it_is(bag_of_words, word_pairs):
    """Columns, texts and number, where they are known."""
    miner = HardNegativeMiner(bag_of_words, CORPUS, num_negatives=2)
    assert repr(miner) == "HardNegativeMiner(60 texts to search, 2 negatives each)"
    miner = HardNegativeMiner(bag_of_words, CORPUS, num_negatives=2, positives=word_pairs)
    assert repr(miner) == "HardNegativeMiner('anchor' -> 'positive', 108 texts to search, 2 negatives each)"


@pytest.mark.parametrize("name", ["negative_1", "scores"])
def test_columns_of_the_users_are_not_overwritten(bag_of_words, word_pairs, name):
    """A column of a name that the miner adds is refused."""
    miner = HardNegativeMiner(bag_of_words, CORPUS, MiningConfig(num_negatives=1), output_scores=True)
    with pytest.raises(ValueError, match=f"have columns \\['{name}'\\] of their own, which the miner would overwrite"):
        word_pairs.add_column(name, ["mine"] * 48).map(miner, batched=True)


def test_the_recommended_recipe_finds_the_same_whatever_the_batch_size(bag_of_words, word_pairs):
    """How far the model is trusted is settled once, and not batch by batch; with `positives` it is the dataset's."""
    words = [text.split() for text in word_pairs["anchor"]]
    # The right answer shares two words of four with its anchor: it typically ranks second or third.
    pairs = Dataset.from_dict(
        {
            "anchor": word_pairs["anchor"],
            "positive": [" ".join([*own[:2], *other.split()[:2]]) for own, other in zip(words, CORPUS, strict=False)],
        }
    )
    whole = HardNegativeDataset(pairs, CORPUS)
    assert 0.1 < whole.mine(bag_of_words, show_progress_bar=False).doubt < 0.9
    expected = whole.to_dataset("n-tuple").to_list()
    miner = HardNegativeMiner(bag_of_words, CORPUS, positives=pairs)
    for size in (5, 1000):
        assert pairs.map(miner, batched=True, batch_size=size).to_list() == expected
    alone = HardNegativeMiner(bag_of_words, CORPUS)
    assert len({str(pairs.map(alone, batched=True, batch_size=size).to_list()) for size in (5, 1000)}) == 1


def test_pairs_that_hang_together_are_never_each_other_s_negatives(bag_of_words):
    """Duplicate questions (a, b), (b, c), (d, a): the miner knows from `positives` what the dataset knows."""
    a, b, c, d = "w1 w2 w3", "w1 w2 w4", "w1 w2 w5", "w1 w2 w6"
    pairs = Dataset.from_dict({"anchor": [a, b, d, "w70"], "positive": [b, c, a, "w71"]})
    miner = HardNegativeMiner(bag_of_words, ["w90", "w91"], MiningConfig(num_negatives=2), positives=pairs)
    for size in (1, 4):
        for row in pairs.map(miner, batched=True, batch_size=size).select(range(3)):
            assert not {row["negative_1"], row["negative_2"]} & {a, b, c, d}


def test_bad_input(bag_of_words, word_pairs):
    """Without anything to search, without columns, with a misspelt column or an empty text."""
    with pytest.raises(ValueError, match="Expected a `corpus` to search or `positives` to search among, got neither"):
        HardNegativeMiner(bag_of_words, None)
    with pytest.raises(TypeError, match=r"Expected a SentenceTransformer model, or an object with .*, got int"):
        HardNegativeMiner(3, CORPUS)
    miner = HardNegativeMiner(bag_of_words, CORPUS, anchor_column_name="ancor")
    with pytest.raises(ValueError, match="`anchor_column_name='ancor'` is not a column"):
        miner(word_pairs[:2])
    with pytest.raises(ValueError, match="Expected batches with an anchor and a positive column"):
        HardNegativeMiner(bag_of_words, CORPUS)({"anchor": ["a"]})
    with pytest.raises(ValueError, match="got None or an empty text in 1 row: 1"):
        HardNegativeMiner(bag_of_words, CORPUS)({"anchor": ["a", ""], "positive": ["b", "c"]})


def test_a_draw_is_the_same_whatever_the_batch_size(bag_of_words, word_pairs):
    """Random draws depend on the anchor's text, not on its place in a batch; they equal the dataset's."""
    for options in ({"sampling_strategy": "random", "range_max": 30}, {"shortfall": "random", "min_score": 0.3}):
        config = MiningConfig(num_negatives=2, **options)
        miner = HardNegativeMiner(bag_of_words, CORPUS, config, positives=word_pairs)
        drawn = [word_pairs.map(miner, batched=True, batch_size=size).to_list() for size in (7, 100)]
        one_by_one = word_pairs.select(range(15)).map(miner, batched=True, batch_size=1).to_list()
        assert drawn[0] == drawn[1] and drawn[0][:15] == one_by_one
        whole = HardNegativeDataset(word_pairs, CORPUS, config)
        whole.mine(bag_of_words, show_progress_bar=False)
        assert [row["negative_1"] for row in drawn[0]] == whole.corpus.texts.take(whole.negative_ids[:, 0])


def test_without_batched_it_says_so(bag_of_words, word_pairs):
    """A single row is refused, not mined letter by letter; an empty batch is an empty result."""
    miner = HardNegativeMiner(bag_of_words, CORPUS)
    with pytest.raises(ValueError, match=r"Call `dataset.map\(miner, batched=True\)`"):
        word_pairs.map(miner)
    assert miner({"anchor": [], "positive": []}) == {
        "anchor": [],
        "positive": [],
        "negative_1": [],
        "negative_2": [],
        "negative_3": [],
    }


def test_texts_that_a_person_has_excluded_stay_out(bag_of_words, word_pairs, tmp_path):
    """Labels of a review hold for batches of a map as for the dataset."""
    reviewed = HardNegativeDataset(word_pairs, CORPUS, num_negatives=2)
    reviewed.mine(bag_of_words, show_progress_bar=False)
    rows = [{**row, "label": "exclude"} for row in reviewed.to_review(str(tmp_path / "review.csv"), n=5)]
    excluded = {(row["anchor"], row["text"]) for row in rows}
    labelled = reviewed.with_labels(rows)
    for config in (MiningConfig(num_negatives=20), MiningConfig(num_negatives=3, random_rate=1.0, shortfall="random")):
        miner = HardNegativeMiner(bag_of_words, CORPUS, config, positives=labelled)
        found = {
            (row["anchor"], row[name]) for row in word_pairs.map(miner, batched=True) for name in miner.negative_names
        }
        assert len(found) > 20 and not found & excluded
    without = HardNegativeMiner(bag_of_words, CORPUS, MiningConfig(num_negatives=20), positives=reviewed)
    found = {
        (row["anchor"], row[name]) for row in word_pairs.map(without, batched=True) for name in without.negative_names
    }
    assert excluded & found
    assert Hasher.hash(without) != Hasher.hash(
        HardNegativeMiner(bag_of_words, CORPUS, MiningConfig(num_negatives=20), positives=labelled)
    )


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
@pytest.mark.parametrize("labels", [[1, 0, 1], [True, False, True]])
def test_labels_are_heeded_in_every_format(bag_of_words, form, labels):
    """Arrays and tensors hold numbers, too: rows labelled 0 are no right answers."""
    pairs = Dataset.from_dict({"q": CORPUS[:3], "p": CORPUS[3:6], "label": labels}).with_format(form)
    miner = HardNegativeMiner(bag_of_words, CORPUS[6:], MiningConfig(num_negatives=1))
    with pytest.raises(ValueError, match="labels 1 of 3 rows as wrong answers"):
        pairs.map(miner, batched=True)
    with pytest.raises(ValueError, match="labels 1 of 3 rows as wrong answers"):
        list(pairs.with_format(None).to_iterable_dataset().map(miner, batched=True))


def test_named_classes_mean_what_their_names_say(bag_of_words):
    """Class 0 may be the right one; a stream, which hands out numbers only, is refused where that would be misread."""
    features = Features(
        {"q": Value("string"), "p": Value("string"), "label": ClassLabel(names=["duplicate", "not_duplicate"])}
    )
    columns = {"q": CORPUS[:3], "p": CORPUS[3:6]}
    miner = HardNegativeMiner(bag_of_words, CORPUS[6:], MiningConfig(num_negatives=1))
    right = Dataset.from_dict({**columns, "label": [0, 0, 0]}, features=features)
    assert len(right.map(miner, batched=True)) == len(miner.map(right)) == 3
    wrong = Dataset.from_dict({**columns, "label": [0, 1, 0]}, features=features)
    for mined in (miner.map, lambda pairs: pairs.map(miner, batched=True)):
        with pytest.raises(ValueError, match=r"labels 1 of 3 rows as wrong answers.*row\['label'\] in \[0\]"):
            mined(wrong)
    with pytest.raises(ValueError, match="a stream hands out their numbers only"):
        miner.map(right.to_iterable_dataset())
    plain = Dataset.from_dict({**columns, "label": [1, 1, 1]}).cast_column("label", ClassLabel(names=["no", "yes"]))
    assert len(list(miner.map(plain.to_iterable_dataset()))) == 3


@pytest.mark.parametrize("form", ["pandas", "arrow", "polars"])
def test_tables_in_place_of_batches_are_refused_in_words(bag_of_words, word_pairs, form):
    """They have no columns of lists that could be handed on."""
    miner = HardNegativeMiner(bag_of_words, CORPUS, MiningConfig(num_negatives=1))
    pytest.importorskip("polars") if form == "polars" else None
    with pytest.raises(TypeError, match=r"Expected a batch of columns as lists, got .*with_format\(None\)"):
        word_pairs.with_format(form).map(miner, batched=True)


def test_several_datasets_are_mapped_one_by_one(bag_of_words, word_pairs):
    """Each has features of its own."""
    miner = HardNegativeMiner(bag_of_words, CORPUS, MiningConfig(num_negatives=1))
    with pytest.raises(TypeError, match="got a DatasetDict"):
        miner.map(DatasetDict({"train": word_pairs}))
