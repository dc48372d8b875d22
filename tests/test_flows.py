"""Flows under Prefect's own test server: retries where they can help, one run at a time, surroundings."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Paused, Running

from deepmoji import lock
from deepmoji.cli import TEMPORARY
from deepmoji.errors import DeepMojiError
from flows import database
from flows.deployments import end_left_over
from flows.environment import addresses, environment, running, up_lock
from flows.pipeline import STAGES, StageFailed, StageResult, pipeline, run_stage
from tests import mini
from tests.conftest import ROOT

# Fails until it was called often enough; `tries` counts the calls.
STAGE = """\
stages:
  ingest:
    cmd: >-
      echo x >> tries; if [ $(wc -l < tries) -lt {passes_at} ]; then echo '{says}' >&2; exit 1; fi;
      mkdir -p artifacts/metrics; echo '{{"rows": 3}}' > artifacts/metrics/ingest.json
    always_changed: true
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["dvc", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def run_one(root: Path) -> StageResult:
    @flow
    def one() -> StageResult:
        return run_stage.with_options(retry_delay_seconds=0)(root, "ingest")

    return one()


@pytest.mark.usefixtures("server", "warm_stages")
def test_a_server_that_comes_back_costs_no_run(project: Path) -> None:
    (project / "dvc.yaml").write_text(STAGE.format(passes_at=3, says=f"{TEMPORARY}MLflow is away."))
    result = run_one(project)
    assert (result.stage, result.ran) == ("ingest", 1)
    assert (project / "tries").read_text().count("x") == 3


@pytest.mark.usefixtures("server", "warm_stages")
def test_bad_data_is_not_tried_again(project: Path) -> None:
    (project / "dvc.yaml").write_text(STAGE.format(passes_at=3, says="error: The file is empty."))
    with pytest.raises(StageFailed, match="The file is empty") as caught:
        run_one(project)
    assert not caught.value.temporary
    assert (project / "tries").read_text().count("x") == 1


@pytest.mark.usefixtures("server", "warm_stages")
def test_what_the_run_cache_knows_counts_as_up_to_date(project: Path) -> None:
    stage = "stages:\n  ingest:\n    cmd: mkdir -p artifacts/metrics && echo '{}' > artifacts/metrics/ingest.json\n"
    (project / "dvc.yaml").write_text(stage + "    deps: [input]\n    outs: [artifacts/metrics/ingest.json]\n")
    counts = []
    for content in ("a", "b", "a"):
        (project / "input").write_text(content)
        result = run_one(project)
        counts.append((result.ran, result.unchanged))
    assert counts == [(1, 0), (1, 0), (0, 1)]


@pytest.mark.usefixtures("server", "warm_stages")
def test_a_second_run_is_refused_while_one_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.1)
    with lock.one_run(project), pytest.raises(DeepMojiError, match="Another run"):
        pipeline(str(project))
    assert not (project / "tries").exists()


