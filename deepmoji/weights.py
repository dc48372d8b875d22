"""Published weights to a model folder: Keras .hdf5 of DeepMoji, .bin of torchMoji.

Keras stores kernels as (inputs, 4H) with gates in the order i f c o and one bias; torch stores (4H, inputs) in the
same gate order with two biases, of which the second stays 0. The published weights were trained with Keras' hard
sigmoid, so the folder says recurrent_activation "hard_sigmoid".
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepmoji.checkpoints import reason, save_model
from deepmoji.emojis import load_labels
from deepmoji.errors import InputError, UsageError
from deepmoji.model import DeepMoji
from deepmoji.vocabulary import Vocabulary, numbered

Array = NDArray[np.float32]

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
TORCH_READ_ERRORS = (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, LookupError, TypeError, struct.error)
DIRECTIONS = ("", "_reverse")  # torch's names: forward, backward


def import_weights(
    path: Path | str,
    out: Path | str,
    vocabulary: Path | str | None = None,
    labels: Path | str | Sequence[str] | None = None,
) -> Path:
    """Convert a published weights file and write the model folder `out`; returns `out`.

    `vocabulary`: the {word: id} JSON the weights were trained with; without it, words are named by their number
    (`<10>`), and the model takes ids, no texts. `labels`: a label set or a file of one, or the names; default is the 64
    emojis for 64 outputs, else "0", "1", ... InputError: not such a file, or a layer is missing or misshapen.
    UsageError: .hdf5 without h5py.
    """
    path, out = Path(path), Path(out)
    arrays = _read(path)
    model = _build(arrays, path)
    words = Vocabulary.load(Path(vocabulary)) if vocabulary is not None else numbered(model.embedding.num_embeddings)
    save_model(
        out,
        model,
        words,
        _labels(labels, model),
        metrics={},
        card=_card(path, model),
        extra={"max_length": 30, "source": path.name},
    )
    return out


def _read(path: Path) -> dict[str, Array]:
    """The file's arrays under the names of DeepMoji's own state dict."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({reason(error)}): name a published .hdf5 or .bin weights file."
        ) from None
    if start == HDF5_MAGIC:
        return _read_keras(path)
    if start.startswith((b"PK", b"\x80")):
        return _read_torchmoji(path)
    raise InputError(f"{path} is neither HDF5 nor a torch file: name a published .hdf5 or .bin weights file.")


def _read_keras(path: Path) -> dict[str, Array]:
    """Layers by what they hold: one matrix embeds, six arrays are a BiLSTM, a vector attends, two end the model."""
    try:
        import h5py
    except ImportError:
        raise UsageError(f"{path} is HDF5, for which h5py is missing: run `pip install 'deepmoji[keras]'`.") from None
    try:
        with h5py.File(path) as file:
            layers = _keras_layers(file)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no Keras weights file ({reason(error)}): download it again.") from None
    found: dict[str, Array] = {}
    recurrent = 0
    for name, arrays in layers:
        shapes = [array.shape for array in arrays]
        if len(arrays) == 6 and recurrent < 2:
            found |= _keras_lstm(f"lstm{recurrent}", arrays)
            recurrent += 1
        elif len(arrays) == 1 and "embedding.weight" not in found and arrays[0].ndim == 2 and not recurrent:
            found["embedding.weight"] = arrays[0]
        elif len(arrays) == 1 and recurrent == 2 and arrays[0].size == max(shapes[0]):
            found["attention.weight"] = arrays[0].reshape(-1)
        elif len(arrays) == 2 and arrays[0].ndim == 2 and arrays[1].ndim == 1 and "output.weight" not in found:
            found["output.weight"], found["output.bias"] = arrays[0].T, arrays[1]
        else:
            raise InputError(
                f"Layer {name!r} of {path} holds arrays of shapes {shapes}, which no DeepMoji layer has at that place: "
                "name the weights of a DeepMoji model."
            )
    return found


def _keras_layers(file: Any) -> list[tuple[str, list[Array]]]:
    """(layer name, its arrays in the order of weight_names) for each layer with weights, in the order of the model."""
    root = file.get("model_weights", file)  # a whole saved model, or its weights
    layers = []
    for name in _names(root.attrs, "layer_names"):
        group = root[name]
        arrays = [np.asarray(group[weight], dtype=np.float32) for weight in _names(group.attrs, "weight_names")]
        if arrays:
            layers.append((name, arrays))
    return layers


