"""Runs in a real MLflow on sqlite: what is kept, how they end, and that nothing is lost or blurted out."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepmoji import tracking
from deepmoji.errors import RegistryError, ServiceError
from deepmoji.provenance import UNKNOWN, provenance


def start(root: Path, **options: Any) -> Any:
    return tracking.start_run(root, "pretrain", "a run", **({"params": {}, "tags": {}} | options))


def read(root: Path, run_id: str) -> Any:
    return tracking.client(tracking.tracking_uri(root)).get_run(run_id)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder under git with a finished run's worth of dvc.lock."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "dvc.lock").write_text("stages: {}\n")
    (folder / ".gitignore").write_text(".state/\n")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def test_uri_is_absolute_and_yields_to_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.tracking_uri(Path()) == f"sqlite:///{tmp_path.resolve()}/.state/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking.tracking_uri(tmp_path) == "http://127.0.0.1:5000"


def test_import_of_tracking_does_not_import_mlflow() -> None:
    code = "import deepmoji.tracking, sys; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd="/").returncode == 0


def test_a_run_keeps_everything_that_is_told(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plots = tmp_path / "plots"
    plots.mkdir()
    (plots / "one.txt").write_text("1")
    params = {"epochs": 3, "patience": None, "names": ["a", "ö"], "label": "text"}
    with start(root, params=params, tags={"stage": "pretrain", "preset": "sample"}, description="why") as run:
        for step in range(3):
            run.metrics({"loss": 3.0 - step, "per_label.😂": 0.5}, step)
        run.dataset("tweets", "abc123", "data/tweets", 42)
        run.artifacts(plots)
        run.artifacts(plots / "one.txt")
        run.tag("note", "seen")
        run.dataset("labels", "def456", "artifacts/datasets")
        child = run.child("seed 1", {"seed": 1}, {"accuracy": 0.75}, began=1000.5, dataset="labels")
    kept = read(root, run.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.data.params == {"epochs": "3", "patience": "null", "names": '["a", "ö"]', "label": "text"}
    assert kept.data.metrics["loss"] == 1.0
    assert kept.data.metrics["per_label.face_with_tears_of_joy"] == 0.5
    door = tracking.client(tracking.tracking_uri(root))
    assert [m.value for m in door.get_metric_history(run.run_id, "loss")] == [3.0, 2.0, 1.0]
    (entry,) = (one.dataset for one in kept.inputs.dataset_inputs if one.dataset.name == "tweets")
    assert (entry.name, entry.digest) == ("tweets", "abc123")
    assert json.loads(entry.profile) == {"num_rows": 42}
    assert {file.path for file in door.list_artifacts(run.run_id)} == {"plots", "one.txt"}
    assert kept.info.artifact_uri.startswith(str(root / ".state" / "mlflow" / "artifacts" / "pretrain"))
    tags = kept.data.tags
    assert len(tags["git_commit"]) == 40
    assert tags["git_dirty"] == "false"
    assert len(tags["dvc_lock"]) == 64
    assert tags["stage"] == "pretrain" and tags["preset"] == "sample" and tags["note"] == "seen"
    assert tags["mlflow.note.content"] == "why"
    below = read(root, child)
    assert below.info.status == "FINISHED"
    assert below.info.start_time == 1_000_500
    assert below.data.tags["mlflow.parentRunId"] == run.run_id
    assert below.data.metrics == {"accuracy": 0.75}
    assert [(one.dataset.name, one.dataset.digest) for one in below.inputs.dataset_inputs] == [("labels", "def456")]
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


def test_code_that_git_does_not_know_is_dirty(root: Path) -> None:
    extra = root / "extra.py"
    extra.write_text("1\n")
    assert provenance(root)["git_dirty"] == "true"
    extra.unlink()
    (root / "dvc.lock").write_text("stages: {ingest: {}}\n")
    assert provenance(root)["git_dirty"] == "false"


def test_outside_git_and_dvc_the_origin_is_unknown(tmp_path: Path) -> None:
    facts = provenance(tmp_path)
    assert facts["git_commit"] == facts["git_dirty"] == facts["dvc_lock"] == UNKNOWN
    assert len(facts["code"]) == 16


@pytest.mark.parametrize("name", ["PREFECT__FLOW_RUN_ID", "DEEPMOJI_FLOW_RUN_ID"])
def test_flow_run_is_tagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "f-1")
    assert provenance(tmp_path)["flow_run"] == "f-1"


@pytest.mark.parametrize(("error", "status"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_an_exception_ends_the_run_and_passes(root: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), start(root) as run:
        run.metrics({"loss": 1.0})
        raise error
    kept = read(root, run.run_id)
    assert kept.info.status == status
    assert kept.data.metrics == {"loss": 1.0}, "what was measured before the failure is kept"
    assert kept.data.tags["error"].startswith(type(error).__name__)


KILLED = """
import os, signal, sys
from pathlib import Path
from deepmoji import tracking
with tracking.start_run(Path(sys.argv[1]), "pretrain", "dies", params={}, tags={}) as run:
    print(run.run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_never_looks_finished(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(root)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    run_id = done.stdout.strip()
    assert read(root, run_id).info.status == "RUNNING"
    with start(root) as alive, start(root):
        assert read(root, alive.run_id).info.status == "RUNNING", "a living process keeps its runs"
    assert read(root, run_id).info.status == "KILLED"


RACE = """
import sys
from pathlib import Path
from deepmoji import tracking
with tracking.start_run(Path(sys.argv[1]), "ingest", "race", params={"a": 1}, tags={}) as run:
    run.metrics({"x": 1.0})
print(run.run_id)
"""


def test_processes_that_start_together_share_one_database(tmp_path: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], answers
    ids = {out.decode().strip() for out, _ in answers}
    assert len(ids) == 2
    assert {read(tmp_path, run_id).info.status for run_id in ids} == {"FINISHED"}
    assert len({read(tmp_path, run_id).info.experiment_id for run_id in ids}) == 1


def test_metrics_are_sent_in_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(root) as run:
        sent: list[int] = []
        send: Callable[..., None] = run.client.log_batch

        def count(run_id: str, metrics: list[Any]) -> None:
            sent.append(len(metrics))
            send(run_id, metrics)

        monkeypatch.setattr(run.client, "log_batch", count)
        for step in range(1200):
            run.metrics({"loss": 1.0 / (step + 1)}, step)
    assert sum(sent) == 1200
    assert len(sent) <= 3
    door = tracking.client(tracking.tracking_uri(root))
    assert len(door.get_metric_history(run.run_id, "loss")) == 1200


def test_a_server_that_comes_back_gets_the_metrics(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", -1.0)

    def away(*_: object, **__: object) -> None:
        raise ConnectionError("away")

    with start(root) as run:
        with monkeypatch.context() as outage, caplog.at_level(logging.WARNING):
            outage.setattr(run.client, "log_batch", away)
            run.metrics({"loss": 2.0}, 0)
        run.metrics({"loss": 1.0}, 1)
    assert "1 metrics wait" in caplog.text
    door = tracking.client(tracking.tracking_uri(root))
    assert [m.value for m in door.get_metric_history(run.run_id, "loss")] == [2.0, 1.0]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:{port}", "postgresql://user:hunter2@127.0.0.1:{port}/mlflow"])
def test_a_server_that_is_away_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: every connection is refused
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=taken.getsockname()[1]))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        with pytest.raises(ServiceError, match="unset MLFLOW_TRACKING_URI") as caught, start(tmp_path):
            pass
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_state_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".state").write_text("a file where a folder belongs")
    with pytest.raises(ServiceError, match="could not prepare its database"), start(tmp_path):
        pass


