"""Flows under Prefect's own test server: retries where they can help, one run at a time, surroundings."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from prefect import flow
from prefect.testing.utilities import prefect_test_harness

from deepmoji.cli import TEMPORARY
from deepmoji.errors import DeepMojiError
from flows.environment import environment
from flows.pipeline import StageFailed, StageResult, run_stage

# Fails until it was called often enough; `tries` counts the calls.
STAGE = """\
stages:
  ingest:
    cmd: >-
      echo x >> tries; if [ $(wc -l < tries) -lt {passes_at} ]; then echo '{says}' >&2; exit 1; fi;
      mkdir -p artifacts/metrics; echo '{{"rows": 3}}' > artifacts/metrics/ingest.json
    always_changed: true
"""


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=90):
        yield


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


@pytest.mark.usefixtures("server")
def test_a_server_that_comes_back_costs_no_run(project: Path) -> None:
    (project / "dvc.yaml").write_text(STAGE.format(passes_at=3, says=f"{TEMPORARY}MLflow is away."))
    result = run_one(project)
    assert (result.stage, result.ran) == ("ingest", 1)
    assert (project / "tries").read_text().count("x") == 3


@pytest.mark.usefixtures("server")
def test_bad_data_is_not_tried_again(project: Path) -> None:
    (project / "dvc.yaml").write_text(STAGE.format(passes_at=3, says="error: The file is empty."))
    with pytest.raises(StageFailed, match="The file is empty") as caught:
        run_one(project)
    assert not caught.value.temporary
    assert (project / "tries").read_text().count("x") == 1


@pytest.mark.usefixtures("server")
def test_what_the_run_cache_knows_counts_as_up_to_date(project: Path) -> None:
    stage = "stages:\n  ingest:\n    cmd: mkdir -p artifacts/metrics && echo '{}' > artifacts/metrics/ingest.json\n"
    (project / "dvc.yaml").write_text(stage + "    deps: [input]\n    outs: [artifacts/metrics/ingest.json]\n")
    counts = []
    for content in ("a", "b", "a"):
        (project / "input").write_text(content)
        result = run_one(project)
        counts.append((result.ran, result.unchanged))
    assert counts == [(1, 0), (1, 0), (0, 1)]


@pytest.mark.usefixtures("server")
def test_a_second_run_is_refused_while_one_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import pipeline

    (project / ".state").mkdir()
    monkeypatch.setattr(pipeline, "LOCK_SECONDS", 0.1)
    with FileLock(project / ".state" / "pipeline.lock"), pytest.raises(DeepMojiError, match="Another run"):
        pipeline.pipeline(str(project), "sample")
    assert not (project / "tries").exists()


def test_surroundings_stay_inside_the_project(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    assert variables["PREFECT_HOME"].startswith(str(tmp_path))
    assert variables["DO_NOT_TRACK"] == "1"
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
