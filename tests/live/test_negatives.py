"""LiveNegatives: what a mining changes, what undoes it, and what is refused before anything has changed."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from st_hardneg.candidates import LAST_RESORT, Mining
from st_hardneg.errors import MiningError
from tests.conftest import whole
from tests.toys import Model, by_seed, mined, random_pairs

NUM_ROWS, WIDTH = 30, 2


def found_of(seed: int = 0, **fields):
    """Return 30 rows, mined by a toy model whose vectors are drawn by the seed."""
    return mined(random_pairs(NUM_ROWS), Model(by_seed(seed)), num_negatives=WIDTH, **fields)


def other_mining(found, seed: int) -> Mining:
    """Return what another model mines for the same rows, as a refresh at step 7."""
    mining = found_of(seed).live.mining
    return replace(mining, report=replace(mining.report, step=7))


def changed(mining: Mining, **columns) -> Mining:
    return replace(mining, negatives=replace(mining.negatives, **columns))


def warnings_in(caplog) -> list[str]:
    """Return the warnings, and nothing of what is only said."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def ids_in(found) -> list[list[int]]:
    """Return the ids of every row that the live view reads."""
    rows = found.live.rows
    return found.live.view.table.read(rows).tolist()


def test_a_refresh_is_read_and_reset_undoes_it():
    """The live view, the ids and what was before follow; reset returns to the last mining that was no refresh."""
    found = found_of()
    found.as_dataset(with_ids=True)
    live, first = found.live, found.live.mining
    assert live.previous_ids.tolist() == first.negatives.ids.tolist() and live.num_minings == 1
    second = other_mining(found, 1)
    assert second.negatives.ids.tolist() != first.negatives.ids.tolist()
    live.apply(second)
    assert live.mining is second and live.num_minings == 2
    assert ids_in(found) == second.negatives.ids.numpy()[found._wrapped.pairs.row_query].tolist()
    assert live.previous_ids.tolist() == first.negatives.ids.tolist()
    live.reset()
    assert live.mining is first and live.num_minings == 1
    assert ids_in(found) == first.negatives.ids.numpy()[found._wrapped.pairs.row_query].tolist()
    assert live.previous_ids.tolist() == first.negatives.ids.tolist()
    live.reset()  # again changes nothing: no write that a reader could notice
    generation = live.view.table.generation
    live.reset()
    assert live.view.table.generation == generation
    # What is mined outside of a training is what the next one begins with.
    by_hand = replace(second, report=replace(second.report, step=None))
    live.apply(by_hand)
    live.apply(other_mining(found, 2))
    assert live.num_minings == 3
    live.reset()
    assert live.mining is by_hand and live.num_minings == 2


def test_negatives_of_another_dataset_are_refused():
    """By their shape; nothing changes."""
    found = found_of()
    found.as_dataset(with_ids=True)
    first, wide = found.live.mining, mined(random_pairs(NUM_ROWS), Model(by_seed(1)), num_negatives=3).live.mining
    expected, got = (NUM_ROWS, 2), (NUM_ROWS, 3)
    message = f"Expected negatives of shape {expected}, got {got}. Apply a mining that this very dataset computed."
    with pytest.raises(MiningError, match=whole(message)):
        found.live.apply(wide)
    assert found.live.mining is first and found.live.num_minings == 1 and found.live.view.table.generation == 0


def test_an_empty_slot_of_a_live_row_is_refused():
    """Where no view has been made yet, or the row is not in it, slots may be empty."""
    found = found_of()
    first = found.live.mining
    ids, origins = first.negatives.ids.clone(), first.negatives.origins
    ids[4, 1] = -1
    short = changed(first, ids=ids)
    found.live.apply(short)
    found.as_dataset(with_ids=True)
    assert found.live.rows.tolist() == [row for row in range(NUM_ROWS) if row != 4]
    assert found.live.must_fill.tolist() == [row != 4 for row in range(NUM_ROWS)]
    found.live.apply(short)
    ids = ids.clone()
    ids[5, 0] = -1
    message = (
        "Expected a negative in every slot of the live view's rows, got empty ones. Apply a mining that this very dataset "
        "computed after the view was made."
    )
    with pytest.raises(MiningError, match=whole(message)):
        found.live.apply(changed(first, ids=ids, origins=origins))
    assert found.live.mining is short


