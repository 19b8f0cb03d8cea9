"""From what the caller names to sources that propose: the only place that knows every kind of source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_hardneg.candidates import BUILT_IN_SOURCES
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Additions, Corpus, TextWriter
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.vectors import Vectors
from st_hardneg.errors import check_takes, naming, require_extra
from st_hardneg.search import Searcher
from st_hardneg.sources.dense import DenseSource, KeptProposals, KeptSource, Space
from st_hardneg.sources.lexical import LexicalIndex, LexicalSource
from st_hardneg.sources.protocol import Plan, Proposal, Queries, Source, checked_proposal, holds_other_numbers
from st_hardneg.sources.uniform import RandomSource
from st_hardneg.sources.values import Texts, Where, Written
from st_hardneg.sources.written import GivenSource, WrittenSource

_MAX_SOURCES = 100
_RESERVED = ("corpus", "positive", "anchor", "anchors")


@dataclass(frozen=True, eq=False)
class NamedSources:
    """The sources of a dataset.

    Args:
        config: The recipe, with a quota for each.
        names: What the numbers of sources stand for.
        further: Further corpora by name.
        subsets: Predicates of the parts of the corpus by name.
        writer: Writes synthetic texts, or None.
        own: Sources of the caller's own by name.
    """

    config: MiningConfig
    names: tuple[str, ...]
    further: Mapping[str, Any] = field(default_factory=dict)
    subsets: Mapping[str, Any] = field(default_factory=dict)
    writer: TextWriter | None = None
    own: Mapping[str, Source] = field(default_factory=dict)

    @property
    def uses_given(self) -> bool:
        """Whether the caller's own negatives are wanted."""
        return "given" in (self.config.sources or {})

    def additions(self, **changes: Any) -> Additions:
        """Return what has to be numbered besides corpus and positives."""
        return Additions(further=self.further, subsets=self.subsets, synthetic=self.writer, **changes)


def name_sources(
    sources: Any,
    config: MiningConfig,
    write: Callable[..., Any],
    *,
    is_number_open: bool = False,
    in_corpus: Sequence[str] = (),
) -> NamedSources:
    """Make out what the caller's ``sources`` are, and how many negatives each gives.

    Args:
        sources: By name: a quota, a :class:`Where`, :class:`Texts` or :class:`Written`, a source, or a source and its
            quota. None for those that the recipe names.
        config: The recipe.
        write: Has a writer write texts for positives, and checks them: ``(writer, positives)``.
        is_number_open: Whether ``num_negatives`` follows from the quotas.
        in_corpus: Sources whose texts are numbered already, as in a dataset that was saved.

    Raises:
        TypeError: If a source is of the wrong kind.
        ValueError: If a name is unknown or taken, or quotas do not add up.
        MissingExtraError: If a source needs an extra that is not installed.
    """
    if sources is not None and not isinstance(sources, Mapping):
        raise TypeError(
            f"Expected `sources` to map names to quotas and sources, got {type(sources).__name__}. Write "
            '`sources={"dense": 3, "recent": Where(lambda row: row["year"] > 2020, 1)}`, for example.'
        )
    quotas: dict[str, int | None] = {}
    found: dict[str, Any] = {}
    for name, value in (sources or {}).items():
        quotas[name], found[name] = _quota_and_value(name, value)
    own = {name: one for name, one in found.items() if one is not None and not isinstance(one, (Where, Texts, Written))}
    named = NamedSources(
        _with_quotas(config, quotas, is_number_open),
        (
            *BUILT_IN_SOURCES,
            *(name for name in _BUILDERS if name not in BUILT_IN_SOURCES),
            *(name for name in in_corpus if name not in BUILT_IN_SOURCES),
            *(name for name, one in found.items() if one is not None and name not in (*_BUILDERS, *in_corpus)),
        ),
        {name: one.texts for name, one in found.items() if isinstance(one, Texts)},
        {name: one.predicate for name, one in found.items() if isinstance(one, Where)},
        next((partial(write, one.writer) for one in found.values() if isinstance(one, Written)), None),
        own,
    )
    _check_named(named, in_corpus)
    return named


