"""Live views of a few rows, made without a mining."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from st_hardneg.corpus.texts import TextColumn
from st_hardneg.live.dataset import LiveDataset
from st_hardneg.live.table import NegativeTable
from st_hardneg.live.view import LiveView

ROWS, WIDTH, TEXTS = 12, 3, 100
MILLION = 1_000_000


def ids_of(refresh: int, rows: int = ROWS, width: int = WIDTH) -> np.ndarray:
    """Return the corpus ids that a refresh puts into the table: other ones in every slot each time."""
    return (np.arange(rows * width).reshape(rows, width) * 7 + 13 * refresh) % TEXTS


def live_view(rows: int = ROWS, width: int = WIDTH, name: str = "") -> LiveView:
    """Return a view whose texts say what they are: "anchor 3", "positive 3", "text 17"."""
    return LiveView(
        TextColumn.of([f"{name}anchor {row}" for row in range(rows)]),
        TextColumn.of([f"{name}positive {row}" for row in range(rows)]),
        TextColumn.of([f"{name}text {number}" for number in range(TEXTS)]),
        NegativeTable(ids_of(0, rows, width), num_texts=TEXTS),
        "anchor",
        "positive",
        row_query=np.arange(rows) + 1000,
        row_positive=np.arange(rows) + 2000,
        row_weight=np.full(rows, MILLION),
    )


def dataset_of(view: LiveView, *, with_ids: bool = False) -> LiveDataset:
    """Return the live dataset of all rows of a view."""
    template = Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    return LiveDataset.of(view, np.arange(view.table.num_rows), template, with_ids=with_ids)


def refresh(view: LiveView, number: int = 1) -> None:
    """Write what refresh number so and so would."""
    view.table.write(ids_of(number, view.table.num_rows, view.table.width))


def row_of(number: int, refresh: int = 0, width: int = WIDTH) -> dict[str, str]:
    """Return what a row of a view is after a refresh."""
    ids = ids_of(refresh, ROWS, width)[number]
    negatives = {f"negative_{slot + 1}": f"text {text}" for slot, text in enumerate(ids)}
    return {"anchor": f"anchor {number}", "positive": f"positive {number}", **negatives}


def rows_of(refresh: int = 0) -> list[dict[str, str]]:
    """Return what all rows of a view are after a refresh."""
    return [row_of(number, refresh) for number in range(ROWS)]
