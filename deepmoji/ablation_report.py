"""What an ablation found, as a table; and for the size of the corpus a curve with its extrapolation."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t  # type: ignore[import-untyped]

from deepmoji.report import METRIC_NAMES, table
from deepmoji.shards import write_json

PAPER_TWEETS = 1_246_000_000  # that the published model was pretrained on: paper, section 3.1
Point = tuple[str, float, float]  # set, texts to pretrain on, gain


def summarise(content: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """By method: the mean over sets of base and variants, and for `size` the curve of the gain over `new`."""
    found: dict[str, Any] = {}
    for method in methods:
        rows = [row for entry in content["datasets"].values() for row in entry[method]["rows"]]
        names = dict.fromkeys(row["method"] for row in rows)
        means = {name: float(np.mean([row["mean"] for row in rows if row["method"] == name])) for name in names}
        found[method] = {"means": means}
        if content["ablation"] == "size":
            found[method]["curve"] = extrapolate(mean_gains(content, method), PAPER_TWEETS)
    return found


def gains(content: Mapping[str, Any], method: str) -> list[Point]:
    """Each set's score by the method minus its score by `new`, beside the number of texts pretrained on."""
    points = []
    for name, entry in content["datasets"].items():
        without = entry["new"]["rows"][0]["mean"]
        for row in entry[method]["rows"]:
            points.append((name, float(content["pretrained"][row["method"]]["texts"]), row["mean"] - without))
    return sorted(points)


def mean_gains(content: Mapping[str, Any], method: str) -> list[tuple[float, float]]:
    """(texts, mean gain over the sets) of every pretrained model.

    One point a model, however many sets there are: the luck of a pretraining is in all of its sets alike.
    """
    by_size: dict[float, list[float]] = {}
    for _, texts, gain in gains(content, method):
        by_size.setdefault(texts, []).append(gain)
    return [(texts, float(np.mean(found))) for texts, found in sorted(by_size.items())]


def extrapolate(points: Sequence[tuple[float, float]], target: float) -> dict[str, Any]:
    """The line gain = a + b log10(texts) by least squares through (texts, gain), and its height at `target` texts.

    `low` and `high` are the 95 % t intervals of the slope b and of the line's height, which hold if the line goes on
    as it began; null for two points, which fix a line and leave nothing to judge it by.
    """
    design = np.array([[1.0, math.log10(texts)] for texts, _ in points])
    gain = np.array([gain for _, gain in points])
    solution = np.linalg.lstsq(design, gain, rcond=None)[0]
    spread = np.linalg.pinv(design.T @ design)
    rest = gain - design @ solution
    free = len(points) - 2
    start, end = design[:, 1].min(), math.log10(target)
    line = np.linspace(start, end, 41)

    def estimate(*weights: float) -> dict[str, float | None]:
        direction = np.array(weights)
        value = float(direction @ solution)
        if free < 1:
            return {"value": _round(value), "low": None, "high": None}
        half = float(t.ppf(0.975, free) * np.sqrt(rest @ rest / free * (direction @ spread @ direction)))
        return {"value": _round(value), "low": _round(value - half), "high": _round(value + half)}

    return {
        "target": int(target),
        "points": len(points),
        "free": free,
        "slope": estimate(0.0, 1.0),
        "at_target": estimate(1.0, end),
        "line": [{"texts": round(10**place), **estimate(1.0, place)} for place in line],
    }


