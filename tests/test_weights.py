"""Published weights: both formats, any sizes, every way in which a file is not one."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deepmoji.checkpoints import ModelFolder, load_model
from deepmoji.cli import main
from deepmoji.errors import InputError, UsageError
from deepmoji.inference import load_folder
from deepmoji.model import DeepMoji, Task, lengths_of, probabilities
from deepmoji.vocabulary import SPECIALS, Vocabulary
from deepmoji.weights import import_weights

Array = NDArray[np.float32]
WORDS, E, H = 30, 5, 4
PUBLISHED = os.environ.get("DEEPMOJI_PUBLISHED_WEIGHTS")


def source(classes: int) -> DeepMoji:
    torch.manual_seed(0)
    task: Task = "binary" if classes == 1 else "multiclass"
    model = DeepMoji(WORDS, classes, E, H, task=task, recurrent_activation="hard_sigmoid").eval()
    with torch.no_grad():
        for lstm in (model.lstm0, model.lstm1):
            for name, parameter in lstm.named_parameters():
                if "bias" in name:
                    parameter.copy_(torch.randn(4 * H) if "ih" in name else torch.zeros(4 * H))
    return model


def keras_layers(model: DeepMoji) -> dict[str, list[Array]]:
    """The model's weights as Keras lists them: (inputs, 4H) kernels, forward before backward."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    layers: dict[str, list[Array]] = {"input_1": [], "embedding": [state["embedding.weight"]], "activation_1": []}
    for number in (0, 1):
        layers[f"bi_lstm_{number}"] = [
            state[f"lstm{number}.{name}_l0{direction}"].T
            for direction in ("", "_reverse")
            for name in ("weight_ih", "weight_hh", "bias_ih")
        ]
    layers["concatenate_1"] = []
    layers["attlayer"] = [state["attention.weight"][:, None]]
    layers["softmax"] = [state["output.weight"].T, state["output.bias"]]
    return layers


def write_keras(path: Path, layers: dict[str, list[Array]], root: str = "", nested: bool = True) -> None:
    with h5py.File(path, "w") as file:
        top = file.create_group(root) if root else file
        top.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = top.create_group(name)
            names = [f"{name}/part/some_name_{i}:0" if nested else f"param_{i}" for i in range(len(arrays))]
            group.attrs["weight_names"] = [weight.encode() for weight in names]
            for weight, array in zip(names, arrays, strict=True):
                group[weight] = array


def torchmoji_state(model: DeepMoji) -> dict[str, torch.Tensor]:
    names = {"embedding": "embed", "lstm0": "lstm_0", "lstm1": "lstm_1", "output": "output_layer.0"}
    state = {}
    for name, tensor in model.state_dict().items():
        layer, rest = name.split(".")
        state["attention_layer.attention_vector" if layer == "attention" else f"{names[layer]}.{rest}"] = tensor
    return state


def outputs(model: DeepMoji) -> list[torch.Tensor]:
    ids = torch.arange(1, 25).reshape(4, 6) * (torch.arange(6) < torch.tensor([[6], [2], [0], [5]]))
    with torch.inference_mode():
        features, attention = model.features(ids, lengths_of(ids))
        return [features, attention, probabilities(model(ids, lengths_of(ids)), model.task)]


