"""Tiny, real material for the tests of model and training: texts as ids whose first word gives the label away."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmoji.tokens import Examples

WORDS = 60
CLASSES = 4


def examples(count: int, seed: int = 0, task: str = "multiclass", longest: int = 11) -> Examples:
    """`count` texts of 1 to `longest` words; word 10 + label is the first one."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(20, WORDS, offsets[-1]).astype(np.uint16)
    classes = rng.integers(0, CLASSES, count)
    ids[offsets[:-1]] = 10 + classes
    targets: dict[str, NDArray[Any]] = {
        "multiclass": classes,
        "binary": classes % 2,
        "multilabel": np.eye(CLASSES, dtype=np.float32)[classes],
    }
    return Examples(ids, offsets, np.arange(count, dtype=np.int64), targets[task])
