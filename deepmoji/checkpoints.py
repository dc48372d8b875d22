"""Models and training states on disk: safetensors and JSON, never pickle; whole or not there.

A model folder holds model.safetensors, config.json, vocabulary.json, labels.json, metrics.json, MODEL_CARD.md.
A training state is one safetensors file whose header carries the JSON, so that one rename makes it valid.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepmoji.errors import DeepMojiError, InputError, TrainingError, UsageError
from deepmoji.model import DeepMoji
from deepmoji.vocabulary import Vocabulary

FORMAT = 1
STORAGES = ("fp32", "fp16", "int8")
SCALE = ".scale"  # beside an int8 matrix: one fp32 factor for each of its rows
STATE_FILE = "state.safetensors"


@dataclass
class ModelFolder:
    """A model with all that is needed to use it; the model is in eval mode, on the CPU."""

    model: DeepMoji
    vocabulary: Vocabulary
    labels: tuple[str, ...]
    config: dict[str, Any]
    metrics: dict[str, Any]


def save_model(
    folder: Path,
    model: DeepMoji,
    vocabulary: Vocabulary,
    labels: Sequence[str],
    *,
    metrics: Mapping[str, Any],
    card: str,
    extra: Mapping[str, Any] | None = None,
    attach: Callable[[Path], None] | None = None,
    storage: str = "fp32",
) -> None:
    """Write a model folder beside `folder` and rename it there; an earlier model folder is replaced.

    `extra` joins config.json (max_length, thresholds, ...). `attach` writes further files into the folder it gets,
    before the rename. `storage`: how weights lie on disk, fp32, fp16 or int8 (matrices only, the rest is fp16 then);
    they are fp32 again once loaded. InputError: vocabulary or labels that do not fit the model; TrainingError: the
    disk refuses; UsageError: an unknown storage, or `folder` holds something else than a model.
    """
    check_place(folder)
    _check_fit(model.config, len(vocabulary), labels)
    config = {"format": FORMAT, **model.config, **(extra or {})}
    beside = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(pack_weights(model.state_dict(), storage), beside / "model.safetensors")
        vocabulary.save(beside / "vocabulary.json")
        # safetensors lets nobody but the owner read; who may read the rest of the folder may read the weights.
        shutil.copymode(beside / "vocabulary.json", beside / "model.safetensors")
        write_json(beside / "labels.json", list(labels))
        write_json(beside / "metrics.json", metrics)
        (beside / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        if attach is not None:
            attach(beside)
        write_json(beside / "config.json", config)
        _replace_folder(beside, folder)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"The model folder {folder} cannot be written ({reason(error)}): free space or choose another folder."
        ) from None


def check_place(folder: Path) -> None:
    """UsageError where a model folder may not be written, since it would take the place of something else."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is there and is no model folder: name one that is not there, or an empty one.")


def load_model(folder: Path) -> ModelFolder:
    """Read a model folder. InputError: a part is missing, unreadable, or does not fit the others."""
    config = read_json(folder / "config.json")
    labels = read_json(folder / "labels.json")
    metrics = read_json(folder / "metrics.json")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{folder / 'config.json'} is not of format {FORMAT}: name a model folder of this project.")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{folder / 'labels.json'} holds no list of labels: fetch the folder again.")
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    try:
        with torch.device("meta"):  # no memory and no random start for weights that are read anyway
            model = DeepMoji(**{name: config[name] for name in DeepMoji(2, 1, 1, 1).config})
        model.load_state_dict(unpack_weights(load_file(folder / "model.safetensors")), assign=True)
    except (OSError, SafetensorError, RuntimeError, KeyError, DeepMojiError) as error:
        raise InputError(
            f"The weights in {folder} cannot be read or do not fit config.json ({reason(error)}): fetch them again."
        ) from None
    _check_fit(model.config, len(vocabulary), labels)
    return ModelFolder(model.eval(), vocabulary, tuple(labels), config, metrics)


def pack_weights(weights: Mapping[str, Tensor], storage: str) -> dict[str, Tensor]:
    """Weights as they lie on disk; the opposite of `unpack_weights`. UsageError: an unknown storage."""
    if storage not in STORAGES:
        raise UsageError(f"The storage {storage!r} is not known: choose one of {', '.join(STORAGES)}.")
    packed = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu()
        if storage == "int8" and tensor.ndim == 2:
            scale = tensor.abs().amax(dim=1).clamp(min=1e-12) / 127
            packed[name + SCALE] = scale
            tensor = (tensor / scale[:, None]).round().to(torch.int8)
        elif storage != "fp32":
            tensor = tensor.half()
        packed[name] = tensor.contiguous()
    return packed


def unpack_weights(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fp32 weights from what `pack_weights` made, whatever the storage."""
    weights = {name: tensor.float() for name, tensor in packed.items() if not name.endswith(SCALE)}
    for name in packed:
        if name.endswith(SCALE):
            weights[name.removesuffix(SCALE)] *= packed[name][:, None]
    return weights


def save_state(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the training state in `folder` by these tensors and this JSON. TrainingError: the disk refuses."""
    target = folder / STATE_FILE
    beside = target.with_suffix(".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, beside, metadata={"state": json.dumps(state)})
        with beside.open("rb+") as stream:
            os.fsync(stream.fileno())  # the rename must not reach the disk before the bytes
        beside.replace(target)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise TrainingError(
            f"The checkpoint in {folder} cannot be written ({reason(error)}): "
            "free space and run again, the last good checkpoint is intact."
        ) from None


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The training state in `folder`, or None where there is none. TrainingError: it is there but unreadable."""
    target = folder / STATE_FILE
    if not target.is_file():
        return None
    try:
        with safe_open(target, framework="pt") as stream:
            state = json.loads(stream.metadata()["state"])
        return load_file(target), state
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"The checkpoint {target} cannot be read ({reason(error)}): delete it to start anew."
        ) from None


def clear_state(folder: Path) -> None:
    """Remove the training state of a run that is done, and the folder if nothing else is in it."""
    for name in (STATE_FILE, Path(STATE_FILE).with_suffix(".tmp").name):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=isinstance(content, Mapping))
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: name a whole model folder.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({reason(error)}): fetch the folder again.") from None


def _replace_folder(beside: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _check_fit(config: Mapping[str, Any], words: int, labels: Sequence[str]) -> None:
    if words != config["vocabulary_size"]:
        raise InputError(
            f"The vocabulary has {words} words, the model's embedding {config['vocabulary_size']}: "
            "give the vocabulary that the model was trained with."
        )
    wanted = 2 if config["task"] == "binary" else config["classes"]
    if len(labels) != wanted:
        raise InputError(f"There are {len(labels)} labels, the model has {wanted} classes: give one label per class.")


def reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
