"""Prompts and routes: those of the trainer are mined with, and all minings of a run use the same."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from datasets import DatasetDict

from st_hardneg import MiningCallback
from st_hardneg.encoders import Encoding
from st_hardneg.encoders.prompts import prompt_text, training_encodings
from st_hardneg.training.curriculum import Stage
from st_hardneg.training.prompts import _with_columns, check_trained_as_mined, warn_of_unknown_columns
from tests.training.runs import HOST_WARNINGS, make_args, make_model, make_negatives, train

pytestmark = [pytest.mark.training, *HOST_WARNINGS]


def test_the_trainer_s_prompts_and_routes_are_used(tmp_path):
    """Prompts by column, by dataset and column, and none at all; the config's own come first."""
    model = make_model()
    hard_negatives = make_negatives(model)
    args = make_args(tmp_path, prompts={"anchor": "query: ", "positive": "passage: "})
    encodings = training_encodings(hard_negatives, args, None)
    assert (encodings.queries.prompt, encodings.corpus.prompt) == ("query: ", "passage: ")
    nested = make_args(tmp_path, prompts={"mined": {"anchor": "q: "}}, router_mapping={"mined": {"anchor": "document"}})
    encodings = training_encodings(hard_negatives, nested, "mined")
    assert (encodings.queries.prompt, encodings.corpus.prompt) == ("q: ", "")
    assert (encodings.queries.task, encodings.corpus.task) == ("document", "document")
    own = training_encodings(make_negatives(model, query_prompt="own: "), args, None)
    assert (own.queries.prompt, own.corpus.prompt) == ("own: ", "passage: ")


def encoded_with(model) -> list[tuple[object, int]]:
    """Return a list to which every call of the model adds its prompt and batch size."""
    calls = []
    for name in ("encode_query", "encode_document"):
        encode = getattr(model, name)

        def noted(texts, *, encode=encode, **options):
            calls.append((options["prompt"], options["batch_size"]))
            return encode(texts, **options)

        setattr(model, name, noted)
    return calls


def test_prompts_of_a_stage_are_used(tmp_path):
    """What a report calls in force is what texts were encoded with."""
    model = make_model()
    hard_negatives = make_negatives(model)
    calls = encoded_with(model)
    stages = [Stage("first", 1, query_prompt="w1 ")]
    train(tmp_path, [MiningCallback(hard_negatives, schedule=stages)], hard_negatives.as_dataset(), model, max_steps=2)
    assert sorted(set(calls)) == [("", 32), ("w1 ", 32)]


def test_a_teacher_has_prompts_of_its_own(tmp_path):
    """They are left to the teacher, as `mine(teacher)` does; the student's do not apply."""
    model, teacher = make_model(), make_model(3)
    hard_negatives = make_negatives(model)
    calls = encoded_with(teacher)
    callback = MiningCallback(hard_negatives, mining_steps=1, retriever=teacher)
    train(tmp_path, [callback], hard_negatives.as_dataset(), model, max_steps=2, prompts="w5 ")
    assert set(calls) == {(None, 32)}


def test_a_prompt_for_positives_only_is_refused_with_the_argument_that_mends_it(tmp_path):
    """Negatives are trained exactly as positives; what the argument holds besides stays."""
    hard_negatives = make_negatives(make_model())
    prompts = {"anchor": "w1 ", "positive": "w2 "}
    with pytest.raises(ValueError, match="the prompt alone would tell them apart") as error:
        check_trained_as_mined(hard_negatives, make_args(tmp_path, prompts=prompts), None)
    whole = {**prompts, "negative_1": "w2 ", "negative_2": "w2 "}
    assert f"prompts={whole}" in str(error.value)
    check_trained_as_mined(hard_negatives, make_args(tmp_path, prompts=whole), None)
    for same in ("w2 ", None, {"anchor": "w1 "}, {"anchor": "w1 ", "positive": ""}):
        check_trained_as_mined(hard_negatives, make_args(tmp_path, prompts=same), None)


def test_a_prompt_of_another_dataset_stays_in_the_argument_that_is_printed(tmp_path):
    """Also where prompts are by dataset and column."""
    hard_negatives = make_negatives(make_model(), num_negatives=1)
    prompts = {"a": {"anchor": "w1 ", "positive": "w2 "}, "b": {"anchor": "w3 "}}
    with pytest.raises(ValueError, match="the prompt alone would tell them apart") as error:
        check_trained_as_mined(hard_negatives, make_args(tmp_path, prompts=prompts), "a")
    mended = {"a": {**prompts["a"], "negative_1": "w2 "}, "b": {"anchor": "w3 "}}
    assert f"prompts={mended}" in str(error.value)
    check_trained_as_mined(hard_negatives, make_args(tmp_path, prompts=mended), "a")


