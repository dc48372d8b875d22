"""Model folders small enough for a test, with weights that depend on the seed alone."""

from pathlib import Path
from typing import Any

import torch

from deepmoji.checkpoints import save_model
from deepmoji.model import DeepMoji
from deepmoji.vocabulary import SPECIALS, Vocabulary

WORDS = ("i", "love", "hate", "this", "not", "mom", "'", "s", "cooking", "the", "shit", "you", "never", "good", "bad")
TEXTS = [
    "I love this",
    "i hate this shit @you http://a.io 42",
    "not good",
    "never",
    "the the the the love",
    "zebra bad",
]


def tiny_model(
    folder: Path,
    labels: tuple[str, ...] = ("😂", "😍", "😭", "🔥", "💯", "🙏"),
    *,
    task: Any = "multiclass",
    seed: int = 1,
    max_length: int = 8,
    **options: Any,
) -> Path:
    """Write an untrained model folder, whose answers differ from text to text; returns the folder."""
    vocabulary = Vocabulary((*SPECIALS, *WORDS))
    classes = 1 if task == "binary" else len(labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DeepMoji(len(vocabulary), classes, embedding_size=8, hidden_size=6, task=task, **options)
        for parameter in model.output.parameters():
            torch.nn.init.normal_(parameter, std=1.0)
    save_model(folder, model, vocabulary, labels, metrics={}, card="tiny", extra={"max_length": max_length})
    return folder
