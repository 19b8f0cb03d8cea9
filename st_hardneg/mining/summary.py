"""From a mining to its report: every figure in it is computed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_hardneg.candidates import (
    CARRIED_OVER,
    EMPTY,
    LAST_RESORT,
    MINED,
    ORIGINS,
    RANDOM,
    REPEATED,
    Mining,
    Negatives,
    find_in_row,
)
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.texts import distinct_ids
from st_hardneg.errors import MiningError
from st_hardneg.hardness import hardness_shares
from st_hardneg.mining.filters import RULES, Tally
from st_hardneg.mining.scoring import Scoring
from st_hardneg.mining.task import Task
from st_hardneg.report import MiningReport, peak_memory_mb, summarize

# Shares of the slots, or of the nearest texts that are not found, above which a report says so in words.
_MANY_FILLERS = 0.1
LEAST_RECALL = 0.95
_MANY_TWINS = 0.02
# Rows that are looked at for negatives with the vector of a right answer.
_SAMPLE = 2_000


@dataclass(frozen=True, eq=False)
class Run:
    """What a report is made of, besides the negatives.

    Args:
        task: What was mined.
        config: The recipe in force.
        scoring: Scores of queries and texts.
        tally: What the rules removed.
        refresh: How many times the queries were mined before.
        step: Training step, or -1.
        semi_hard_margin: Margin by which easy is told from semi-hard.
        recall: Recall of an approximate search, or None.
        rank: The typical rank of the right answer, or None where no bound follows it.
        doubt: Strength of adaptive bounds, from 0 to 1.
    """

    task: Task
    config: MiningConfig
    scoring: Scoring
    tally: Tally
    refresh: int
    step: int
    semi_hard_margin: float
    recall: float | None
    rank: float | None = None
    doubt: float = 1.0


def summarize_mining(
    run: Run, negatives: Negatives, previous: Mining | None, seconds: Mapping[str, float], figures: Mapping[str, Any]
) -> MiningReport:
    """Return the report of a mining.

    Args:
        run: What was mined and how.
        negatives: What was found.
        previous: The mining before it, if any.
        seconds: Seconds spent, by name.
        figures: What the report draws.
    """
    task, scoring, tally = run.task, run.scoring, run.tally
    slots = torch.bincount(negatives.origins.flatten().long(), minlength=len(ORIGINS)).tolist()
    lowest = scoring.lowest_positive_scores[:, None]
    scores, by_mean = negatives.scores.masked_fill(~negatives.is_present, torch.nan), scoring.is_mean
    scores = scoring.per_unit(torch.arange(len(scores)), scores) if by_mean else scores
    row_query = torch.from_numpy(task.pairs.row_query)
    return MiningReport(
        refresh=run.refresh,
        step=None if run.step < 0 else run.step,
        num_rows=task.pairs.num_rows,
        num_queries=task.pairs.num_queries,
        num_corpus=len(task.corpus.searched),
        num_negatives=run.config.num_negatives,
        num_candidates=tally.num_candidates,
        num_kept=tally.num_kept,
        removed=tally.removed,
        removed_alone=tally.removed_alone,
        num_slots=negatives.ids.numel(),
        num_mined=slots[MINED],
        num_carried_over=slots[CARRIED_OVER],
        num_last_resort=slots[LAST_RESORT],
        num_random=slots[RANDOM],
        num_repeated=slots[REPEATED],
        num_missing=slots[EMPTY],
        num_incomplete_rows=int((~negatives.is_present).any(dim=1)[row_query].sum()),
        scores={
            "positive": summarize(scoring.row_scores),
            "negative": summarize(scores),
            "difference": summarize(lowest - scores),
        },
        hardness=hardness_shares(lowest, scores, run.semi_hard_margin),
        semi_hard_margin=run.semi_hard_margin,
        seconds=dict(seconds),
        peak_memory_mb=peak_memory_mb(),
        similarity="meanmaxsim" if by_mean else scoring.vectors.similarity,
        config=run.config.to_dict(),
        sources=_by_source(negatives, task.source_names),
        num_positives=_num_positives(task),
        num_positives_in_corpus=_num_positives(task, task.corpus.num_given) if task.corpus.num_given else None,
        num_merged_texts=task.corpus.num_merged,
        recall=run.recall,
        typical_rank=run.rank,
        doubt=None if run.rank is None else run.doubt,
        columns=task.columns,
        notes=tuple(_notes(run, slots, negatives)),
        **_followed(scoring, negatives, previous, figures),
    )


def _followed(
    scoring: Scoring, negatives: Negatives, previous: Mining | None, figures: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is followed from mining to mining, and what is drawn."""
    found = {"figures": figures, "risk": figures.get("risk", {}).get("share")}
    if previous is not None:
        found["history"] = (*previous.report.history, previous.report.brief())
        found["churn"] = churn(previous.negatives.ids, negatives.ids)
        found["outdated"] = _outdated(scoring, previous.negatives, negatives)
    return found


def _outdated(scoring: Scoring, before: Negatives, after: Negatives) -> float:
    """Return by how much today's negatives are closer to their queries than those before, by the model of today."""
    count = len(after.ids)
    queries = torch.from_numpy(np.unique(np.linspace(0, count - 1, min(_SAMPLE, count)).round().astype(np.int64)))
    old, new = before.rows(queries), after.rows(queries)
    then = scoring.vectors.similarity_of_pairs(queries, old.ids)[old.is_present]
    return float(new.similarities[new.is_present].mean() - then.mean())


