"""Token stores made from the road's own: the same texts under other labels, or a share of the training texts."""

import csv
import os
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np

from deepmoji.emojis import load_labels, normalize
from deepmoji.errors import InputError
from deepmoji.shards import whole_folder, write_json
from deepmoji.splits import SPLITS
from deepmoji.tokens import load_store, read_meta


def derive_store(tokens: Path, out: Path, *, groups: Mapping[str, str] | None, share: float, seed: int) -> None:
    """A token store of the same texts under other labels, or of a share of the training texts.

    groups: class by emoji; an emoji without one labels nothing, and a text shows each class once however many of its
    emojis stand for it. share: texts drawn by `seed`, the smaller share always a part of the larger; validation and
    test stay whole. The vocabulary stays too. InputError: the groups give fewer than two classes.
    """
    labels = load_labels(tokens / "labels.json").names
    classes = list(labels)
    place = np.arange(len(labels))
    if groups is not None:
        classes = sorted({groups[label] for label in labels if label in groups})
        if len(classes) < 2:
            raise InputError(
                f"The labels of {tokens} fall into {len(classes)} group(s) of emojis: ingest with emojis64, or other "
                "labels of which some are on either side."
            )
        place = np.array([classes.index(groups[label]) if label in groups else -1 for label in labels])
    with whole_folder(out) as target:
        shutil.copyfile(tokens / "vocabulary.json", target / "vocabulary.json")
        write_json(target / "labels.json", classes)
        for split in SPLITS:
            examples, meta = load_store(tokens / split), read_meta(tokens / split)
            pairs = np.stack([examples.rows, place[examples.targets]], axis=1)
            keep = pairs[:, 1] >= 0
            if share < 1 and split == "train":
                texts = len(examples.offsets) - 1
                chosen = np.zeros(texts, dtype=bool)
                chosen[np.random.default_rng(seed).permutation(texts)[: max(1, round(share * texts))]] = True
                keep &= chosen[pairs[:, 0]]
            pairs = np.unique(pairs[keep], axis=0) if groups is not None else pairs[keep]
            (target / split).mkdir()
            for part in ("ids.npy", "offsets.npy"):
                _link(tokens / split / part, target / split / part)
            np.save(target / split / "labels.npy", pairs.astype(np.int64))
            counts = np.bincount(pairs[:, 1], minlength=len(classes)).tolist()
            facts = {"examples": len(pairs), "labels": counts, "texts": len(np.unique(pairs[:, 0]))}
            write_json(target / split / "meta.json", {**meta, **facts})


def load_groups(name: str) -> dict[str, str]:
    """{emoji: class} from a two-column file of the package."""
    text = files("deepmoji").joinpath("data", name).read_text(encoding="utf-8")
    return {normalize(emoji): group for emoji, group in csv.reader(text.splitlines(), delimiter="\t")}


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the disk has no links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
