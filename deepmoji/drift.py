"""How far new texts are from the corpus that the model was trained on; Great Expectations judges, by params.yaml.

A divergence is that of Jensen and Shannon in bits, 0 (the same) to 1 (nothing in common). Few texts differ from many
by chance alone, so as many texts are drawn from the reference, and what these differ by is taken off.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from deepmoji import validation
from deepmoji import validation_frames as frames
from deepmoji.errors import InputError
from deepmoji.shards import open_shard
from deepmoji.vocabulary import UNKNOWN, Vocabulary

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """Labels and tokens of some texts, each flat with the places where a text starts (texts + 1)."""

    labels: Ints
    label_starts: Ints
    ids: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1

    def draw(self, rows: Ints) -> "Texts":
        labels, label_starts = _take(self.labels, self.label_starts, rows)
        return Texts(labels, label_starts, *_take(self.ids, self.starts, rows))


def compare(
    reference: Path,
    new: Path,
    vocabulary: Path,
    out: Path,
    *,
    min_rows: int,
    rows: int,
    max_label_divergence: float,
    max_vocabulary_divergence: float,
    max_unknown_growth: float,
    max_length_change: float,
    seed: int,
) -> dict[str, Any]:
    """Compare two labelled corpora, at most `rows` texts of each, by the words of a vocabulary file.

    Writes the report into `out` (validation.html and .json). Returns the numbers, and as `drifted` the names of the
    rules that are broken. InputError when a corpus is missing, their labels are others, or `new` has fewer than
    `min_rows` texts.
    """
    names = frames.read_facts(reference / "labels.json")
    if frames.read_facts(new / "labels.json") != names:
        raise InputError(f"{new} and {reference} have other labels: ingest both with the same label set.")
    words = Vocabulary.load(vocabulary)
    old, fresh = (_read(corpus, words, rows) for corpus in (reference, new))
    if len(fresh) < min_rows:
        raise InputError(
            f"Only {len(fresh)} of the new texts can be used, and {min_rows} are wanted for a comparison: gather more "
            "first, or lower min_rows in the section drift of params.yaml."
        )
    chance = old.draw(np.random.default_rng(seed).integers(0, len(old), len(fresh)))
    label_counts = [np.bincount(texts.labels, minlength=len(names)).astype(float) for texts in (old, fresh, chance)]
    word_counts = [np.bincount(texts.ids, minlength=len(words)).astype(float) for texts in (old, fresh, chance)]
    numbers = {
        "rows": len(fresh),
        "reference_rows": len(old),
        "label_divergence": _beyond_chance(*label_counts),
        "vocabulary_divergence": _beyond_chance(*word_counts),
        "unknown_share": _unknown(fresh),
        "reference_unknown_share": _unknown(old),
        "mean_length": float(np.diff(fresh.starts).mean()),
        "reference_mean_length": float(np.diff(old.starts).mean()),
    }
    numbers["unknown_growth"] = numbers["unknown_share"] - numbers["reference_unknown_share"]
    numbers["length_change"] = abs(numbers["mean_length"] / max(1e-9, numbers["reference_mean_length"]) - 1)

    def total(name: str, says: str, key: str, limit: float, examples: list[dict[str, Any]]) -> validation.Total:
        return validation.Total(name, says, numbers[key], None, limit, f"{numbers[key]:.4f}", examples=examples)

    drifted = validation.judge(
        "drift",
        [
            total("label mix", f"the labels diverge by at most {max_label_divergence:g} beyond chance",
                  "label_divergence", max_label_divergence, _most("label", names, *label_counts[:2])),
            total("vocabulary", f"the words diverge by at most {max_vocabulary_divergence:g} beyond chance",
                  "vocabulary_divergence", max_vocabulary_divergence, _most("word", words.words, *word_counts[:2])),
            total("unknown words", f"at most {max_unknown_growth:.1%} more of the tokens are unknown",
                  "unknown_growth", max_unknown_growth, []),
            total("length", f"the mean length differs by at most {max_length_change:.0%}",
                  "length_change", max_length_change, []),
        ],
        out,
        numbers,
    )  # fmt: skip
    return numbers | {"drifted": drifted}


def _read(corpus: Path, words: Vocabulary, rows: int) -> Texts:
    """Texts are spread over the shards by their hash, so the first shards are as good a sample as any."""
    tables: list[pa.Table] = []
    for path in sorted(corpus.glob("part-*.parquet")):
        tables.append(open_shard(path).select(["text", "labels"]))
        if sum(table.num_rows for table in tables) >= rows:
            break
    if not sum(table.num_rows for table in tables):
        raise InputError(f"{corpus} holds no texts (part-*.parquet): run `deepmoji ingest` first.")
    table = pa.concat_tables(tables)
    kept = np.linspace(0, table.num_rows - 1, min(rows, table.num_rows)).astype(np.int64)
    table = table.take(pa.array(kept)).combine_chunks()
    ids, starts, _ = words.encode_flat(table["text"])
    labels = table["labels"].combine_chunks()
    sizes = pc.fill_null(pc.list_value_length(labels), 0).to_numpy(zero_copy_only=False)
    label_starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    flat = pc.list_flatten(labels).to_numpy(zero_copy_only=False)
    return Texts(flat.astype(np.int64), label_starts, ids.astype(np.int64), starts.astype(np.int64))


def _take(flat: Ints, starts: Ints, rows: Ints) -> tuple[Ints, Ints]:
    lengths = np.diff(starts)[rows]
    ends = np.concatenate(([0], np.cumsum(lengths)))
    places = np.arange(ends[-1]) + np.repeat(starts[:-1][rows] - ends[:-1], lengths)
    return flat[places], ends


def divergence(first: Floats, second: Floats) -> float:
    """Jensen-Shannon divergence of two counts over the same kinds, in bits: 0 to 1. Nothing at all is no difference."""
    if not first.sum() or not second.sum():
        return 0.0
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(share > 0, share * np.log2(share / middle), 0.0).sum() for share in (p, q)]
    return float(np.clip(sum(parts) / 2, 0.0, 1.0))


def _beyond_chance(old: Floats, fresh: Floats, chance: Floats) -> float:
    return max(0.0, divergence(old, fresh) - divergence(old, chance))


def _unknown(texts: Texts) -> float:
    return float((texts.ids == UNKNOWN).mean()) if len(texts.ids) else 0.0


def _most(kind: str, names: tuple[str, ...] | list[str], old: Floats, fresh: Floats) -> list[dict[str, Any]]:
    """What became more or less frequent by most, for the report."""
    before, now = (counts / max(1.0, counts.sum()) for counts in (old, fresh))
    order = np.argsort(-np.abs(now - before), kind="stable")[: frames.EXAMPLES]
    return [{kind: names[n], "reference": f"{before[n]:.2%}", "new": f"{now[n]:.2%}"} for n in order]
