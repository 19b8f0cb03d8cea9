"""Contradictory statements, written by a language model that the user names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from st_hardneg.errors import MiningError
from st_hardneg.fingerprint import recipe_fingerprint, weights_fingerprint
from st_hardneg.sources.synthetic.makers import DistinctTexts, checked_integer, checked_positives

logger = logging.getLogger(__name__)

DEFAULT_PROMPT = """\
Write one sentence that contradicts the text. Keep its topic, its length and most of its words.

Text: The drug lowers blood pressure in adults over 60.
Contradiction: The drug raises blood pressure in adults over 60.

Text: {text}
Contradiction:"""
"""An instruction for models that follow them, and an example for those that only go on writing."""

# Sampled texts are drawn from the likeliest tokens only, `generate`'s own default.
_TOP_K = 50
# Completions are written to the cache at the latest after this many.
_CACHE_EVERY = 256
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_QUOTES = "\"'“”‘’«»`"


@dataclass(frozen=True, eq=False)
class Contradictions:
    """Has a language model write statements that contradict each positive.

    The model is loaded at the first call; with a chat template, the prompt is sent as the user's message. Of what it
    writes, the first line that is not empty counts. A model that was loaded before is used as it is, and left so.

    The first text of each positive is decoded greedily, further ones are sampled from the 50 likeliest tokens with
    noise that depends on seed, prompt and number only (the Gumbel-max trick). Torch's global generators are neither used
    nor changed. Batches are padded on the left with masked tokens, so the same text gets the same result whatever it
    is batched with, up to rounding: another batch size may tip a tie between two tokens.

    Args:
        model: Name or path of a causal language model for ``transformers``, or a loaded ``text-generation`` pipeline,
            or a tuple (model, tokenizer). Code that comes with a model is never run (``trust_remote_code``); load such
            a model yourself and pass it.
        num_texts: How many texts to write per positive; fewer where the model repeats itself.
        prompt: The prompt, with ``{text}`` in the place of the positive; or a function from positive to prompt.
        batch_size: Texts generated at once.
        max_new_tokens: How long a text may get.
        seed: Seed of the sampled texts.
        cache_dir: Folder in which completions are kept (JSON lines), so that a later run does not generate them again.
            They are found again by weights, tokenizer, prompt and settings. None: nothing is kept.
        device: Where to load the model that is named; None: the accelerator, if there is one.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range, or the prompt has no ``{text}``.

    Example:
        ::

            write = Contradictions("Qwen/Qwen2.5-0.5B-Instruct", cache_dir="contradictions")
            write(["Aspirin increases the risk of bleeding."])  # [['Aspirin decreases the risk of bleeding.']]
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
        for name, least, most in (
            ("num_texts", 1, 1_000),
            ("batch_size", 1, 100_000),
            ("max_new_tokens", 1, 100_000),
            ("seed", 0, 2**63 - 1),
        ):
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), least, most))
        _check_model(self.model, self.device)
        _check_prompt(self.prompt)
        if self.cache_dir is not None and not isinstance(self.cache_dir, (str, os.PathLike)):
            raise TypeError(
                f"Expected `cache_dir` to be a path, got {type(self.cache_dir).__name__}. Pass the path of a folder."
            )
        if self.cache_dir is not None and Path(self.cache_dir).is_file():
            raise ValueError(f"Expected `cache_dir` to be a folder, got the file '{self.cache_dir}'. Name a folder.")

    def __call__(self, positives: Sequence[str]) -> list[list[str]]:
        """Return for each positive the texts that contradict it; an empty list where the model wrote none.

        Raises:
            MiningError: If the model wrote nothing for any text, of these and all before.
        """
        positives = checked_positives(positives)
        if not positives:
            return []
        drafts = [
            _Draft(prompt, number)
            for prompt in dict.fromkeys(self._writer.prompts(self.prompt, positives))
            for number in range(self.num_texts)
        ]
        written = self._completions(drafts)
        texts = []
        for positive, prompt in zip(positives, self._writer.prompts(self.prompt, positives), strict=True):
            found = DistinctTexts(positive, self.num_texts)
            for number in range(self.num_texts):
                found.add(_first_line(written[_Draft(prompt, number)]))
            texts.append(found.texts)
        self._check_any(texts)
        return texts

    def _check_any(self, texts: list[list[str]]) -> None:
        num_without = sum(not found for found in texts)
        if num_without < len(texts):
            self.__dict__["_has_written"] = True
        elif not self.__dict__.get("_has_written"):
            raise MiningError(
                f"Expected contradictions from {self._name}, got none for any of {len(texts):,} texts that is not empty "
                "and differs from the input. Try another prompt, more `max_new_tokens` or another model."
            )
        if num_without:
            logger.warning(f"{self._name} wrote no contradiction for {num_without:,} of {len(texts):,} texts.")

    @property
    def _name(self) -> str:
        return repr(str(self.model)) if isinstance(self.model, (str, os.PathLike)) else "the model"

    @cached_property
    def _writer(self) -> _Writer:
        return _loaded(self.model, self.max_new_tokens, self.device)

    @cached_property
    def _cache(self) -> _Cache:
        if self.cache_dir is None:
            return _Cache(None)
        settings = [self.max_new_tokens, _TOP_K]
        return _Cache(Path(self.cache_dir) / recipe_fingerprint(self._writer.identity(), settings))

    def _completions(self, drafts: list[_Draft]) -> dict[_Draft, str]:
        keys = {draft: draft.key(self.seed) for draft in drafts}
        written = {draft: self._cache[key] for draft, key in keys.items() if key in self._cache}
        # The longest first: like lengths share a batch, and memory that does not suffice shows at once.
        missing = sorted((draft for draft in drafts if draft not in written), key=lambda draft: -len(draft.prompt))
        batches = [missing[i : i + self.batch_size] for i in range(0, len(missing), self.batch_size)]
        try:
            for batch in tqdm(batches, desc="Contradictions", unit="batch", disable=len(batches) < 2):
                for draft, text in zip(batch, self._writer.write(batch, self.seed), strict=True):
                    written[draft] = text
                    self._cache.add(keys[draft], text)
        finally:
            self._cache.flush()
        return written

    def __getstate__(self) -> dict[str, Any]:
        # Another process loads the model and reads the cache anew.
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


