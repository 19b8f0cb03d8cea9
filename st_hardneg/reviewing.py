"""A person in the loop: the most doubtful texts go out, labels come back, and every later mining respects them."""

from __future__ import annotations

import copy
import csv
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value, concatenate_datasets

from st_hardneg.corpus.judged import with_judgements
from st_hardneg.corpus.rows import Rows
from st_hardneg.corpus.texts import Ids
from st_hardneg.files.labels import LABELS, Label, read_labels
from st_hardneg.live.negatives import LiveNegatives
from st_hardneg.mining.rescoring import cross_encoder_scores
from st_hardneg.mining.risk import shared_words
from st_hardneg.pages.write import render, write_page
from st_hardneg.views import ViewedDataset

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="ReviewedDataset")

SOURCE_COLUMN = "label_source"
"""Column that says where a right answer comes from: ``"given"``, a ``"person"``, or a ``"rule"``, unseen by people."""

_SAMPLE = 500


@dataclass(frozen=True)
class ProposalRule:
    """When a doubtful text is proposed as a right answer; nothing is changed until the proposal is accepted.

    Args:
        cross_encoder: Scores doubtful texts and known right answers.
        lowest_percentile: A text's score has to be at least at this percentile of the right answers' scores.
        max_shared_words: It may share at most so much with a known right answer, the Jaccard index of their words: a copy
            teaches nothing.
    """

    cross_encoder: Any
    lowest_percentile: float = 25.0
    max_shared_words: float = 0.9

    def __post_init__(self) -> None:
        for name, most in (("lowest_percentile", 100.0), ("max_shared_words", 1.0)):
            if not 0.0 <= getattr(self, name) <= most:
                raise ValueError(f"Expected `{name}` to be from 0 to {most:g}, got {getattr(self, name)!r}.")


class ReviewedDataset(ViewedDataset):
    """The part of :class:`~st_hardneg.HardNegativeDataset` that people look at and correct."""

    def to_review(
        self, path: str | os.PathLike[str], n: int = 100, *, rule: ProposalRule | None = None
    ) -> list[dict[str, Any]]:
        """Write the most doubtful texts to a file, to be labelled by a person.

        Args:
            path: ``.html`` is a page that is labelled by keyboard, without a server, and saves the labels as a file;
                ``.csv`` and ``.jsonl`` have an empty column ``label``.
            n: How many.
            rule: Proposes labels; they stand in a column of their own.

        Returns:
            What was written.

        Raises:
            NotMinedError: If nothing was mined yet.
            MiningError: If there are no suspects; see :meth:`suspects`.
            ValueError: If the file is of another kind.
            OSError: If it cannot be written; what was there stays.
        """
        ending = os.path.splitext(os.fspath(path))[1].lower()
        if ending not in _WRITERS:
            raise ValueError(f"Expected a file that ends in one of {list(_WRITERS)}, got {os.fspath(path)!r}.")
        found = [
            {
                "row": row["row"],
                "corpus_id": row["corpus_id"],
                "closeness": round(row["closeness"], 6),
                "anchor": row["anchor"],
                "positive": row["positive"],
                "text": row["suspect"],
                "proposal": "",
                "reason": "",
                "label": "",
            }
            for row in self.suspects(n)
        ]
        if rule is not None:
            self._propose(found, rule)
        write_page(path, _WRITERS[ending](found))
        return found

    def _propose(self, found: list[dict[str, Any]], rule: ProposalRule) -> None:
        """Put proposals beside the texts whose score is that of a right answer."""
        pairs, texts = self._wrapped.pairs, self.corpus.texts
        rows = np.unique(np.linspace(0, pairs.num_rows - 1, min(_SAMPLE, pairs.num_rows)).round().astype(np.int64))
        right = list(zip(pairs.anchors.take(rows), texts.take(pairs.row_positive[rows]), strict=True))
        doubtful = [(one["anchor"], one["text"]) for one in found]
        scores = cross_encoder_scores(rule.cross_encoder, [*right, *doubtful], self._wrapped.task.batch_size).numpy()
        least = float(np.percentile(scores[: len(right)], rule.lowest_percentile))
        for one, score in zip(found, scores[len(right) :].tolist(), strict=True):
            query = int(pairs.row_query[one["row"]])
            shared = max(shared_words(one["text"], text) for text in texts.take(pairs.positives_of(query)))
            if score >= least and shared <= rule.max_shared_words:
                one["proposal"] = "positive"
                one["reason"] = (
                    f"the cross encoder scores it {score:.3f}, and {rule.lowest_percentile:g} % of the right answers "
                    f"below {least:.3f}; it shares {shared:.0%} of the words"
                )

    def excluded_pairs(self) -> Iterator[tuple[str, str]]:
        """Yield anchors and texts that :meth:`with_labels` keeps from being their negatives, and right answers, too."""
        pairs, texts = self._wrapped.pairs, self.corpus.texts
        if pairs.certain is None:
            return
        groups, identities = np.divmod(pairs.known.keys.numpy(), len(self.corpus))
        first_query = np.full(len(pairs.positive_offsets) - 1, -1, dtype=np.int64)
        first_query[pairs.group[::-1]] = np.arange(pairs.num_queries)[::-1]
        queries = first_query[groups]
        anchors = pairs.anchors.take(pairs.first_row[queries[queries >= 0]])
        yield from zip(anchors, texts.take(identities[queries >= 0]), strict=True)

    def with_labels(
        self: Self, labels: str | os.PathLike[str] | Sequence[Mapping[str, Any]], *, accept_proposals: bool = False
    ) -> Self:
        """Return a dataset that has learned from labels; this one stays as it is, and the new one is not mined yet.

        ``"positive"`` makes the text a right answer of its anchor, in a new row; ``"exclude"`` keeps it from ever being a
        negative of its anchor, in losses that mask, too; ``"negative"`` lets it through the rules that hold off doubtful
        texts. None of them is doubtful from then on.

        Args:
            labels: A file that :meth:`to_review` wrote and a person has filled in, or its rows. Rows without a label are
                passed over.
            accept_proposals: Take the proposal where a person has said nothing. Rows that are made so have ``"rule"`` in
                the column ``label_source``.

        Raises:
            ValueError: If the file is damaged, a label is unknown, two contradict each other, or it is of another dataset;
                the line is named.
            FileNotFoundError: If there is no such file.
        """
        read = read_labels(labels, accept_proposals=accept_proposals)
        self._check_labels(read)
        by_label = {name: [one for one in read if one.label == name] for name in LABELS}
        wrapped, pairs = self._wrapped, self._wrapped.pairs
        judged = {
            name: np.asarray([[pairs.row_query[one.row], one.corpus_id] for one in some], dtype=np.int64).reshape(-1, 2)
            for name, some in by_label.items()
        }
        rows = _with_rows(wrapped.rows, self.corpus.texts.take(judged["positive"][:, 1]), by_label["positive"])
        grown = with_judgements(
            pairs, self.corpus, rows.anchors, judged["positive"], judged["exclude"], judged["negative"]
        )
        task = replace(wrapped.task, pairs=grown, kept={})
        result = copy.copy(self)
        result.__dict__.pop("data_fingerprint", None)
        result._wrapped = replace(wrapped, rows=rows, pairs=grown, task=task)
        result.live = LiveNegatives(grown, self.corpus, wrapped.config.num_negatives)
        counts = ", ".join(f"{len(some):,} {LABELS[name]}" for name, some in by_label.items())
        of_rules = sum(one.is_proposal for one in read)
        logger.info(f"Labels applied: {counts}" + (f"; {of_rules:,} of them proposed by a rule." if of_rules else "."))
        return result

    def _check_labels(self, read: Sequence[Label]) -> None:
        """Raise unless labels are of this dataset and do not contradict it."""
        pairs, texts = self._wrapped.pairs, self.corpus.texts
        for one in read:
            if not (0 <= one.row < pairs.num_rows and 0 <= one.corpus_id < len(texts)):
                raise ValueError(
                    f"{one.place}: there is no row {one.row} or corpus id {one.corpus_id} in this dataset. Apply labels "
                    "to the dataset that they were exported from."
                )
        anchors = pairs.anchors.take(np.asarray([one.row for one in read], dtype=np.int64))
        said = texts.take(np.asarray([one.corpus_id for one in read], dtype=np.int64))
        for one, anchor, text in zip(read, anchors, said, strict=True):
            if (one.anchor, one.text) != (anchor, text):
                what = "anchor" if one.anchor != anchor else "text"
                raise ValueError(
                    f"{one.place}: the {what} is not the one of row {one.row} and corpus id {one.corpus_id} in this "
                    "dataset. Change the column `label` alone, and apply labels to the dataset that they come from."
                )
            is_right = corpus_has(
                pairs.positives_of(int(pairs.row_query[one.row])), self.corpus.identities, one.corpus_id
            )
            if is_right and one.label != "positive":
                raise ValueError(
                    f"{one.place}: the text is a right answer of the rows already, and cannot be labelled {one.label!r}. "
                    "Remove the row of the dataset, or the label."
                )