def test_rows_without_all_negatives_are_left_out_and_counted(caplog):
    """A few without a word, more than a tenth with a warning, all of them with an error."""
    found = found_of()
    first = found.live.mining
    for empty, warned in [(3, False), (4, True)]:
        ids = first.negatives.ids.clone()
        ids[:empty, 1] = -1
        found = found_of()
        found.live.apply(changed(first, ids=ids))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(found.as_dataset(with_ids=True)) == NUM_ROWS - empty
        expected = (
            f"{empty} of {NUM_ROWS} rows have an empty slot and are left out of the live view. "
            '`shortfall="random"` keeps them; a smaller margin or a larger corpus fills them.'
        )
        assert warnings_in(caplog) == ([expected] if warned else [])
    found = found_of()
    ids = torch.full_like(first.negatives.ids, -1)
    ids[:, 0] = first.negatives.ids[:, 0]
    found.live.apply(changed(first, ids=ids))
    message = (
        "Expected rows with all of their 2 negatives, got none. Lower `num_negatives`, loosen the rules, or set "
        "`shortfall` to 'random' or 'repeat'."
    )
    with pytest.raises(MiningError, match=whole(message)):
        found.as_dataset()


@pytest.mark.parametrize(("stand_ins", "with_ids", "warned"), [(1, False, True), (0, False, False), (1, True, False)])
def test_stand_ins_that_no_loss_masks_are_told(caplog, stand_ins, with_ids, warned):
    """From one in a hundred on, where the view has no ids."""
    found = found_of()
    first = found.live.mining
    origins = first.negatives.origins.clone()
    origins[:stand_ins, 0] = LAST_RESORT
    found.live.apply(changed(first, origins=origins))
    with caplog.at_level(logging.WARNING):
        dataset = found.as_dataset(with_ids=with_ids)
    expected = (
        "1.7% of the slots hold a text that only stands in, and without ids no loss can mask it. Use "
        "`as_dataset(with_ids=True)` and one of `st_hardneg.losses`, or loosen the recipe."
    )
    assert warnings_in(caplog) == ([expected] if warned else [])
    marked = found.live.view.table.read(np.arange(NUM_ROWS))
    ids = first.negatives.ids.numpy()[found._wrapped.pairs.row_query]
    where = (origins == LAST_RESORT).numpy()[found._wrapped.pairs.row_query]
    assert (marked == np.where(where, -ids - 2, ids)).all() and where.sum() == stand_ins
    assert dataset[0]["negative_1"] == found.corpus.texts.take([ids[0, 0]])[0]


def test_one_in_a_hundred_needs_no_word(caplog):
    """The bound of the warning above: 1 of 100 slots is not more than 1 %."""
    found = mined(random_pairs(50), Model(by_seed(0)), num_negatives=WIDTH)
    origins = found.live.mining.negatives.origins.clone()
    origins[0, 0] = LAST_RESORT
    found.live.apply(changed(found.live.mining, origins=origins))
    with caplog.at_level(logging.WARNING):
        found.as_dataset()
    assert warnings_in(caplog) == []


def test_scores_stand_beside_and_go_back():
    """Positive first, then the negatives; those of before are kept while scores are read, and not otherwise."""
    found = found_of()
    live, first = found.live, found.live.mining
    assert not live.has_scores and live.previous_scores is None
    dataset = found.as_dataset(with_scores=True)
    assert live.has_scores and live.previous_scores.tolist() == first.negatives.scores.tolist()
    second = other_mining(found, 1)
    live.apply(second)
    assert live.previous_scores.tolist() == first.negatives.scores.tolist()
    for row in (0, 7):
        query = int(found._wrapped.pairs.row_query[row])
        expected = [float(second.positive_similarities[row]), *second.negatives.scores[query].tolist()]
        assert dataset[row]["scores"] == pytest.approx(expected)
    live.reset()
    assert dataset[0]["scores"] == pytest.approx(
        [
            float(first.positive_similarities[0]),
            *first.negatives.scores[int(found._wrapped.pairs.row_query[0])].tolist(),
        ]
    )
    scores = second.negatives.scores.clone()
    scores[3, 0] = float("nan")
    message = (
        "Expected a score for every text of the live view's rows, got some without one. Mine anew with the `teacher` or "
        "the `cross_encoder` in hand."
    )
    with pytest.raises(MiningError, match=whole(message)):
        live.apply(changed(second, similarities=scores))
    assert live.mining is first


