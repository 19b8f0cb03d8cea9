"""Real text that is on every machine: the docstrings of Python's standard library, as a retrieval set.

The query is a docstring's summary line, the right answer is the rest of it. There are many near-duplicates among them
(the same method of two classes), as in most real collections.
"""

from __future__ import annotations

import random

from datasets import Dataset

from st_hardneg.command.docstrings import summaries_and_rests


def standard_library_pairs(num_test: int = 400) -> tuple[Dataset, Dataset, dict[str, str], dict[str, set[str]]]:
    """Return training pairs, the corpus, test queries by id, and the ids of the right answers to each.

    Every rest of a docstring is in the corpus, those of the test queries included.
    """
    pairs = summaries_and_rests()
    documents = {text: f"doc{number}" for number, text in enumerate(dict.fromkeys(pairs.values()))}
    anchors = list(pairs)
    random.Random(0).shuffle(anchors)
    test, train = anchors[:num_test], anchors[num_test:]
    queries = {f"query{number}": anchor for number, anchor in enumerate(test)}
    return (
        Dataset.from_dict({"anchor": train, "positive": [pairs[anchor] for anchor in train]}),
        Dataset.from_dict({"_id": list(documents.values()), "text": list(documents)}),
        queries,
        {query_id: {documents[pairs[anchor]]} for query_id, anchor in queries.items()},
    )