def corpus_has(ids: Ids, identities: Ids, corpus_id: int) -> bool:
    """Tell whether a text is the same as one of some, by identity."""
    return bool((identities[ids] == identities[corpus_id]).any())


def _with_rows(rows: Rows, texts: Sequence[str], labels: Sequence[Label]) -> Rows:
    """Return the rows with further right answers behind them; what is said of their anchor stands beside them, too."""
    if not labels:
        return rows
    dataset = rows.dataset.with_format(None)
    new = dataset.select([one.row for one in labels]).remove_columns(rows.positive_name)
    new = new.add_column(rows.positive_name, list(texts))
    used = {rows.anchor_name, rows.positive_name, "weight", rows.label_name, *rows.negative_names, SOURCE_COLUMN}
    # Ids and notes of the row that it was copied from are those of another text.
    blank = [name for name in dataset.column_names if name not in used]
    table = new.data.table
    for name in blank:
        kind = table.schema.field(name).type
        table = table.set_column(table.column_names.index(name), name, pa.nulls(len(new), kind))
    sources = ["rule" if one.is_proposal else "person" for one in labels]
    columns = {name: table.column(name) for name in dataset.column_names if name != SOURCE_COLUMN}
    features = Features({name: dataset.features[name] for name in columns} | {SOURCE_COLUMN: Value("string")})
    if SOURCE_COLUMN not in dataset.column_names:
        dataset = dataset.add_column(SOURCE_COLUMN, ["given"] * len(dataset))
    added = Dataset(pa.table({**columns, SOURCE_COLUMN: pa.array(sources)}).cast(features.arrow_schema))
    weights = np.concatenate([rows.weights, rows.weights[[one.row for one in labels]]])
    together = concatenate_datasets([dataset.cast(features), added])
    unused = rows.unused if SOURCE_COLUMN in rows.unused else (*rows.unused, SOURCE_COLUMN)
    return replace(rows, dataset=together, weights=weights, unused=unused)


def _csv_of(found: list[dict[str, Any]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(found[0]) if found else ["label"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return file.getvalue()


def _jsonl_of(found: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found)


def _page_of(found: list[dict[str, Any]]) -> str:
    return render("review.html.jinja", title=f"{len(found):,} doubtful texts", items=found)


_WRITERS = {".html": _page_of, ".csv": _csv_of, ".jsonl": _jsonl_of}
