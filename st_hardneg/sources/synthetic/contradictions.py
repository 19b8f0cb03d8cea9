"""Contradictory statements, written by a language model that the user names."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor, LogitsProcessorList

from st_hardneg.encoders.fingerprint import recipe_fingerprint, weights_fingerprint
from st_hardneg.errors import MiningError
from st_hardneg.sources.synthetic.makers import DistinctTexts, check_integers, checked_positives

logger = logging.getLogger(__name__)

DEFAULT_PROMPT = """\
Write one sentence that contradicts the text. Keep its topic, its length and most of its words.

Text: The new bridge is longer than the old one.
Contradiction: The new bridge is shorter than the old one.

Text: {text}
Contradiction:"""
"""An instruction for models that follow them, and an example for those that only go on writing."""

# `generate`'s own default: sampled texts are drawn from the likeliest tokens only.
_TOP_K = 50


@dataclass(frozen=True, eq=False)
class Contradictions:
    """Has a language model write statements that contradict each positive.

    The model is loaded at the first call; with a chat template, the prompt is sent as the user's message. Of what it
    writes, the first line with a word in it counts. A model that is passed loaded is not moved, and keeps its mode.

    The first text of each positive is decoded greedily. Further ones are sampled from the 50 likeliest tokens with noise
    that depends on seed, prompt and number only; torch's global generators are not used. Neither the other texts of a
    batch nor its size count, but for rounding: it may tip a tie between two tokens.

    Args:
        model: Name or path of a causal language model for ``transformers``, a loaded ``text-generation`` pipeline, or a
            tuple (model, tokenizer). Code that comes with a model is never run (``trust_remote_code``); load such a
            model yourself and pass it.
        num_texts: How many texts to write per positive; fewer where the model repeats itself.
        prompt: The prompt, with ``{text}`` in the place of the positive; or a function from positive to prompt.
        batch_size: Texts generated at once.
        max_new_tokens: How many tokens a text may have.
        seed: Seed of the sampled texts.
        cache_dir: Folder of completions (JSON lines), so that a later run with the same weights, tokenizer, prompt and
            settings does not generate them again. None: nothing is kept.
        device: Where to load the model that is named; None: the accelerator, if there is one.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range, or the prompt has no ``{text}``.
        MiningError: At a call, if the model wrote nothing for any text, of this call and all before.
    """

    model: Any
    num_texts: int = 1
    prompt: str | Callable[[str], str] = DEFAULT_PROMPT
    batch_size: int = 8
    max_new_tokens: int = 64
    seed: int = 0
    cache_dir: str | os.PathLike[str] | None = None
    device: str | torch.device | None = None

    def __post_init__(self) -> None:
        check_integers(self, num_texts=1_000, batch_size=100_000, max_new_tokens=100_000)
        _check_model(self.model, self.device)
        if not isinstance(self.prompt, str) and not callable(self.prompt):
            raise TypeError(f"Expected `prompt` to be a string or a function, got {type(self.prompt).__name__}.")
        if isinstance(self.prompt, str) and "{text}" not in self.prompt:
            raise ValueError(f"Expected `prompt` to contain '{{text}}' for the positive, got {self.prompt!r}.")
        if self.cache_dir is not None and not isinstance(self.cache_dir, (str, os.PathLike)):
            raise TypeError(f"Expected `cache_dir` to be a path, got {type(self.cache_dir).__name__}.")
        if self.cache_dir is not None and Path(self.cache_dir).is_file():
            raise ValueError(f"Expected `cache_dir` to be a folder, got the file '{self.cache_dir}'.")

    def __call__(self, positives: Sequence[str]) -> list[list[str]]:
        """Return for each positive the texts that contradict it; an empty list where the model wrote none."""
        positives = checked_positives(positives)
        prompts = self._writer.prompts(self.prompt, positives) if positives else []
        drafts = [[_Draft(prompt, number) for number in range(self.num_texts)] for prompt in prompts]
        written = self._completions(dict.fromkeys(draft for some in drafts for draft in some))
        texts = [
            DistinctTexts(positive, self.num_texts).among(_first_line(written[draft]) for draft in some)
            for positive, some in zip(positives, drafts, strict=True)
        ]
        num_without = texts.count([])
        if num_without < len(texts):
            self.__dict__["_has_written"] = True
        elif texts and "_has_written" not in self.__dict__:
            got = f"none for any of {len(texts):,} texts that is not empty and differs from the input"
            advice = "Try another prompt, more `max_new_tokens` or another model."
            raise MiningError(f"Expected contradictions from the model, got {got}. {advice}")
        if num_without:
            logger.warning(f"The model wrote no contradiction for {num_without:,} of {len(texts):,} texts.")
        return texts

    @cached_property
    def _writer(self) -> _Writer:
        return _Writer(self.model, self.max_new_tokens, self.device)

    @cached_property
    def _cache(self) -> _Cache:
        return _Cache(None if self.cache_dir is None else Path(self.cache_dir) / f"{self._writer.identity()}.jsonl")

    def _completions(self, drafts: Iterable[_Draft]) -> dict[_Draft, str]:
        keys = {draft: draft.key(self.seed) for draft in drafts}
        written = {draft: self._cache.known[key] for draft, key in keys.items() if key in self._cache.known}
        # The longest first: like lengths share a batch, and too little memory shows at once.
        missing = sorted(keys.keys() - written.keys(), key=lambda draft: (-len(draft.prompt), draft))
        batches = [missing[i : i + self.batch_size] for i in range(0, len(missing), self.batch_size)]
        for batch in tqdm(batches, desc="Contradictions", unit="batch", disable=len(batches) < 2):
            new = dict(zip(batch, self._writer.write(batch, self.seed), strict=True))
            written |= new
            self._cache.add({keys[draft]: text for draft, text in new.items()})
        return written

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}  # no model


def _check_model(model: Any, device: Any) -> None:
    expected = "a name, a path, a text-generation pipeline or a tuple (model, tokenizer)"
    if isinstance(model, (str, os.PathLike)):
        if not str(model):
            raise ValueError("Expected `model` to name a language model, got an empty name.")
    elif not callable(getattr(_parts(model)[0], "generate", None)) or not callable(_parts(model)[1]):
        raise TypeError(f"Expected `model` to be {expected}, got {type(model).__name__}.")
    elif device is not None:
        raise ValueError(f"Expected `device` to be None with a loaded model, got {device!r}. Move it yourself.")


def _parts(model: Any) -> tuple[Any, Any]:
    if isinstance(model, tuple):
        return model if len(model) == 2 else (None, None)
    return getattr(model, "model", None), getattr(model, "tokenizer", None)


def _first_line(completion: str) -> str:
    """Return the first line with a word in it, without thoughts and the quotes around it; "" if there is none."""
    for line in re.sub(r"<think>.*?(?:</think>|\Z)", "", completion, flags=re.DOTALL).splitlines():
        if any(map(str.isalnum, line)):
            return re.sub(r"^([\"'“”‘’«»`])(.+)[\"'“”‘’«»`]$", r"\2", line.strip()).strip()
    return ""


class _Draft(NamedTuple):
    """The whole prompt of a text to be generated, and which of the texts to that prompt it is."""

    prompt: str
    number: int

    def key(self, seed: int) -> str:
        """Return the name under which it is cached; the greedy one does not depend on the seed."""
        return recipe_fingerprint(self.prompt, self.number, seed if self.number else None)


class _Writer:
    """A model and its tokenizer, ready to write."""

    def __init__(self, model: Any, max_new_tokens: int, device: Any) -> None:
        self.network, self.tokenizer = _parts(model)
        if isinstance(model, (str, os.PathLike)):
            devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
            with torch.random.fork_rng(devices=devices):  # weights that are missing are drawn
                self.tokenizer = AutoTokenizer.from_pretrained(model)
                target = device or torch.accelerator.current_accelerator() or "cpu"
                self.network = AutoModelForCausalLM.from_pretrained(model).to(target).eval()
        positions = getattr(getattr(self.network, "config", None), "max_position_embeddings", None)
        most = min(positions or 10**6, getattr(self.tokenizer, "model_max_length", None) or 10**6, 10**6)
        if most <= max_new_tokens:
            room = f"below the {most:,} tokens that the model reads"
            raise ValueError(f"Expected `max_new_tokens` to be {room}, got {max_new_tokens:,}.")
        self._max_prompt_tokens = most - max_new_tokens
        self._template = getattr(self.tokenizer, "chat_template", None)  # it writes the special tokens itself
        own = getattr(getattr(self.network, "generation_config", None), "eos_token_id", None)
        end = self.tokenizer.eos_token_id
        self._pad = next(token for token in (self.tokenizer.pad_token_id, end, 0) if token is not None)
        # Greedy in transformers' terms, because the noise of sampled texts is in the logits. Temperature, top p and
        # top k have no effect then, but a model's own values of them would cause warnings.
        self._settings = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        self._settings.update(eos_token_id=end if own is None else own, pad_token_id=self._pad)
        self._settings.update(temperature=1.0, top_p=1.0, top_k=_TOP_K)

    def prompts(self, prompt: str | Callable[[str], str], positives: Sequence[str]) -> list[str]:
        """Return the whole prompts; a text that is too long for the model is cut."""
        made, num_cut, most = [], 0, self._max_prompt_tokens
        for text in positives:
            whole, part = self._whole(prompt, text), text
            while (num_tokens := len(self._ids(whole))) > most:
                if not part:
                    room = f"a prompt that leaves room for a text within {most:,} tokens"
                    raise ValueError(f"Expected {room}, got one that is longer itself. Shorten it.")
                part = part[: len(part) * most // num_tokens]
                whole = self._whole(prompt, part)
            made.append(whole)
            num_cut += part != text
        if num_cut:
            logger.warning(f"{num_cut:,} texts are longer than the model reads ({most:,} tokens); cut.")
        return made

    def _whole(self, prompt: str | Callable[[str], str], text: str) -> str:
        filled = prompt.replace("{text}", text) if isinstance(prompt, str) else prompt(text)
        if not isinstance(filled, str) or not filled.strip():
            raise TypeError(f"Expected `prompt` to return a prompt, got {filled!r}. Return a string that is not empty.")
        if not self._template:
            return filled
        # Templates without a thinking mode ignore the switch.
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return str(self.tokenizer.apply_chat_template([{"role": "user", "content": filled}], **options))

    def _ids(self, prompt: str) -> list[int]:
        return list(self.tokenizer(prompt, add_special_tokens=not self._template)["input_ids"])

    def identity(self) -> str:
        """Return a fingerprint of what the completions depend on, next to the prompt."""
        try:
            weights = weights_fingerprint(self.network)
        except (AttributeError, RuntimeError, NotImplementedError):  # weights on no device, or not torch's
            weights = str(getattr(self.network, "config", None))
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if hasattr(backend, "to_str") else repr(self.tokenizer)
        own = getattr(self.network, "generation_config", None)  # what the settings leave open comes from there
        return recipe_fingerprint(weights, vocabulary, str(self._template), str(own), str(self._settings))

    def write(self, drafts: list[_Draft], seed: int) -> list[str]:
        """Return what the model goes on to write after each prompt."""
        pad, device = self._pad, getattr(self.network, "device", "cpu")
        rows = [self._ids(draft.prompt) or [pad] for draft in drafts]
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        options = {"generation_config": self._settings, "logits_processor": LogitsProcessorList([_Noise(drafts, seed)])}
        training = getattr(self.network, "training", False)  # models of other runtimes have no modes
        if training:
            self.network.eval()
        try:
            with torch.inference_mode():
                out = self.network.generate(input_ids=ids, attention_mask=mask, **options)
        finally:
            if training:
                self.network.train()
        return [str(text) for text in self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]


class _Noise(LogitsProcessor):
    """Makes the likeliest token a draw: the argmax of log-probabilities plus Gumbel noise is a sample.

    The Gumbel-max trick (Maddison et al. 2014, https://arxiv.org/abs/1411.0030); ``-log(-log(u))`` is Gumbel noise.
    """

    def __init__(self, drafts: list[_Draft], seed: int) -> None:
        self._generators = [
            torch.Generator().manual_seed(int(draft.key(seed)[:15], 16)) if draft.number else None for draft in drafts
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, generator in enumerate(self._generators):
            if generator is not None:
                values, tokens = scores[row].topk(min(_TOP_K, scores.shape[1]))
                noise = -torch.rand(len(values), generator=generator).clamp(1e-9, 1 - 1e-7).log()
                drawn = tokens[(values.float().cpu() - noise.log()).argmax().to(tokens.device)]
                scores[row] = torch.full_like(scores[row], -torch.inf).index_fill(0, drawn, 0.0)
        return scores


class _Cache:
    """Completions by key, in memory and, if a path is given, in a file of JSON lines that only grows."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.known: dict[str, str] = {}
        num_bad = 0
        lines = path.read_bytes().split(b"\n") if path is not None and path.exists() else []
        for line in filter(None, lines):
            try:
                entry = json.loads(line)
                self.known[entry["key"]] = str(entry["text"])
            except (ValueError, TypeError, KeyError):
                num_bad += 1
        if num_bad:
            logger.warning(f"{num_bad:,} lines of the cache file '{path}' cannot be read. They are generated again.")

    def add(self, texts: dict[str, str]) -> None:
        """Keep completions."""
        if self._path is not None:
            self.known |= texts
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"key": key, "text": text}) for key, text in texts.items()]
            # One write of whole lines, so that processes may share the file. The first line break ends a line that an
            # interrupted process left unfinished.
            with self._path.open("ab", buffering=0) as file:
                file.write(("\n" + "\n".join(lines) + "\n").encode())
