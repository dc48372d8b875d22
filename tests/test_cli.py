"""The command line: answers on stdout, mistakes as one sentence with the promised exit code."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from deepmoji import cli
from deepmoji.errors import InputError, ServiceError, UsageError
from tests.conftest import deepmoji
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("warm_stages")


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return deepmoji(*arguments, text=True, cwd=cwd)


def test_outside_a_project(tmp_path: Path) -> None:
    done = run("ingest", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "not inside a DeepMoji project" in done.stderr


def test_unknown_option_and_command() -> None:
    assert run("ingest", "--fast").returncode == 2
    assert run("teleport").returncode == 2


def test_finetune_wants_one_source(tmp_path: Path) -> None:
    assert "either --dataset" in run("finetune", cwd=tmp_path).stderr
    assert run("finetune", "--dataset", "a", "--data", "b.csv", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("option", ["--text-column", "--label-column", "--split", "--model", "--name", "--out"])
def test_finetune_refuses_options_of_an_own_table_for_a_set_of_params(option: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.cli, ["--project", str(tmp_path), "finetune", "--dataset", "a", option, "starter"])
    assert done.exit_code == 2
    assert f"{option} goes with --data" in done.output


def test_predict_without_that_folder(tmp_path: Path) -> None:
    done = run("predict", "--model", str(tmp_path / "none"), "hello")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr


@pytest.mark.parametrize("command", [("predict",), ("encode", "--out", "f.npy"), ("explain",)])
def test_every_answer_says_which_model_gave_it(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run(*command, "--model", str(tiny_model(tmp_path / "model")), "love", cwd=tmp_path)
    assert done.returncode == 0
    assert f"model: {tmp_path / 'model'}" in done.stderr.splitlines()
    assert "model" not in done.stdout


def predict(model: Path, arguments: tuple[bytes, ...] = (), given: bytes = b"") -> tuple[int, list[str], str]:
    """Exit code, the texts that were answered, and what the user is told."""
    done = deepmoji("predict", "--model", str(model), "--format", "json", *arguments, input=given)
    texts = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    return done.returncode, texts, done.stderr.decode()


@pytest.mark.parametrize(("shape", "said"), [("text", "😂* "), ("csv", ",😂|"), ("json", '"decision": ["😂", ')])
def test_labels_that_reach_their_thresholds_are_told(tmp_path: Path, shape: str, said: str) -> None:
    folder = tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    limits = [0.0, 0.0, *[0.99] * (len(json.loads((folder / "labels.json").read_text())) - 2)]
    (folder / "config.json").write_text(json.dumps({**config, "thresholds": limits}))
    done = run("predict", "--model", str(folder), "--format", shape, "love")
    assert done.returncode == 0 and said in done.stdout
    assert done.stdout.count("*") == (2 if shape == "text" else 0)
    if shape == "text":  # a label that counts is shown however improbable
        assert run("predict", "--model", str(folder), "--top", "1", "love").stdout.count("*") == 2


def test_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    """Set aside among the lines of standard input, as in a file; answered as an argument."""
    model = tiny_model(tmp_path / "model")
    code, texts, told = predict(model, given="\ufefflove\r\ncaf\udce9\nhate ♥\u2028".encode(errors="surrogateescape"))
    assert (code, texts) == (0, ["love", "hate ♥\u2028"])
    assert "set aside: standard input, line 2: is not UTF-8\n" in told
    code, texts, told = predict(model, given=b"caf\xe9\n")
    assert (code, texts) == (1, [])
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("error: Standard input has no line that can be read")
    assert predict(model, (b"caf\xe9",))[:2] == (0, ["caf\udce9"])


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (InputError("The file is empty."), 1, "error: The file is empty."),
        (UsageError("No such method."), 2, "error: No such method."),
        (ServiceError("MLflow is away."), 1, cli.TEMPORARY + "MLflow is away."),
        (OSError(28, "No space left on device", "/full/disk"), 1, "error: /full/disk could not be used"),
    ],
)
def test_errors_become_a_sentence(
    error: Exception, code: int, start: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli.commands["sample"], "callback", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "--out", "x"])
    assert stop.value.code == code
    shown = capsys.readouterr()
    assert shown.err.startswith(start)
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_datasets_lists_name_task_metric_and_licence() -> None:
    done = run("datasets")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["name", "task", "metric", "licence"]
    assert any(line.startswith("SS-Youtube ") and "binary" in line for line in lines)
    real = [line for line in lines[1:] if not line.startswith("sample-")]
    assert len(real) == 17
    # A licence note, after the three columns that are one word each.
    assert all(len(line.split(maxsplit=3)[3].split()) >= 3 for line in real)
    assert all(any(word in line for word in ("use", "MIT", "Apache")) for line in real)


def test_datasets_tells_where_a_set_is_looked_for() -> None:
    lines = run("datasets", "--long").stdout.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("SS-Youtube "))
    assert lines[place + 1] == "    deepmoji/SS-Youtube, from github.com/bfelbo/DeepMoji"
    assert run("datasets", "--long", "--write").returncode == 2


@pytest.mark.parametrize("command", ["predict", "encode"])
@pytest.mark.parametrize(
    ("options", "says"),
    [(("--file", "a.txt", "a text"), "one of the two"), (("--text-column", "tweet"), "with --file")],
)
def test_options_that_would_be_ignored_are_refused(
    command: str, options: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("another text\n")
    out = ["--out", str(tmp_path / "features.npy")] if command == "encode" else []
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.cli, [command, "--model", "starter", *options, *out])
    assert isinstance(done.exception, UsageError) and says in str(done.exception)
