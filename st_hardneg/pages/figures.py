"""The figures of a report for matplotlib, for papers and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st_hardneg.errors import require_extra
from st_hardneg.pages.projection import Projection, in_the_plane
from st_hardneg.pages.report import CURVES, followed


def report_figures(report: Mapping[str, Any], projection: Projection = "pca") -> dict[str, Any]:
    """Return matplotlib figures by name; none of them is shown or kept by pyplot.

    Args:
        report: ``MiningReport.to_dict()``.
        projection: How texts are laid out in the plane.

    Raises:
        MissingExtraError: If matplotlib, or what the projection needs, is not installed.
    """
    require_extra("matplotlib", "plots", "`MiningReport.plot`")
    figures, drawn = report["figures"], {"waterfall": _waterfall(report), "hardness": _hardness(report)}
    if histograms := figures.get("histograms"):
        drawn["scores"] = _histogram({name: histograms[name] for name in ("positive", "negative")}, "score")
        drawn["differences"] = _histogram({"difference": histograms["difference"]}, "lowest positive minus negative")
    if risk := figures.get("risk"):
        drawn["risk"] = _bars({**risk["reasons"], **{f"source {k}": v for k, v in risk["by_source"].items()}}, "share")
    if topics := figures.get("topics"):
        drawn["diversity"] = _bars({str(n + 1): share for n, share in enumerate(topics["negatives"])}, "share")
        drawn["topics"] = _bars(
            {"positives": topics["consistency"], "chance": topics["chance"]}, "share in one cluster"
        )
    if near := figures.get("near_duplicates"):
        drawn["near-duplicates"] = _bars({k: v for k, v in near.items() if k != "cosine"}, "share of the negatives")
    if "map" in figures:
        drawn["map"] = _scatter(in_the_plane(figures["map"], projection))
    return drawn | _curves(report)


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    return figure, figure.subplots()


def _histogram(series: Mapping[str, Mapping[str, Any]], label: str) -> Any:
    figure, axes = _axes()
    for name, one in series.items():
        counts, width = one["counts"], (one["high"] - one["low"]) / max(1, len(one["counts"]))
        edges = [one["low"] + width * place for place in range(len(counts) + 1)]
        axes.stairs([count / max(1, sum(counts)) for count in counts], edges, fill=True, alpha=0.5, label=name)
    axes.set(xlabel=label, ylabel="share")
    axes.legend()
    return figure


def _bars(values: Mapping[str, float], label: str) -> Any:
    figure, axes = _axes()
    axes.barh(list(values), list(values.values()))
    axes.invert_yaxis()
    axes.set(xlabel=label)
    return figure


def _waterfall(report: Mapping[str, Any]) -> Any:
    removed = {f"- {rule}": count for rule, count in report["removed"].items()}
    return _bars({"retrieved": report["num_candidates"], **removed, "kept": report["num_kept"]}, "candidates")


def _hardness(report: Mapping[str, Any]) -> Any:
    return _bars(
        {name.replace("_", "-"): share for name, share in report["hardness"].items()}, "share of the negatives"
    )


def _scatter(points: Mapping[str, Any]) -> Any:
    figure, axes = _axes()
    for name, some in points.items():
        axes.scatter([x for x, _ in some], [y for _, y in some], s=8, label=name)
    axes.legend()
    return figure


def _curves(report: Mapping[str, Any]) -> dict[str, Any]:
    drawn = {}
    for name, series in followed(report).items():
        figure, axes = _axes()
        for band, points in series.items():
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=band)
        axes.set(xlabel="mining", ylabel=CURVES[name].partition(":")[0].lower())
        axes.legend()
        drawn[f"training-{name}"] = figure
    return drawn