def _check_model(model: Any, device: Any) -> None:
    if isinstance(model, (str, os.PathLike)):
        if not str(model):
            raise ValueError("Expected `model` to name a language model, got an empty name. Pass a name or a path.")
        return
    network, tokenizer = _parts(model)
    if not callable(getattr(network, "generate", None)) or not callable(tokenizer):
        raise TypeError(
            "Expected `model` to be a name, a path, a text-generation pipeline or a tuple (model, tokenizer), got "
            f"{type(model).__name__}. Name a causal language model, or load one."
        )
    if device is not None:
        raise ValueError(
            f"Expected `device` to be None with a model that is loaded, got {device!r}. Move the model yourself."
        )


def _parts(model: Any) -> tuple[Any, Any]:
    if isinstance(model, tuple):
        return (model[0], model[1]) if len(model) == 2 else (None, None)
    return getattr(model, "model", None), getattr(model, "tokenizer", None)


def _check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, str) and not callable(prompt):
        raise TypeError(
            f"Expected `prompt` to be a string or a function, got {type(prompt).__name__}. Pass a string with "
            "'{text}' in it."
        )
    if isinstance(prompt, str) and "{text}" not in prompt:
        raise ValueError(f"Expected `prompt` to contain '{{text}}', got {prompt!r}. Put it where the positive belongs.")


def _first_line(completion: str) -> str:
    """Return the first line with a word in it, without the quotes around it; "" if there is none."""
    for line in _THOUGHTS.sub("", completion).splitlines():
        line = line.strip()
        if any(character.isalnum() for character in line):
            quoted = len(line) > 2 and line[0] in _QUOTES and line[-1] in _QUOTES
            return line[1:-1].strip() if quoted else line
    return ""


