"""Model folders: what is written comes back, whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepmoji import checkpoints
from deepmoji.checkpoints import load_model, save_model
from deepmoji.errors import InputError, TrainingError, UsageError
from deepmoji.model import DeepMoji, Task
from deepmoji.vocabulary import SPECIALS, Vocabulary

VOCABULARY = Vocabulary((*SPECIALS, "good", "bad", "day"))


def model(seed: int = 0, task: Task = "multiclass") -> DeepMoji:
    torch.manual_seed(seed)
    classes = 1 if task == "binary" else 3
    return DeepMoji(len(VOCABULARY), classes, 4, 3, task=task, recurrent_activation="hard_sigmoid")


def save(folder: Path, seed: int = 0) -> None:
    save_model(
        folder, model(seed), VOCABULARY, ["😂", "😍", "x"], metrics={"b": 1, "a": 0.5}, card="# Card\n",
        extra={"max_length": 30},
    )  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    save(tmp_path / "m")
    found = load_model(tmp_path / "m")
    for name, tensor in model().state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name
    assert not found.model.training
    assert found.vocabulary == VOCABULARY
    assert found.labels == ("😂", "😍", "x")
    assert found.metrics == {"a": 0.5, "b": 1}
    assert found.config["max_length"] == 30 and found.config["recurrent_activation"] == "hard_sigmoid"
    assert set(files(tmp_path / "m")) == {
        "model.safetensors", "config.json", "vocabulary.json", "labels.json", "metrics.json", "MODEL_CARD.md",
    }  # fmt: skip


def test_who_may_read_the_folder_may_read_the_weights(tmp_path: Path) -> None:
    save(tmp_path / "m")
    assert len({path.stat().st_mode for path in (tmp_path / "m").iterdir()}) == 1


def test_loading_does_without_the_import_of_the_compiler(tmp_path: Path) -> None:
    """It takes longer than all the rest of a first prediction."""
    save(tmp_path / "m")
    script = (
        "import sys; from pathlib import Path; from deepmoji.checkpoints import load_model\n"
        "load_model(Path(sys.argv[1])); sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "m")], check=True, timeout=100)


def test_equal_models_are_equal_bytes(tmp_path: Path) -> None:
    save(tmp_path / "a")
    save(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_binary_model_has_two_labels(tmp_path: Path) -> None:
    save_model(tmp_path / "m", model(task="binary"), VOCABULARY, ["no", "yes"], metrics={}, card="")
    assert load_model(tmp_path / "m").labels == ("no", "yes")
    with pytest.raises(InputError, match="3 labels"):
        save_model(tmp_path / "n", model(task="binary"), VOCABULARY, ["a", "b", "c"], metrics={}, card="")


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="10 words"):
        save_model(tmp_path / "m", model(), Vocabulary(SPECIALS), ["a", "b", "c"], metrics={}, card="")
    assert not (tmp_path / "m").exists()


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "m")
    before = files(tmp_path / "m")

    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", full)
        with pytest.raises(TrainingError, match="No space left on device"):
            save(tmp_path / "m", seed=1)
    assert files(tmp_path / "m") == before
    save(tmp_path / "m", seed=1)  # what the failed write left behind does not stand in the way
    assert files(tmp_path / "m") != before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_is_no_model_folder_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save(folder)  # an empty folder may become one, and be replaced
    save(folder)
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.txt").write_text("three years")
    for place in (other, other / "thesis.txt"):
        with pytest.raises(UsageError, match="is no model folder"):
            save(place)
    assert (other / "thesis.txt").read_text() == "three years"


def test_further_files_belong_to_the_folder(tmp_path: Path) -> None:
    save_model(
        tmp_path / "m", model(), VOCABULARY, "abc", metrics={}, card="",
        attach=lambda folder: checkpoints.write_json(folder / "results.json", [1]),
    )  # fmt: skip
    assert json.loads((tmp_path / "m" / "results.json").read_text()) == [1]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("config.json", None, "missing"),
        ("config.json", b"{", "JSON"),
        ("config.json", b"{}", "format"),
        ("model.safetensors", b"\x08\x00", "weights"),
        ("model.safetensors", None, "weights"),
        ("labels.json", b'["a"]', "1 labels"),
        ("labels.json", b"7", "labels"),
        ("vocabulary.json", b"{}", "vocabulary"),
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, name: str, content: bytes | None, word: str) -> None:
    save(tmp_path / "m")
    if content is None:
        (tmp_path / "m" / name).unlink()
    else:
        (tmp_path / "m" / name).write_bytes(content)
    with pytest.raises(InputError, match=word) as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_weights_of_other_sizes_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 3', '"hidden_size": 4'))
    with pytest.raises(InputError, match=r"do not fit config\.json"):
        load_model(tmp_path / "m")