def test_a_score_that_is_missing_in_no_live_row_is_none_of_its_business():
    """Rows that the view leaves out need no score."""
    found = found_of()
    first = found.live.mining
    ids, scores = first.negatives.ids.clone(), first.negatives.scores.clone()
    ids[4, 1], scores[4, 1] = -1, float("nan")
    found.live.apply(changed(first, ids=ids, similarities=scores))
    assert len(found.as_dataset(with_scores=True)) == NUM_ROWS - 1


def test_a_rank_goes_on_with_the_negatives_of_the_first(caplog):
    """With a warning where they differ and without one where they do not; other rows are refused."""
    first, other = found_of(0), found_of(1)
    first.as_dataset(with_ids=True)
    other.as_dataset(with_ids=True)
    state = first.live.starting_state()
    assert state == (first.live.mining, 1, first.live.rows)
    with caplog.at_level(logging.WARNING):
        other.live.start_from(state)
        other.live.start_from(state)
    assert warnings_in(caplog) == ["This rank had mined other negatives than rank 0; it goes on with those of rank 0."]
    assert ids_in(other) == ids_in(first) and other.live.num_minings == 1
    own = other.live.mining
    other.live.start_from((None, 0, None))
    assert other.live.mining is own
    message = (
        "The ranks' live views have different rows: their minings left other slots empty. Mine on one rank, "
        '`save_to_disk`, and load on all of them; or set `shortfall="random"`, which keeps every row.'
    )
    for rows in (first.live.rows[:-1], None):
        with pytest.raises(ValueError, match=whole(message)):
            other.live.start_from((first.live.mining, 1, rows))
    no_view = found_of(1)
    with pytest.raises(ValueError, match=whole(message)):
        no_view.live.start_from(state)
    no_view.live.start_from((first.live.mining, 1, None))
    assert no_view.negative_ids.tolist() == first.negative_ids.tolist()


def test_a_copy_has_views_of_its_own():
    """Mining the copy does not change what the original's training reads."""
    found = found_of()
    found.as_dataset(with_ids=True)
    before, twin = ids_in(found), copy.deepcopy(found.live)
    twin.apply(other_mining(found, 1))
    assert ids_in(found) == before and twin.view is None and twin.num_minings == 2 and found.live.num_minings == 1


def test_views_of_one_format_are_one():
    """They are made once, so that one schedule and one resume reaches all that was handed out."""
    found = found_of()
    found.as_dataset("labeled-list")
    found.as_dataset("labeled-pair")
    views = found.live._views()
    assert len(views) == 3
    found.as_dataset("labeled-pair")
    found.as_dataset("labeled-list")
    assert [id(view) for view in found.live._views()] == [id(view) for view in views]
    found.as_dataset("labeled-list", with_scores=True)
    assert len(found.live._views()) == 4
    found.live.num_shown = 1
    assert [view.table.num_shown for view in found.live._views()] == [1] * 4 and found.live.num_shown == 1
    found.live.serve_previous(3)
    assert all(view.pass_batch() for view in found.live._views())


def test_the_number_shown_without_a_view_is_the_width():
    """And setting it then does nothing: there is nothing to show."""
    found = found_of()
    found.live.num_shown = 1
    assert found.live.num_shown == WIDTH


def checkpoint_of(found, mining: Mining, previous: Mining, **changes) -> SimpleNamespace:
    """Return the state of a checkpoint in which one mining is in force and another one was before it."""
    state = {
        "mining": mining,
        "num_minings": 5,
        "live_rows": found.live.rows,
        "previous_ids": previous.negatives.ids.numpy(),
        "previous_scores": None,
        "epoch_topics": None,
    }
    return SimpleNamespace(**{**state, **changes})


