"""What a pretrained model learned, as pictures and lists: which emojis it confuses, which it takes for kin."""

import csv
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, linkage  # type: ignore[import-untyped]
from scipy.spatial.distance import squareform  # type: ignore[import-untyped]
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from deepmoji.emojis import normalize
from deepmoji.errors import InputError
from deepmoji.model import DeepMoji, lengths_of, probabilities
from deepmoji.vocabulary import Vocabulary

Floats = NDArray[np.float64]

# One word decides, one word has many uses, one word turns the meaning (paper, section 5 and its blog post).
PHRASES = (
    "this is shit",
    "this is the shit",
    "i love mom's cooking",
    "i love how you never reply back",
    "i love cruising with my homies",
    "i love messing with yo mind",
    "i love you and now you're just gone",
    "happy",
    "not happy",
    "very happy",
)


def similarities(logits: NDArray[np.float32]) -> Floats:
    """(C, C) correlations between labels of their log-probabilities over texts, logits (P, C)."""
    scores = torch.log_softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    centred = scores - scores.mean(0)
    norms = np.sqrt((centred**2).sum(0))
    norms[norms == 0] = 1.0
    likeness: Floats = np.clip((centred.T @ centred) / np.outer(norms, norms), -1.0, 1.0)
    return likeness


def nearest_labels(likeness: Floats, labels: Sequence[str], count: int = 3) -> dict[str, list[str]]:
    """For each label the labels most like it, best first."""
    order = np.argsort(-likeness, axis=1, kind="stable")
    return {label: [labels[other] for other in order[i] if other != i][:count] for i, label in enumerate(labels)}


