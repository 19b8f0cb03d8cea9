"""The card of a published dataset: what was mined from what, every setting, the figures, how to train on it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from datasets import Dataset, DatasetInfo, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict
from huggingface_hub import DatasetCard

from st_hardneg.report import MiningReport

TAGS = ("hard-negatives", "sentence-transformers", "st_hardneg")
_TASKS = ("sentence-similarity", "feature-extraction", "text-retrieval")
# What the Hub takes as the name of a license (huggingface.co/docs/hub/repositories-licenses); others are "other".
_LICENSES = frozenset(
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom- "
    "rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc- "
    "by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc- "
    "nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license "
    "ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl "
    "gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 "
    "llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 open-mdw openrail "
    "openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib".split()
)
_SOURCE = re.compile(r"hf://datasets/([^/@]+/[^/@]+|[^/@]+)@")
_CITATION = re.compile(r"^#+\s*(?:\w+\s+)?citation.*?$(.*?)(?=^#+\s|\Z)", re.MULTILINE | re.DOTALL | re.IGNORECASE)
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")

_TRAIN_BI_ENCODER = """\
from datasets import load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import {loss}

dataset = load_dataset({where}, split={split!r})
model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
trainer = SentenceTransformerTrainer(model=model, train_dataset=dataset, loss={loss}(model))
trainer.train()
"""
_TRAIN_CROSS_ENCODER = """\
from datasets import load_dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer
from sentence_transformers.cross_encoder.losses import LambdaLoss

dataset = load_dataset({where}, split={split!r})
model = CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2", num_labels=1)
trainer = CrossEncoderTrainer(model=model, train_dataset=dataset, loss=LambdaLoss(model))
trainer.train()
"""
_LOSSES = {
    "triplet": "MultipleNegativesRankingLoss",
    "n-tuple": "MultipleNegativesRankingLoss",
    "labeled-pair": "OnlineContrastiveLoss",
}


@dataclass(frozen=True, eq=False)
class Contents:
    """What is published, and what its card says.

    Args:
        repo_id: The repository.
        config_name: The configuration that can be trained on.
        split: The split.
        parts: Every configuration, that one first.
        output_format: Its format.
        source: What the wrapped dataset says of itself.
        corpus: What the given corpus says of itself, if one was given.
        recipe: The recipe, as plain values.
        report: The report of the mining.
        needs: What was handed over beside the recipe, by name.
        version: The version of this package.
    """

    repo_id: str
    config_name: str
    split: str
    parts: Mapping[str, Dataset]
    output_format: str
    source: DatasetInfo
    corpus: DatasetInfo | None
    recipe: Mapping[str, Any]
    report: MiningReport
    needs: Sequence[str] = ()
    version: str = ""

    def file(self, name: str) -> str:
        """Return where a file of this configuration's own lies: that of the default one at the top."""
        return name if self.config_name == "default" else f"{self.config_name}/{name}"

    def pattern(self, part: str) -> str:
        """Return which files hold the split of a configuration, named as `datasets` does."""
        return f"{'data' if part == 'default' else part}/{self.split}-*"


@dataclass(frozen=True)
class Origin:
    """What is to be said of the dataset that was wrapped.

    Args:
        name: Its repository, or its name.
        license: Its license: a name that the Hub knows, or a text.
        citation: How to cite it.
        description: What it says of itself.
        homepage: Its page.
        languages: Its languages.
    """

    name: str | None = None
    license: str | None = None
    citation: str | None = None
    description: str | None = None
    homepage: str | None = None
    languages: Sequence[str] = field(default_factory=tuple)

    @classmethod
    def of(cls, info: DatasetInfo, card: DatasetCard | None = None) -> Origin:
        """Take what a dataset says of itself, and what it does not from the card of its repository."""
        told = {} if card is None else card.data.to_dict()
        cited = None if card is None else _CITATION.search(card.text)
        languages = told.get("language") or ()
        license = told.get("license")
        return cls(
            source_of(info),
            info.license or (", ".join(license) if isinstance(license, list) else license),
            info.citation or (cited[1].strip() if cited else None),
            info.description,
            info.homepage,
            [languages] if isinstance(languages, str) else list(languages),
        )


