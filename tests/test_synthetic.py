"""Texts that are written to be wrong answers: what the makers promise, and what each rule does."""

from __future__ import annotations

import gc
import json
import logging
import pickle
import random
import re
import sys
import time
from difflib import SequenceMatcher
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from st_hardneg.errors import MiningError, MissingExtraError
from st_hardneg.sources.synthetic import (
    Contradictions,
    KeywordEdits,
    TextPerturbations,
    checked_synthetic,
    contradictions,
    entities_in,
    text_perturbations,
)
from st_hardneg.sources.synthetic.quantities import other_quantity, quantities
from st_hardneg.texts import same_text_key

PROSE = (
    "In 1998, Aspirin did not increase the 5 mg/L level of IL-6 by 12.5 % in 1,200 patients from Kenya. "
    "Before the 21st week, Marie Curie has a higher risk than Niels Bohr, who cannot walk 3 km. "
)
quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Anything, and sentences in which there is something to edit.
texts = st.text(max_size=80) | st.lists(
    st.sampled_from(
        [*PROSE.split(), *"not is has a no don’t isn't - 5-7 % °C März 日本 US$ $7 ½ \u00a0 ÀÉ BRCA1".split()]
    ),
    max_size=25,
).map(" ".join)
makers = st.sampled_from(
    [KeywordEdits(3, seed=1), KeywordEdits(2, num_edits=3), KeywordEdits(2, entities=("Ada Lovelace", "TNF", "walk"))]
    + [KeywordEdits(4, kinds=(kind,)) for kind in ("number", "unit", "entity", "antonym", "negation")]
    + [TextPerturbations(2), TextPerturbations(3, rate=1.0, kinds=("word",))]
)


def only(text: str, kind: str, count: int = 60, **arguments: object) -> set[str]:
    """Return what edits of one kind make of a text."""
    return set(KeywordEdits(count, kinds=(kind,), **arguments)([text])[0])


# ---- what every maker promises


@quick
@given(makers, st.lists(texts, min_size=1, max_size=3))
def test_texts_differ_and_do_not_depend_on_the_batch(maker, positives):
    """Whatever the text: as many lists, at most `num_texts`, no text twice or the same as the positive."""
    written = maker(positives)
    assert len(written) == len(positives)
    for text, found in zip(positives, written, strict=True):
        assert len(found) <= maker.num_texts
        assert len({same_text_key(one) for one in [text, "", *found]} - {b""}) == len(found) + 1 + (
            same_text_key(text) != same_text_key("")
        )
    assert [maker([text])[0] for text in reversed(positives)] == written[::-1]
    assert pickle.loads(pickle.dumps(maker))(positives) == written


@quick
@given(texts)
def test_an_edit_keeps_the_wording(text):
    """Of the words, all but a few are in both texts."""
    for edited in KeywordEdits(3, kinds=("number", "unit", "antonym", "negation"))([text])[0]:
        before, after = (re.findall(r"\w+|\S", one) for one in (text, edited))
        blocks = SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
        assert len(before) - sum(block.size for block in blocks) <= 10


def test_the_seed_and_the_number_of_texts_count():
    """Another seed writes another text, more texts go on from fewer, all kinds take turns."""
    for maker in (KeywordEdits, TextPerturbations):
        assert len({maker(seed=seed)([PROSE])[0][0] for seed in range(10)}) > 4
        assert maker(6)([PROSE])[0][:2] == maker(2)([PROSE])[0]
        assert len(maker(6)([PROSE])[0]) == 6
    born = KeywordEdits(kinds=("entity",))([f"child {number} was born in Kenya" for number in range(20)])
    assert len({text.split()[-1] for [text] in born}) > 5, "every text has draws of its own"
    kinds = {kind: only(PROSE, kind, 200) for kind in ("number", "unit", "entity", "antonym", "negation")}
    for edited in KeywordEdits(5)([PROSE])[0]:
        kinds = {kind: found for kind, found in kinds.items() if edited not in found}
    assert len(kinds) <= 1, "a kind was left out"  # one at most: draws are not the same alone