def _quota_and_value(name: Any, value: Any) -> tuple[int | None, Any]:
    is_number = isinstance(value, Integral) and not isinstance(value, bool)
    if not isinstance(name, str) or not name or (name in _RESERVED and not is_number):
        raise ValueError(f"Expected a name of its own for each source, got {name!r}. Rename it.")
    quota: Any = None
    if isinstance(value, tuple) and len(value) == 2:
        value, quota = value
    elif isinstance(value, (Where, Texts, Written)):
        quota = value.num_negatives
    elif is_number:
        value, quota = None, value
    if quota is not None and (isinstance(quota, bool) or not isinstance(quota, Integral) or quota < 0):
        raise ValueError(f"Expected the quota of the source {name!r} to be a number from 0 up, got {quota!r}.")
    if value is not None or quota is None:
        _check_value(name, value)
    return None if quota is None else int(quota), value


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, type):
        raise TypeError(f"Expected an object as the source {name!r}, got the class {value.__name__}. Make one of it.")
    if not isinstance(value, (Where, Texts, Written, Source)):
        raise TypeError(
            f"Expected the source {name!r} to be a quota, a `Where`, `Texts` or `Written`, or an object with "
            f"`propose(queries, plan)`, got {type(value).__name__}."
        )
    if isinstance(value, Source):
        check_takes(value.propose, f"`propose` of the source {name!r}", "queries", "plan")
    if isinstance(value, Written) != (name == "synthetic"):
        raise ValueError(f"Written texts are the source 'synthetic', and only they are; got {name!r}. Rename it.")
    if name in _BUILDERS and not isinstance(value, Written):
        raise ValueError(f"{name!r} is a source of this package. Give yours another name.")
    if isinstance(value, Written) and (isinstance(value.writer, type) or not callable(value.writer)):
        raise TypeError(
            "Expected a function from positives to texts for each in `Written`, got "
            f"{value.writer!r}. Pass a maker of `st_hardneg.sources.synthetic`, for example `KeywordEdits()`."
        )


def _with_quotas(config: MiningConfig, given: Mapping[str, int | None], is_number_open: bool) -> MiningConfig:
    """Return the recipe with a quota for every source."""
    if not given:
        return config
    in_recipe = dict(config.sources or {})
    quotas = {**in_recipe, **{name: quota for name, quota in given.items() if quota is not None}}
    if changed := [name for name in in_recipe if quotas[name] != in_recipe[name]]:
        raise ValueError(f"`config.sources` and `sources` have other quotas for {changed}. Leave one of them out.")
    open_ones = [name for name in given if name not in quotas]
    left = config.num_negatives - sum(quota for quota in quotas.values() if quota)
    if open_ones and left < len(open_ones):
        raise ValueError(
            f"Expected a quota for {open_ones}: the other sources leave {max(0, left)} of `num_negatives="
            f"{config.num_negatives}`. Write `sources={{{open_ones[0]!r}: (source, 1)}}`, or raise `num_negatives`."
        )
    for place, name in enumerate(open_ones):
        quotas[name] = left // len(open_ones) + (place < left % len(open_ones))
    ordered = {name: int(quotas[name] or 0) for name in dict.fromkeys([*in_recipe, *given])}
    total = sum(ordered.values())
    if total != config.num_negatives and not is_number_open:
        raise ValueError(
            f"Expected the quotas in `sources` to add up to `num_negatives={config.num_negatives}`, got {ordered}, which "
            f"add up to {total}. Set `num_negatives={total}`, or change the quotas."
        )
    return config.with_quotas(ordered)


def _check_named(named: NamedSources, in_corpus: Sequence[str]) -> None:
    if len(named.names) > _MAX_SOURCES:
        raise ValueError(
            f"Expected at most {_MAX_SOURCES} sources, got {len(named.names)}. Join corpora that belong together into one."
        )
    for name in named.config.sources or {}:
        if name in named.names and (name != "synthetic" or named.writer is not None or name in in_corpus):
            continue
        if name == "synthetic":
            raise ValueError(
                "The source 'synthetic' needs a writer: `sources={'synthetic': Written(KeywordEdits(), 1)}`, for example."
            )
        known = [other for other in named.names if other != "anchors"]
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Expected `sources` to name sources of this dataset, got {name!r}. Sources are {known}; give others to "
            f"`HardNegativeDataset(sources={{{name!r}: ...}})`.{hint}"
        )
    require_extras(named.config)


def require_extras(config: MiningConfig) -> None:
    """Raise if a source that the recipe names needs an extra that is not installed, before anything is encoded.

    Raises:
        MissingExtraError: If it does.
    """
    if "lexical" in (config.sources or {}):
        require_extra("bm25s", "lexical", "The source 'lexical'")


