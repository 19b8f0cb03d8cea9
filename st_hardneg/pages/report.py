"""The page of a report, and its short form for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from st_hardneg.pages import charts
from st_hardneg.pages.projection import GROUPS, Projection, in_the_plane
from st_hardneg.pages.write import render

CURVES = {
    "churn": "Churn: share of the negatives that are new to their row",
    "staleness": "Staleness: how much closer to its anchor a new negative is than the one before it, by the model of then",
    "risk": "Risk: share of the negatives that look like right answers",
    "difference": "Margin: lowest positive score minus negative score, on average",
    "hardness": "Hardness: shares of the negatives",
}
"""What is followed from mining to mining, and what it means."""

_BANDS = ("easy", "semi_hard", "hard")
_PARTS = {"hardness": _BANDS, "staleness": ("outdated",)}


@dataclass(frozen=True)
class Chart:
    """One figure of a page.

    Args:
        name: Its id in the page.
        title: What it shows.
        text: How to read it.
        svg: The picture.
        legend: Names of its colours, in their order.
    """

    name: str
    title: str
    text: str
    svg: str
    legend: Sequence[str] = ()


def report_page(report: Mapping[str, Any], plain: str, projection: Projection = "pca") -> str:
    """Return a report as one page of HTML.

    Args:
        report: ``MiningReport.to_dict()``.
        plain: The report as text.
        projection: How texts are laid out in the plane.

    Raises:
        ValueError: If there is no such projection.
        MissingExtraError: If it needs an extra that is not installed.
    """
    figures = report["figures"]
    sections = [
        ("Scores", [*_histograms(figures), _hardness(report)]),
        ("What the rules did", [_waterfall(report), *_risk(figures)]),
        ("Texts", [*_map(figures, projection), *_diversity(figures), *_topics(figures), *_near_duplicates(figures)]),
        ("Over the training", _curves(report)),
    ]
    return render(
        "report.html.jinja",
        title=f"Hard negatives: {_when(report)}",
        subtitle=_subtitle(report),
        tiles=_tiles(report),
        notes=[note.split("`") for note in report["notes"]],
        sections=[(heading, charts_of) for heading, charts_of in sections if charts_of],
        doubtful=figures.get("doubtful", []),
        doubtful_text=_doubtful_text(figures),
        recipe=[(name, _shown(value)) for name, value in report["config"].items() if value is not None],
        plain=plain,
    )


def short_form(report: Mapping[str, Any]) -> str:
    """Return a few lines of HTML with the figures that matter most, for a notebook."""
    rows = "".join(
        f"<tr><td style='text-align:left'>{escape(name)}</td><td style='text-align:right'>{escape(value)}</td></tr>"
        for name, value in _tiles(report)
    )
    notes = "".join(f"<p><i>{escape(note)}</i></p>" for note in report["notes"])
    return (
        f"<div><b>Hard negatives: {escape(_when(report))}</b><br>{escape(_subtitle(report))}<table>{rows}</table>{notes}"
        "<p>All of it: <code>report.save(&quot;report.html&quot;)</code></p></div>"
    )


def _when(report: Mapping[str, Any]) -> str:
    when = f"refresh {report['refresh']}" if report["refresh"] else "first mining"
    when += "" if report["stage"] is None else f", stage {report['stage']}"
    return when + ("" if report["step"] is None else f", step {report['step']:,}")


def _subtitle(report: Mapping[str, Any]) -> str:
    names = " → ".join(report["columns"])
    return (
        f"{names + ': ' if names else ''}{report['num_rows']:,} rows, {report['num_queries']:,} queries, "
        f"{report['num_corpus']:,} corpus texts, {report['num_negatives']} negatives per row, "
        f"{report['similarity']} similarity"
    )


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    slots, means = max(1, report["num_slots"]), {k: v.get("mean") for k, v in report["scores"].items()}
    tiles = [("slots filled", f"{(report['num_slots'] - report['num_missing']) / slots:.1%}")]
    for name, what in (("positive", "mean positive score"), ("negative", "mean negative score")):
        if means.get(name) is not None:
            tiles.append((what, f"{means[name]:.3f}"))
    if report["hardness"]:
        tiles.append(("semi-hard or hard", f"{1 - report['hardness'].get('easy', 0.0):.1%}"))
    if report["risk"] is not None:
        tiles.append(("look like right answers", f"{report['risk']:.1%}"))
    if report["churn"] is not None:
        tiles.append(("new to their row", f"{report['churn']:.1%}"))
    tiles.append(("time", f"{sum(report['seconds'].values()):.1f} s"))
    return tiles


def _histograms(figures: Mapping[str, Any]) -> list[Chart]:
    found = {name: (one["low"], one["high"], one["counts"]) for name, one in figures.get("histograms", {}).items()}
    if not found:
        return []
    scores = {name: found[name] for name in ("positive", "negative") if name in found}
    drawn = [
        Chart(
            "scores",
            "Scores of positives and negatives",
            "Shares of the rows' positives and of the chosen negatives, by score. The less they overlap, the easier.",
            charts.histogram(scores, "Histogram of the scores of positives and negatives"),
            list(scores),
        )
    ]
    if "difference" in found:
        drawn.append(
            Chart(
                "differences",
                "Lowest positive minus negative",
                "Left of 0, a negative scores above a right answer of its anchor.",
                charts.histogram({"difference": found["difference"]}, "Histogram of differences", "difference"),
            )
        )
    return drawn


def _hardness(report: Mapping[str, Any]) -> Chart:
    shares = [(name.replace("_", "-"), report["hardness"].get(name, 0.0)) for name in _BANDS]
    return Chart(
        "hardness",
        "Hardness",
        f"Hard scores at least as high as the positive, semi-hard at most {report['semi_hard_margin']:g} below it.",
        charts.stacked(shares, "Shares of easy, semi-hard and hard negatives"),
    )


def _waterfall(report: Mapping[str, Any]) -> Chart:
    total = max(1, report["num_candidates"])
    rows = [("retrieved", float(total), f"{report['num_candidates']:,}")]
    alone = [float(total)]
    for rule, count in report["removed"].items():
        rows.append((f"- {rule}", float(count), f"{count:,} · {count / total:.1%}"))
        alone.append(float(report["removed_alone"].get(rule, 0)))
    rows.append(("kept", float(report["num_kept"]), f"{report['num_kept']:,} · {report['num_kept'] / total:.1%}"))
    rows.append(("chosen", float(report["num_mined"]), f"{report['num_mined']:,}"))
    alone += [length for _, length, _ in rows[-2:]]
    text = "How many candidates each rule removes; in full colour, what no other rule would have removed."
    svg = charts.bars(rows, "Waterfall of the rules", whole=float(total), parts_of=alone)
    return Chart("waterfall", "Candidates, rule by rule", text, svg)


def _share_bars(shares: Mapping[str, float], title: str, kind: str) -> str:
    rows = [(name, share, f"{share:.1%}") for name, share in shares.items()]
    return charts.bars(rows, title, kind, whole=1.0)


def _risk(figures: Mapping[str, Any]) -> list[Chart]:
    if not (risk := figures.get("risk")):
        return []
    sources = {f"of those from the source {name}": share for name, share in risk["by_source"].items()}
    held = ", ".join(f"{name} {count:,}" for name, count in risk["held_off"].items())
    text = f"{risk['share']:.1%} of the negatives in use look like right answers that nobody has labelled. "
    text += (
        f"Candidates that were held off on suspicion: {held}." if held else "No rule holds candidates off on suspicion."
    )
    svg = _share_bars({**risk["reasons"], **sources}, "Risk of false negatives", "s1")
    return [Chart("risk", "Risk of false negatives", text, svg)]


def _diversity(figures: Mapping[str, Any]) -> list[Chart]:
    topics, repeats = figures.get("topics"), figures.get("repeats")
    if not repeats:
        return []
    text = (
        f"{repeats['texts']:,} different texts in {repeats['slots']:,} slots; the most used one stands in "
        f"{repeats['most_used']:,}."
    )
    if not topics:  # there were no vectors to cluster
        shares = {"slots of the most used tenth of them": repeats["tenth"]}
        return [Chart("diversity", "Diversity of the negatives", text, _share_bars(shares, "Texts in use", "s2"))]
    text = f"Entropy over {topics['clusters']} clusters: {topics['entropy']:.2f} of 1. {text}"
    shares = {f"cluster {place + 1}": share for place, share in enumerate(topics["negatives"][:6])}
    rest = sum(topics["negatives"][6:])
    shares |= {f"the other {len(topics['negatives']) - 6}": rest} if rest else {}
    svg = _share_bars(shares, "Negatives by cluster", "s2")
    return [Chart("diversity", "Diversity of the negatives", text, svg)]


def _topics(figures: Mapping[str, Any]) -> list[Chart]:
    if not (topics := figures.get("topics")):
        return []
    shares = {"positive in its anchor's cluster": topics["consistency"], "by chance": topics["chance"]}
    text = "How often a right answer is about the same thing as its anchor, by clusters of the texts. Near chance, the "
    text += "model does not know the topics yet, or rows are wrong."
    svg = _share_bars(shares, "Topical consistency", "s3")
    return [Chart("topics", "Topical consistency of the positives", text, svg)]


def _near_duplicates(figures: Mapping[str, Any]) -> list[Chart]:
    if not (near := figures.get("near_duplicates")):
        return []
    shares = {"of another negative of their row": near["of_another"], "of their right answer": near["of_the_positive"]}
    text = f"Negatives whose cosine with another text is at least {near['cosine']:g}."
    return [Chart("near-duplicates", "Near-duplicates", text, _share_bars(shares, "Near-duplicates", "s4"))]


def _map(figures: Mapping[str, Any], projection: Projection) -> list[Chart]:
    if not (drawn := figures.get("map")):
        return []
    points = in_the_plane(drawn, projection)
    text = f"A sample of {len(points['anchors']):,} anchors with a positive and the first negative of each. "
    if projection == "pca":
        text += f"The first two principal components hold {drawn['explained']:.0%} of the variance."
    else:
        text += "Laid out by UMAP: near is alike, far says little."
    return [Chart("map", "A map", text, charts.scatter(points, "Anchors, positives and negatives"), list(GROUPS))]


def followed(report: Mapping[str, Any]) -> dict[str, dict[str, list[charts.Point]]]:
    """Return curves over the minings so far, by name and part; none before the second mining."""
    now = {name: report[name] for name in ("step", "churn", "outdated", "risk")}
    now |= {"difference": report["scores"].get("difference", {}).get("mean"), **report["hardness"]}
    history = [*report["history"], now]
    if len(history) < 2:
        return {}
    found = {}
    for name in CURVES:
        series = {
            part: [(float(place), float(one[part])) for place, one in enumerate(history) if one.get(part) is not None]
            for part in _PARTS.get(name, (name,))
        }
        found[name] = {part.replace("_", "-"): points for part, points in series.items() if points}
    return {name: series for name, series in found.items() if series}


def _curves(report: Mapping[str, Any]) -> list[Chart]:
    drawn = []
    for name, series in followed(report).items():
        head, _, text = CURVES[name].partition(": ")
        svg = charts.lines(series, head, "mining; 0 is the first")
        legend = list(series) if len(series) > 1 else ()
        drawn.append(Chart(f"training-{name}", head, f"{text[0].upper()}{text[1:]}.", svg, legend))
    return drawn


def _doubtful_text(figures: Mapping[str, Any]) -> str:
    if not figures:
        return "This report was made without figures; mine again to see them."
    if not figures.get("doubtful"):
        return "There are none."
    return (
        "What shares most with a known right answer of its anchor, in vectors and in words: look here first for right "
        "answers that nobody has labelled."
    )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:
        rest = ", ".join(f"{key}={one}" for key, one in value.items() if key != "name")
        return f"{value['name']}({rest})"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