@dataclass(frozen=True)
class _Draft:
    """A text to be generated: the whole prompt, and which of the texts to that prompt it is."""

    prompt: str
    number: int

    def key(self, seed: int) -> str:
        """Return the name under which it is cached; the greedy one does not depend on the seed."""
        content = json.dumps([self.prompt, self.number, seed if self.number else None])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


# ---- the model


@dataclass(frozen=True, eq=False)
class _Writer:
    """A model and its tokenizer, ready to write."""

    network: Any
    tokenizer: Any
    max_new_tokens: int
    max_prompt_tokens: int

    def prompts(self, prompt: str | Callable[[str], str], positives: Sequence[str]) -> list[str]:
        """Return the whole prompts; a text that is too long for the model is cut."""
        made, num_cut = [], 0
        for text in positives:
            whole, cut = self._fitting(prompt, text)
            made.append(whole)
            num_cut += cut
        if num_cut:
            logger.warning(
                f"{num_cut:,} texts are longer than the model reads ({self.max_prompt_tokens:,} tokens); cut."
            )
        return made

    def _fitting(self, prompt: str | Callable[[str], str], text: str) -> tuple[str, bool]:
        part = text
        while True:
            whole = self._whole(prompt, part)
            # Few tokenizers need more than one token per byte: the count is made where it may matter.
            if len(whole.encode("utf-8", "replace")) + 2 <= self.max_prompt_tokens:
                return whole, part != text
            excess = len(self.ids(whole)) - self.max_prompt_tokens
            if excess <= 0:
                return whole, part != text
            if not part:
                raise ValueError(
                    f"Expected a prompt that leaves room for a text within {self.max_prompt_tokens:,} tokens, got one "
                    "that is longer itself. Shorten `prompt`, or lower `max_new_tokens`."
                )
            num_tokens = max(1, len(self.tokenizer(part, add_special_tokens=False)["input_ids"]))
            part = part[: int(len(part) * max(0.0, 1 - 1.05 * excess / num_tokens)) - 1 if len(part) > 1 else 0]

    def _whole(self, prompt: str | Callable[[str], str], text: str) -> str:
        filled = prompt.replace("{text}", text) if isinstance(prompt, str) else prompt(text)
        if not isinstance(filled, str) or not filled.strip():
            raise TypeError(f"Expected `prompt` to return a prompt, got {filled!r}. Return a string that is not empty.")
        if not self.has_template:
            return filled
        messages = [{"role": "user", "content": filled}]
        # Templates that know no thinking leave the switch aside.
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template, which then writes the special tokens itself."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def ids(self, prompt: str) -> list[int]:
        """Return a prompt's tokens."""
        return list(self.tokenizer(prompt, add_special_tokens=not self.has_template)["input_ids"])

    def identity(self) -> list[str]:
        """Return what the completions depend on."""
        try:
            weights = weights_fingerprint(self.network)
        except (AttributeError, RuntimeError, NotImplementedError):  # weights on no device, or none of torch
            config = getattr(self.network, "config", None)
            weights = f"{getattr(config, '_name_or_path', '')}@{getattr(config, '_commit_hash', '')} {config}"
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if hasattr(backend, "to_str") else repr(self.tokenizer)
        settings = getattr(self.network, "generation_config", None)
        return [weights, vocabulary, str(getattr(self.tokenizer, "chat_template", None)), str(settings)]

    def write(self, drafts: list[_Draft], seed: int) -> list[str]:
        """Return what the model goes on to write after each prompt."""
        rows = [self.ids(draft.prompt) or [self._pad] for draft in drafts]
        width = max(map(len, rows))
        ids = torch.tensor([[self._pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        device = getattr(self.network, "device", "cpu")
        with torch.inference_mode(), _in_eval_mode(self.network):
            out = self.network.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._settings,
                logits_processor=LogitsProcessorList([_Noise(drafts, seed)]),
            )
        if not getattr(getattr(self.network, "config", None), "is_encoder_decoder", False):
            out = out[:, width:]
        return [str(text) for text in self.tokenizer.batch_decode(out, skip_special_tokens=True)]

    @property
    def _pad(self) -> int:
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    @cached_property
    def _settings(self) -> GenerationConfig:
        own = getattr(self.network, "generation_config", None)
        tokens = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id", "decoder_start_token_id")}
        if tokens["eos_token_id"] is None:
            tokens["eos_token_id"] = self.tokenizer.eos_token_id
        # Greedy in transformers' terms; the noise of the sampled texts is in the logits.
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=_TOP_K,
            pad_token_id=self._pad,
            **tokens,
        )


class _Noise(LogitsProcessor):
    """Makes the likeliest token a draw: the argmax of log-probabilities with Gumbel noise is a sample of them."""

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


@contextlib.contextmanager
def _in_eval_mode(network: Any) -> Iterator[None]:
    training = bool(getattr(network, "training", False))
    if training:
        network.eval()
    try:
        yield
    finally:
        if training:
            network.train()


def _loaded(model: Any, max_new_tokens: int, device: Any) -> _Writer:
    if isinstance(model, (str, os.PathLike)):
        accelerator = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
        target = device or accelerator or "cpu"
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):  # weights that are missing are drawn
            tokenizer = AutoTokenizer.from_pretrained(model)
            network = AutoModelForCausalLM.from_pretrained(model).to(target).eval()
    else:
        network, tokenizer = _parts(model)
    positions = getattr(getattr(network, "config", None), "max_position_embeddings", None)
    limits = [limit for limit in (positions, getattr(tokenizer, "model_max_length", None)) if isinstance(limit, int)]
    room = min([*limits, 10**6]) - max_new_tokens
    if room < 1:
        raise ValueError(
            f"Expected `max_new_tokens` to be below the {min(limits):,} tokens that the model reads, got "
            f"{max_new_tokens:,}. Lower it."
        )
    return _Writer(network, tokenizer, max_new_tokens, room)


