"""`python -m flows up` for real: both servers, a worker, a schedule, a release that waits for a person, and the end.

The tests share one project and build on each other, in this order.
"""

import json
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests import mini, servers
from tests.conftest import ROOT

LIMIT = 150  # seconds: a machine under load starts servers slowly


@dataclass
class Up:
    root: Path
    process: subprocess.Popen[str]
    prefect: str
    mlflow: str

    def ask(self, path: str, question: dict[str, Any] | None = None) -> Any:
        """GET, or POST with a question, from the Prefect server."""
        body = None if question is None else json.dumps(question).encode()
        request = urllib.request.Request(f"{self.prefect}/api/{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def runs(self, flow: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
        return found

    def run_in_state(self, flow: str, *states: str) -> dict[str, Any] | None:
        return next((run for run in self.runs(flow) if run["state_type"] in states), None)


def wait_for(what: Callable[[], Any], limit: float = LIMIT) -> Any:
    until = time.monotonic() + limit
    while not (found := what()):
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.5)
    return found


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*mini.FLOWS, "up", *options],
        cwd=root,
        # A worker asks for work, and the server plans runs, sooner than by default; and not a hundred of them.
        env=mini.surroundings(root)
        | {
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "3",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, warm_stages: None) -> Iterator[Up]:
    root = mini.write_mini_project(tmp_path_factory.mktemp("mini"))
    process = start(root, "--prefect-port", str(servers.free_port()), "--mlflow-port", str(servers.free_port()))
    try:
        wait_for(lambda: (root / ".state" / "servers.json").is_file() or process.poll() is not None)
        assert process.poll() is None and process.stdout is not None, process.communicate()[0]
        addresses = {}
        while not (line := process.stdout.readline()).startswith("Ready"):
            name, _, address = line.strip().partition(" ")
            addresses[name] = address.strip()
        yield Up(root, process, addresses["Prefect"], addresses["MLflow"])
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            for one in family:
                if isinstance(one, psutil.Process) and one.is_running():
                    one.kill()
            assert process.stdout is not None
            process.stdout.close()