def test_nothing_to_edit():
    """Then there is no text, rather than the same."""
    nothing = ["", " \n", "...", "Ein Satz ohne alles", "敏捷的棕色狐狸", "\ud800"]
    assert KeywordEdits(5)(nothing) == [[]] * len(nothing)
    assert TextPerturbations(5)(["", " \n"]) == [[], []]
    assert KeywordEdits()([]) == []


@pytest.mark.parametrize("unit", [PROSE, "5 ", "1,", "is not ", "AB-", "a'", "Aa bb Cc dd ", "(", "7", "\u00e9 "])
def test_time_grows_with_the_length(unit):
    """Eight times the text takes about eight times as long, not sixty-four; the best of three, without pauses."""
    maker = KeywordEdits(2, entities=("x y", "z"))
    times = []
    gc.disable()
    try:
        for length in (2_000, 16_000):
            text = unit * (length // len(unit))
            taken = []
            for _ in range(3):
                start = time.process_time()
                maker([text])
                taken.append(time.process_time() - start)
            times.append(min(taken))
    finally:
        gc.enable()
    assert times[1] < 24 * times[0] + 0.02


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KeywordEdits(0), ValueError, "Expected `num_texts` to be from 1 to 1,000, got 0"),
        (lambda: KeywordEdits(1.5), TypeError, "Expected `num_texts` to be an integer, got 1.5"),
        (lambda: KeywordEdits(num_edits=True), TypeError, "Expected `num_edits` to be an integer"),
        (lambda: KeywordEdits(seed=-1), ValueError, "Expected `seed` to be from 0"),
        (lambda: KeywordEdits(kinds=("digit",)), ValueError, r"Expected `kinds` to be some of \['number'"),
        (lambda: KeywordEdits(kinds="number"), TypeError, "Expected `kinds` to be a tuple of names, got 'number'"),
        (lambda: KeywordEdits(kinds=()), ValueError, "Expected `kinds` to be some of"),
        (lambda: KeywordEdits(entities="Ada"), TypeError, "Expected `entities` to be a list of names"),
        (lambda: KeywordEdits(entities=["Ada", " "]), ValueError, "got ' ' at position 1"),
        (lambda: TextPerturbations(rate=0), ValueError, "Expected `rate` to be above 0 and at most 1"),
        (lambda: TextPerturbations(rate="much"), TypeError, "Expected `rate` to be a number"),
        (lambda: TextPerturbations(rate=float("nan")), ValueError, "Expected `rate` to be above 0"),
        (lambda: KeywordEdits()("one text"), TypeError, "Expected a list of texts, got one text"),
        (lambda: KeywordEdits()(["a", None]), TypeError, "got NoneType at position 1"),
        (lambda: Contradictions(""), ValueError, "Expected `model` to name a language model"),
        (lambda: Contradictions(7), TypeError, "Expected `model` to be a name, a path"),
        (lambda: Contradictions("m", prompt="Deny it."), ValueError, "Expected `prompt` to contain '{text}'"),
        (lambda: Contradictions("m", prompt=7), TypeError, "Expected `prompt` to be a string or a function"),
        (lambda: Contradictions("m", batch_size=0), ValueError, "Expected `batch_size` to be from 1"),
        (lambda: Contradictions("m", cache_dir=7), TypeError, "Expected `cache_dir` to be a path"),
        (lambda: Contradictions("m", cache_dir=__file__), ValueError, "Expected `cache_dir` to be a folder"),
        (lambda: Contradictions(Scripted({}), device="cpu"), ValueError, "Expected `device` to be None"),
    ],
)
def test_bad_arguments(make, error, message):
    """What was expected, what came, what to do; before anything is loaded."""
    with pytest.raises(error, match=message):
        make()


