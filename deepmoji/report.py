"""The benchmark's report as people read it: Markdown tables, plots, and a flat table for `dvc plots`."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PAPER_EXAMPLES = "1.6 billion"  # (text, emoji) pairs of 1,246 M tweets: paper, section 3.1
# Among a set's peers: these two were not published, but measured by this project on the same splits.
MEASURED_BEFORE = ("MiniLM features", "TF IDF")
FEW = 100  # test texts; half of them right leaves an interval of ten points to each side
METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "weighted_f1": "weighted F1",
    "class_average_f1": "class-average F1",
    "macro_recall": "macro recall",
    "jaccard": "Jaccard",
    "f1": "F1 of the second class",
}


def write_report(out: Path, content: Mapping[str, Any]) -> None:
    """Write report.md, scores.csv, means.csv, methods.png and <dataset>.png for what `benchmark` found."""
    (out / "report.md").write_text(markdown(content), encoding="utf-8")
    with (out / "scores.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["dataset", "method", "seed", "metric", "value"])
        writer.writerows(flat_scores(content))
    with (out / "means.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["row", "metric", "mean", "low", "high"])
        # One line a bar: `dvc plots` would stack the seeds and metrics of scores.csv.
        writer.writerows(
            [f"{name}: {row['method']}", entry["metric"], row["mean"], row["low"], row["high"]]
            for name, entry in content["datasets"].items()
            for row in entry["rows"]
        )
    _draw(out / "methods.png", content["datasets"])
    for name, entry in content["datasets"].items():
        _draw(out / f"{name}.png", {name: entry})


def flat_scores(content: Mapping[str, Any]) -> list[tuple[str, str, int, str, float]]:
    """(dataset, method, seed, metric, value) for every metric on test."""
    return [
        (name, row["method"], seed, metric, value)
        for name, entry in content["datasets"].items()
        for row in entry["rows"]
        for seed, figures in zip(row["seeds"], row["test"], strict=True)
        for metric, value in sorted(figures.items())
    ]


def markdown(content: Mapping[str, Any]) -> str:
    """The whole report.md."""
    reference, wins = content["reference"], _wins(content)
    parts = [
        "# Benchmark",
        "Test scores, mean over seeds ± standard deviation; the best of a row is **bold**. Every choice was made on "
        "validation rows. *Chosen* is the method, of those that start from the pretrained model, with the best "
        f"validation score.{_paper(content)}",
        _leak(content),
        _overview(content),
        "![Scores with intervals](methods.png)",
        "Bars are 95 % intervals over test rows: baselines grey, fine-tuned models blue"
        + ("; diamonds are published." if _paper(content) else "."),
        *wins,
        "## Set by set",
        f"Interval: 95 % of {content['bootstrap']:,} resamples of the test rows: others would give other figures by as "
        "much. What another seed of a training changes is in the standard deviation alone."
        + (
            f" Gain: {reference} minus the row, with its interval and two-sided p-value on the same resamples, not "
            "corrected for the number of comparisons."
            if wins
            else ""
        ),
    ]
    for name, entry in content["datasets"].items():
        parts += [f"### {name}", _facts(entry), _table_of(entry), _by_class(entry), f"![{name}]({name}.png)"]
    parts += ["## What is missing", _missing(content)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _paper(content: Mapping[str, Any]) -> str:
    if not any(entry["paper"] for entry in content["datasets"].values()):
        return ""
    return (
        f" *Paper* is the published figure of chain-thaw, pretrained on {PAPER_EXAMPLES} examples of (text, emoji); "
        f"{_corpus(content)}."
    )


def _corpus(content: Mapping[str, Any]) -> str:
    sizes = {
        int(row["pretrained"]["examples"])
        for entry in content["datasets"].values()
        for row in entry["rows"]
        if row.get("pretrained", {}).get("examples")
    }
    if not sizes:
        return "our pretrained model does not say how many it saw"
    return "ours on " + " and ".join(f"{size:,}" for size in sorted(sizes))


def _leak(content: Mapping[str, Any]) -> str:
    leaky = sorted({_label(row) for entry in content["datasets"].values() for row in entry["rows"] if row.get("leaky")})
    if not leaky:
        return ""
    return f"Not a result: {', '.join(leaky)}, there to show how much that leak is worth, and never marked as the best."


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['method']} (saw test labels)" if row.get("leaky") else str(row["method"])


def _best(rows: Iterable[Mapping[str, Any]]) -> float:
    return max((row["mean"] for row in rows if not row.get("leaky")), default=0.0)


def _overview(content: Mapping[str, Any]) -> str:
    methods = _all_methods(content)
    lines = []
    for name, entry in content["datasets"].items():
        rows = {row["method"]: row for row in entry["rows"]}
        best = _best(rows.values())
        cells = [_mean(rows.get(method), best) for method in methods]
        chosen = f"{entry['chosen']['method']} {entry['chosen']['mean']:.3f}" if entry["chosen"] else ""
        lines.append([name, METRIC_NAMES[entry["metric"]], *cells, chosen, _number(entry["paper"].get("chain-thaw"))])
    return filled(["set", "metric", *methods.values(), "chosen", "paper"], lines)


def _wins(content: Mapping[str, Any]) -> list[str]:
    """The section that counts sets; none where no set has the reference and another row."""
    reference = content["reference"]
    lines = []
    for method, label in _all_methods(content).items():
        both = [
            (row, entry["chosen"])
            for entry in content["datasets"].values()
            for row in entry["rows"]
            if row["method"] == method and "against" in row
        ]
        if both:
            compared = [row["against"] for row, _ in both]
            higher = sum(one["difference"] > 0 for one in compared)
            sure = sum(one["difference"] > 0 and one["p"] < 0.05 for one in compared)
            worse = sum(one["difference"] < 0 and one["p"] < 0.05 for one in compared)
            ahead = sum(chosen["mean"] > row["mean"] for row, chosen in both if chosen)
            lines.append([label, *map(str, (len(both), higher, sure, worse, ahead))])
    if not lines:
        return []
    return [
        f"## Is {reference} better?",
        f"Sets where {reference} has the higher mean, and where that holds with p < 0.05 in the paired bootstrap; then "
        "those where the chosen method has the higher mean.",
        table(["against", "sets", "higher", "higher, p < .05", "lower, p < .05", "chosen higher"], lines),
    ]


def _facts(entry: Mapping[str, Any]) -> str:
    texts = entry["texts"]
    name = METRIC_NAMES[entry["metric"]]
    parts = [
        f"{name[0].upper()}{name[1:]}, {len(entry['classes'])} classes, "
        f"{texts['train']:,} / {texts['val']:,} / {texts['test']:,} texts to train, validate, test."
    ]
    if texts["test"] < FEW:
        parts.append(f"With {texts['test']} test texts a score says little: look at its interval, or give more.")
    if known := entry["shared"]["train-test"]:
        parts.append(f"{known:,} of the test texts stand in the training rows too.")
    encoded: dict[str, list[str]] = {}
    for row in entry["rows"]:
        if "truncated" in row:
            cut, total = (sum(part[key] for part in row["truncated"].values()) for key in ("texts", "of"))
            fact = f"{cut:,} of {total:,} texts cut at {row['max_length']} tokens"
            if "new_words" in row:  # a baseline begins with no vocabulary to add to
                fact += f", {row['new_words']:,} words added"
            encoded.setdefault(fact, []).append(_label(row))
    parts += [f"{', '.join(methods)}: {fact}." for fact, methods in encoded.items()]
    return " ".join(parts)


def _table_of(entry: Mapping[str, Any]) -> str:
    best = _best(entry["rows"])
    lines = []
    for row in entry["rows"]:
        against = row.get("against")
        gain = f"{against['difference']:+.3f} ({against['low']:+.3f} to {against['high']:+.3f})" if against else ""
        lines.append(
            [
                _label(row),
                _mean(row, best),
                str(len(row["seeds"])),
                f"{row['low']:.3f} to {row['high']:.3f}",
                gain,
                f"{against['p']:.3f}" if against else "",
                _number(row["paper"]),
            ]
        )
    ours = {row["method"] for row in entry["rows"]}
    others = {name: value for name, value in entry["paper"].items() if name not in ours} | entry["peers"]
    for name, value in others.items():
        if name in MEASURED_BEFORE:
            lines.append([f"measured before: {name}", _number(value), "", "", "", "", ""])
        else:
            lines.append([f"published: {name}", "", "", "", "", "", _number(value)])
    return filled(["method", "score", "seeds", "interval", "gain of chain-thaw", "p", "published"], lines)


def _by_class(entry: Mapping[str, Any]) -> str:
    if not entry["by_class"]:
        return ""
    lines = [
        [row["class"], f"{row['texts']:,.0f}", *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))]
        for row in entry["by_class"]
    ]
    named = table(["class", "test texts", "precision", "recall", "F1"], lines)
    return f"The classes, by {entry['chosen']['method']}:\n\n{named}"


def _missing(content: Mapping[str, Any]) -> str:
    lines = [
        f"- {gap['dataset']} by {gap['method']}: "
        + (
            "fine-tuned on an older version of the set, or from another model than the last"
            if gap.get("older")
            else "not fine-tuned"
        )
        for gap in content["missing"]
    ]
    lines += [f"- {name}: fine-tuned, but not among the labelled sets" for name in content["not_listed"]]
    return "\n".join(lines) if lines else "Nothing: every set has every method."


def _all_methods(content: Mapping[str, Any]) -> dict[str, str]:
    """Methods of all sets, and how they are called: as in the set that has most of them, then the others."""
    rows = [{row["method"]: _label(row) for row in entry["rows"]} for entry in content["datasets"].values()]
    ordered: dict[str, str] = {}
    for methods in sorted(rows, key=len, reverse=True):
        ordered |= methods
    return ordered


def _mean(row: Mapping[str, Any] | None, best: float) -> str:
    if row is None:
        return "missing"
    text = f"{row['mean']:.3f}"
    text = f"**{text}**" if row["mean"] == best and not row.get("leaky") else text
    return f"{text} ± {row['std']:.3f}" if len(row["seeds"]) > 1 else text


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def filled(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """`table` without the columns that are empty in every line."""
    kept = [k for k in range(len(header)) if k == 0 or any(line[k] for line in lines)]
    return table([header[k] for k in kept], [[line[k] for k in kept] for line in lines])


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too; the first column left, the others right."""
    widths = [max(len(line[k]) for line in (header, *lines)) for k in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join("-" * (w + 2) if k == 0 else "-" * (w + 1) + ":" for k, w in enumerate(widths)) + "|"
    return "\n".join([row(header), rule, *(row(line) for line in lines)])


def _draw(path: Path, datasets: Mapping[str, Any]) -> None:
    """One panel a set: each method's mean and interval, the published figures as open diamonds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(datasets))
    deep = math.ceil(len(datasets) / columns)
    tallest = max(len(entry["rows"]) for entry in datasets.values())
    figure = Figure(figsize=(4.2 * columns, deep * (0.9 + 0.28 * tallest)), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (name, entry) in enumerate(datasets.items()):
        axes = figure.add_subplot(deep, columns, index + 1)
        rows = entry["rows"][::-1]
        for height, row in enumerate(rows):
            colour = "0.45" if row.get("baseline") else "C0"
            axes.plot([row["low"], row["high"]], [height, height], color=colour, linewidth=1.5)
            axes.plot(row["mean"], height, marker="o", color=colour, markersize=5)
            if row["paper"] is not None:
                axes.plot(row["paper"], height, marker="D", color="C1", markerfacecolor="none", markersize=6)
        axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", color="0.9")
        axes.set_title(f"{name}: {METRIC_NAMES[entry['metric']]}", fontsize=9)
    # Without this the file would carry the version of the library that drew it.
    figure.savefig(path, dpi=110, metadata={"Software": None})