def test_both_servers_answer_on_loopback_alone(up: Up) -> None:
    for address in (f"{up.prefect}/api/health", f"{up.mlflow}/health"):
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.status == 200
    family = psutil.Process(up.process.pid).children(recursive=True)
    heard = {c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert heard == {"127.0.0.1"}


def test_a_second_one_is_one_sentence(up: Up) -> None:
    done = mini.run(up.root, *mini.FLOWS, "up")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "already" in done.stderr


def test_nothing_runs_before_it_is_deployed(up: Up) -> None:
    done = mini.run(up.root, *mini.FLOWS, "trigger")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "make deploy" in done.stderr


def test_deployments_are_those_of_the_file_however_often_it_is_done(up: Up) -> None:
    """Registered, then again with one that goes to containers: no engine is here, so that one never runs."""
    path = up.root / "prefect.yaml"
    before = path.read_text()
    seen = []
    for text in (before, re.sub(r"(?s)(- name: benchmark.*?work_pool: )\*here", r"\1*container", before)):
        path.write_text(text)
        done = mini.run(up.root, *mini.FLOWS, "deploy", MLFLOW_TRACKING_URI=up.mlflow)
        assert done.returncode == 0, done.stderr
        seen.append({d["name"]: d for d in up.ask("deployments/filter", {})})
    path.write_text(before)
    assert {name: d["id"] for name, d in seen[0].items()} == {name: d["id"] for name, d in seen[1].items()}
    wanted = yaml.safe_load(before)
    assert set(seen[0]) == {entry["name"] for entry in wanted["deployments"]}
    for entry in wanted["deployments"]:
        there = seen[0][entry["name"]]
        assert there["entrypoint"] == entry["entrypoint"]
        assert [s["schedule"]["cron"] for s in there["schedules"]] == [s["cron"] for s in entry["schedules"]]
        assert there["parameters"] == entry.get("parameters", {})
        # A paused run would lose its slot, and be ended for that some minutes later.
        assert (there["global_concurrency_limit"] is None) == (entry["name"] == "release")
        assert (there["work_pool_name"], there["work_queue_name"]) == ("deepmoji", "default")
    queues = {q["name"]: q["concurrency_limit"] for q in up.ask("work_pools/deepmoji/queues/filter", {})}
    assert queues == {"default": None, "gpu": 1}
    there = seen[1]["benchmark"]
    assert there["work_pool_name"] == "deepmoji-docker"
    assert there["job_variables"]["volumes"] == [f"{up.root}:/project"]
    assert there["job_variables"]["env"] == {"DEEPMOJI_PROJECT": "/project", "MLFLOW_TRACKING_URI": up.mlflow}
    assert up.ask("work_pools/deepmoji-docker")["type"] == "docker"


def test_a_scheduled_run_completes(up: Up) -> None:
    path = up.root / "prefect.yaml"
    before = path.read_text()
    content = yaml.safe_load(before)
    content["deployments"] = [entry for entry in content["deployments"] if entry["name"] == "pipeline"]
    soon = datetime.now(UTC) + timedelta(seconds=25)  # by when it is deployed, or else the next time
    content["deployments"][0]["schedules"] = [{"interval": 60, "anchor_date": soon.isoformat()}]
    path.write_text(yaml.safe_dump(content))
    assert mini.run(up.root, *mini.FLOWS, "deploy").returncode == 0
    done = wait_for(lambda: up.run_in_state("pipeline", "COMPLETED", "FAILED", "CRASHED"))
    path.write_text(before)
    assert mini.run(up.root, *mini.FLOWS, "deploy").returncode == 0, "which takes back what was still to come"
    assert done["state_type"] == "COMPLETED", (up.root / ".state" / "logs" / "worker.log").read_text()[-3000:]
    assert done["auto_scheduled"]
    assert "pretrain" in (up.root / "ran.txt").read_text()


def champion(up: Up) -> str | None:
    """The version that MLflow's server calls champion."""
    with urllib.request.urlopen(
        f"{up.mlflow}/api/2.0/mlflow/registered-models/get?name=deepmoji", timeout=30
    ) as answer:
        model = json.load(answer)["registered_model"]
    return next((alias["version"] for alias in model.get("aliases", []) if alias["alias"] == "champion"), None)


def test_a_release_waits_for_a_person(up: Up) -> None:
    early = mini.run(up.root, *mini.FLOWS, "approve")
    assert (early.returncode, early.stderr.count("\n")) == (2, 1)
    done = mini.run(up.root, *mini.FLOWS, "trigger", "release")
    assert done.returncode == 0, done.stderr
    [run] = re.findall(r"/runs/flow-run/([0-9a-f-]+)", done.stdout)
    assert done.stdout.startswith(f"Watch it at {up.prefect}/")
    wait_for(lambda: up.ask(f"flow_runs/{run}")["state_type"] == "PAUSED")
    assert champion(up) is None
    done = mini.run(up.root, *mini.FLOWS, "approve")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: up.ask(f"flow_runs/{run}")["state_type"] not in ("PAUSED", "RUNNING", "PENDING", "SCHEDULED"))
    assert up.ask(f"flow_runs/{run}")["state_type"] == "COMPLETED"
    assert champion(up) == "1"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("trigger", "nothing"), "choose one of pipeline, refresh"),
        (("trigger", "refresh"), "'new' is a required property"),
        (("trigger", "refresh", "-p", "new"), "NAME=VALUE"),
        (("ui",), "open that"),
    ],
)
def test_a_mistake_is_one_sentence(options: tuple[str, ...], says: str, up: Up) -> None:
    done = mini.run(up.root, *mini.FLOWS, *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        done = mini.run(tmp_path, *mini.FLOWS, "up", "--mlflow-port", port, "--prefect-port", str(servers.free_port()))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert port in done.stderr and "--mlflow-port" in done.stderr


@pytest.mark.parametrize("command", ["deploy", "trigger", "approve", "release --approve"])
def test_without_a_server_it_is_one_sentence(command: str, tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml", "prefect.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = mini.run(tmp_path, *mini.FLOWS, *command.split())
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "make up" in done.stderr


def test_the_end_of_one_is_the_end_of_all(up: Up) -> None:
    """Also of a run that goes on: here one that waits for approval."""
    mini.write_model(up.root, seed=2)
    assert mini.run(up.root, *mini.FLOWS, "trigger", "release").returncode == 0
    wait_for(lambda: up.run_in_state("release", "PAUSED"))
    family = psutil.Process(up.process.pid).children(recursive=True)
    assert any("prefect.engine" in " ".join(p.cmdline()) or "flow_run" in " ".join(p.cmdline()) for p in family)
    [worker] = [p for p in psutil.Process(up.process.pid).children() if "worker" in p.cmdline()]
    worker.kill()
    output, _ = up.process.communicate(timeout=90)
    assert up.process.returncode == 1
    assert "The worker process ended" in output
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    assert not (up.root / ".state" / "servers.json").exists()
    done = mini.run(up.root, "deepmoji", "models", "list")
    assert "deepmoji  1        champion" in done.stdout, "what was registered is there without the server"


def test_ctrl_c_ends_a_start_and_the_next_one_ends_what_a_kill_left(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml", "prefect.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    ports = ("--prefect-port", str(servers.free_port()), "--mlflow-port", str(servers.free_port()))
    with start(tmp_path, *ports) as killed:
        wait_for(lambda: len(psutil.Process(killed.pid).children()) == 2)
        left = psutil.Process(killed.pid).children(recursive=True)
        killed.kill()
        killed.wait(20)
    assert len(psutil.wait_procs(left, timeout=1)[1]) >= 2
    with start(tmp_path, *ports) as process:
        wait_for(lambda: len(psutil.Process(process.pid).children()) == 2)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    assert "process(es) of an earlier `up` that was killed" in output and output.count("\n") == 1
    _, alive = psutil.wait_procs([*left, *family], timeout=5)
    assert alive == []
