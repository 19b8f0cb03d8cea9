"""From the many dimensions of a sample to the two of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from st_hardneg.errors import require_extra

Projection: TypeAlias = Literal["pca", "umap"]
GROUPS = ("anchors", "positives", "negatives")


def in_the_plane(drawn: Mapping[str, Any], projection: Projection) -> dict[str, Sequence[Sequence[float]]]:
    """Return points of the plane by group.

    Args:
        drawn: Principal components by group, the strongest first.
        projection: ``"pca"`` takes the first two; ``"umap"`` lays out all that there are.

    Raises:
        ValueError: If there is no such projection.
        MissingExtraError: If UMAP is asked for and not installed.
    """
    if projection not in get_args(Projection):
        raise ValueError(f"Expected `projection` to be one of {list(get_args(Projection))}, got {projection!r}.")
    if projection == "pca":
        return {name: [point[:2] + [0.0] * (2 - len(point)) for point in drawn.get(name, [])] for name in GROUPS}
    require_extra("umap", "umap", '`projection="umap"`')
    import numpy as np
    import umap

    points = np.asarray([point for name in GROUPS for point in drawn.get(name, [])], dtype=np.float32)
    if len(points) < 4:
        return in_the_plane(drawn, "pca")
    neighbours = min(15, len(points) - 1)
    laid = umap.UMAP(n_neighbors=neighbours, random_state=0, n_jobs=1).fit_transform(points).tolist()
    placed: dict[str, Sequence[Sequence[float]]] = {}
    for name in GROUPS:
        count = len(drawn.get(name, []))
        placed[name], laid = laid[:count], laid[count:]
    return placed
