"""Pushing plain datasets to the Hub, with a card that says what is in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetInfo, Features
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

PROVENANCE = "provenance"
"""Name of the configuration that says where the negatives come from."""

_CARD = "README.md"
_KEPT = ("description", "citation", "homepage", "license", "dataset_name", "version")
# What the Hub takes as the name of a license; whole texts of licenses stand in the card's body.
_LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,40}")
_SOURCE = re.compile(r"hf://datasets/([^/@]+/[^/@]+|[^/@]+)@")


def keep_info(dataset: Dataset, source: Dataset) -> Dataset:
    """Let a dataset that was made of another one say of itself what that says: description, citation, license, name."""
    for name in _KEPT:
        setattr(dataset.info, name, getattr(source.info, name))
    return dataset


def push_mined(
    dataset: Dataset, provenance: Dataset, repo_id: str, config_name: str, *, source: DatasetInfo, **options: Any
) -> Any:
    """Push the negatives, and beside them where they come from.

    What the repository's card says of columns, license and citation is that of what is pushed. ``datasets`` keeps the
    columns of an earlier push there (huggingface/datasets#8608), with which the repository could not be loaded.

    Args:
        dataset: What to train on.
        provenance: One row per row: ids, scores, ranks and sources.
        repo_id: The dataset repository.
        config_name: Configuration of ``dataset``.
        source: What the wrapped dataset says of itself; license, citation and description go into the card.
        **options: Arguments of ``datasets.Dataset.push_to_hub``.

    Returns:
        What ``push_to_hub`` returned for ``dataset``.

    Raises:
        ValueError: If the repository holds other splits of one of the configurations, with other columns.
    """
    beside = PROVENANCE if config_name == "default" else f"{config_name}-{PROVENANCE}"
    pushed = {config_name: dataset, beside: provenance}
    place = {"token": options.get("token"), "revision": options.get("revision")}
    card = read_card(repo_id, **place)
    for name, part in pushed.items():
        _check_other_splits(card, repo_id, name, options.get("split") or str(part.split or "train"), part.features)
    done = dataset.push_to_hub(repo_id, config_name, **options)
    # The first configuration that is pushed becomes the default one only if it is called so; never this one.
    provenance.push_to_hub(repo_id, beside, **options)
    card = read_card(repo_id, **place)
    if card is not None:  # a push always writes one
        told = _told(card, source, {name: part.features for name, part in pushed.items()})
        if str(told) != str(card):
            write_card(repo_id, told, **place)
    return done


def read_card(repo_id: str, *, token: str | None, revision: str | None) -> DatasetCard | None:
    """Return the card of a dataset repository, or None if there is none, or none can be had."""
    api = HfApi(token=token)
    try:
        path = api.hf_hub_download(repo_id, _CARD, repo_type="dataset", revision=revision)
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return None
    return DatasetCard.load(path)


def write_card(repo_id: str, card: DatasetCard, *, token: str | None, revision: str | None) -> None:
    """Write the card of a dataset repository."""
    HfApi(token=token).upload_file(
        path_or_fileobj=str(card).encode(),
        path_in_repo=_CARD,
        repo_id=repo_id,
        repo_type="dataset",
        revision=revision,
        commit_message="Describe columns, source and license",
    )


def _infos(card: DatasetCard | None) -> DatasetInfosDict:
    """Return what a card says of each configuration."""
    return DatasetInfosDict() if card is None else DatasetInfosDict.from_dataset_card_data(card.data)


def _check_other_splits(
    card: DatasetCard | None, repo_id: str, config_name: str, split: str, features: Features
) -> None:
    """Raise if other splits of a configuration have other columns; `datasets` would notice after half of the work.

    Raises:
        ValueError: If so.
    """
    known = _infos(card).get(config_name)
    others = [] if known is None else [name for name in known.splits or {} if name != split]
    if known is not None and others and known.features != features:
        raise ValueError(
            f"The configuration {config_name!r} of {repo_id!r} has the splits {others} with other columns than those "
            "to be pushed. Push under another `config_name`, or take those splits out of the repository first."
        )


def _told(card: DatasetCard, source: DatasetInfo, features: Mapping[str, Features]) -> DatasetCard:
    """Return a card that says what was pushed; what somebody else has written into it stays."""
    card = DatasetCard(str(card))
    infos = _infos(card)
    stale = [name for name in features if name in infos and infos[name].features != features[name]]
    for name in stale:
        infos[name].features = features[name]
    if stale:
        infos.to_dataset_card_data(card.data)
    if source.license and _LICENSE_NAME.fullmatch(source.license) and not card.data.get("license"):
        card.data["license"] = source.license
    origin = source_of(source)
    if origin is not None and not card.data.get("source_datasets"):
        card.data["source_datasets"] = [origin]
    if not card.text.strip():
        card = DatasetCard(f"---\n{card.data.to_yaml()}\n---\n{_body(source, origin)}")
    return card


def source_of(info: DatasetInfo) -> str | None:
    """Return where a dataset was loaded from: a repository's id, or else its name.

    Example:
        >>> source_of(DatasetInfo(download_checksums={"hf://datasets/me/pairs@1a2b/data.parquet": {}}))
        'me/pairs'
    """
    for url in info.download_checksums or {}:
        if found := _SOURCE.match(str(url)):
            return found[1]
    return info.dataset_name


def _body(info: DatasetInfo, origin: str | None) -> str:
    """Return the text of a card that has none."""
    parts = [f"Hard negatives for {origin}." if origin else "", info.description or "", info.homepage or ""]
    if info.license and not _LICENSE_NAME.fullmatch(info.license):
        parts.append(f"## License\n\n{info.license.strip()}")
    if info.citation:
        parts.append(f"## Citation\n\n```bibtex\n{info.citation.strip()}\n```")
    return "".join(f"\n{part.strip()}\n" for part in parts if part.strip())