def _names(attributes: Any, key: str) -> list[str]:
    """A list of names; Keras cuts one of more than 64 KB into key0, key1, ..."""
    if key in attributes:
        values = list(attributes[key])
    else:
        parts = sorted((name for name in attributes if name.startswith(key)), key=lambda name: int(name[len(key) :]))
        if not parts:
            raise KeyError(f"no {key}")
        values = [value for part in parts for value in attributes[part]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _keras_lstm(name: str, arrays: Sequence[Array]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for direction, (kernel, recurrent, bias) in zip(DIRECTIONS, (arrays[:3], arrays[3:]), strict=True):
        found |= {
            f"{name}.weight_ih_l0{direction}": kernel.T,
            f"{name}.weight_hh_l0{direction}": recurrent.T,
            f"{name}.bias_ih_l0{direction}": bias,
            f"{name}.bias_hh_l0{direction}": np.zeros_like(bias),
        }
    return found


def _read_torchmoji(path: Path) -> dict[str, Array]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except TORCH_READ_ERRORS as error:
        raise InputError(
            f"{path} is no plain torch weights file ({reason(error)}): download the torchMoji weights again."
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict of tensors: name the weights of a torchMoji model.")
    found: dict[str, Array] = {}
    for name, tensor in state.items():
        layer, _, rest = str(name).partition(".")
        target = {"embed": "embedding", "lstm_0": "lstm0", "lstm_1": "lstm1"}.get(layer)
        if layer == "attention_layer":
            target, rest = "attention", "weight"
        elif layer == "output_layer":
            target, rest = "output", rest.removeprefix("0.")
        if target is None:
            raise InputError(
                f"{path} holds {name!r}, which no torchMoji model has: name the weights of a torchMoji model."
            )
        array = tensor.float().numpy()
        found[f"{target}.{rest}"] = array.reshape(-1) if target == "attention" else array
    return found


def _build(arrays: Mapping[str, Array], path: Path) -> DeepMoji:
    """A model of the arrays' sizes with these weights."""
    for name in ("embedding.weight", "lstm0.weight_hh_l0", "lstm1.weight_hh_l0", "attention.weight", "output.weight"):
        if name not in arrays:
            raise InputError(
                f"{path} has no {name.partition('.')[0]} layer: name the weights of a whole DeepMoji model."
            )
    words, size = arrays["embedding.weight"].shape
    classes = arrays["output.weight"].shape[0]
    model = DeepMoji(
        words,
        classes,
        embedding_size=size,
        hidden_size=arrays["lstm0.weight_hh_l0"].shape[1],
        task="binary" if classes == 1 else "multiclass",
        recurrent_activation="hard_sigmoid",
    )
    for name, parameter in model.state_dict().items():
        if name not in arrays or arrays[name].shape != tuple(parameter.shape):
            came = "is missing" if name not in arrays else f"has shape {arrays[name].shape}"
            raise InputError(
                f"In {path} the weight {name} {came} where {tuple(parameter.shape)} is expected: "
                "name the weights of a whole DeepMoji model."
            )
    extra = sorted(set(arrays) - set(model.state_dict()))
    if extra:
        raise InputError(f"{path} holds {', '.join(extra)} too, which DeepMoji does not have: name another file.")
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})
    return model


def _labels(labels: Path | str | Sequence[str] | None, model: DeepMoji) -> tuple[str, ...]:
    count = 2 if model.task == "binary" else model.output.out_features
    if labels is None:
        return load_labels("emojis64").names if count == 64 else tuple(str(number) for number in range(count))
    return load_labels(labels).names if isinstance(labels, str | Path) else tuple(labels)


def _card(path: Path, model: DeepMoji) -> str:
    return f"""# DeepMoji, imported weights

Converted from `{path.name}`: {model.embedding.num_embeddings:,} words, embedding {model.embedding.embedding_dim},
hidden size {model.lstm0.hidden_size} per direction, {model.output.out_features} output(s). Gates use Keras' hard
sigmoid, as these weights were trained with. Data, figures and limits are those of the weights' publisher.
"""
