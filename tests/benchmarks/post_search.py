"""What happens after the search: the drop-in against Sentence Transformers, time and memory, on the same embeddings.

    python tests/benchmarks/post_search.py [--rows 20000] [--repeats 3]

Each measurement is a process of its own. The search alone is run and timed first, so that what it costs is known and its
memory is already counted; figures are what the whole function takes beyond that.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import resource
import statistics
import subprocess
import sys
import time

CHUNK = 512


class FixedEmbeddings:
    """A model that looks embeddings up."""

    similarity_fn_name = "cosine"

    def __init__(self, rows: int) -> None:
        import torch

        rng = random.Random(0)
        letters = "abcdefghijklmnopqrstuvwxyz     "
        self.device = torch.device("cpu")
        self.queries = [f"query {i} " + "".join(rng.choices(letters, k=40)) for i in range(rows)]
        self.documents = [f"document {i} " + "".join(rng.choices(letters, k=415)) for i in range(rows)]
        vectors = torch.nn.functional.normalize(torch.randn(2 * rows, 32, generator=torch.Generator().manual_seed(0)))
        self.embeddings = {True: vectors[:rows], False: vectors[rows:]}

    def _encode(self, is_query: bool, convert_to_tensor: bool):
        embeddings = self.embeddings[is_query]
        return embeddings if convert_to_tensor else embeddings.numpy()

    def encode_query(self, texts, convert_to_tensor=False, **_):
        return self._encode(True, convert_to_tensor)

    def encode_document(self, texts, convert_to_tensor=False, **_):
        return self._encode(False, convert_to_tensor)

    def encode(self, texts, **_):
        raise AssertionError("neither function calls this")

    def similarity(self, left, right):
        from sentence_transformers.util import cos_sim

        return cos_sim(left, right)

    def similarity_pairwise(self, left, right):
        from sentence_transformers.util import pairwise_cos_sim

        return pairwise_cos_sim(left, right)


def search_alone(model: FixedEmbeddings, which: str) -> float:
    """Run the search of one of the functions, and return its seconds."""
    import torch

    from st_hardneg.search import ExactSearcher, checked_search

    queries, documents = model.embeddings[True], model.embeddings[False]
    searcher = ExactSearcher(score_function=model.similarity)
    searcher.index(documents, "cosine")
    started = time.perf_counter()
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK]
        if which == "ours":
            checked_search(searcher, chunk, 7, len(documents))
        else:
            torch.topk(model.similarity(chunk.numpy(), documents), k=7, dim=1)
    return time.perf_counter() - started


def peak_mb() -> float:
    """Return this process's peak resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(which: str, rows: int) -> None:
    """Run one of the functions in this process and print its figures."""
    import torch
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives as theirs

    from st_hardneg import mine_hard_negatives as ours

    torch.manual_seed(0)
    model = FixedEmbeddings(rows)
    dataset = Dataset.from_dict({"anchor": model.queries, "positive": model.documents})
    function = ours if which == "ours" else theirs
    # Once with a few rows, so that no import or cache is counted.
    small = FixedEmbeddings(64)
    with contextlib.redirect_stderr(io.StringIO()):
        function(Dataset.from_dict({"anchor": small.queries, "positive": small.documents}), small, verbose=False)
        search_alone(model, which)
        search_seconds = search_alone(model, which)
        before, started = peak_mb(), time.perf_counter()
        result = function(dataset, model, num_negatives=5, faiss_batch_size=CHUNK, verbose=False)
        seconds = time.perf_counter() - started
    assert len(result) == 5 * rows
    print(json.dumps({"seconds": seconds - search_seconds, "search": search_seconds, "mb": peak_mb() - before}))


def main() -> None:
    """Measure both in turn and print the ratios of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=["ours", "theirs"])
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.rows)
        return
    figures: dict[str, list[dict[str, float]]] = {"theirs": [], "ours": []}
    for _ in range(arguments.repeats):
        for which, found in figures.items():
            command = [sys.executable, __file__, "--measure", which, "--rows", str(arguments.rows)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
    median = {
        which: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for which, found in figures.items()
    }
    print(f"{arguments.rows:,} pairs, 5 negatives, triplets; medians of {arguments.repeats} processes each")
    for which, name in (("theirs", "sentence-transformers"), ("ours", "st_hardneg")):
        values = median[which]
        print(
            f"{name:<22} {values['seconds']:6.2f} s beyond {values['search']:.2f} s of search, +{values['mb']:.0f} MB"
        )
    speed = median["theirs"]["seconds"] / median["ours"]["seconds"]
    memory = median["ours"]["mb"] / median["theirs"]["mb"]
    print(f"{speed:.1f} times faster, {memory:.2f} of the memory")


if __name__ == "__main__":
    main()
