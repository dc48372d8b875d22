"""How well a model folder predicts the emojis of a corpus' test texts, over all of them and by source.

From the texts and not from token ids, which mean something only to the model that they were made for; so two models
with other vocabularies are measured on the same ground.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepmoji.emojis import load_labels
from deepmoji.errors import InputError, UsageError
from deepmoji.inference import Model, load_folder
from deepmoji.pretraining import evaluate as measure
from deepmoji.shards import open_shard

log = logging.getLogger(__name__)

NUMBERS = ("top1", "top5", "loss")


def evaluate(model: Model | Path, corpus: Path) -> dict[str, Any]:
    """top1, top5, loss (every label the same weight), `rows` with them over the texts as they come, and `sources`.

    Both as pretraining measures them, under the mix of labels that each asks about; a model that does not say on
    which it was trained counts as trained on labels alike, as the published one was. `sources` holds the same numbers
    and the count of examples for each source of the corpus. InputError: not a corpus; UsageError: the corpus has
    labels that the model does not know.
    """
    if isinstance(model, Path):
        model = load_folder(model)
    names = _labels(corpus, model)
    parts = (open_shard(path, ["text", "labels", "source", "split"]) for path in sorted(corpus.glob("part-*.parquet")))
    table = pa.concat_tables(part.filter(pc.field("split") == "test") for part in parts)
    if table.num_rows == 0:
        raise InputError(f"{corpus} has no test texts: run ingest with more rows.")
    rows = table.combine_chunks()
    owners, targets = _examples(rows["labels"].combine_chunks(), [model.labels.index(name) for name in names])
    mixes = model.metrics.get("mixes")
    if mixes is None:
        log.warning("%s does not say on which mix of labels it was trained: taken as one of equal shares", model.name)
    logits = np.log(model.probabilities(rows["text"].to_pylist()) + np.float32(1e-30))
    sources = np.asarray(rows["source"].to_pylist())[owners]
    return _numbers(logits[owners], targets, model.labels, mixes) | {
        "sources": {
            str(source): _numbers(logits[owners[sources == source]], targets[sources == source], model.labels, mixes)
            for source in np.unique(sources)
        }
    }


def gate_numbers(folder: Path, corpus: Path) -> dict[str, float]:
    """What a promotion gate may ask of a model that was measured on other data before."""
    measured = evaluate(folder, corpus)
    return {name: float(measured[name]) for name in NUMBERS}


def show(numbers: Mapping[str, Any]) -> str:
    """The numbers of `evaluate` as a table, a line for all texts and one for each source."""
    lines = [f"{'texts':<24}{'examples':>10}{'top-1':>8}{'top-5':>8}{'loss':>8}   as they come: top-1   top-5    loss"]
    for name, part in {"all": numbers, **numbers["sources"]}.items():
        natural = part["rows"]
        lines.append(
            f"{name:<24}{part['examples']:>10,}{part['top1']:>8.3f}{part['top5']:>8.3f}{part['loss']:>8.3f}"
            f"{natural['top1']:>23.3f}{natural['top5']:>8.3f}{natural['loss']:>8.3f}"
        )
    return "\n".join(lines)


def _labels(corpus: Path, model: Model) -> Sequence[str]:
    if not (corpus / "labels.json").is_file() or not any(corpus.glob("part-*.parquet")):
        raise InputError(f"{corpus} is no labelled corpus (part-*.parquet and labels.json): run ingest first.")
    names = load_labels(corpus / "labels.json").names
    if set(names) != set(model.labels):
        raise UsageError(f"{model.name} and {corpus} have other labels: their numbers do not compare.")
    return names


def _examples(labels: pa.ListArray, places: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An example per text and label: which text (P,), and the model's id of the label (P,)."""
    owners = pc.list_parent_indices(labels).to_numpy().astype(np.int64)
    return owners, np.array(places, dtype=np.int64)[pc.list_flatten(labels).to_numpy()]


def _numbers(
    logits: NDArray[np.float32],
    targets: NDArray[np.int64],
    labels: Sequence[str],
    mixes: Mapping[str, Sequence[float]] | None,
) -> dict[str, Any]:
    measured = measure(logits, targets, labels, mixes)
    return {name: measured[name] for name in (*NUMBERS, "rows")} | {"examples": len(targets)}
