"""MiningConfig: the whole recipe of a mining run, as one value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal, get_args

SamplingStrategy = Literal["top", "random", "softmax", "simans", "log_rank", "distance"]
Replacement = Literal["all", "easy"]
RankWindow = Literal["survivors", "raw"]
Shortfall = Literal["drop", "random", "repeat", "error"]

# With a filter that removes candidates, ST looks ten times as deep per negative asked for; so do we.
_DEPTH_PER_NEGATIVE = 10
_SPACES = (("corpus",), ("corpus", "anchors"))


# What a value of a field has to be, by the field's type.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (lambda value: isinstance(value, Integral) and not isinstance(value, bool), "an integer"),
    "float": (
        lambda value: isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value),
        "a finite number",
    ),
    "tuple": (
        lambda value: isinstance(value, (tuple, list)) and all(isinstance(one, str) for one in value),
        "a tuple of strings",
    ),
    "Mapping": (lambda value: isinstance(value, Mapping), "a dictionary"),
    "str": (lambda value: isinstance(value, str), "a string"),
}


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """How negatives are searched, filtered and chosen. Frozen, and validated once, when it is made.

    Fields that ``sentence_transformers.util.mine_hard_negatives`` also has carry its name, meaning and default. A
    score is always a similarity: higher is closer.

    Args:
        num_negatives: Negatives per (anchor, positive) row.
        range_min: How many of the closest remaining candidates to skip.
        range_max: How many of the closest candidates to consider. None chooses ``range_min + num_negatives`` plus the
            query's number of positives, with 10 times as many negatives if a filter may remove candidates or the
            strategy draws by weights.
        max_score: Drop candidates that score above this.
        min_score: Drop candidates that score below this.
        absolute_margin: Drop candidates that score above the query's lowest positive score minus this. Below 0, as
            in ST, it lets candidates through that score somewhat above the positive.
        relative_margin: Drop candidates that score above ``p - |p| * relative_margin``, where ``p`` is the query's
            lowest positive score; 0.05 keeps what scores at most 95 % of the positive (TopK-PercPos of NV-Retriever,
            https://huggingface.co/papers/2407.15831).
        max_positive_similarity: Drop candidates whose similarity to one of the query's own positives is above this:
            near-duplicates of a right answer.
        min_words: Drop candidates with fewer whitespace-separated words.
        exclude_pattern: Drop candidates in which this regular expression is found.
        sampling_strategy: ``"top"`` takes the closest candidates of the window. The others draw from it without
            replacement: ``"random"`` uniformly, ``"softmax"`` by the score, ``"simans"`` around the positive's score,
            ``"log_rank"`` by the rank, ``"distance"`` so that all distances come alike. Formulas and sources are in
            :mod:`st_hardneg.mining.sampling`.
        softmax_temperature: Temperature of ``"softmax"``; the lower, the nearer to ``"top"``.
        simans_a: How narrow SimANS draws around the positive's score, in 1 / score². 50 suits cosine; the paper's 0.5
            is meant for dot products of tens.
        simans_b: How far above the positive's score SimANS draws most, with the paper's sign.
        distance_dim: Dimensions that ``"distance"`` reckons with; the embeddings' own if None. In hundreds of
            dimensions, the draw is nearly ``"top"``.
        random_rate: Probability with which a negative of the search is replaced by one drawn uniformly from the spaces
            that are searched.
        search_spaces: ``("corpus",)``, or ``("corpus", "anchors")`` for the dual-space search: a query's candidates are
            then the nearest of both, corpus texts and other anchors, ties to the anchors.
        sources: How many negatives come from which source: ``{"dense": 3, "lexical": 1}``. Sources are ``"dense"`` (the
            search), ``"lexical"`` (BM25; needs the extra ``lexical``), ``"random"``, ``"synthetic"``, and the names of
            the ``cross_domain`` corpora and ``metadata_sources`` of the HardNegativeDataset. None: all are dense. The
            rank window and the sampling strategy hold for each source but ``"random"`` and ``"synthetic"``.
        rank_window: Whether ``range_min`` and ``range_max`` count the ``"survivors"`` of the filters, as ST does, or
            ``"raw"`` ranks as retrieved, in which positives take up places, as FlagEmbedding does.
        shortfall: What to do where fewer than ``num_negatives`` are found: ``"drop"`` leaves the slots empty,
            ``"random"`` fills them with random corpus texts that pass every filter, ``"repeat"`` repeats the row's own
            negatives, ``"error"`` raises.
        query_prompt_name: Name of the model's prompt for queries.
        query_prompt: Prompt for queries; takes precedence over the name.
        corpus_prompt_name: Name of the model's prompt for corpus texts.
        corpus_prompt: Prompt for corpus texts; takes precedence over the name.
        batch_size: Texts encoded at once.
        use_faiss: Search with FAISS instead of ``semantic_search``. Needs the extra ``faiss``.
        faiss_index: FAISS index factory string; ``"Flat"`` is exact.
        query_chunk_size: Queries searched and filtered at once; bounds memory.
        corpus_chunk_size: Corpus texts compared at once in exact search; bounds memory.
        guide_margin: With a guide (``HardNegativeDataset(guide=...)``), drop candidates that the guide scores above the
            positive's guide score minus this.
        replacement: Which negatives a refresh replaces: ``"all"``, or those that have become ``"easy"`` (Conan,
            https://huggingface.co/papers/2408.15710): of a negative that scored ``s0`` when it was mined and scores
            ``s`` now, ``easy_ratio * s < s0`` and ``|s| < easy_score``. The others stay while they pass the filters.
        easy_ratio: See ``replacement``.
        easy_score: See ``replacement``.
        num_topics: Cluster the anchors' embeddings into so many topics at each mining, for
            :class:`~st_hardneg.samplers.TopicAwareBatchSampler`; None for none.
        semi_hard_margin: Margin by which the report tells easy from semi-hard negatives. Changes no result.
        seed: Seed of every random draw. The same draw comes out whatever the chunking.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a value is out of range, or two contradict each other.

    Example:
        >>> MiningConfig(num_negatives=4, relative_margin=0.05).window(num_positives=1)
        (0, 41)
    """

    num_negatives: int = 3
    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_positive_similarity: float | None = None
    min_words: int | None = None
    exclude_pattern: str | None = None
    sampling_strategy: SamplingStrategy = "top"
    softmax_temperature: float = 1.0
    simans_a: float = 50.0
    simans_b: float = 0.0
    distance_dim: int | None = None
    random_rate: float = 0.0
    search_spaces: tuple[str, ...] = ("corpus",)
    sources: Mapping[str, int] | None = field(default=None, hash=False)
    rank_window: RankWindow = "survivors"
    shortfall: Shortfall = "drop"
    query_prompt_name: str | None = None
    query_prompt: str | None = None
    corpus_prompt_name: str | None = None
    corpus_prompt: str | None = None
    batch_size: int = 32
    use_faiss: bool = False
    faiss_index: str = "Flat"
    query_chunk_size: int = 512
    corpus_chunk_size: int = 100_000
    guide_margin: float = 0.0
    replacement: Replacement = "all"
    easy_ratio: float = 1.15
    easy_score: float = 0.8
    num_topics: int | None = None
    semi_hard_margin: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("num_negatives", "batch_size", "query_chunk_size", "corpus_chunk_size"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("num_negatives", self.num_negatives <= 10_000, "at most 10,000")
        for name, most in (("range_min", 10**9), ("range_max", 10**9), ("seed", 2**63 - 1)):
            value = getattr(self, name)
            self._check(name, value is None or 0 <= value <= most, f"from 0 to {most:,}")
        for name in ("min_words", "semi_hard_margin", "simans_a", "easy_score"):
            value = getattr(self, name)
            self._check(name, value is None or value >= 0, "at least 0")
        for name, least in (("distance_dim", 2), ("num_topics", 1)):
            value = getattr(self, name)
            self._check(name, value is None or value >= least, f"at least {least}")
        for name in ("softmax_temperature", "easy_ratio"):
            self._check(name, getattr(self, name) > 0, "above 0")
        self._check("random_rate", 0 <= self.random_rate <= 1, "from 0 to 1")
        for name, choices in (
            ("sampling_strategy", SamplingStrategy),
            ("rank_window", RankWindow),
            ("shortfall", Shortfall),
            ("replacement", Replacement),
        ):
            self._check(name, getattr(self, name) in get_args(choices), f"one of {list(get_args(choices))}")
        if self.relative_margin is not None and not -1 < self.relative_margin <= 1:
            raise ValueError(
                f"Expected `relative_margin` to be a share of the positive's score, above -1 and at most 1, got "
                f"{self.relative_margin!r}. 0.05 keeps what scores at most 95 % of the positive."
            )
        self._check_sources()
        self._check_window()
        self._check_pattern()
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ValueError(
                f"Expected `min_score` to be at most `max_score`, got {self.min_score} and {self.max_score}: no "
                "candidate can pass both. Lower the one or raise the other."
            )
        if self.faiss_index != "Flat" and not self.use_faiss:
            raise ValueError(
                f"`faiss_index={self.faiss_index!r}` has no effect without FAISS. Set `use_faiss=True`, too."
            )

    def _check_sources(self) -> None:
        object.__setattr__(self, "search_spaces", tuple(self.search_spaces))
        self._check("search_spaces", self.search_spaces in _SPACES, f"one of {list(_SPACES)}")
        if self.sources is None:
            return
        quotas = dict(self.sources)
        for name, quota in quotas.items():
            whole = isinstance(quota, Integral) and not isinstance(quota, bool) and quota >= 0
            if not isinstance(name, str) or not whole:
                raise ValueError(
                    f"Expected `sources` to map names to numbers of negatives from 0 up, got {name!r}: {quota!r}. Write "
                    "`sources={'dense': 2, 'lexical': 1}`, for example."
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
        wanted = max((quota for name, quota in self.quotas.items() if name not in ("random", "synthetic")), default=0)
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

    def _check(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            raise ValueError(f"Expected `{name}` to be {wanted}, got {getattr(self, name)!r}. Choose another value.")

    def _check_types(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            annotation = FIELD_TYPES[part.name]
            if value is None and "None" in annotation:
                continue
            kind = next((kind for kind in _KINDS if annotation.startswith(kind)), "str")
            is_good, wanted = _KINDS[kind]
            good = is_good(value)
            if good and kind == "int":  # NumPy's integers, too; kept as Python's, which JSON knows
                object.__setattr__(self, part.name, int(value))
            elif good and kind == "float" and not isinstance(value, int):
                object.__setattr__(self, part.name, float(value))
            if not good:
                raise TypeError(
                    f"Expected `{part.name}` to be {wanted}, got {value!r} ({type(value).__name__}). "
                    "Pass a value of that type."
                )

    @property
    def quotas(self) -> dict[str, int]:
        """How many negatives come from which source, without those that give none."""
        quotas = {"dense": self.num_negatives} if self.sources is None else self.sources
        return {name: quota for name, quota in quotas.items() if quota}

    @property
    def may_remove(self) -> bool:
        """Whether a filter is set that may remove any of the closest candidates."""
        bounds = (self.max_score, self.absolute_margin, self.relative_margin, self.max_positive_similarity)
        return any(bound is not None for bound in (*bounds, self.min_words, self.exclude_pattern))

    def window(self, num_positives: int, *, rescored: bool = False, filtered: bool = False) -> tuple[int, int]:
        """Return the first rank that is considered and the one after the last.

        Args:
            num_positives: How many positives the query has; they take up places among what is retrieved.
            rescored: Whether a cross encoder reorders the candidates, so that ``min_score`` may remove the closest.
            filtered: Whether filters that are not in the config may remove candidates.
        """
        if self.range_max is not None:
            return self.range_min, self.range_max
        deep = self.may_remove or filtered or (rescored and self.min_score is not None)
        # A draw by weights from as many candidates as are wanted would be no draw. ST's two strategies keep ST's depth.
        deep = deep or self.sampling_strategy not in ("top", "random")
        depth = self.num_negatives * (_DEPTH_PER_NEGATIVE if deep else 1)
        return self.range_min, self.range_min + depth + num_positives

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain JSON values."""
        return {**asdict(self), "search_spaces": list(self.search_spaces)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MiningConfig:
        """Make a config from what :meth:`to_dict` returned.

        Raises:
            ValueError: If a key is not a field.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"Expected a dictionary of MiningConfig's fields, got {type(values).__name__}.")
        names = [part.name for part in fields(cls)]
        for key in values:
            if key not in names:
                close = get_close_matches(str(key), names, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"Expected fields of MiningConfig, got {key!r}. Fields are {names}.{hint}")
        return cls(**values)


FIELD_TYPES = {name: str(annotation) for name, annotation in MiningConfig.__annotations__.items()}
"""The fields' types as they are written above. ``HfArgumentParser`` replaces ``field.type`` for the whole process."""