def _by_source(negatives: Negatives, names: tuple[str, ...]) -> dict[str, int]:
    counts = torch.bincount(negatives.sources[negatives.sources >= 0].long(), minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _num_positives(task: Task, below: int | None = None) -> int:
    """Count the distinct positives, or those whose text has a corpus id below a number."""
    identities = distinct_ids(task.corpus.identities[task.pairs.row_positive])
    return len(identities) if below is None else int((identities < below).sum())


def _share_of_twins(scoring: Scoring, negatives: Negatives) -> float:
    """Return the share of negatives with the very vector of one of their positives, over a sample of the rows."""
    pairs = scoring.pairs
    rows = np.linspace(0, pairs.num_rows - 1, min(_SAMPLE, pairs.num_rows)).round().astype(np.int64)
    some = negatives.rows(torch.from_numpy(pairs.row_query[rows]))
    similarities = scoring.row_similarities[torch.from_numpy(rows)][:, None]
    row, slot = (some.is_present & torch.isclose(some.similarities, similarities, atol=1e-5)).nonzero(as_tuple=True)
    if not len(row):
        return 0.0
    is_same = scoring.vectors.are_twins(pairs.row_positive[rows[row.numpy()]], some.ids[row, slot].numpy())
    return float(is_same.sum()) / max(1, int(some.is_present.sum()))


def _notes(run: Run, slots: list[int], negatives: Negatives) -> list[str]:
    """Return what deserves attention, in words."""
    notes, num_slots = [], negatives.ids.numel()
    removed = {rule: count for rule, count in run.tally.removed.items() if rule in RULES and not RULES[rule].always}
    worst = max(removed, key=lambda rule: removed[rule], default=None)
    share = removed[worst] / max(1, run.tally.num_candidates) if worst is not None else 0.0
    advice = "Give a larger corpus."
    if share:
        advice = f"`{worst}` removes {share:.1%} of the candidates. Loosen it, or give a larger corpus."
    num_texts = len(run.task.corpus.searched)
    if run.config.num_negatives >= num_texts:
        advice = f"There are {num_texts:,} texts for {run.config.num_negatives:,} negatives. Lower `num_negatives`."
    asked = run.config.quotas.get("random", 0) / run.config.num_negatives
    for count, what in (
        (slots[RANDOM], "are random texts, because nothing else was found"),
        (
            slots[LAST_RESORT],
            "hold a text that only stands in, because nothing else was found; our losses mask it if they get ids",
        ),
        (slots[EMPTY], "are empty"),
    ):
        if count > (_MANY_FILLERS + asked) * num_slots:
            notes.append(f"{count / num_slots:.0%} of the slots {what}. {advice}")
    if (twins := _share_of_twins(run.scoring, negatives)) > _MANY_TWINS:
        notes.append(
            f"{twins:.0%} of the negatives have exactly the vector of a right answer, so that no training can tell them "
            "apart. Texts that share a long beginning are cut to the same one: raise `model.max_seq_length`, or put what "
            "differs first."
        )
    if run.recall is not None and run.recall < LEAST_RECALL:
        notes.append(
            f"The searcher finds {run.recall:.0%} of the nearest texts. Raise its search parameters (`nprobe`, "
            "`efSearch`), or search exactly."
        )
    return notes


def churn(before: Tensor, after: Tensor) -> float:
    """Return the share of filled slots whose negative was not among the query's negatives before.

    Args:
        before: int64 of shape ``(num_queries, n)``; -1 where empty.
        after: int64 of shape ``(num_queries, m)``; -1 where empty.
    """
    filled = after >= 0
    if not bool(filled.any()):
        return 0.0
    known, _ = find_in_row(after, before)
    return float((filled & ~known).sum() / filled.sum())


def require_any(negatives: Negatives, tally: Tally, task: Task) -> None:
    """Raise if a mining found nothing at all.

    Raises:
        MiningError: If no slot holds a negative that passes today's rules; the error says which rule removed most.
    """
    found = (negatives.origins != EMPTY) & (negatives.origins != LAST_RESORT)
    if not bool(found.any()):
        raise MiningError(_nothing_found(tally, task))


def _nothing_found(tally: Tally, task: Task) -> str:
    if not tally.num_candidates:
        return f"Expected candidates, got none in a corpus of {len(task.corpus)} texts. Give a larger corpus."
    loosened = [rule for rule in tally.removed if rule not in ("anchor", "positive") and tally.removed[rule]]
    worst = max(loosened, key=lambda rule: tally.removed[rule], default=None)
    advice = f"Loosen `{worst}` or give a larger corpus." if worst else "Give a larger corpus."
    counts = ", ".join(f"{rule} {count:,}" for rule, count in tally.removed.items() if count)
    if tally.num_kept:
        return (
            f"Expected at least one negative, got none: {tally.num_kept:,} of {tally.num_candidates:,} candidates pass "
            "the rules, and none of them lies in the rank window. Lower `range_min` or raise `range_max`."
        )
    return (
        f"Expected at least one negative, got none: of {tally.num_candidates:,} candidates for "
        f"{task.pairs.num_queries:,} queries, the rules removed all ({counts}). "
        f"{advice}"
    )