def source_of(info: DatasetInfo) -> str | None:
    """Return where a dataset was loaded from: a repository's id, or else its name.

    Example:
        >>> source_of(DatasetInfo(download_checksums={"hf://datasets/me/pairs@1a2b/data.parquet": {}}))
        'me/pairs'
    """
    return repository_of(info) or info.dataset_name


def repository_of(info: DatasetInfo) -> str | None:
    """Return the repository that a dataset was loaded from, or None if it came from elsewhere."""
    for url in info.download_checksums or {}:
        if found := _SOURCE.match(str(url)):
            return found[1]
    return None


def infos_of(card: DatasetCard | None) -> DatasetInfosDict:
    """Return what a card says of each configuration."""
    return DatasetInfosDict() if card is None else DatasetInfosDict.from_dataset_card_data(card.data)


def card_of(contents: Contents, origin: Origin, sizes: Mapping[str, int], earlier: DatasetCard | None) -> DatasetCard:
    """Return the card of a repository with this in it; what somebody else has written into it stays.

    Args:
        contents: What is published.
        origin: What is to be said of the source.
        sizes: Bytes on disk of each configuration.
        earlier: The card that the repository has.
    """
    card = DatasetCard("---\n{}\n---\n" if earlier is None else str(earlier))
    _set_metadata(card, contents, origin, sizes)
    begin, end = (f"<!-- st_hardneg: {edge} {contents.config_name} -->" for edge in ("begin", "end"))
    ours = f"{begin}\n{_body(contents, origin).strip()}\n{end}"
    theirs = card.text.strip()
    before, found, rest = theirs.partition(begin)
    if found and end in rest:
        text = before + ours + rest.partition(end)[2]
    else:
        text = f"{theirs}\n\n{ours}" if theirs else ours
    return DatasetCard(f"---\n{card.data.to_yaml()}\n---\n\n{text.strip()}\n")


def _set_metadata(card: DatasetCard, contents: Contents, origin: Origin, sizes: Mapping[str, int]) -> None:
    data, infos = card.data, infos_of(card)
    configs = [one for one in data.get("configs") or [] if isinstance(one, dict)]
    for name, part in contents.parts.items():
        known = infos.get(name)
        splits = {} if known is None or known.features != part.features else dict(known.splits or {})
        splits[contents.split] = SplitInfo(contents.split, num_bytes=part.data.nbytes, num_examples=len(part))
        total = sum(one.num_bytes for one in splits.values())
        infos[name] = DatasetInfo(
            features=part.features, splits=SplitDict(splits), download_size=sizes[name], dataset_size=total
        )
        configs = _with_files(configs, name, contents.split, contents.pattern(name))
    infos.to_dataset_card_data(data)
    data["configs"] = configs
    data["tags"] = list(dict.fromkeys([*(data.get("tags") or []), *TAGS]))
    data["task_categories"] = data.get("task_categories") or list(_TASKS)
    data["size_categories"] = [_size(len(contents.parts[contents.config_name]))]
    if origin.license and not data.get("license"):
        data["license"] = origin.license if origin.license in _LICENSES else "other"
    if origin.languages and not data.get("language"):
        data["language"] = list(origin.languages)
    if origin.name and not data.get("source_datasets"):
        data["source_datasets"] = [origin.name]


def _with_files(configs: list[dict[str, Any]], name: str, split: str, pattern: str) -> list[dict[str, Any]]:
    """Return the configurations of a card with the files of one split of one of them."""
    old = next((one for one in configs if one.get("config_name") == name), {"config_name": name})
    files = old.get("data_files")
    kept = (
        [one for one in files if isinstance(one, dict) and one.get("split") != split] if isinstance(files, list) else []
    )
    new = {**old, "data_files": [*kept, {"split": split, "path": pattern}]}
    return [*(one for one in configs if one is not old), new]


def _size(num_rows: int) -> str:
    return _SIZES[min(len(_SIZES) - 1, max(0, len(str(num_rows)) - 3))]


def _body(contents: Contents, origin: Origin) -> str:
    """Return the text of a card, section by section."""
    report = contents.report
    sections = [
        f"# Hard negatives{f' for {origin.name}' if origin.name else ''}",
        _first_words(contents, origin),
        "## What was mined from what\n\n" + _table(_facts(contents, origin)),
        "## What the mining found\n\n"
        f"![{report.similarity} similarity of anchors to positives and to mined negatives]({contents.file('scores.svg')})"
        f"\n\n{_fenced(str(report), 'text')}",
        f"## Every setting\n\nThe same is in [the recipe]({contents.file('recipe.yaml')}); every figure is in "
        f"[the report]({contents.file('report.json')}).\n\n" + _fenced(yaml_of(contents.recipe), "yaml"),
        "## How to load it and train on it\n\n" + _fenced(_training(contents), "python") + _beside(contents),
        _license_and_citation(origin),
    ]
    return "\n\n".join(section.strip() for section in sections if section.strip())