def write_report(out: Path, content: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Write report.md, for `size` curve.csv and curve.png, and last report.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").unlink(missing_ok=True)
    (out / "report.md").write_text(markdown(content, methods), encoding="utf-8")
    if content["ablation"] == "size":
        with (out / "curve.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["method", "dataset", "texts", "gain"])
            rows = ((method, *point) for method in methods for point in gains(content, method))
            writer.writerows((method, name, int(texts), _round(gain)) for method, name, texts, gain in rows)
        _draw(out / "curve.png", content, methods)
    write_json(out / "report.json", content)


def markdown(content: Mapping[str, Any], methods: Sequence[str]) -> str:
    """The whole report.md."""
    parts = [
        f"# Ablation: {content['ablation']}",
        f"{content['changed'][0].upper()}{content['changed'][1:]}. Every model was pretrained on "
        f"{content['drawn']:,} examples drawn (fewer where it stopped early), with the weights of its best epoch kept; "
        "*base* is the model of the road. Nothing else differs. Each was pretrained once, from one seed: a difference "
        "also holds the luck of that start.",
        _sizes(content),
        "## On the labelled sets",
        f"Test scores, mean over seeds. Ahead: base minus variant, with the 95 % interval of {content['bootstrap']:,} "
        "resamples of the test rows and a two-sided p-value, not corrected for the number of comparisons. *Published* "
        "are the paper's figures; those of its variants were made by the method last.",
        _scores(content, methods),
    ]
    if content["ablation"] == "size":
        parts += ["## Gain against the size of the corpus", _curve(content, methods), "![The curve](curve.png)"]
    return "\n\n".join(parts) + "\n"


def _sizes(content: Mapping[str, Any]) -> str:
    lines = [
        [name, f"{f['texts']:,}", f"{f['examples']:,}", str(f["labels"]), f"{f['top1']:.3f}", f"{f['loss']:.3f}"]
        for name, f in content["pretrained"].items()
    ]
    return table(["pretrained", "texts", "examples", "labels", "top-1 of its labels", "loss"], lines)


def _scores(content: Mapping[str, Any], methods: Sequence[str]) -> str:
    lines = []
    for name, entry in content["datasets"].items():
        for method in methods:
            for row in entry[method]["rows"]:
                against = row.get("against")
                lines.append(
                    [
                        f"{name}, {method}",
                        METRIC_NAMES[entry[method]["metric"]],
                        row["method"],
                        f"{row['mean']:.3f}",
                        f"{against['difference']:+.3f} ({against['low']:+.3f} to {against['high']:+.3f})"
                        if against
                        else "",
                        f"{against['p']:.3f}" if against else "",
                        "" if row["paper"] is None else f"{row['paper']:.3f}",
                    ]
                )
    for method in methods:
        for variant, mean in content["summary"][method]["means"].items():
            lines.append([f"mean of all sets, {method}", "", variant, f"{mean:.3f}", "", "", ""])
    return table(["set", "metric", "pretrained", "score", "base ahead by", "p", "published"], lines)


def _curve(content: Mapping[str, Any], methods: Sequence[str]) -> str:
    lines = []
    for method in methods:
        curve = content["summary"][method]["curve"]
        cells = [_interval(curve["slope"]), _interval(curve["at_target"]), str(curve["free"])]
        lines.append([method, *cells])
    return "\n\n".join(
        [
            "Gain is the score minus that of `new`, which is not pretrained; the line a + b log10(texts) goes through "
            "its means over the sets, one for each pretrained model.",
            table(["method", "gain per ten times the texts", f"mean gain at {PAPER_TWEETS:,} texts", "free"], lines),
            "The intervals are 95 % t intervals with that many degrees of freedom; more shares make them narrower. "
            "They say how well these points fix the line, not whether a line holds so far beyond them: a score ends "
            "at 1, and gains tend to shrink. The vocabulary is that of all texts at every size.",
        ]
    )


def _interval(part: Mapping[str, Any]) -> str:
    if part["low"] is None:
        return f"{part['value']:+.3f} (no interval: too few points)"
    return f"{part['value']:+.3f} ({part['low']:+.3f} to {part['high']:+.3f})"


def _draw(path: Path, content: Mapping[str, Any], methods: Sequence[str]) -> None:
    """A panel a method: each set's gains, the fitted mean with its interval, on to the size of the paper's corpus."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(methods), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for index, method in enumerate(methods):
        axes = figure.add_subplot(1, len(methods), index + 1)
        for name in content["datasets"]:
            own = [(texts, gain) for one, texts, gain in gains(content, method) if one == name]
            axes.plot(*zip(*own, strict=True), marker="o", markersize=4, linewidth=0.8, label=name)
        curve = content["summary"][method]["curve"]
        texts = [point["texts"] for point in curve["line"]]
        axes.plot(
            texts, [point["value"] for point in curve["line"]], color="black", linestyle="--", label="fitted mean"
        )
        if curve["free"] > 0:
            low, high = ([point[side] for point in curve["line"]] for side in ("low", "high"))
            axes.fill_between(texts, low, high, color="0.85", label="95 % interval")
        paper = [
            entry[method]["paper"][method] - entry[method]["paper"]["new"]
            for entry in content["datasets"].values()
            if {method, "new"} <= set(entry[method]["paper"])
        ]
        if len(paper) == len(content["datasets"]):
            axes.plot(
                PAPER_TWEETS, float(np.mean(paper)), "D", color="C1", markerfacecolor="none", label="published mean"
            )
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("texts to pretrain on")
        axes.set_ylabel("gain over new")
        axes.set_title(method)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _round(value: float) -> float:
    return round(value, 5)