@pytest.mark.usefixtures("server", "warm_stages")
def test_a_run_that_was_killed_keeps_no_other_from_completing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stage goes on without it. A run that comes at once is refused with a sentence, one that waits completes."""
    root = mini.write_mini_project(tmp_path)
    monkeypatch.setenv("PATH", mini.surroundings(root)["PATH"])
    before = (root / "dvc.yaml").read_text()
    # It prints nothing: a shell that writes to the pipe of a flow that is gone ends at once.
    slow = "touch started; while [ ! -e refused ]; do sleep 0.2; done; echo slow >> ran.txt"
    (root / "dvc.yaml").write_text(before.replace("echo ingest >> ran.txt", slow))
    command = [*mini.FLOWS, "pipeline", "--no-promote"]
    environment = mini.surroundings(root) | {"PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        until = time.monotonic() + 90
        while not (root / "started").exists():
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        run.kill()
    (root / "dvc.yaml").write_text(before)
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.1)
    with pytest.raises(DeepMojiError, match="A stage of a run that was killed"):
        pipeline(str(root), promote=False)
    assert not (root / "ran.txt").exists() or "slow" not in (root / "ran.txt").read_text()
    (root / "refused").touch()
    monkeypatch.setattr(lock, "LOCK_SECONDS", 60.0)
    assert [result.stage for result in pipeline(str(root), promote=False)] == list(STAGES)
    assert mini.ran(root) == list(STAGES)


@pytest.mark.usefixtures("server", "warm_stages")
def test_ctrl_c_ends_what_runs_side_by_side(tmp_path: Path) -> None:
    root = mini.write_mini_project(tmp_path)
    text = (root / "dvc.yaml").read_text()
    slow = "touch started; sleep 100; echo ingest >> ran.txt"
    (root / "dvc.yaml").write_text(text.replace("echo ingest >> ran.txt", slow))
    environment = mini.surroundings(root) | {"PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    with subprocess.Popen(
        [*mini.FLOWS, "pipeline", "--no-promote"],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as run:
        until = time.monotonic() + 90
        while not (root / "started").exists():
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        family = psutil.Process(run.pid).children(recursive=True)
        for _ in range(4):  # as a person does who sees nothing happen: the first may fall into a callback of Python's
            run.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                run.wait(20)
                break
        assert run.poll() not in (None, 0)
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert not (root / "ran.txt").exists() or "ingest" not in (root / "ran.txt").read_text()


@pytest.mark.usefixtures("server", "warm_stages")
def test_the_benchmark_runs_its_two_stages_and_releases_nothing(tmp_path: Path) -> None:
    root = mini.write_mini_project(tmp_path)
    done = mini.run(root, *mini.FLOWS, "benchmark", PREFECT_API_URL=PREFECT_API_URL.value() or "")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (root / "ran.txt").read_text().split() == ["finetune", "benchmark"]
    assert "chain-thaw" in done.stdout and "report.md" in done.stdout
    assert not (root / ".state" / "mlflow").exists(), "nothing was asked of the registry"


@pytest.mark.usefixtures("server", "warm_stages")
def test_a_stage_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = mini.write_mini_project(tmp_path)
    monkeypatch.setenv("PATH", mini.surroundings(root)["PATH"])
    monkeypatch.setattr("flows.pipeline.STAGE_LIMIT_SECONDS", 5)
    text = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(text.replace("echo validate >> ran.txt", "sleep 100; echo validate >> ran.txt"))
    with pytest.raises(DeepMojiError, match="The stage validate was ended after 5 seconds"):
        pipeline(str(root), promote=False)
    assert "validate" not in (root / "ran.txt").read_text()


def test_a_lock_is_free_once_its_holder_and_the_child_that_got_it_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with lock.held(path, "This test") as descriptor:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    try:
        with pytest.raises(DeepMojiError, match="Somebody holds") as caught, lock.held(path, "Somebody", 0):
            pass
        assert str(path) in str(caught.value)
    finally:
        child.kill()
        child.wait()
    with lock.held(path, "Somebody", 0):
        pass


def test_surroundings_stay_inside_the_project(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    assert variables["PREFECT_HOME"].startswith(str(tmp_path))
    assert variables["DO_NOT_TRACK"] == "1"
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_servers_are_used_while_they_run_and_not_what_a_killed_one_left(tmp_path: Path) -> None:
    assert running(tmp_path) == {}
    (tmp_path / ".state").mkdir()
    addresses(tmp_path).write_text('{"PREFECT_API_URL": "http://127.0.0.1:4200/api"}')
    assert running(tmp_path) == {}
    with lock.held(up_lock(tmp_path), "This test"):
        assert running(tmp_path) == {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}


@pytest.mark.usefixtures("server", "warm_stages")
def test_runs_that_ended_with_an_earlier_worker_do_not_go_on_for_ever() -> None:
    with get_client(sync_client=True) as client:
        made = client.create_flow_from_name("left-over")
        deployed = client.create_deployment(flow_id=made, name="left-over")
        states: list[State[Any]] = [Running(), Paused(timeout_seconds=60), Completed()]
        worked = [client.create_flow_run_from_deployment(deployed, state=state).id for state in states]
        by_hand = client.create_flow_run(flow(name="left-over")(lambda: None), state=Running()).id
        assert end_left_over() == 2
        types = [client.read_flow_run(run).state_type for run in (*worked, by_hand)]
    assert [kind.value for kind in types if kind] == ["CRASHED", "CRASHED", "COMPLETED", "RUNNING"]


@pytest.mark.parametrize("own", ["", "My cat sleeps all day and I love her 😍\n"])
def test_a_version_is_called_synthetic_by_its_texts_and_not_by_its_preset(tmp_path: Path, own: str) -> None:
    from deepmoji.corpus import ingest
    from deepmoji.emojis import load_labels
    from deepmoji.sample import write_sample
    from flows.release import challenger_tags

    (tmp_path / "params.yaml").write_bytes((ROOT / "presets" / "sample.yaml").read_bytes())
    write_sample(tmp_path / "data")
    tweets = tmp_path / "data" / "tweets"
    for file in tweets.iterdir():
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:300]))
    if own:
        (tweets / "mine.txt").write_text(own)
    ingest(tweets, tmp_path / "artifacts" / "corpus", labels=load_labels("emojis64"), max_reject_share=0.1)
    tags = challenger_tags(tmp_path)
    assert (tags["preset"], tags["synthetic"]) == ("sample", "no" if own else "yes")


def test_a_project_gets_the_database_that_the_environment_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.db"
    monkeypatch.setattr(database, "kept", lambda: kept)
    place = tmp_path / database.NAME
    database.place(place)
    assert not place.exists()  # none is kept: Prefect makes its own
    kept.write_bytes(b"kept")
    database.place(place)
    assert place.read_bytes() == b"kept"
    place.write_bytes(b"with flow runs in it")
    database.place(place)
    assert place.read_bytes() == b"with flow runs in it"
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".db"] == []
