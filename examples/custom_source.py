"""Let a search engine propose negatives: here SQLite's full-text search, which every Python has.

A source is any object with ``propose(queries, plan)``; Elasticsearch or a vector database fit in the same way.

python examples/custom_source.py
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable

from datasets import disable_progress_bars
from docstring_pairs import standard_library_pairs
from train_with_refresh import static_model

from st_hardneg import HardNegativeDataset
from st_hardneg.sources import Plan, Proposal, Queries


class FullTextSearch:
    """BM25 over a table in SQLite."""

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        self.database = sqlite3.connect(":memory:")
        self.database.execute("CREATE VIRTUAL TABLE documents USING fts5(id UNINDEXED, text)")
        self.database.executemany("INSERT INTO documents VALUES (?, ?)", documents)

    def propose(self, queries: Queries, plan: Plan) -> Proposal:
        """Return the ids of the best documents of each query, best first, and their scores."""
        found = [self._search(text, plan.depth) for text in queries.texts]
        return Proposal([[one for one, _ in hits] for hits in found], [[score for _, score in hits] for hits in found])

    def _search(self, text: str, depth: int) -> list[tuple[str, float]]:
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", text))
        sql = "SELECT id, -bm25(documents) FROM documents WHERE documents MATCH ? ORDER BY bm25(documents) LIMIT ?"
        return list(self.database.execute(sql, (words, depth)))


def main() -> None:
    """Take two negatives of each row from the model's search and one from SQLite's."""
    pairs, corpus, _, _ = standard_library_pairs()
    pairs = pairs.select(range(300))
    model = static_model([*pairs["anchor"], *corpus["text"]])
    engine = FullTextSearch(zip(corpus["_id"], corpus["text"], strict=True))
    hard_negatives = HardNegativeDataset(pairs, corpus, sources={"dense": 2, "full text": (engine, 1)})
    print(hard_negatives.mine(model, show_progress_bar=False))
    print(hard_negatives.provenance()[0])


if __name__ == "__main__":
    disable_progress_bars()
    main()
