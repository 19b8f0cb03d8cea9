"""MiningConfig: which negatives are wanted, as one value. How fast they are found is said elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal

from st_hardneg.strategies import BOUNDS, REPLACEMENT, SAMPLING, Adaptive, checked_strategy, plain_strategy

# With a rule that may remove the closest, ST looks ten times as deep per negative asked for; so do we.
_DEPTH_PER_NEGATIVE = 10
_SPACES = (("corpus",), ("corpus", "anchors"))


@dataclass(frozen=True)
class _Kind:
    """What a value of a field has to be."""

    is_good: Callable[[Any], bool]
    wanted: str
    convert: Callable[[Any], Any] = lambda value: value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


# NumPy's numbers are kept as Python's, which JSON knows; a float field keeps an int as it was written.
_INTEGER = _Kind(_is_integer, "an integer", int)
_NUMBER = _Kind(
    _is_number, "a finite number", lambda value: int(value) if isinstance(value, Integral) else float(value)
)
_BOUND = _Kind(
    lambda value: _is_number(value) or isinstance(value, (Adaptive, Mapping)),
    "a finite number or an `Adaptive`",
    lambda value: _NUMBER.convert(value) if _is_number(value) else checked_strategy(value, BOUNDS, "", "the bound"),
)
_STRING = _Kind(lambda value: isinstance(value, str), "a string")
_NAMES = _Kind(
    lambda value: isinstance(value, (tuple, list)) and all(isinstance(one, str) for one in value),
    "a tuple of strings",
    tuple,
)
_QUOTAS = _Kind(lambda value: isinstance(value, Mapping), "a dictionary")
_ANY = _Kind(lambda value: True, "anything")


def _field(
    default: Any,
    kind: _Kind,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    hash: bool = True,
) -> Any:
    return field(default=default, hash=hash, metadata={"kind": kind, "least": least, "most": most, "choices": choices})


# Names that people reach for, and where what they mean is to be found.
_MOVED = {
    "batch_size": "It changes speed, not the result: pass it to HardNegativeDataset.",
    "query_chunk_size": "It changes speed, not the result: pass it to HardNegativeDataset.",
    "corpus_chunk_size": "It changes speed, not the result: pass it to HardNegativeDataset.",
    "use_faiss": "It changes speed, not the result: pass it to HardNegativeDataset.",
    "cache_folder": "It changes speed, not the result: pass it to HardNegativeDataset.",
    "faiss_index": "Pass `searcher=FaissSearcher('IVF1024,Flat,nprobe=32')` to HardNegativeDataset.",
    "num_topics": "Pass it to HardNegativeDataset.",
    "guide_margin": "Pass `guide=Guide(model, margin=...)` to HardNegativeDataset.",
    "semi_hard_margin": "Pass it to `mine`; it changes the report only.",
    "softmax_temperature": "Set `sampling_strategy=Softmax(temperature=...)`.",
    "simans_a": "Set `sampling_strategy=SimANS(a=..., b=...)`.",
    "simans_b": "Set `sampling_strategy=SimANS(a=..., b=...)`.",
    "distance_dim": "Set `sampling_strategy=Distance(dim=...)`.",
    "easy_ratio": "Set `replacement=Easy(ratio=..., score=...)`.",
    "easy_score": "Set `replacement=Easy(ratio=..., score=...)`.",
    "margin": "Set `absolute_margin`, as the deprecated `margin` of Sentence Transformers means, or `relative_margin`.",
    "use_multi_process": "It is an argument of `mine_hard_negatives`; under DDP a refresh shares by itself.",
}


def explain_unknown_field(name: Any) -> str:
    """Return what to say of a name that is no field of the recipe."""
    if name in _MOVED:
        return f"`{name}` is not a field of MiningConfig. {_MOVED[name]}"
    names = [part.name for part in fields(MiningConfig)]
    close = get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"`{name}` is not a field of MiningConfig.{hint} Fields are {names}."


class _ChecksNames(type):
    """Explains an unknown argument, where a dataclass would only say that it is unexpected."""

    def __call__(cls, **values: Any) -> Any:
        for name in values:
            if name not in cls.__dataclass_fields__:  # type: ignore[attr-defined]
                raise TypeError(explain_unknown_field(name))
        return super().__call__(**values)


@dataclass(frozen=True, kw_only=True)
class MiningConfig(metaclass=_ChecksNames):
    """Which negatives are wanted: how they are searched, filtered and chosen. Frozen, and validated when it is made.

    ``MiningConfig()`` is Sentence Transformers' plain recipe: fields that ``mine_hard_negatives`` also has carry its name,
    meaning and default. :meth:`recommended` is ours. A score is always a similarity: higher is closer.

    Args:
        num_negatives: Negatives per (anchor, positive) row.
        range_min: How many of the closest remaining candidates to skip.
        range_max: How many of the closest candidates to consider. None chooses ``range_min + num_negatives`` plus the
            query's number of positives, with 10 times as many negatives if a rule may remove the closest or the
            strategy draws by weights.
        max_score: Drop candidates that score above this.
        min_score: Drop candidates that score below this.
        absolute_margin: Drop candidates that score above the query's lowest positive score minus this. Below 0, as
            in ST, it lets candidates through that score somewhat above the positive.
        relative_margin: Drop candidates that score above ``p - |p| * relative_margin``, where ``p`` is the query's
            lowest positive score; 0.05 keeps what scores at most 95 % of the positive (TopK-PercPos of NV-Retriever,
            https://huggingface.co/papers/2407.15831). Or ``Adaptive(trusted, doubted)``.
        max_positive_similarity: Drop candidates whose similarity to one of the query's own positives is above this:
            near-duplicates of a right answer.
        max_relative_positive_similarity: The same, relative to the model's similarity of the query and its lowest
            positive: 0.7 drops what is closer to a right answer than 0.7 of how close the query itself is to its own. Or
            ``Adaptive(trusted, doubted)``.
        min_words: Drop candidates with fewer whitespace-separated words.
        exclude_pattern: Drop candidates in which this regular expression is found.
        sampling_strategy: ``"top"`` takes the closest candidates of the window, ``"random"`` draws from it uniformly;
            others draw by weights, without replacement: ``Softmax(temperature)``, ``SimANS(a, b)``, ``LogRank()``,
            ``Distance(dim)`` of :mod:`st_hardneg.strategies`, or the name of one.
        random_rate: Probability with which a negative of the search is replaced by one drawn uniformly from the spaces
            that are searched.
        search_spaces: ``("corpus",)``, or ``("corpus", "anchors")`` for the dual-space search: a query's candidates are
            then the nearest of both, corpus texts and other anchors, ties to the anchors.
        sources: How many negatives come from which source: ``{"dense": 3, "lexical": 1}``. None: all are dense. The rank
            window and the sampling strategy hold for each source that ranks what it proposes.
        rank_window: Whether ``range_min`` and ``range_max`` count the ``"survivors"`` of the rules, as ST does, or
            ``"raw"`` ranks as retrieved, in which positives take up places, as FlagEmbedding does.
        shortfall: What to do where fewer than ``num_negatives`` are found: ``"drop"`` leaves the slots empty,
            ``"random"`` fills them with random corpus texts that pass every rule and, where none does, with the least
            similar of those drawn as a last resort, so that no row is lost; ``"repeat"`` repeats the row's own negatives;
            ``"error"`` raises.
        query_prompt_name: Name of the model's prompt for queries.
        query_prompt: Prompt for queries; takes precedence over the name.
        corpus_prompt_name: Name of the model's prompt for corpus texts.
        corpus_prompt: Prompt for corpus texts; takes precedence over the name.
        replacement: Which negatives a refresh replaces: ``"all"``, or those that have become easy:
            ``Easy(ratio, score)`` of :mod:`st_hardneg.strategies`. The others stay while they pass the rules.
        identity: When two texts count as one: ``"normalized"`` (case, whitespace and Unicode form do not count) or
            ``"exact"``. A text that is the same as a right answer is never a negative.
        seed: Seed of every random draw. The same draw comes out whatever the chunking and the order of the corpus.
        keep_candidates: Keep so many candidates of each query and source, with all scores, for ``candidates()`` and
            ``choose()``; a cross encoder and a guide score all of them.

    Raises:
        TypeError: If a field has the wrong type, or there is no such field.
        ValueError: If a value is out of range, or two contradict each other.

    Example:
        >>> MiningConfig(num_negatives=4, relative_margin=0.05).window(num_positives=1, is_deep=True)
        (0, 41)
    """

    num_negatives: int = _field(3, _INTEGER, least=1, most=10_000)
    range_min: int = _field(0, _INTEGER, least=0, most=10**9)
    range_max: int | None = _field(None, _INTEGER, least=0, most=10**9)
    max_score: float | None = _field(None, _NUMBER)
    min_score: float | None = _field(None, _NUMBER)
    absolute_margin: float | None = _field(None, _NUMBER)
    relative_margin: float | Adaptive | None = _field(None, _BOUND)
    max_positive_similarity: float | None = _field(None, _NUMBER)
    max_relative_positive_similarity: float | Adaptive | None = _field(None, _BOUND)
    min_words: int | None = _field(None, _INTEGER, least=0)
    exclude_pattern: str | None = _field(None, _STRING)
    sampling_strategy: Any = _field("top", _ANY)
    random_rate: float = _field(0.0, _NUMBER, least=0, most=1)
    search_spaces: tuple[str, ...] = _field(("corpus",), _NAMES)
    sources: Mapping[str, int] | None = _field(None, _QUOTAS, hash=False)
    rank_window: Literal["survivors", "raw"] = _field("survivors", _STRING, choices=("survivors", "raw"))
    shortfall: Literal["drop", "random", "repeat", "error"] = _field(
        "drop", _STRING, choices=("drop", "random", "repeat", "error")
    )
    query_prompt_name: str | None = _field(None, _STRING)
    query_prompt: str | None = _field(None, _STRING)
    corpus_prompt_name: str | None = _field(None, _STRING)
    corpus_prompt: str | None = _field(None, _STRING)
    replacement: Any = _field("all", _ANY)
    identity: Literal["normalized", "exact"] = _field("normalized", _STRING, choices=("normalized", "exact"))
    seed: int = _field(0, _INTEGER, least=0, most=2**63 - 1)
    keep_candidates: int | None = _field(None, _INTEGER, least=1, most=10_000)

    def __post_init__(self) -> None:
        for part in fields(self):
            object.__setattr__(self, part.name, _checked(part.name, getattr(self, part.name), part))
        for name, table, default in (("sampling_strategy", SAMPLING, "top"), ("replacement", REPLACEMENT, "all")):
            object.__setattr__(self, name, checked_strategy(getattr(self, name), table, default, name))
        for name, least in (("relative_margin", -1), ("max_relative_positive_similarity", 0)):
            self._check_share(name, least)
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ValueError(
                f"Expected `min_score` to be at most `max_score`, got {self.min_score} and {self.max_score}: no "
                "candidate can pass both. Lower the one or raise the other."
            )
        self._check_sources()
        self._check_window()
        self._check_pattern()

    def _check_share(self, name: str, least: float) -> None:
        bound = getattr(self, name)
        values = (bound.trusted, bound.doubted) if isinstance(bound, Adaptive) else (bound,)
        if any(value is not None and value <= least for value in values) and name != "relative_margin":
            raise ValueError(f"Expected `{name}` to be above {least}, got {bound!r}.")
        if name == "relative_margin" and any(value is not None and not least < value <= 1 for value in values):
            raise ValueError(
                f"Expected `relative_margin` to be a share of the positive's score, above -1 and at most 1, got "
                f"{bound!r}. 0.05 keeps what scores at most 95 % of the positive."
            )

    def _check_sources(self) -> None:
        if self.search_spaces not in _SPACES:
            raise ValueError(f"Expected `search_spaces` to be one of {list(_SPACES)}, got {self.search_spaces!r}.")
        if self.sources is None:
            return
        quotas = dict(self.sources)
        for name, quota in quotas.items():
            if not isinstance(name, str) or not _is_integer(quota) or quota < 0:
                raise ValueError(
                    f"Expected `sources` to map names to numbers of negatives from 0 up, got {name!r}: {quota!r}. Write "
                    "`sources={'dense': 2, 'lexical': 1}`, for example; a source of your own goes to HardNegativeDataset."
                )
        total = sum(quotas.values())
        if total != self.num_negatives:
            raise ValueError(
                f"Expected the quotas in `sources` to add up to `num_negatives={self.num_negatives}`, got {quotas}, which "
                f"add up to {total}. Set `num_negatives={total}`, or change the quotas."
            )
        if "anchors" in quotas:
            raise ValueError(
                "Expected the sources of `sources`, got 'anchors', which are a search space: with "
                "`search_spaces=('corpus', 'anchors')`, \"dense\" finds negatives among them, too."
            )
        object.__setattr__(self, "sources", {name: int(quota) for name, quota in quotas.items()})

    def _check_window(self) -> None:
        if self.range_max is None:
            return
        room = self.range_max - self.range_min
        wanted = max(
            (quota for name, quota in self.quotas.items() if name not in ("random", "synthetic", "given")), default=0
        )
        if room < wanted:
            what = f"`num_negatives={self.num_negatives}`" if self.sources is None else f"a quota of {wanted}"
            raise ValueError(
                f"Cannot keep {what}: the window from `range_min={self.range_min}` to "
                f"`range_max={self.range_max}` holds {max(room, 0)} candidates. Lower `num_negatives` or raise "
                "`range_max`."
            )

    def _check_pattern(self) -> None:
        if self.exclude_pattern is not None:
            try:
                re.compile(self.exclude_pattern)
            except re.error as error:
                raise ValueError(
                    f"Expected `exclude_pattern` to be a regular expression, got {self.exclude_pattern!r} ({error}). "
                    "Escape literal text with `re.escape`."
                ) from None

    @classmethod
    def recommended(cls, **changes: Any) -> MiningConfig:
        """Return our own recipe: held off from answers that nobody has labelled, and no row is ever lost.

        Args:
            **changes: Fields to change.

        Example:
            >>> MiningConfig.recommended(num_negatives=5).relative_margin
            Adaptive(trusted=0.05, doubted=0.2)
        """
        recipe = {
            "relative_margin": Adaptive(trusted=0.05, doubted=0.2),
            "max_relative_positive_similarity": Adaptive(trusted=1.0, doubted=0.7),
            "shortfall": "random",
        }
        return cls(**{**recipe, **changes})

    @property
    def quotas(self) -> dict[str, int]:
        """How many negatives come from which source, without those that give none."""
        quotas = {"dense": self.num_negatives} if self.sources is None else self.sources
        return {name: quota for name, quota in quotas.items() if quota}

    @property
    def draws(self) -> bool:
        """Whether negatives are drawn by weights, and not taken from the top or uniformly."""
        return not isinstance(self.sampling_strategy, str)

    def window(self, num_positives: int, *, is_deep: bool) -> tuple[int, int]:
        """Return the first rank that is considered and the one after the last.

        Args:
            num_positives: How many positives the query has; they take up places among what is retrieved.
            is_deep: Whether a rule may remove the closest, so that the search has to look further.
        """
        if self.range_max is not None:
            return self.range_min, self.range_max
        # A draw by weights from as many candidates as are wanted would be no draw. ST's two strategies keep ST's depth.
        depth = self.num_negatives * (_DEPTH_PER_NEGATIVE if is_deep or self.draws else 1)
        return self.range_min, self.range_min + depth + num_positives

    def with_quotas(self, quotas: Mapping[str, int]) -> MiningConfig:
        """Return the same recipe with other quotas, and as many negatives as they add up to."""
        return replace(self, sources=dict(quotas), num_negatives=sum(quotas.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain JSON values, which YAML holds as well."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        values["search_spaces"] = list(self.search_spaces)
        values["sources"] = None if self.sources is None else dict(self.sources)
        values["sampling_strategy"] = plain_strategy(self.sampling_strategy, SAMPLING)
        values["replacement"] = plain_strategy(self.replacement, REPLACEMENT)
        for name in ("relative_margin", "max_relative_positive_similarity"):
            if isinstance(values[name], Adaptive):
                values[name] = plain_strategy(values[name], BOUNDS)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MiningConfig:
        """Make a config from what :meth:`to_dict` returned; missing fields take their defaults.

        Raises:
            ValueError: If a key is not a field.
            TypeError: If it is no dictionary, or a value is of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"Expected a dictionary of MiningConfig's fields, got {type(values).__name__}.")
        names = [part.name for part in fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(explain_unknown_field(key))
        return cls(**values)


def _checked(name: str, value: Any, part: Any) -> Any:
    """Return a field's value as it is kept.

    Raises:
        TypeError: If it is of the wrong type.
        ValueError: If it is out of range.
    """
    kind: _Kind = part.metadata["kind"]
    if value is None and part.default is None:
        return None
    if not kind.is_good(value):
        raise TypeError(f"Expected `{name}` to be {kind.wanted}, got {value!r} ({type(value).__name__}).")
    least, most, choices = (part.metadata[key] for key in ("least", "most", "choices"))
    if least is not None and value < least:
        raise ValueError(f"Expected `{name}` to be at least {least:,}, got {value!r}.")
    if most is not None and value > most:
        raise ValueError(f"Expected `{name}` to be at most {most:,}, got {value!r}.")
    if choices and value not in choices:
        close = get_close_matches(value, choices, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Expected `{name}` to be one of {list(choices)}, got {value!r}.{hint}")
    return kind.convert(value)


def numeric_fields() -> dict[str, type]:
    """Return the fields that hold numbers, which a schedule can change, and whether they are whole: int or float."""
    kinds = {_INTEGER: int, _NUMBER: float, _BOUND: float}
    return {part.name: kinds[part.metadata["kind"]] for part in fields(MiningConfig) if part.metadata["kind"] in kinds}
