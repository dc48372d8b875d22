"""Commands forked from a warm process behave as if started by themselves."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.warm import FOLDER, LOADED, warm
from tests import servers


@pytest.fixture(scope="module")
def path(warm_stages: None) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        with warm():
            yield os.environ["PATH"]
        assert "deepmoji-" not in os.environ["PATH"]


def ask(path: str, *arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["deepmoji", *arguments],
        cwd=folder,
        env=os.environ | {"PATH": path} | variables,
        executable=Path(path.split(os.pathsep)[0], "deepmoji"),
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_output_and_exit_code_come_back(path: str, tmp_path: Path) -> None:
    done = ask(path, "predict", "--model", "starter", "--format", "json", "I love this", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["labels"]) == 5
    wrong = ask(path, "predict", "--model", "no-such-model", "hello", folder=tmp_path)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: "), wrong.stderr
    unknown = ask(path, "no-such-command", folder=tmp_path)
    assert unknown.returncode == 2 and "No such command" in unknown.stderr


def test_folder_and_environment_are_the_callers(path: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("preset: nonsense\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    here = ask(path, "ingest", folder=tmp_path)
    assert here.returncode == 2 and "params.yaml" in here.stderr, here.stderr
    (tmp_path / "elsewhere").mkdir()
    there = ask(path, "ingest", folder=tmp_path / "elsewhere", DEEPMOJI_PROJECT="/no/such/project")
    assert there.returncode == 2 and "/no/such/project" in there.stderr, there.stderr


def serving(path: str, folder: Path) -> tuple[subprocess.Popen[bytes], int, psutil.Process]:
    """A command that goes on until it is ended, its port, and the process that does its work."""
    port = servers.free_port()
    quick = Path(path.split(os.pathsep)[0], "deepmoji")
    caller = subprocess.Popen(
        [quick, "serve", "--model", "starter", "--port", str(port)], cwd=folder, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while True:
        try:
            servers.healthy(f"http://127.0.0.1:{port}/health")
            break
        except OSError:
            assert caller.poll() is None and time.monotonic() < until
            time.sleep(0.1)
    (worker,) = {
        connection.pid for connection in psutil.net_connections() if connection.laddr and connection.laddr.port == port
    } - {None}
    assert worker is not None and worker != caller.pid
    return caller, port, psutil.Process(worker)


def test_the_command_ends_with_its_caller(path: str, tmp_path: Path) -> None:
    caller, _, worker = serving(path, tmp_path)
    with caller:
        caller.kill()
    worker.wait(timeout=20)


def test_a_command_that_is_killed_is_no_success(path: str, tmp_path: Path) -> None:
    caller, _, worker = serving(path, tmp_path)
    with caller:
        worker.kill()
        _, error = caller.communicate(timeout=20)
    assert caller.returncode != 0
    assert b"was killed" in error


def test_a_dvc_ends_with_its_caller_and_with_all_that_it_started(path: str, tmp_path: Path) -> None:
    stages = {"stages": {"long": {"cmd": "echo $$ && exec sleep 300"}}}
    (tmp_path / "dvc.yaml").write_text(json.dumps(stages))
    environment = os.environ | {"PATH": path}
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    quick = Path(path.split(os.pathsep)[0], "dvc")
    with subprocess.Popen([quick, "repro"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        *lines, number = [caller.stdout.readline().strip() for _ in range(3)]
        assert lines == ["Running stage 'long':", "> echo $$ && exec sleep 300"]
        stage = psutil.Process(int(number))
        dvc = stage.parent()
        assert dvc is not None and dvc.pid != caller.pid
        caller.kill()
    _, alive = psutil.wait_procs([stage, dvc], timeout=20)
    assert alive == []


def test_a_command_that_fails_unforeseen_leaves_its_traceback(path: str, tmp_path: Path) -> None:
    (tmp_path / "deepmoji").mkdir()
    (tmp_path / "deepmoji" / "__init__.py").touch()
    (tmp_path / "deepmoji" / "cli.py").write_text("def main(arguments):\n    raise ValueError('nobody foresaw it')\n")
    done = ask(path, "ingest", folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "ValueError: nobody foresaw it" in done.stderr


def test_without_its_server_the_real_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.delenv(FOLDER, raising=False)  # one of its own
    with warm():
        Path(os.environ[FOLDER], "deepmoji.socket").unlink()
        done = ask(os.environ["PATH"], "--version", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("deepmoji"), done.stderr


def test_a_server_that_is_killed_leaves_no_caller_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.delenv(FOLDER, raising=False)  # one of its own
    others = psutil.Process().children()
    with warm():
        found = os.environ["PATH"]
        # All of them: which is which cannot be told yet, a process that only just started may show no arguments.
        started = [process for process in psutil.Process().children() if process not in others]
        assert len(started) == len(LOADED)
        for server in started:
            server.suspend()
        caller = subprocess.Popen([Path(found.split(os.pathsep)[0], "deepmoji"), "--version"], stdout=subprocess.PIPE)
        time.sleep(0.5)  # it has called by now, or finds nobody: both end in the real command
        for server in started:
            server.kill()
        with caller:
            output, _ = caller.communicate(timeout=60)
    assert caller.returncode == 0 and output.startswith(b"deepmoji")