# ---- keyword edits, rule by rule


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("It lasts 5 days.", "number", "It lasts 50 days."),
        ("a share of 12.5 %", "number", "a share of 21.5 %"),
        ("seen in 1998", "number", "seen in 1989"),
        ("of 1,234 people", "number", "of 2,134 people"),
        ("on the 21st day", "number", "on the 22nd day"),
        ("on the 10th day", "number", "on the 13th day"),
        ("in the 1990s", "number", "in the 1980s"),
        ("at -5 °C", "number", "at +5 °C"),
        ("p < 0.05", "number", "p < 0.5"),
        ("aged 5-10 years", "number", "aged 11-16 years"),
        ("type 2 diabetes", "number", "type 1 diabetes"),
        ("a two-fold rise", "number", "an eight-fold rise"),
        ("TWO OF THEM", "number", "SEVEN OF THEM"),
        ("it weighs 5 mg", "unit", "it weighs 5 g"),
        ("it weighs 5mg/kg", "unit", "it weighs 5µg/kg"),
        ("it is 3 km off", "unit", "it is 3 m off"),
        ("within 5 hours", "unit", "within 5 days"),
        ("a 5-day stay", "unit", "a 5-week stay"),
        ("given Daily", "unit", "given Weekly"),
        ("at 20 °C", "unit", "at 20 °F"),
        ("a 5% increase", "unit", "a 5-fold increase"),
        ("costs $5", "unit", "costs €5"),
        ("5 million people", "unit", "5 billion people"),
        ("he met Ada Lovelace in Paris today", "entity", "he met Paris in Ada Lovelace today"),
        ("that TNF inhibits IL-6 here", "entity", "that IL-6 inhibits TNF here"),
        ("born in Kenya", "entity", "born in Peru"),
        ("born in May", "entity", "born in June"),
        ("a red car", "entity", "a blue car"),
        ("an Indian car", "entity", "a German car"),
        ("Increases were seen", "antonym", "Decreases were seen"),
        ("AN INCREASE", "antonym", "A DECREASE"),
        ("it inhibits growth", "antonym", "it activates growth"),
        ("before lunch", "antonym", "after lunch"),
        ("he always wins", "antonym", "he never wins"),
        ("at least 5", "antonym", "at most 5"),
        ("Lp-PLA2-positive cells", "antonym", "Lp-PLA2-negative cells"),
        ("a stable and long-term effect", "antonym", "a stable and short-term effect"),
        ("it is safe", "negation", "it is not safe"),
        ("it is not safe", "negation", "it is safe"),
        ("it isn't safe", "negation", "it is safe"),
        ("it CAN’T WORK", "negation", "it CAN WORK"),
        ("it cannot work", "negation", "it can work"),
        ("it can work", "negation", "it can not work"),
        ("it has been shown", "negation", "it has not been shown"),
        ("it has a role", "negation", "it has no role"),
        ("No effect was it", "negation", "Some effect was it"),
        ("this causes the loss", "negation", "this does not cause the loss"),
        ("the gene encodes it", "negation", "the gene does not encode it"),
    ],
)
def test_what_an_edit_may_write(text, kind, wanted):
    """Each is among what is drawn."""
    found = only(text, kind)
    assert wanted in found, sorted(found)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("IL-6 and p53 and COVID-19 and 5-HT, a 3'-end, CD4+", "number"),
        ("10:30, 1.2.3, 12/05/2010, 10.1038/x", "number"),
        ("as in Figure 3 and [12] and (2)", "number"),
        ("95% CI and in their 50s", "number"),
        ("5 apples in m and g", "unit"),
        ("We met The Team. Mice ran. OBJECTIVE: Rats ran.", "entity"),
        ("with TNF and IL-6", "entity"),
        ("a bypass of the Aorta (BOTA) here", "entity"),
        ("that the TNF gene (also called CACHE) here", "entity"),
        ("he may march", "entity"),
        ("some PCR-amplified DNA", "entity"),
        ("it was Crohn's Disease", "entity"),
        ("the causes of it", "negation"),
        ("the present study", "antonym"),
        ("more or less", "antonym"),
        ("not only this, is it? Is it so? There it is.", "negation"),
        ("it is not only safe", "negation"),
        ("he has two", "negation"),
        ("the can of May", "negation"),
    ],
)
def test_what_is_left_alone(text, kind):
    """Names with numbers, sentence starts, lists, words with another meaning."""
    assert only(text, kind) == set()


@quick
@given(st.decimals(min_value=0, max_value=10**6, places=2) | st.integers(0, 10**9), st.integers(0, 99), st.booleans())
def test_another_number_keeps_the_format(number, seed, grouped):
    """Separators and decimals stay, the value does not."""
    text = f"{number:,}" if grouped else str(number)
    [found] = list(quantities(text + " apples")) or [None]
    changed = found and other_quantity(found, random.Random(seed))
    if changed is not None:
        assert float(changed.replace(",", "")) != float(number)
        assert ("." in changed) == ("." in text)
        assert "," not in text or "." in text or changed == f"{int(changed.replace(',', '')):,}"
        assert not (len(changed) > 1 and changed[0] == "0" and changed[1] != ".")


