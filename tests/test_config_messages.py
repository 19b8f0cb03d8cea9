"""The recipe's words: what is suggested for another name, what is refused, and that speed is no part of it."""

from __future__ import annotations

import dataclasses

import pytest

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig


def test_a_margin_of_500_percent_is_refused():
    with pytest.raises(ValueError, match="share of the positive's score"):
        MiningConfig(relative_margin=5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("margin", "Set `absolute_margin`"),
        ("relativ_margin", "Did you mean 'relative_margin'?"),
        ("batch_size", "It changes speed, not the result: pass it to HardNegativeDataset."),
        ("use_faiss", "It changes speed, not the result"),
        ("faiss_index", "Pass `searcher=FaissSearcher"),
        ("guide_margin", "Pass `guide=Guide"),
        ("num_topics", "Pass it to HardNegativeDataset"),
        ("softmax_temperature", "Set `sampling_strategy=Softmax"),
        ("easy_ratio", "Set `replacement=Easy"),
    ],
)
def test_another_name_is_answered_with_the_right_one(name, said, word_pairs):
    """Wherever a field can be given."""
    with pytest.raises(TypeError) as caught:
        MiningConfig(**{name: 1})
    assert f"`{name}` is not a field of MiningConfig." in str(caught.value) and said in str(caught.value)
    with pytest.raises(ValueError, match=f"`{name}` is not a field of MiningConfig"):
        MiningConfig.from_dict({name: 1})
    if name not in ("batch_size", "use_faiss", "num_topics"):  # which the dataset takes
        with pytest.raises(TypeError, match=f"`{name}` is not a field of MiningConfig"):
            HardNegativeDataset(word_pairs, **{name: 1})


def test_speed_changes_no_recipe_and_no_fingerprint(bag_of_words, word_pairs):
    """A training that is resumed with another batch size goes on."""
    one, other = (
        HardNegativeDataset(word_pairs, batch_size=size, query_chunk_size=size, corpus_chunk_size=size)
        for size in (7, 64)
    )
    assert one.config == other.config and one.data_fingerprint == other.data_fingerprint
    assert not {"batch_size", "query_chunk_size", "corpus_chunk_size", "use_faiss"} & set(one.config.to_dict())
    for hard_negatives in (one, other):
        hard_negatives.mine(bag_of_words, show_progress_bar=False)
    assert (one.negative_ids == other.negative_ids).all()


def test_a_config_survives_tools_that_rewrite_its_annotations():
    """`HfArgumentParser` replaces `field.type` by types, for the whole process."""
    kept = {part.name: part.type for part in dataclasses.fields(MiningConfig)}
    try:
        for part in dataclasses.fields(MiningConfig):
            part.type = int
        assert MiningConfig(num_negatives=4, relative_margin=0.1).num_negatives == 4
        MiningCallback(schedule={"relative_margin": 0.1})
    finally:
        for part in dataclasses.fields(MiningConfig):
            part.type = kept[part.name]