@pytest.mark.parametrize(
    ("task", "prompts", "default", "given", "expected"),
    [
        ("query", {"query": "q: ", "document": "d: "}, None, {}, "q: "),
        ("document", {"query": "q: ", "passage": "p: ", "document": "d: "}, None, {}, "d: "),
        ("document", {"query": "q: ", "corpus": "c: ", "passage": "p: "}, None, {}, "p: "),
        ("document", {"corpus": "c: "}, None, {}, "c: "),
        ("query", {"own": "o: "}, "own", {}, "o: "),
        ("query", {"own": "o: ", "query": ""}, "own", {}, ""),
        ("query", {"own": "o: "}, None, {}, ""),
        ("query", {"own": "o: "}, None, {"prompt_name": "own"}, "o: "),
        ("query", {"query": "q: "}, None, {"prompt": ""}, ""),
        ("query", {"query": "q: "}, None, {"prompt": "p: ", "prompt_name": "query"}, "p: "),
        ("route", {"query": "q: "}, None, {}, ""),
    ],
)
def test_prompts_are_resolved_as_the_model_does(task, prompts, default, given, expected):
    """What our look-up says is what the model's own methods put before a text."""
    model = make_model()
    model.prompts, model.default_prompt_name = dict(prompts), default
    assert prompt_text(model, Encoding(task, **given)) == expected
    seen, infer = [], model._inference
    model._inference = lambda inputs, **options: seen.append(options.get("prompt")) or infer(inputs, **options)
    if task != "route":
        method = model.encode_query if task == "query" else model.encode_document
        method(["w1"], **given)
        assert (seen[0] or "") == expected


def test_a_client_without_prompts_has_none():
    """An object that only encodes is asked for nothing else."""
    assert prompt_text(SimpleNamespace(), Encoding("query")) == ""


OWN = {"query": "w7 ", "document": "w8 "}
SAME = {"anchor": "w7 ", "positive": "w8 ", "negative_1": "w8 ", "negative_2": "w8 "}


def prompted(**config):
    """Return a model with prompts of its own, and a dataset mined with them unless the config says otherwise."""
    model = make_model()
    model.prompts.update(OWN)
    return model, make_negatives(model, **config)


def test_refreshes_with_other_prompts_than_the_first_mining_are_refused(tmp_path):
    """The error names both, and each argument that it prints mends it."""
    model, hard_negatives = prompted()
    dataset, callbacks = hard_negatives.as_dataset(), [MiningCallback(hard_negatives, 2)]
    with pytest.raises(ValueError, match="The first mining used the prompt 'w7 ' for queries") as error:
        train(tmp_path, callbacks, dataset, model, max_steps=4)
    assert "use '' and ''" in str(error.value) and f"prompts={SAME}" in str(error.value)
    assert "MiningConfig(query_prompt='', corpus_prompt='')" in str(error.value)
    train(tmp_path, callbacks, dataset, model, max_steps=4, prompts=SAME)
    model, hard_negatives = prompted(query_prompt="", corpus_prompt="")
    train(tmp_path, [MiningCallback(hard_negatives, 2)], hard_negatives.as_dataset(), model, max_steps=4)


def test_with_the_same_prompts_and_weights_a_refresh_changes_nothing(tmp_path):
    """At a learning rate of 0, no negative is replaced: a refresh differs from the first mining by the weights only."""
    model, hard_negatives = prompted(sampling_strategy="top")
    callback = MiningCallback(hard_negatives, 2)
    train(tmp_path, [callback], hard_negatives.as_dataset(), model, max_steps=4, prompts=SAME, learning_rate=0.0)
    assert [report.churn for report in callback.reports] == [0.0]


@pytest.mark.parametrize(
    ("config", "prompts"),
    [
        ({"query_prompt_name": "query", "corpus_prompt": "w8 "}, None),
        ({"query_prompt": "w7 ", "corpus_prompt_name": "document"}, SAME),
        ({}, SAME),
    ],
)
def test_equal_prompts_under_other_names_pass(tmp_path, config, prompts):
    """A name, a text and the model's own default may be the same prompt."""
    model, hard_negatives = prompted(**config)
    train(
        tmp_path, [MiningCallback(hard_negatives, 2)], hard_negatives.as_dataset(), model, max_steps=3, prompts=prompts
    )


def test_a_teacher_is_not_asked_for_the_prompts_of_the_training(tmp_path):
    """Its own prompts hold in every refresh, whatever the training has."""
    model, hard_negatives = prompted()
    callback = MiningCallback(hard_negatives, 2, retriever=make_model(3))
    train(tmp_path, [callback], hard_negatives.as_dataset(), model, max_steps=3)


def test_another_model_mined_with_prompts_of_its_own(tmp_path):
    """What counts is what the first mining used, not what the model in training would have used in its place."""
    plain, model = make_model(), make_model()
    model.prompts.update(OWN)
    train(tmp_path, [MiningCallback(mining_steps=2)], make_negatives(plain).as_dataset(), model, max_steps=3)
    _, hard_negatives = prompted()
    with pytest.raises(ValueError, match="The first mining used the prompt 'w7 ' for queries"):
        train(tmp_path, [MiningCallback(mining_steps=2)], hard_negatives.as_dataset(), plain, max_steps=3)


