"""Publishing a mined dataset: one commit with data, provenance, recipe and card, or a folder with the same."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from datasets import Dataset

import st_hardneg
from st_hardneg.candidates import Mining
from st_hardneg.formats.sentence_transformers import OutputFormat
from st_hardneg.live.negatives import MANY_ROWS
from st_hardneg.publish.candidates import candidates_by_ids
from st_hardneg.publish.card import MEANINGS, PROVENANCE, Contents
from st_hardneg.publish.figure import score_figure
from st_hardneg.publish.hub import Target, publish
from st_hardneg.wrapping import Wrapped

logger = logging.getLogger(__name__)

_SPLIT = re.compile(r"\w+(\.\w+)*")
_CONFIG_NAME = re.compile(r"[\w.-]+")


class PublishedDataset:
    """The part of :class:`~st_hardneg.HardNegativeDataset` that goes to the Hub."""

    _wrapped: Wrapped

    def push_to_hub(
        self,
        repo_id: str,
        config_name: str = "default",
        *,
        split: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        output_format: OutputFormat = "n-tuple",
        dry_run: bool | str | os.PathLike[str] = False,
    ) -> Any:
        """Publish the negatives as a plain dataset: ``load_dataset(repo_id)`` reads it back, without this package.

        What is published under ``config_name`` can be trained on as it is; ids, scores, ranks and sources are in a
        second configuration named ``provenance`` (``{config_name}-provenance`` for another name than ``default``), and
        the candidates, where they are kept, in a third named ``candidates``. Recipe, report and a card lie beside them.
        All of it is one commit: the repository has everything, or is as it was.

        Args:
            repo_id: The dataset repository, such as ``"me/nq-hard-negatives"``.
            config_name: Name of the configuration.
            split: Name of the split; the wrapped dataset's, or ``"train"``.
            private: Whether a new repository is private.
            token: An access token; the stored one if None.
            revision: Branch to push to.
            commit_message: Message of the commit.
            output_format: As for :meth:`to_dataset`.
            dry_run: Write everything into a folder and push nothing: into a new one if True, or into this one.

        Returns:
            What ``huggingface_hub`` says of the commit; with ``dry_run``, the folder.

        Raises:
            NotMinedError: If nothing was mined yet.
            PushError: If it cannot be pushed. It says why, what to do, and in which folder everything is ready.
            ValueError: If a name cannot be one of a configuration or a split, or the repository holds what would not
                fit.
            FileExistsError: If the folder of ``dry_run`` holds something else.
        """
        mining: Mining = self._mined("push_to_hub()")  # type: ignore[attr-defined]
        wrapped = self._wrapped
        split = split or str(wrapped.rows.dataset.split or "train")
        _check_names(config_name, split)
        dataset = self.to_dataset(output_format)  # type: ignore[attr-defined]
        if output_format == "n-tuple":
            _warn_of_lacking_rows(dataset, wrapped.pairs.num_rows)
        beside = {PROVENANCE: self.provenance()}  # type: ignore[attr-defined]
        if mining.pool is not None:
            beside |= candidates_by_ids(mining, wrapped.pairs, wrapped.corpus)
        parts = {config_name: dataset, **_named(config_name, beside)}
        contents = _contents(repo_id, config_name, split, parts, output_format, wrapped, mining)
        scores = mining.negatives.similarities.numpy()
        figure = score_figure(mining.positive_similarities.numpy(), scores, mining.report.similarity)
        return publish(contents, figure, Target(token, private, revision, commit_message), dry_run)


def _contents(
    repo_id: str,
    config_name: str,
    split: str,
    parts: dict[str, Dataset],
    output_format: str,
    wrapped: Wrapped,
    mining: Mining,
) -> Contents:
    corpus = wrapped.corpus.given
    return Contents(
        repo_id,
        config_name,
        split,
        parts,
        output_format,
        wrapped.rows.dataset.info,
        None if corpus is None else corpus.info,
        wrapped.config.to_dict(),
        mining.report,
        wrapped.needs,
        st_hardneg.__version__,
    )


def _named(config_name: str, parts: dict[str, Dataset]) -> dict[str, Dataset]:
    """Return the configurations that stand beside one, by name."""
    return parts if config_name == "default" else {f"{config_name}-{name}": part for name, part in parts.items()}


def _check_names(config_name: str, split: str) -> None:
    """Raise if folders and files cannot be named so.

    Raises:
        ValueError: If so.
    """
    if not _CONFIG_NAME.fullmatch(config_name) or config_name in ("data", *MEANINGS):
        raise ValueError(
            f"Expected `config_name` to be letters, digits, '_', '-' and '.', and not 'data' or one of "
            f"{list(MEANINGS)}, got {config_name!r}."
        )
    if not _SPLIT.fullmatch(split):
        raise ValueError(
            f"Expected `split` to be words joined by dots, got {split!r}. Pass `split='train'`, for example."
        )


def _warn_of_lacking_rows(dataset: Dataset, num_rows: int) -> None:
    if len(dataset) < (1 - MANY_ROWS) * num_rows:
        logger.warning(
            f"{num_rows - len(dataset):,} of {num_rows:,} rows have an empty slot and are not published as tuples. "
            '`shortfall="random"` fills them; `output_format="triplet"` has a row for every negative there is.'
        )