@dataclass(frozen=True, eq=False)
class Workshop:
    """What sources are built from.

    Args:
        config: The recipe in force.
        names: What the numbers of sources stand for.
        pairs: The queries.
        corpus: The corpus.
        vectors: Their vectors.
        own: Sources of the caller's own by name.
        make_searcher: Returns a searcher; its argument says whether it is for the whole corpus.
        kept: What outlives a mining, such as a BM25 index.
        proposals: What a search with these very vectors has found before, if they are a frozen model's.
    """

    config: MiningConfig
    names: tuple[str, ...]
    pairs: Pairs
    corpus: Corpus
    vectors: Vectors
    own: Mapping[str, Source]
    make_searcher: Callable[[bool], Searcher]
    kept: MutableMapping[str, Any]
    proposals: KeptProposals | None = None

    def space(self, corpus_ids: Ids, name: str) -> Space:
        """Index some texts."""
        is_main = corpus_ids is self.corpus.searched
        if is_main and "searcher" in self.kept:
            return Space(self.kept["searcher"], corpus_ids, self.names.index(name))
        searcher, rows = self.make_searcher(is_main), self.vectors.of_texts(corpus_ids)
        if not isinstance(rows, Tensor):
            searcher = rows.searcher(searcher)
        # A model with a similarity of its own is searched by it, where a searcher can.
        if self.vectors.score_function is not None and hasattr(searcher, "score_function"):
            searcher.score_function = self.vectors.score_function
        searcher.index(rows, self.vectors.similarity)
        if is_main and "keeps_searcher" in self.kept:
            self.kept["searcher"] = searcher
        return Space(searcher, corpus_ids, self.names.index(name))

    def dense(self, *spaces: tuple[Ids, str]) -> DenseSource:
        """Return the search of some spaces."""
        found = tuple(self.space(ids, name) for ids, name in spaces)
        return DenseSource(self.vectors, found, torch.from_numpy(self.corpus.identities))

    def search(self) -> Source:
        """Return the search of the spaces that the recipe names; a frozen model searches once."""
        spaces = list(zip(self.searched_spaces, ("dense", "anchors"), strict=False))
        if self.proposals is None:
            return self.dense(*spaces)
        return KeptSource(lambda: self.dense(*spaces), self.proposals)

    @cached_property
    def known_as(self) -> Tensor:
        """int64 of shape ``(num_corpus,)``: the id under which a text that a caller's source proposes has a vector.

        A copy of a searched text goes by that one's id; -1 is a text that is not searched, as a metadata filter has it.
        """
        identities, rows = self.corpus.identities, self.vectors.corpus_row.numpy()
        searched_as = np.full(len(identities), -1, dtype=np.int64)
        searched_as[identities[self.corpus.searched]] = self.corpus.searched
        return torch.from_numpy(np.where(rows >= 0, np.arange(len(rows)), searched_as[identities]))

    @property
    def searched_spaces(self) -> tuple[Ids, ...]:
        """The corpus ids of each space that the recipe searches."""
        if "anchors" in self.config.search_spaces:
            return self.corpus.searched, self.corpus.searched_anchors
        return (self.corpus.searched,)

    def lexical(self) -> LexicalSource:
        """Return the BM25 search; its index depends on texts only, and is made once."""
        if "lexical" not in self.kept:
            self.kept["lexical"] = LexicalIndex(self.corpus)
        return LexicalSource(self.kept["lexical"])


_BUILDERS: dict[str, Callable[[Workshop], Source]] = {
    "dense": lambda shop: shop.search(),
    "lexical": Workshop.lexical,
    "random": lambda shop: RandomSource.over(shop.corpus, shop.searched_spaces),
    "synthetic": lambda shop: WrittenSource(shop.pairs, shop.corpus),
    "given": lambda shop: GivenSource(shop.pairs, shop.corpus),
}


def build_sources(shop: Workshop) -> dict[str, Source]:
    """Return the sources that the recipe's quotas name, with their texts indexed."""
    sources: dict[str, Source] = {}
    for name in shop.config.quotas:
        if name in _BUILDERS:
            sources[name] = _BUILDERS[name](shop)
        elif name in shop.own:
            sources[name] = _Checked(shop.own[name], name, shop.corpus, shop.kept, shop.known_as)
        else:
            sources[name] = shop.dense((shop.corpus.parts[name], name))
    return sources


@dataclass(frozen=True, eq=False)
class _Checked:
    """A source of the caller's, whose proposals are checked."""

    source: Source
    name: str
    corpus: Corpus
    kept: MutableMapping[str, Any]
    known_as: Tensor

    def propose(self, queries: Queries, plan: Plan) -> Proposal:
        """Return what the source proposes, as tensors."""
        with naming(f"the source {self.name!r}"):
            proposal = self.source.propose(queries, plan)
        if "row_of" not in self.kept:
            self.kept["row_of"] = self._rows_by_id()
            self.kept["holds other numbers"] = holds_other_numbers(self.corpus)
        is_unclear = self.kept["holds other numbers"]
        found = checked_proposal(proposal, queries, self.corpus, self.name, self.kept["row_of"], is_unclear=is_unclear)
        assert isinstance(found.ids, Tensor)
        return replace(found, ids=torch.where(found.ids >= 0, self.known_as[found.ids.clamp(min=0)], -1))

    def _rows_by_id(self) -> dict[str, int]:
        if self.corpus.given is None or self.corpus.id_column is None:
            return {}
        ids = self.corpus.given.with_format(None)[self.corpus.id_column][:]
        rows = {str(one): row for row, one in enumerate(ids)}
        if len(rows) < len(ids) or None in ids:
            raise ValueError(
                f"The source {self.name!r} proposes ids of the corpus, whose column {self.corpus.id_column!r} has some "
                "twice or is None in some rows. Give each text an id of its own, or propose row numbers."
            )
        return rows