def test_a_moved_project_is_refused(root: Path, tmp_path: Path) -> None:
    with start(root):
        pass
    new = tmp_path / "new"
    shutil.copytree(root, new)
    with pytest.raises(RegistryError, match="belongs to a project elsewhere"), start(new):
        pass


def test_secrets_never_reach_mlflow(root: Path) -> None:
    url = "s3://user:hunter2@host/b?X-Amz-Signature=hunter2&part=1"
    params = {"source": url, "db_password": "hunter2", "tokens": "kept", "nested": {"uri": url}}
    with start(root, params=params, tags={"origin": url}) as run:
        run.dataset("d", "1", url, 1)
        run.tag("later", url)
    kept = read(root, run.run_id)
    assert kept.data.params["tokens"] == "kept"
    assert "part=1" in kept.data.params["source"]
    assert "hunter2" not in json.dumps(kept.to_dictionary())
    assert b"hunter2" not in (root / ".state" / "mlflow" / "mlflow.db").read_bytes()


def test_what_mlflow_logs_itself_has_no_secrets(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking.client(tracking.prepare(root))
    log = logging.getLogger("mlflow.system_metrics")
    log.error("%s is away", "http://user:hunter2@host/api")
    try:
        raise OSError("http://user:hunter2@host/other is away")
    except OSError:
        log.exception("so it ends")
    shown = capsys.readouterr().err
    assert "host/api is away" in shown and "host/other is away" in shown and "so it ends" in shown
    assert "hunter2" not in shown


def test_settings_of_the_user_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "99")
    tracking.quiet_mlflow()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_long_parameter_says_that_it_was_cut() -> None:
    text = tracking.parameters({"schedule": "x" * 7000})["schedule"]
    assert len(text) <= 6000
    assert text.endswith("(cut, 7000 characters)")