def test_a_share_stays_a_share():
    """No per cent above 100, no probability above 1."""
    shares = [float(re.search(r"[\d.]+", one)[0]) for one in only("in 12.5 % of 2 x", "number") if "of 2" in one]
    shares += [float(re.search(r"[\d.]+", one)[0]) for one in only("in 50 % so", "number")]
    assert len(shares) > 9 and max(shares) <= 100
    assert all(float(one[4:]) < 1 for one in only("p = 0.052", "number"))


def test_names_come_from_the_pool():
    """What the pool has is replaced by something else from it; without a find, capitalised names are."""
    pool = ("aspirin", "Ibuprofen", "folic acid")
    assert only("take folic acid daily, Adam", "entity", entities=pool) == {
        "take aspirin daily, Adam",
        "take Ibuprofen daily, Adam",
    }
    assert only("we saw Adam", "entity", entities=pool) == {f"we saw {name}" for name in pool}
    assert KeywordEdits(entities={"b", "a"}).entities == ("a", "b")
    assert entities_in([PROSE, "see Ada Lovelace"]) == ("Ada Lovelace", "Aspirin", "IL-6", "Marie Curie", "Niels Bohr")


def test_several_edits():
    """As many places are changed as asked for."""
    text = "It is high. It is low. It is large. It is early."
    [edited] = KeywordEdits(kinds=("antonym",), num_edits=3)([text])[0]
    assert sum(a != b for a, b in zip(text.split(), edited.split(), strict=True)) == 3


# ---- perturbations


def test_perturbations_leave_global_generators_alone(monkeypatch):
    """By itself, nlpaug draws from Python's generator by itself, and its dictionary has another order in every process."""
    random.seed(3)
    before = random.getstate()
    written = TextPerturbations(8, kinds=("word",))([PROSE])
    assert random.getstate() == before
    for editor in text_perturbations._editors(("word",), 0.1):
        for misspelt in getattr(getattr(editor, "model", None), "dict", {}).values():
            misspelt.reverse()
    assert TextPerturbations(8, kinds=("word",))([PROSE]) == written


def test_perturbations_of_each_kind():
    """Characters: the same number of words. The rate counts. Long texts are cut into pieces without a trace."""
    words = " ".join(f"word{number}" for number in range(250))
    changed = {}
    for rate in (0.02, 0.5):
        [text] = TextPerturbations(kinds=("character",), rate=rate)([words])[0]
        assert len(text.split()) == 250
        changed[rate] = sum(a != b for a, b in zip(words.split(), text.split(), strict=True))
    assert 3 <= changed[0.02] <= 10 < 100 < changed[0.5] <= 130