def assert_same(found: ModelFolder, wanted: DeepMoji) -> None:
    assert found.model.task == wanted.task
    for mine, theirs in zip(outputs(found.model), outputs(wanted), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("classes", [64, 7, 1])
@pytest.mark.parametrize(("root", "nested"), [("", True), ("model_weights", True), ("", False)])
def test_keras_weights_of_any_size_and_layout(tmp_path: Path, classes: int, root: str, nested: bool) -> None:
    write_keras(tmp_path / "w.hdf5", keras_layers(source(classes)), root, nested)
    import_weights(tmp_path / "w.hdf5", tmp_path / "m")
    found = load_model(tmp_path / "m")
    assert_same(found, source(classes))
    assert found.config["recurrent_activation"] == "hard_sigmoid"
    assert len(found.labels) == max(classes, 2)
    assert (found.labels[0] == "😂") == (classes == 64)


@pytest.mark.parametrize("classes", [64, 7, 1])
@pytest.mark.parametrize("zipped", [True, False])
def test_torchmoji_weights_of_any_size_and_age(tmp_path: Path, classes: int, zipped: bool) -> None:
    torch.save(torchmoji_state(source(classes)), tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    import_weights(tmp_path / "w.bin", tmp_path / "m")
    assert_same(load_model(tmp_path / "m"), source(classes))


def test_vocabulary_and_labels_are_kept(tmp_path: Path) -> None:
    Vocabulary((*SPECIALS, *map(str, range(WORDS - len(SPECIALS))))).save(tmp_path / "v.json")
    write_keras(tmp_path / "w.hdf5", keras_layers(source(2)))
    import_weights(str(tmp_path / "w.hdf5"), str(tmp_path / "m"), vocabulary=tmp_path / "v.json", labels=["no", "yes"])
    found = load_model(tmp_path / "m")
    assert found.vocabulary.words[-1] == "19" and found.labels == ("no", "yes")


def test_weights_without_a_vocabulary_take_ids_and_refuse_texts(tmp_path: Path) -> None:
    write_keras(tmp_path / "w.hdf5", keras_layers(source(2)))
    import_weights(tmp_path / "w.hdf5", tmp_path / "m")
    model = load_folder(tmp_path / "m")
    assert model.probabilities_from_ids(np.array([[12, 13]])).shape == (1, 2)
    for ask in (model.predict, model.encode, model.explain):
        with pytest.raises(UsageError, match="import its weights again with --vocabulary"):
            ask(["love"])


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    Vocabulary(SPECIALS).save(tmp_path / "v.json")
    write_keras(tmp_path / "w.hdf5", keras_layers(source(2)))
    with pytest.raises(InputError, match="10 words"):
        import_weights(tmp_path / "w.hdf5", tmp_path / "m", vocabulary=tmp_path / "v.json")
    assert not (tmp_path / "m").exists()


def broken_keras(layers: dict[str, list[Array]]) -> Iterator[tuple[str, dict[str, list[Array]]]]:
    for name in ("embedding", "bi_lstm_0", "attlayer", "softmax"):
        yield "layer", {key: value for key, value in layers.items() if key != name}
    yield "shape", {**layers, "attlayer": [layers["attlayer"][0][:-1]]}
    yield "shapes", {**layers, "bi_lstm_1": layers["bi_lstm_1"][:3]}
    yield "shapes", {**layers, "softmax_2": layers["softmax"]}
    yield "shape", {**layers, "bi_lstm_1": layers["bi_lstm_0"]}


def test_keras_files_that_are_no_deepmoji_are_one_sentence(tmp_path: Path) -> None:
    for number, (word, layers) in enumerate(broken_keras(keras_layers(source(3)))):
        write_keras(tmp_path / f"{number}.hdf5", layers)
        with pytest.raises(InputError, match=word) as caught:
            import_weights(tmp_path / f"{number}.hdf5", tmp_path / "m")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_torch_files_that_are_no_deepmoji_are_one_sentence(tmp_path: Path) -> None:
    state = torchmoji_state(source(3))
    without = {name: tensor for name, tensor in state.items() if "hh_l0_reverse" not in name}
    cases: list[tuple[object, str]] = [
        (without, "weight_hh_l0_reverse is missing"),
        ({**state, "conv.weight": torch.zeros(1)}, "conv.weight"),
        ({**state, "lstm_0.weight_ih_l1": torch.zeros(1)}, "weight_ih_l1"),
        ([1, 2], "state dict"),
        ({"a": Path("x")}, "plain torch weights"),  # needs code to load: refused, not run
    ]
    for content, word in cases:
        torch.save(content, tmp_path / "w.bin")
        with pytest.raises(InputError, match=word) as caught:
            import_weights(tmp_path / "w.bin", tmp_path / "m")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"hello", b"\x89HDF\r\n\x1a\nrest", b"PK\x03\x04", b"\x80\x02junk"])
def test_files_that_are_no_weights_are_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "w").write_bytes(content)
    with pytest.raises(InputError) as caught:
        import_weights(tmp_path / "w", tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_keras_weights_without_h5py_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_keras(tmp_path / "w.hdf5", keras_layers(source(3)))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UsageError, match=r"run `pip install 'deepmoji\[keras\]'`"):
        import_weights(tmp_path / "w.hdf5", tmp_path / "m")


def test_the_command_names_the_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--labels: a file of names, in order of the outputs; another number of them is refused."""
    write_keras(tmp_path / "w.hdf5", keras_layers(source(3)))
    names = tmp_path / "names.txt"
    names.write_text("glad\nsad\nangry\n")
    arguments = ["import-weights", str(tmp_path / "w.hdf5"), str(tmp_path / "m"), "--labels"]
    assert main([*arguments, str(names)]) is None
    assert load_model(tmp_path / "m").labels == ("glad", "sad", "angry")
    for wrong in ("emojis20", str(tmp_path / "missing.txt")):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, wrong])
        assert stop.value.code in (1, 2)
        assert capsys.readouterr().err.startswith("error: ")
    assert load_model(tmp_path / "m").labels == ("glad", "sad", "angry")


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["tiny_keras.hdf5", "tiny_torchmoji.bin"])
def test_the_reference_files_give_the_reference_numbers(real_data: Path, tmp_path: Path, name: str) -> None:
    reference = real_data.parent / "reference"
    import_weights(reference / name, tmp_path / "m")
    model = load_model(tmp_path / "m").model
    wanted = np.load(reference / "tiny_expected.npz")
    all_ids = torch.from_numpy(wanted["token_ids"].astype(np.int64))
    order = torch.randperm(len(all_ids), generator=torch.Generator().manual_seed(0))
    for size in (1, 5, 24):
        for rows in torch.split(order, size):
            ids = all_ids[rows]
            with torch.inference_mode():
                features, attention = model.features(ids, lengths_of(ids))
                chances = probabilities(model(ids, lengths_of(ids)), "multiclass")
            for mine, key in ((features, "features"), (attention, "attention"), (chances, "probabilities")):
                np.testing.assert_allclose(mine.numpy(), wanted[key][rows.numpy()], atol=1e-5, rtol=0, err_msg=key)


if PUBLISHED:

    def test_the_published_weights_give_the_published_emojis(real_data: Path, tmp_path: Path) -> None:
        """Top-5 ids printed in the ancestors' own examples."""
        golden = {
            "I love mom's cooking": [36, 4, 8, 16, 47],
            "I love how you never reply back..": [1, 19, 55, 25, 46],
            "This is shit": [55, 32, 27, 1, 37],
            "This is the shit": [48, 11, 6, 31, 9],
        }
        vocabulary = real_data / "deepmoji" / "vocabulary.json"
        import_weights(str(PUBLISHED), tmp_path / "m", vocabulary=vocabulary)
        found = load_model(tmp_path / "m")
        ids = torch.from_numpy(found.vocabulary.encode(list(golden), 30).astype(np.int64))
        with torch.inference_mode():
            top = found.model(ids, lengths_of(ids)).topk(5).indices
        assert top.tolist() == list(golden.values())