def test_a_dataset_of_which_nothing_is_known_is_warned_about(tmp_path, caplog):
    """Where it is not known how a dataset was mined, the training begins, and what may differ is said."""
    model, hard_negatives = prompted()
    hard_negatives.live.encodings = None
    with caplog.at_level(logging.WARNING, "st_hardneg"):
        train(tmp_path, [MiningCallback(hard_negatives, 2)], hard_negatives.as_dataset(), model, max_steps=3)
    assert "If the dataset was mined by `mine(model)`: The first mining used the prompt 'w7 '" in caplog.text


def test_other_routes_than_those_of_the_first_mining_are_refused(tmp_path):
    """The trainer's `router_mapping` decides for refreshes, and `mine` can be given the same arguments."""
    model = make_model()
    hard_negatives = make_negatives(model)
    routes = dict.fromkeys(["anchor", "positive", "negative_1", "negative_2"], "document")
    with pytest.raises(
        ValueError, match=r"encoded queries by the route 'query' and the corpus by 'document'. Refreshes"
    ):
        train(tmp_path, [MiningCallback(hard_negatives, 2)], hard_negatives.as_dataset(), model, router_mapping=routes)
    hard_negatives.mine(model, args=make_args(tmp_path, router_mapping=routes), show_progress_bar=False)
    train(
        tmp_path,
        [MiningCallback(hard_negatives, 2)],
        hard_negatives.as_dataset(),
        model,
        max_steps=3,
        router_mapping=routes,
    )


@pytest.mark.parametrize(
    ("routes", "name", "mended"),
    [
        (
            {"anchor": "q", "positive": "d"},
            None,
            {"anchor": "q", "positive": "d", "negative_1": "d", "negative_2": "d"},
        ),
        (
            {"positive": "d", "negative_1": "d", "negative_2": "q"},
            None,
            {"positive": "d", "negative_1": "d", "negative_2": "d"},
        ),
        ({"negative_1": "d"}, None, {"positive": "d", "negative_1": "d", "negative_2": "d"}),
        (
            {"b": {"anchor": "q"}, "a": {"positive": "d"}},
            "a",
            {"b": {"anchor": "q"}, "a": {"positive": "d", "negative_1": "d", "negative_2": "d"}},
        ),
    ],
)
def test_a_route_for_positives_only_is_refused_with_the_argument_that_mends_it(tmp_path, routes, name, mended):
    """A route tells positives from negatives as a prompt does; what is printed passes."""
    hard_negatives = make_negatives(make_model())
    with pytest.raises(ValueError, match="the route alone would tell them apart") as error:
        check_trained_as_mined(hard_negatives, make_args(tmp_path, router_mapping=routes), name)
    assert f"router_mapping={mended}" in str(error.value)
    check_trained_as_mined(hard_negatives, make_args(tmp_path, router_mapping=mended), name)


def test_routes_that_are_equal_pass_and_others_are_refused_at_train_begin(tmp_path):
    """A route for anchors alone leaves positives and negatives alike."""
    model = make_model()
    hard_negatives = make_negatives(model)
    for same in (None, {"anchor": "query"}):
        check_trained_as_mined(hard_negatives, make_args(tmp_path, router_mapping=same), None)
    with pytest.raises(ValueError, match="the route alone would tell them apart"):
        train(tmp_path, [MiningCallback()], hard_negatives.as_dataset(), model, router_mapping={"positive": "document"})


def test_prompts_for_a_dataset_without_any_stand_beside_those_of_others():
    """What is printed stays by dataset and column."""
    mended = _with_columns({"b": {"anchor": "w3 "}}, "a", {"positive": "w2 "})
    assert mended == {"b": {"anchor": "w3 "}, "a": {"positive": "w2 "}}


def test_prompts_of_columns_that_no_dataset_has_are_warned_of(tmp_path, caplog):
    """By name; columns and names of the training's and the evaluation's datasets are known."""
    model = make_model()
    hard_negatives = make_negatives(model, query_prompt="", corpus_prompt="")
    view, frozen = hard_negatives.as_dataset(), hard_negatives.to_dataset("n-tuple").rename_column("anchor", "left")
    with caplog.at_level(logging.WARNING, "st_hardneg"):
        prompts = {"anchor": "w1 ", "query": "w2 ", "left": "w3 "}
        train(tmp_path, [MiningCallback()], DatasetDict({"a": view, "b": frozen}), model, max_steps=1, prompts=prompts)
    assert "name ['query'], which no dataset of the training has" in caplog.text
    caplog.clear()
    targets = [SimpleNamespace(hard_negatives=hard_negatives, dataset_name="a")]
    with caplog.at_level(logging.WARNING, "st_hardneg"):
        for fine in (None, "w1 ", {"a": "w1 "}, {"a": {"anchor": "w1 ", "negative_2": "w2 "}, "e": {"left": "w1 "}}):
            warn_of_unknown_columns(SimpleNamespace(prompts=fine), targets, {"a": view}, {"e": frozen})
        assert not caplog.text
        nested = {"a": {"question": "w1 "}, "c": {"anchor": "w1 "}}
        warn_of_unknown_columns(SimpleNamespace(prompts=nested), targets, {"a": view}, None)
    assert "name ['c', 'question']" in caplog.text