def _first_words(contents: Contents, origin: Origin) -> str:
    main = contents.parts[contents.config_name]
    columns = ", ".join(f"`{name}`" for name in main.column_names)
    told = [
        f"{len(main):,} rows of {columns}, in Sentence Transformers' format `{contents.output_format}`; the negatives "
        f"were mined with st_hardneg {contents.version}. A plain dataset: `load_dataset` reads it without any plugin.",
        origin.description or "",
        origin.homepage or "",
    ]
    return "\n\n".join(part.strip() for part in told if part.strip())


def _facts(contents: Contents, origin: Origin) -> dict[str, str]:
    report, model = contents.report, contents.report.model
    columns = " → ".join(f"`{name}`" for name in report.columns)
    corpus = source_of(contents.corpus) if contents.corpus is not None else None
    of_corpus = f" of {corpus} and the positives" if corpus else ""
    facts = {
        "source": origin.name or "not stated",
        "rows": f"{report.num_rows:,} ({columns}), {report.num_queries:,} different anchors",
        "searched": f"{report.num_corpus:,} texts{of_corpus}",
        "model": model.get("name", model.get("kind", "not stated")),
        "weights": f"`{model['weights']}` (XXH3 of weights and settings)" if "weights" in model else "not stated",
        "similarity": report.similarity,
        "negatives per row": f"{report.num_negatives}",
        "mined": "before training"
        if report.step is None
        else f"refresh {report.refresh}, training step {report.step:,}",
    }
    if contents.needs:
        facts["helped by"] = ", ".join(f"`{name}`" for name in contents.needs)
    return facts


def yaml_of(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, in their order."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _table(facts: Mapping[str, str]) -> str:
    cells = (f"| {name} | {' '.join(value.replace('|', chr(92) + '|').split())} |" for name, value in facts.items())
    return "\n".join(["| | |", "|---|---|", *cells])


def _fenced(text: str, language: str) -> str:
    """Return a block of code that no line of it can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _training(contents: Contents) -> str:
    where = repr(contents.repo_id) + ("" if contents.config_name == "default" else f", {contents.config_name!r}")
    where = where.replace("'", '"')
    if contents.output_format == "labeled-list":
        code = _TRAIN_CROSS_ENCODER.format(where=where, split=contents.split)
    else:
        code = _TRAIN_BI_ENCODER.format(where=where, split=contents.split, loss=_LOSSES[contents.output_format])
    return code.replace(f"split={contents.split!r}", f'split="{contents.split}"')


def _beside(contents: Contents) -> str:
    """Name the configurations that stand beside the one to train on."""
    lines = [
        f'- `load_dataset("{contents.repo_id}", "{name}")`: {MEANINGS[name.removeprefix(contents.config_name + "-")]}'
        for name in contents.parts
        if name != contents.config_name
    ]
    return "\n\nBeside it:\n\n" + "\n".join(lines) if lines else ""


PROVENANCE = "provenance"
"""Name of the configuration that says where the negatives come from."""

MEANINGS = {
    PROVENANCE: "ids, scores, ranks and sources of the negatives of every row.",
    "candidates": "for every anchor the right answers and all candidates, by id, with their scores; "
    "`sentence_transformers.util.resolve_ids` puts the texts of the next two in their place.",
    "queries": "the anchors by id.",
    "documents": "right answers and candidates by id.",
}
"""What the configurations beside the one to train on are."""


def _license_and_citation(origin: Origin) -> str:
    if not origin.license:
        stated = "The source states no license; its terms hold for this dataset as well."
    elif "\n" not in origin.license:
        stated = f"That of the source: {origin.license}."
    else:
        stated = f"That of the source:\n\n{origin.license.strip()}"
    cited = ""
    if origin.citation:
        text = origin.citation.strip()
        cited = "\n\n## Citation\n\n" + (text if text.startswith("```") else _fenced(text, "bibtex"))
    return f"## License\n\n{stated}{cited}"
