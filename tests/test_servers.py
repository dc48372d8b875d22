"""Two projects at once on real servers that ask for passwords: PostgreSQL, S3, MLflow, Prefect; and what breaks.

MLflow is killed and PostgreSQL restarted while both run. Everything else here looks at what they left.
"""

import json
import os
import re
import signal
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from deepmoji import tracking
from tests import servers
from tests.conftest import TINY_GATES, run_in, write_tiny_project
from tests.tiny import tiny_model

# Every secret of this file holds this word, so that one search finds each of them.
SECRET = b"hunter2"
PASSWORDS = {name: f"{name}-hunter2" for name in ("postgres", "mlflow", "prefect")}
STAGES = ("ingest", "datasets", "validate", "tokenize", "pretrain", "finetune", "benchmark")
FLOW = (sys.executable, "-m", "flows", "pipeline")


# Registers the same model again and again, until told to stop; prints each version, or the sentence of a failure.
REGISTER = """
import sys, time
from pathlib import Path
from deepmoji import registry
from deepmoji.errors import ServiceError
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
while not (root / "stop").exists():
    try:
        print(registry.register(root, folder, tags={}, metrics={"top5": 0.5}), flush=True)
    except ServiceError as error:
        print(f"error: {error}", flush=True)
    time.sleep(1)
"""


@dataclass
class House:
    """The servers, and what was done on them at once: a pipeline, and a process that registers models."""

    folder: Path
    url: str
    variables: dict[str, str]
    project: Path
    pipeline: CompletedProcess[str]
    registered: CompletedProcess[str]
    finished_before: set[str]


def finished(self) -> set[str]:
        return finished(self.url)


def finished(url: str, *names: str) -> set[str]:
    """The MLflow runs that ended well, of all experiments or of these."""
    door = tracking.client(url)
    experiments = [e.experiment_id for e in door.search_experiments() if not names or e.name in names]
    return {r.info.run_id for r in door.search_runs(experiments, "attributes.status = 'FINISHED'", max_results=1000)}


def small(project: Path) -> Path:
    """One method on one set: the stages that matter here are those that talk to servers."""
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["finetune"] |= {"methods": ["new"]}
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (project / "mlflow" / "promotion.yaml").write_text(TINY_GATES.replace(", transfer_gain: -1.0", ""))
    return project


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("servers")
    with (
        servers.postgres(PASSWORDS["postgres"]) as (postgres, address),
        servers.s3(folder, "mlflow", "dvc") as s3,
        pytest.MonkeyPatch.context() as patch,
        ThreadPoolExecutor(2) as pool,
    ):
        mlflow, url = servers.mlflow(folder, f"postgresql://{address}/mlflow", PASSWORDS["mlflow"], s3)
        user = f"deepmoji:{PASSWORDS['prefect']}"
        prefect, api = servers.prefect(folder, f"postgresql+asyncpg://{address}/prefect", user)
        variables = {
            **s3,
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_TRACKING_USERNAME": "deepmoji",
            "MLFLOW_TRACKING_PASSWORD": PASSWORDS["mlflow"],
            "PREFECT_API_URL": api,
            "PREFECT_API_AUTH_STRING": user,
        }
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.setenv(name, variables[name])
        project, other = small(write_tiny_project(folder / "project")), folder / "other"
        other.mkdir()
        # This one has its password in the address.
        inside = {"MLFLOW_TRACKING_URI": url.replace("://", f"://deepmoji:{PASSWORDS['mlflow']}@")}
        with mlflow, prefect:
            pipeline = pool.submit(run_in, project, *FLOW, **variables)
            code = (sys.executable, "-c", REGISTER, str(other), str(tiny_model(folder / "tiny")))
            registering = pool.submit(run_in, other, *code, **inside)
            try:
                before = disturb(pipeline, url, mlflow, postgres)
                done = pipeline.result()
            finally:
                (other / "stop").touch()
            yield House(folder, url, variables, project, done, registering.result(), before)


def disturb(pipeline: Future[CompletedProcess[str]], url: str, *victims: servers.Server) -> set[str]:
    """End each server without warning while stages run, and start it again; the runs that had ended well before."""
    before: set[str] = set()
    for number, victim in enumerate(victims):
        limit = time.monotonic() + 120
        while len(now := finished(url, *STAGES)) < 2 * number + 1:
            assert time.monotonic() < limit and not pipeline.done(), pipeline.result().stderr[-3000:]
            time.sleep(0.5)
        before |= now | finished(url, "release")
        # SIGQUIT is PostgreSQL's immediate shutdown: no checkpoint, the next start recovers from its log.
        victim.end(signal.SIGKILL if number == 0 else signal.SIGQUIT)
        time.sleep(1)
        victim.start()
    return before


def test_the_interrupted_run_passes_or_says_in_a_sentence_why_not(house: House) -> None:
    done = house.pipeline
    if done.returncode != 0:
        assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1, done.stderr
        done = run_in(house.project, *FLOW, **house.variables)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Champion: deepmoji version" in done.stdout


def test_nothing_registered_is_lost(house: House) -> None:
    """Every version that was handed out is there, once, with its run and its weights."""
    assert house.registered.returncode == 0, house.registered.stderr[-3000:]
    lines = house.registered.stdout.splitlines()
    versions = [line for line in lines if not line.startswith("error: ")]
    assert len(set(versions)) == len(versions) > 2
    assert len(lines) > len(versions), "no registration was interrupted, so nothing was tried here"
    assert house.finished_before and house.finished_before <= finished(house.url)
    door = tracking.client(house.url)
    runs = finished(house.url, "release")
    for version in versions:
        found = door.get_model_version("deepmoji", version)
        assert found.run_id in runs
        folder = tracking.download_model(house.folder / "other", door, house.url, "deepmoji", version)
        assert folder.joinpath("model.safetensors").read_bytes() == (
            house.folder / "tiny" / "model.safetensors"
        ).read_bytes()