def phrase_predictions(
    model: DeepMoji, vocabulary: Vocabulary, labels: Sequence[str], max_length: int, top: int = 5
) -> list[dict[str, Any]]:
    """The fixed phrases, each with its most probable labels and their probabilities (three digits)."""
    ids = torch.from_numpy(vocabulary.encode(list(PHRASES), max_length).astype(np.int64))
    with torch.inference_mode():
        chances = probabilities(model.eval()(ids, lengths_of(ids)), model.task).numpy()
    rows = []
    for phrase, row in zip(PHRASES, chances, strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        rows.append(
            {"text": phrase, "labels": [{"label": labels[i], "probability": round(float(row[i]), 3)} for i in best]}
        )
    return rows


def markdown(metrics: Mapping[str, Any], insight: Mapping[str, Any]) -> str:
    """report.md of a pretrained model, beside its plots: figures, kinship of labels, phrases, each label alone."""
    agreement = metrics.get("sentiment_rank_correlation")
    phrases = [
        f"| {row['text']} | " + ", ".join(f"{one['label']} {one['probability']:.0%}" for one in row["labels"]) + " |"
        for row in insight["phrases"]
    ]
    labels = [
        f"| {label} | {' '.join(insight['nearest'][label])} | {_share(row['recall'])} | "
        f"{_share(row['precision'])} | {row['examples']:,} |"
        for label, row in metrics["per_label"].items()
    ]
    parts = [
        "# What the model learned",
        f"On {metrics['test_examples']:,} test examples, every label weighing the same: top-1 {metrics['top1']:.3f}, "
        f"top-5 {metrics['top5']:.3f}, loss {metrics['loss']:.3f}; as they come: top-1 {metrics['rows']['top1']:.3f}, "
        f"top-5 {metrics['rows']['top5']:.3f}, loss {metrics['rows']['loss']:.3f}.",
        "![Learning curve](plots/learning.png)",
        "## Which labels it takes for kin",
        "Labels are near where the model predicts them for the same texts."
        + (
            f" Rank correlation with nearness in published sentiment: {agreement:.3f}." if agreement is not None else ""
        ),
        "![Dendrogram](plots/dendrogram.png)",
        "## Phrases",
        "\n".join(["| text | most probable |", "|---|---|", *phrases]),
        "## Label by label",
        "\n".join(["| label | nearest | recall | precision | test examples |", "|---|---|--:|--:|--:|", *labels]),
        "![Confusion](plots/confusion.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def read_sentiments(ranking: Path, labels: Sequence[str]) -> dict[str, float]:
    """The mean sentiment (-1 to 1) of each label that a CSV of counts knows.

    `ranking` has the columns Emoji, Negative, Neutral, Positive, as the Emoji Sentiment Ranking.
    InputError: a file of another form, or one that knows fewer than 3 of the labels.
    """
    wanted = {"Emoji", "Negative", "Neutral", "Positive"}
    try:
        with ranking.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{ranking} cannot be read ({error}): name the CSV of the emoji sentiment ranking.") from None
    if not rows or not wanted <= set(rows[0]):
        raise InputError(f"{ranking} lacks one of the columns {', '.join(sorted(wanted))}: name another file.")
    known = {}
    for number, row in enumerate(rows, start=2):
        try:
            negative, neutral, positive = (float(row[name]) + 1 for name in ("Negative", "Neutral", "Positive"))
        except (TypeError, ValueError):
            raise InputError(f"{ranking}, row {number}: the counts are no numbers, mend the row.") from None
        known[normalize(row["Emoji"])] = (positive - negative) / (negative + neutral + positive)
    found = {label: known[label] for label in labels if label in known}
    if len(found) < 3:
        raise InputError(f"{ranking} knows {len(found)} of the labels: at least 3 are needed to compare.")
    return found


def sentiment_agreement(likeness: Floats, labels: Sequence[str], sentiments: Mapping[str, float]) -> float:
    """Spearman correlation, over pairs of labels, of the model's likeness (C, C) and nearness in sentiment.

    Nearness is minus the distance of two sentiments; labels without one are left out.
    """
    places = [i for i, label in enumerate(labels) if label in sentiments]
    values = np.array([sentiments[labels[i]] for i in places])
    upper = np.triu_indices(len(places), 1)
    nearness = -np.abs(values[:, None] - values[None, :])
    return float(spearmanr(likeness[np.ix_(places, places)][upper], nearness[upper]).statistic)


def draw_plots(
    folder: Path,
    confusion: NDArray[np.int64],
    likeness: Floats,
    labels: Sequence[str],
    history: Sequence[dict[str, float]],
) -> None:
    """Write confusion.png, learning.png and dendrogram.png; the same numbers give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [describe(label) for label in labels]
    side = max(4.0, 0.2 * len(labels) + 2.5)

    figure, axes = _figure(side + 1, side)
    image = axes.imshow(confusion / np.maximum(confusion.sum(1, keepdims=True), 1), cmap="viridis", vmin=0)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title("Share of a label's test texts by predicted label")
    figure.colorbar(image, shrink=0.6)
    _write(figure, folder / "confusion.png")

    figure, axes = _figure(6, 4)
    for key, name in (("train_loss", "training"), ("validation_loss", "validation")):
        axes.plot([row["epoch"] for row in history], [row[key] for row in history], marker="o", label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (nats per example)")
    axes.set_title("Learning curve")
    axes.legend()
    _write(figure, folder / "learning.png")

    figure, axes = _figure(6, side)
    figure.suptitle("Labels by how the model predicts them (1 - correlation)", fontsize=10)
    if len(labels) > 1:
        distances = 1 - (likeness + likeness.T) / 2
        np.fill_diagonal(distances, 0)
        tree = linkage(squareform(np.maximum(distances, 0), checks=False), method="average")
        dendrogram(tree, labels=names, orientation="left", ax=axes, leaf_font_size=6)
    _write(figure, folder / "dendrogram.png")


def describe(label: str) -> str:
    """A label as the plot font can write it: the emoji where it has the glyph, and its Unicode name."""
    if label.isascii() or label[0].isalpha():
        return label
    name = unicodedata.name(label[0], "unnamed").lower()
    glyphs = get_font(findfont(FontProperties()))
    return f"{label[0]} {name}" if glyphs.get_char_index(ord(label[0])) else name


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Figures without pyplot: no global state, no display, safe in threads.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _write(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