def test_a_checkpoint_is_put_in_force_with_what_was_before_it():
    """Batches that the interrupted run had fetched ahead are read from before the last refresh, texts and scores."""
    found = found_of()
    dataset = found.as_dataset(with_scores=True)
    second, third = other_mining(found, 1), other_mining(found, 2)
    scores = torch.arange(NUM_ROWS * WIDTH).reshape(NUM_ROWS, WIDTH).float()
    topics = np.arange(NUM_ROWS)
    state = checkpoint_of(found, third, second, previous_scores=scores, epoch_topics=topics)
    found.live.restore(state, old_batches=1)
    live, query = found.live, int(found._wrapped.pairs.row_query[4])
    assert (
        live.mining is third and live.num_minings == 5 and live.previous_ids.tolist() == second.negatives.ids.tolist()
    )
    assert live.previous_scores is scores and live.epoch_topics.tolist() == topics.tolist()
    assert live.view.topics.tolist() == found._wrapped.pairs.row_query.tolist()
    texts = [found.corpus.texts.take(mining.negatives.ids[query].numpy()) for mining in (second, third)]
    own = [float(mining.positive_similarities[4]) for mining in (second, third)]
    for row, expected, positive, of_negatives in [
        (dataset[4], texts[0], own[1], scores[query].tolist()),
        (dataset[4], texts[1], own[1], third.negatives.scores[query].tolist()),
    ]:
        assert [row[f"negative_{slot + 1}"] for slot in range(WIDTH)] == expected
        assert row["scores"] == pytest.approx([positive, *of_negatives])
    # A checkpoint that holds no scores of before has those that stand now; and one without topics shows none.
    found.live.restore(checkpoint_of(found, third, second))
    assert live.previous_scores.tolist() == third.negatives.scores.tolist()
    assert live.epoch_topics is None and live.view.topics is None
    assert dataset[4]["negative_1"] == texts[1][0]


def test_a_checkpoint_of_other_rows_is_refused():
    """Whichever has more of them; without a view, any will do."""
    found = found_of()
    mining = found.live.mining
    found.live.restore(checkpoint_of(found, mining, mining, live_rows=np.arange(3)))
    found.as_dataset(with_ids=True)
    message = (
        "Expected a live view of the rows of the checkpoint, got 30 rows where it has 29, or others. In the resumed "
        "script, load what `save_to_disk` wrote before the training, or mine with the very model that it started from "
        "before `as_dataset()`."
    )
    with pytest.raises(ValueError, match=whole(message)):
        found.live.restore(checkpoint_of(found, mining, mining, live_rows=np.arange(29)))


def test_a_probe_is_told_of_everything():
    """Queries, corpus and the negatives in force."""
    found = found_of()
    parts = []
    assert found.live.probed(lambda *given: parts.append(given) or 0.5) == 0.5
    ((pairs, corpus, mining),) = parts
    assert pairs is found._wrapped.pairs and corpus is found.corpus and mining is found.live.mining


def test_what_is_read_from_files_is_what_a_reset_goes_back_to():
    """And where nothing was mined, there is nothing to go back to."""
    found, mining = found_of(), found_of(1).live.mining
    found.live.load(mining, 4, None)
    found.live.apply(other_mining(found, 2))
    found.live.reset()
    assert found.live.mining is mining and found.live.num_minings == 4
    found.live.load(None, 0, None)
    found.live.reset()
    assert found.live.mining is None and found.live.num_minings == 0


def test_scores_are_added_to_a_table_once():
    """A second view with scores leaves what stands there, and one without never asks for them."""
    found = found_of()
    found.as_dataset(with_ids=True)
    assert not found.live.has_scores
    found.as_dataset(with_scores=True)
    found.live.apply(other_mining(found, 1))
    table = found.live._table
    before = table.read_scored(np.arange(NUM_ROWS), previous=True)[1].tolist()
    found.as_dataset("labeled-list", with_scores=True)
    assert found.live._table is table and table.read_scored(np.arange(NUM_ROWS), previous=True)[1].tolist() == before
    assert found.live.view.owner is found