def test_perturbations_without_nlpaug(monkeypatch):
    """The error names the line to type."""
    monkeypatch.setitem(sys.modules, "nlpaug", None)
    monkeypatch.setattr("st_hardneg.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "st-hardneg\[synthetic\]"'):
        TextPerturbations()


# ---- contradictions

VOCABULARY = ["<pad>", "<end>", "<unk>", *"the cat dog sat ran on a mat is not never here . Text :".split(), "\n", '"']


def word_tokenizer(**arguments: object) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", **arguments
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """The path of a random GPT-2 that knows a few words."""
    path = str(tmp_path_factory.mktemp("tiny"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(VOCABULARY), n_positions=48, n_embd=16, n_layer=2, n_head=2, eos_token_id=1)
        config.bos_token_id = config.pad_token_id = 0
        model = GPT2LMHeadModel(config)
        for parameter in model.parameters():
            parameter.data.mul_(8)  # so that the prompt counts
        model.save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return path


class Scripted:
    """A pipeline whose model writes a given text after a prompt in which a key occurs."""

    def __init__(self, script: dict[str, str], **arguments: object) -> None:
        self.tokenizer = word_tokenizer(**arguments)
        self.model = self
        self.script, self.prompts, self.widths = script, [], []
        self.training = True

    def generate(self, input_ids, attention_mask, generation_config, logits_processor):
        assert not self.training
        self.widths.append(len(input_ids))
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            assert mask.tolist() == sorted(mask.tolist()), "padding is on the left"
            self.prompts.append(self.tokenizer.decode(ids[mask.bool()]))
            text = next((text for key, text in self.script.items() if key in self.prompts[-1]), "")
            rows.append(ids.tolist() + self.tokenizer(text)["input_ids"] + [1])
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    def eval(self):
        self.training = False

    def train(self):
        self.training = True


SHORT = "{text} Text :"


def test_the_first_line_counts():
    """Empty lines, quotes, copies of the input and empty answers; the model's mode is left as found."""
    pipeline = Scripted({"cat": '\n " the cat ran " \n the dog', "dog": "the dog", "mat": ". \n ."})
    written = Contradictions(pipeline, prompt=SHORT, batch_size=2)(["the cat", "the dog", "the mat", "the cat"])
    assert written == [["the cat ran"], [], [], ["the cat ran"]]
    assert pipeline.widths == [2, 1] and pipeline.training


@pytest.mark.parametrize(
    ("completion", "line"),
    [
        ("<think>no\nno</think>\n\nYes.", "Yes."),
        ("<think>no end", ""),
        ("“Yes.”\nNo.", "Yes."),
        ("...\n - Yes", "- Yes"),
        ('He said "no"', 'He said "no"'),
        ("", ""),
    ],
)
def test_a_line_of_an_answer(completion, line):
    assert contradictions._first_line(completion) == line


def test_a_model_that_writes_nothing(caplog):
    """For every text: an error. For some: a warning. A later batch of one does not end a run that went well."""
    with pytest.raises(MiningError, match="Expected contradictions from the model, got none for any of 2 texts"):
        Contradictions(Scripted({}), prompt=SHORT)(["the cat", "the dog"])
    maker = Contradictions(Scripted({"cat": "the mat"}), prompt=SHORT)
    with caplog.at_level(logging.WARNING):
        assert maker(["the cat", "the dog"]) == [["the mat"], []]
    assert "wrote no contradiction for 1 of 2 texts" in caplog.text
    assert maker(["the dog"]) == [[]]
    assert maker([]) == []


def test_prompts(tiny):
    """A string, a function, a chat template; what a function returns is checked."""
    pipeline = Scripted({"cat": "a dog"})
    Contradictions(pipeline, prompt="not {text} here {text}")(["the cat"])
    Contradictions(pipeline, prompt=lambda text: f"never {text}")(["the cat"])
    assert pipeline.prompts == ["not the cat here the cat", "never the cat"]
    template = "{% for message in messages %}on {{ message['role'] }} {{ message['content'] }} Text{% endfor %} :"
    for arguments, start in (({}, "here"), ({"chat_template": template}, "on")):
        pipeline = Scripted({"cat": "a dog"}, **arguments)
        first = [("here", VOCABULARY.index("here"))]
        pipeline.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            "here $A", special_tokens=first
        )
        Contradictions(pipeline, prompt="not {text}")(["the cat"])
        assert pipeline.prompts[0].split()[0] == start, "a template writes the special tokens itself"
    pipeline = Scripted({"cat": "a dog"}, chat_template=template)
    Contradictions(pipeline, prompt="not {text}")(["the cat"])
    assert pipeline.prompts == ["on <unk> not the cat Text :"]
    with pytest.raises(TypeError, match="Expected `prompt` to return a prompt, got None"):
        Contradictions(pipeline, prompt=lambda text: None)(["the cat"])


def test_a_text_that_is_too_long_is_cut(tiny, caplog):
    """The prompt's end is kept; a prompt that is too long itself is an error."""
    with caplog.at_level(logging.WARNING):
        Contradictions(tiny, prompt=SHORT, max_new_tokens=8)(["the cat sat on " * 40, "the cat"])
    assert "1 texts are longer than the model reads (40 tokens)" in caplog.text
    with pytest.raises(ValueError, match="Expected a prompt that leaves room for a text within 40 tokens"):
        Contradictions(tiny, prompt="the cat " * 40 + "{text}", max_new_tokens=8)(["a dog"])
    with pytest.raises(ValueError, match="Expected `max_new_tokens` to be below the 48 tokens"):
        Contradictions(tiny, max_new_tokens=48)(["a dog"])


POSITIVES = ["the cat sat on a mat", "a dog ran", "the dog is here .", "not a cat", "the mat is on the cat here ."]


def test_generation_does_not_depend_on_the_batch(tiny):
    """Greedy and sampled alike; the seed moves the sampled ones only, torch's generator stays."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    make = {size: Contradictions(tiny, num_texts=4, prompt=SHORT, batch_size=size, max_new_tokens=6) for size in (1, 3)}
    written = make[1](POSITIVES)
    assert torch.equal(torch.get_rng_state(), before)
    assert make[3](POSITIVES) == written
    assert [make[3]([text])[0] for text in POSITIVES[::-1]] == written[::-1]
    assert max(map(len, written)) > 2
    greedy = Contradictions(tiny, prompt=SHORT, max_new_tokens=6)(POSITIVES)
    other = Contradictions(tiny, num_texts=4, prompt=SHORT, max_new_tokens=6, seed=1)(POSITIVES)
    assert other != written
    # The greedy text comes first, unless it is the positive or empty.
    assert all(found[:1] == one for found, one in zip(written, greedy, strict=True) if one)


def test_greedy_text_is_what_transformers_generates(tiny):
    """One text, no padding, no noise: the plain call."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), word_tokenizer()
    ids = tokenizer(SHORT.replace("{text}", POSITIVES[0]), return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0)
    wanted = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    found = Contradictions((model, tokenizer), prompt=SHORT, max_new_tokens=6)([POSITIVES[0], *POSITIVES])[0]
    assert found == [contradictions._first_line(wanted)]


def test_sampling_follows_the_model():
    """The noise draws tokens as often as the model says."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drafts = [contradictions._Draft("p", number) for number in range(1, 4001)]
    scores = contradictions._Noise(drafts, 0)(None, probabilities.log().repeat(4000, 1))
    shares = scores.argmax(1).bincount(minlength=4) / 4000
    assert torch.allclose(shares, probabilities, atol=0.03)


def test_remote_code_is_never_trusted(tiny, monkeypatch):
    """Nor is anything loaded before the first call."""
    calls = []
    real = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        contradictions.AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **kwargs: calls.append(kwargs) or real(*args, **kwargs),
    )
    maker = Contradictions(tiny, prompt=SHORT, max_new_tokens=6)
    assert not calls
    maker(POSITIVES)
    maker(POSITIVES)
    assert calls == [{}]
    assert pickle.loads(pickle.dumps(maker))(POSITIVES) == maker(POSITIVES)


def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the rows that are generated from now on."""
    rows: list[int] = []
    real = contradictions._Writer.write
    monkeypatch.setattr(
        contradictions._Writer, "write", lambda self, drafts, seed: rows.append(len(drafts)) or real(self, drafts, seed)
    )
    return rows


def test_the_cache(tiny, tmp_path, monkeypatch, caplog):
    """What is known is not generated again; prompt, settings and weights count; damage is mended and named."""
    rows = generated(monkeypatch)
    arguments = {"prompt": SHORT, "max_new_tokens": 6, "cache_dir": tmp_path / "cache"}
    written = Contradictions(tiny, **arguments)(POSITIVES[:3])
    assert sum(rows) == 3
    assert Contradictions(tiny, **arguments, batch_size=2, seed=4)(POSITIVES)[:3] == written
    assert sum(rows) == 5, "only the two new texts"
    Contradictions(tiny, **arguments | {"prompt": "not {text}"})(POSITIVES)
    Contradictions(tiny, **arguments | {"max_new_tokens": 7})(POSITIVES)
    assert sum(rows) == 15
    model = AutoModelForCausalLM.from_pretrained(tiny)
    Contradictions((model, word_tokenizer()), **arguments)(POSITIVES)
    assert sum(rows) == 15, "the same weights, loaded"
    model.transformer.wte.weight.data[3] += 1
    Contradictions((model, word_tokenizer()), **arguments)(POSITIVES)
    assert sum(rows) == 20

    files = sorted((tmp_path / "cache").rglob("*.jsonl"))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path not in files]
    assert set(json.loads(files[0].read_text().splitlines()[0])) == {"key", "text"}
    for path in files:
        lines = path.read_text().splitlines()
        path.write_bytes(("\n".join([lines[0][:9], *lines[1:]]) + "\n[]\n").encode() + b"\xff\x00")
    with caplog.at_level(logging.WARNING):
        assert Contradictions(tiny, **arguments)(POSITIVES)[:3] == written
    assert "3 lines of the cache file" in caplog.text and 21 <= sum(rows) <= 22
    caplog.clear()
    assert Contradictions(tiny, **arguments)(POSITIVES)[:3] == written
    assert sum(rows) <= 22 and "cache" not in caplog.messages[0], "mended"


