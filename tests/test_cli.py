"""The command line: answers on stdout, mistakes as one sentence with the promised exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from deepmoji import cli
from deepmoji.errors import InputError, ServiceError, UsageError


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepmoji.cli", *arguments], capture_output=True, text=True, timeout=120, cwd=cwd
    )


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


def test_predict_without_that_folder(tmp_path: Path) -> None:
    done = run("predict", "--model", str(tmp_path / "none"), "hello")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr


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
