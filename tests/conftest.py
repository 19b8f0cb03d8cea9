from __future__ import annotations

import gc
import math
import os
import random
import re
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

collect_ignore = ["mutation"]  # a command of its own, with a dependency of its own

# The process that hands tests out to others reads this file, too: what takes seconds to import is imported on use.
if TYPE_CHECKING:
    from types import ModuleType

    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer


@pytest.fixture(autouse=True, scope="session")
def quiet_and_on_one_thread() -> None:
    """No progress bars, and no more threads than test processes."""
    import torch
    from datasets import disable_progress_bars

    disable_progress_bars()
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> None:
    """Shells start jobs in the background with SIGINT ignored, and a test that interrupts itself would go on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def quick_collection() -> None:
    """Keep what was imported out of the garbage collection, which accelerate starts with every training: half its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test reach another machine; sockets between processes of this one stay."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and str(address[0]) not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise AssertionError(f"a test tried to reach {address}")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def word_model(words: Sequence[str], vectors: torch.Tensor, similarity: str = "cosine") -> SentenceTransformer:
    """Return a real model in which a text is the mean of its words' vectors; unknown words are the zero vector."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    weights = torch.cat([torch.zeros(1, vectors.shape[1]), vectors.float()])
    module = StaticEmbedding(tokenizer, embedding_weights=weights.numpy())
    return SentenceTransformer(modules=[module], device="cpu", similarity_fn_name=similarity)


@pytest.fixture
def protractor() -> SentenceTransformer:
    """A model whose texts are angles: "40°" has the vector (cos 40°, sin 40°), so a score is the cosine between them.

    Words before the angle do not count: "note 40°" points the same way, but is another text.
    """
    import torch

    angles = [math.radians(degrees) for degrees in range(360)]
    vectors = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])
    return word_model([f"{degrees}°" for degrees in range(360)], vectors)


WORDS = [f"w{number}" for number in range(200)]


@pytest.fixture
def bag_of_words() -> SentenceTransformer:
    """A model of 200 words with random vectors of 16 dimensions; it can be trained."""
    import torch

    return word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))


def other_model(seed: int) -> SentenceTransformer:
    """Return a model of the words of :func:`bag_of_words` with other vectors, of 8 dimensions."""
    import torch

    return word_model(WORDS, torch.randn(200, 8, generator=torch.Generator().manual_seed(seed)))


def random_texts(count: int, seed: int, length: int = 4) -> list[str]:
    """Return texts of random words that :func:`bag_of_words` knows."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=length)) for _ in range(count)]


@pytest.fixture
def word_pairs() -> Dataset:
    """48 rows of anchor and positive, each with a text of its own."""
    from datasets import Dataset

    texts = list(dict.fromkeys(random_texts(120, seed=1)))[:96]
    return Dataset.from_dict({"anchor": texts[:48], "positive": texts[48:]})


@pytest.fixture
def bm25s() -> ModuleType:
    """The library of the lexical source, where it is installed."""
    return pytest.importorskip("bm25s")


@pytest.fixture
def data_dir() -> Iterator[str]:
    """The folder with real labelled sets, where there is one."""
    path = os.path.join(os.path.dirname(__file__), "..", "..", "shared", "data")
    if not os.path.isdir(os.path.join(path, "scifact")):
        pytest.skip("the labelled sets (../shared/data) are not on this machine")
    yield path


def run_and_leave(main: Callable[[], None]) -> NoReturn:
    """Run the script of a rank, and end its process without the interpreter's clean-up.

    There, the destructor of DDP's reducer may wait for a thread of gloo that waits for the interpreter: a hang or an
    abort after all is done. The exit status is that of the script, and an error is printed as usual.
    """
    import torch

    status = 0
    try:
        main()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # no rank leaves while another is still in a collective
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def whole(message: str) -> str:
    """Return a pattern that matches this message only."""
    return f"^{re.escape(message)}$"