def test_an_interrupt_keeps_what_was_generated(tiny, tmp_path, monkeypatch):
    """The next run goes on from there."""
    rows = generated(monkeypatch)
    counting = contradictions._Writer.write

    def interrupted(self, drafts, seed):
        if len(rows) == 2:
            raise KeyboardInterrupt
        return counting(self, drafts, seed)

    maker = Contradictions(tiny, prompt=SHORT, max_new_tokens=6, batch_size=1, cache_dir=tmp_path)
    monkeypatch.setattr(contradictions._Writer, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        maker(POSITIVES)
    monkeypatch.setattr(contradictions._Writer, "write", counting)
    Contradictions(tiny, prompt=SHORT, max_new_tokens=6, cache_dir=tmp_path)(POSITIVES)
    assert sum(rows) == len(POSITIVES)


def test_progress(tiny, capsys):
    """A bar for more than one batch, none for one."""
    maker = Contradictions(tiny, prompt=SHORT, max_new_tokens=2, batch_size=8, num_texts=2)
    maker(POSITIVES[:2])
    assert "Contradictions" not in capsys.readouterr().err
    maker(POSITIVES)
    assert "Contradictions: 100%" in capsys.readouterr().err


# ---- what the dataset asks for


def test_checked_texts(caplog):
    """Empty ones, copies and the positive itself are dropped and counted; order and batches are kept."""
    batches = []

    def maker(positives):
        batches.append(len(positives))
        return [(f"not {text}", f"NOT  {text}", text.upper(), " ", "") for text in positives]

    with caplog.at_level(logging.WARNING):
        written = checked_synthetic(maker, [f"p{i}" for i in range(2_300)])
    assert written == [[f"not p{i}"] for i in range(2_300)]
    assert batches == [1000, 1000, 300]
    assert "9,200 of 11,500 synthetic texts are dropped" in caplog.text
    assert checked_synthetic(maker, []) == []
    assert checked_synthetic(lambda texts: ([text + "!"] for text in texts), ["a"]) == [["a!"]]


@pytest.mark.parametrize(
    ("maker", "error", "message"),
    [
        (None, TypeError, "Expected a function that takes a list of texts, got NoneType"),
        (lambda texts: "text", TypeError, "to return a list of texts per positive, got str"),
        (lambda texts: None, TypeError, "to return a list of texts per positive, got NoneType"),
        (lambda texts: [["x"]], ValueError, "to return 2 lists, one per positive, got 1"),
        (lambda texts: ["x", "y"], TypeError, "for each positive, got str for positive 0"),
        (lambda texts: [["x"], None], TypeError, "for each positive, got NoneType for positive 1"),
        (lambda texts: [["x"], ["y", 3]], TypeError, "to return strings, got int for positive 1"),
        (lambda texts: [[], []], MiningError, r"got no text for any of 2 positives .* \(0 were written\)"),
        (lambda texts: [[text] for text in texts], MiningError, r"got no text for any of 2 .* \(2 were written\)"),
    ],
)
def test_what_a_maker_must_not_return(maker, error, message):
    with pytest.raises(error, match=message):
        checked_synthetic(maker, ["a", "b"])


def test_the_labelled_set(data_dir):
    """Nearly every claim of SciFact has an edit."""
    import gzip

    with gzip.open(Path(data_dir) / "scifact" / "queries.jsonl.gz", "rt", encoding="utf-8") as file:
        claims = [json.loads(line)["text"] for line in file][:400]
    written = checked_synthetic(KeywordEdits(), claims)
    assert sum(map(bool, written)) > 0.9 * len(claims)
