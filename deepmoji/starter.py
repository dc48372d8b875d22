"""The starter model that ships with the package: where it is, and how a trained model becomes one.

Stored as int8 with one scale for each row of a matrix it takes a quarter of the space; it computes in fp32 all the
same. Rebuilt by `make starter DATA=...`; its own MODEL_CARD.md says from what.
"""

from pathlib import Path
from typing import Any

from deepmoji.errors import InputError

STARTER = "starter"


def starter_folder() -> Path:
    """The folder in the installed package. InputError: this copy of the package has none."""
    folder = Path(__file__).parent / "data" / "starter"
    if not (folder / "config.json").is_file():
        raise InputError(f"This copy of deepmoji has no starter model in {folder}: train one with `make starter`.")
    return folder


def compress(folder: Path, out: Path, *, storage: str, words: int | None, note: str = "") -> dict[str, Any]:
    """Write a smaller copy of a model folder to `out`; returns its size in bytes and its number of words.

    storage: fp32, fp16 or int8. words: keep only so many of the vocabulary, its most frequent; the others become the
    unknown word. `note` is added to the model card. UsageError: options out of range.
    """
    from deepmoji.checkpoints import load_model, save_model
    from deepmoji.model import DeepMoji
    from deepmoji.vocabulary import Vocabulary

    source = load_model(folder)
    vocabulary, model = source.vocabulary, source.model
    if words is not None and words < len(vocabulary):
        vocabulary = Vocabulary(vocabulary.words[:words])
        state = model.state_dict()
        state["embedding.weight"] = state["embedding.weight"][:words].clone()
        model = DeepMoji(**(model.config | {"vocabulary_size": words}))
        model.load_state_dict(state)
    extra = {key: value for key, value in source.config.items() if key not in model.config and key != "format"}
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8").rstrip() + "\n\n" + note
    card += f"\nThis copy: {len(vocabulary):,} words, weights stored as {storage}, computed in fp32.\n"
    save_model(out, model, vocabulary, source.labels, metrics=source.metrics, card=card, extra=extra, storage=storage)
    return {"bytes": folder_bytes(out), "words": len(vocabulary), "storage": storage}


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
