"""What is mined on sparse and on token vectors, compared with brute force over a whole labelled set.

    python tests/benchmarks/brute_force.py --data DIR --model sentence-transformers/all-MiniLM-L6-v2 [--kinds sparse]

DIR holds a labelled set in BEIR's layout; all of its queries, of both splits, are mined for in all of its texts. The
sparse encoder has a weight for every word piece (that of examples/train_sparse.py); the multi-vector model is the first
layers of the model with a projection of its tokens. By brute force means: SciPy's product of all rows in double precision;
NumPy's greatest product of each token of a query with the tokens of a text; and a sort of all scores. The multi-vector
model is mined with a first stage that finds everything, and with the usual one, compared over the same candidates.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "examples")]

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from real_models import make_model as make_transformer
from sentence_transformers import SentenceTransformer
from train_sparse import make_model as make_sparse

from st_hardneg import HardNegativeDataset, LateInteraction, MiningConfig
from st_hardneg.formats.beir import read_beir

TOLERANCE = 1e-5
Scores = Callable[[range], np.ndarray]


def read(folder: str) -> tuple[Dataset, list[str]]:
    """Return the pairs of both splits and the texts of the corpus, each text once."""
    names = [next(str(p) for p in Path(folder).glob(f"{name}.jsonl*")) for name in ("corpus", "queries")]
    splits = [read_beir(*names, f"{folder}/qrels/{split}.tsv") for split in ("train", "test")]
    pairs = concatenate_datasets([split[0].select_columns(["anchor", "positive"]) for split in splits])
    return pairs, list(dict.fromkeys(splits[0][1]["text"]))


def sparse_scores(model: Any, queries: list[str], texts: list[str]) -> Scores:
    """Return what gives the scores of some queries with all texts."""
    from scipy.sparse import csr_matrix

    def rows(tensor: torch.Tensor) -> Any:
        tensor = tensor.coalesce()
        places, values = tensor.indices().numpy(), tensor.values().numpy().astype(np.float64)
        return csr_matrix((values, (places[0], places[1])), shape=tuple(tensor.shape))

    options = {"show_progress_bar": False, "convert_to_sparse_tensor": True, "batch_size": 128}
    left = rows(model.encode_query(queries, **options))
    right = rows(model.encode_document(texts, **options)).T.tocsr()
    print(f"sparse: {right.nnz / len(texts):.0f} of {right.shape[0]:,} weights a text are not zero", flush=True)
    return lambda some: (left[some.start : some.stop] @ right).toarray()


class Tokens:
    """The token vectors of all queries and texts, and what follows from them by plain NumPy."""

    def __init__(self, model: Any, queries: list[str], texts: list[str]) -> None:
        options = {"show_progress_bar": False, "batch_size": 64}
        self.queries = [np.asarray(one, dtype=np.float32) for one in model.encode_query(queries, **options)]
        tokens = [np.asarray(one, dtype=np.float32) for one in model.encode_document(texts, **options)]
        self.starts = np.concatenate([[0], np.cumsum([len(one) for one in tokens])[:-1]])
        self.tokens = np.concatenate(tokens)
        self.pooled = [self._pooled(some) for some in (self.queries, tokens)]

    @staticmethod
    def _pooled(tokens: list[np.ndarray]) -> np.ndarray:
        means = np.stack([one.astype(np.float64).mean(axis=0) for one in tokens])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def maxsim(self, some: range) -> np.ndarray:
        """Return for each query the sum over its tokens of the greatest product with a token of each text."""
        return np.stack(
            [np.maximum.reduceat(self.queries[i] @ self.tokens.T, self.starts, axis=1).sum(axis=0) for i in some]
        )

    def among(self, depth: int) -> Scores:
        """Return the same, minus infinity for texts that are not among the nearest by the means of the tokens."""

        def scores(some: range) -> np.ndarray:
            near = self.pooled[0][some.start : some.stop] @ self.pooled[1].T
            found = np.full(near.shape, -np.inf)
            places = np.argpartition(-near, depth - 1, axis=1)[:, :depth]
            np.put_along_axis(found, places, np.take_along_axis(self.maxsim(some), places, axis=1), axis=1)
            return found

        return scores


def in_parts(number: int, size: int = 64) -> Iterator[range]:
    """Yield ranges of at most this size."""
    yield from (range(start, min(start + size, number)) for start in range(0, number, size))


def compare(name: str, found: HardNegativeDataset, queries: list[str], texts: list[str], scores: Scores) -> bool:
    """Print how far what was mined is from the highest of all scores, and tell whether it is the same, ties aside."""
    rows = found.to_dataset("n-tuple")
    row_of = {anchor: row for row, anchor in reversed(list(enumerate(rows["anchor"])))}
    known: dict[str, set[int]] = {}
    place_of = {text: place for place, text in enumerate(texts)}
    for anchor, positive in zip(rows["anchor"], rows["positive"], strict=True):
        known.setdefault(anchor, {place_of[anchor]} if anchor in place_of else set()).add(place_of[positive])
    ids, given = found.negative_ids, np.asarray(found.negative_scores, dtype=np.float64)
    width = ids.shape[1]
    worst = worst_own = 0.0
    others = outside = 0
    for some in in_parts(len(queries)):
        block = scores(some)
        for query, all_scores in zip(some, block, strict=True):
            row = row_of[queries[query]]
            mined = [place_of[text] for text in found.corpus.texts.take(ids[row])]
            allowed = all_scores.copy()
            allowed[list(known[queries[query]])] = -np.inf
            order = np.argsort(-allowed, kind="stable")[:width]
            size = np.maximum(1.0, np.abs(allowed[order]))
            worst = max(worst, float((np.abs(given[row] - allowed[order]) / size).max()))
            own = allowed[mined]  # minus infinity where it must not have been mined
            worst_own = max(worst_own, float((np.abs(given[row] - own) / size).max()))
            different = set(mined) ^ set(order.tolist())
            others += len(different) // 2 + (width - len(set(mined)))
            last = allowed[order[-1]]
            outside += sum(abs(allowed[place] - last) > TOLERANCE * max(1.0, abs(last)) for place in different)
    is_same = worst <= TOLERANCE and worst_own <= TOLERANCE and not outside
    print(
        f"{name}: {len(queries):,} queries x {len(texts):,} texts, {width} of each; largest difference to the scores of "
        f"brute force {worst:.1e}, to those of the same texts {worst_own:.1e}; {others} ids differ, "
        f"{outside} of them not tied: " + ("the same" if is_same else "NOT THE SAME"),
        flush=True,
    )
    return is_same


def mine(model: Any, pairs: Dataset, texts: list[str], num_negatives: int) -> HardNegativeDataset:
    """Mine by the plain recipe: the nearest texts that are not known to be right."""
    started = time.perf_counter()
    found = HardNegativeDataset(
        pairs, texts, MiningConfig(num_negatives=num_negatives, identity="exact"), batch_size=64
    )
    found.mine(model, show_progress_bar=False)
    print(f"mined in {time.perf_counter() - started:.0f} s", flush=True)
    return found


def main() -> None:
    """Compare each kind; end with status 1 if something is not the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--kinds", nargs="+", default=["sparse", "multi-vector"], choices=["sparse", "multi-vector"])
    parser.add_argument("--num-negatives", type=int, default=20)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--depth", type=int, default=128, help="of the usual first stage")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs, texts = read(arguments.data)
    queries, number = list(dict.fromkeys(pairs["anchor"])), arguments.num_negatives
    are_same = []
    if "sparse" in arguments.kinds:
        model = make_sparse(arguments.model, texts)
        scores = sparse_scores(model, queries, texts)
        are_same.append(compare("sparse", mine(model, pairs, texts, number), queries, texts, scores))
    if "multi-vector" in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            whole = SentenceTransformer(arguments.model, device="cpu")
            layers = whole[0].auto_model.encoder.layer
            whole[0].auto_model.encoder.layer = layers[: arguments.layers]
            whole[0].auto_model.config.num_hidden_layers = min(arguments.layers, len(layers))
            whole.save_pretrained(f"{folder}/first", create_model_card=False)
            model = make_transformer("multi-vector", f"{folder}/first", Path(folder) / "model", arguments.max_length)
            tokens = Tokens(model, queries, texts)
            print(f"multi-vector: {len(tokens.tokens) / len(texts):.0f} tokens a text", flush=True)
            for name, depth, scores in (
                ("MaxSim over all texts", len(texts), tokens.maxsim),
                (f"MaxSim over {arguments.depth} candidates", arguments.depth, tokens.among(arguments.depth)),
            ):
                found = mine(LateInteraction(model, first_stage_depth=depth), pairs, texts, number)
                are_same.append(compare(name, found, queries, texts, scores))
    sys.exit(int(not all(are_same)))


if __name__ == "__main__":
    disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*(pin_memory|Sparse CSR).*")
    main()
