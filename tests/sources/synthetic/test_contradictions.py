"""Contradictions that a language model writes."""

from __future__ import annotations

import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from st_hardneg.errors import MiningError
from st_hardneg.sources.synthetic import Contradictions, contradictions

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
    """What is known is not generated again; prompt, settings and weights count; damage is named and does no harm."""
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

    files = sorted((tmp_path / "cache").rglob("*"))
    assert {path.suffix for path in files} == {".jsonl"}
    assert set(json.loads(files[0].read_text().strip().split("\n")[0])) == {"key", "text"}
    for path in files:
        lines = path.read_text().strip().split("\n")
        path.write_bytes("\n".join([lines[0][:9], *lines[1:], "[]", ""]).encode() + b"\xff\x00")
    with caplog.at_level(logging.WARNING):
        assert Contradictions(tiny, **arguments)(POSITIVES)[:3] == written
    assert "3 lines of the cache file" in caplog.text and 21 <= sum(rows) <= 23
    known = sum(rows)
    assert Contradictions(tiny, **arguments)(POSITIVES)[:3] == written
    assert sum(rows) == known, "an unfinished line does not spoil the next one"


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


def test_threads_share_a_cache(tiny, tmp_path):
    """What two write at once is read by a third."""
    makers = [Contradictions(tiny, prompt=SHORT, max_new_tokens=6, cache_dir=tmp_path, batch_size=1) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda maker: maker(POSITIVES), makers)
    assert first == second
    [path] = tmp_path.iterdir()
    assert all(json.loads(line)["key"] for line in path.read_text().split("\n") if line)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Contradictions(""), ValueError, "Expected `model` to name a language model"),
        (lambda: Contradictions(7), TypeError, "Expected `model` to be a name, a path"),
        (lambda: Contradictions((1, 2, 3)), TypeError, "Expected `model` to be a name, a path"),
        (lambda: Contradictions("m", prompt="Deny it."), ValueError, "Expected `prompt` to contain '{text}'"),
        (lambda: Contradictions("m", prompt=7), TypeError, "Expected `prompt` to be a string or a function"),
        (lambda: Contradictions("m", batch_size=0), ValueError, "Expected `batch_size` to be from 1 to 100,000, got 0"),
        (lambda: Contradictions("m", num_texts=1_001), ValueError, "Expected `num_texts` to be from 1 to 1,000"),
        (lambda: Contradictions("m", max_new_tokens=2.0), TypeError, "Expected `max_new_tokens` to be an integer"),
        (lambda: Contradictions("m", cache_dir=7), TypeError, "Expected `cache_dir` to be a path"),
        (lambda: Contradictions("m", cache_dir=__file__), ValueError, "Expected `cache_dir` to be a folder"),
        (lambda: Contradictions(Scripted({}), device="cpu"), ValueError, "Expected `device` to be None"),
    ],
)
def test_bad_arguments(make, error, message):
    """The error comes before anything is loaded."""
    with pytest.raises(error, match=message):
        make()