# ---- the cache


class _Cache:
    """Completions by key, in memory and, in files of JSON lines that are never changed, on disk.

    Every file is written under another name first and named after its content, so several processes may share a folder.

    Args:
        folder: Where the files are; None for memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, str] = {}
        self._new: dict[str, str] = {}
        if folder is not None:
            for path in sorted(folder.glob("*.jsonl")):
                self._known.update(self._read(path))

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> str:
        return self._known[key]

    def add(self, key: str, text: str) -> None:
        """Keep a completion; on disk after some more."""
        if self._folder is not None:
            self._known[key] = self._new[key] = text
            if len(self._new) >= _CACHE_EVERY:
                self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if self._new and self._folder is not None:
            _write_lines(self._folder, self._new)
            self._new = {}

    def _read(self, path: Path) -> dict[str, str]:
        """Return a file's completions; what cannot be read is taken out of it, and will be generated again."""
        found: dict[str, str] = {}
        num_bad = 0
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                key, text = entry["key"], entry["text"]
            except (ValueError, TypeError, KeyError):
                num_bad += 1
                continue
            if isinstance(key, str) and isinstance(text, str):
                found[key] = text
            else:
                num_bad += 1
        if num_bad:
            logger.warning(
                f"{num_bad:,} lines of the cache file '{path}' cannot be read. They are left out, and generated again."
            )
            self._mend(path, found)
        return found

    def _mend(self, path: Path, found: dict[str, str]) -> None:
        with contextlib.suppress(OSError):  # a folder that may only be read is as good
            if found:
                _write_lines(path.parent, found)
            path.unlink()


def _write_lines(folder: Path, entries: dict[str, str]) -> None:
    lines = "".join(json.dumps({"key": key, "text": text}) + "\n" for key, text in entries.items())
    name = hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(lines)
        os.replace(temporary, folder / f"{name}.jsonl")
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
