"""Two workers at once on real servers that ask for passwords: PostgreSQL, S3, MLflow, Prefect; and what breaks.

Each worker runs the pipeline of a project of its own, and a third process registers models again and again. MLflow is
killed and PostgreSQL restarted meanwhile. Everything else here looks at what they left.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import boto3
import pytest
import yaml
from mlflow.artifacts import download_artifacts

from deepmoji import tracking
from deepmoji.inference import load_folder
from flows.environment import environment
from tests import mini, servers
from tests.conftest import ROOT, TINY_GATES, run_in, write_tiny_project
from tests.tiny import tiny_model

pytestmark = pytest.mark.timeout(600)

# Every secret of this file holds this word, so that one search finds each of them.
SECRET = b"hunter2"
PASSWORDS = {name: f"{name}-hunter2" for name in ("postgres", "mlflow", "prefect")}
LIMIT = 500.0  # on a machine that has much else to do
STAGES = ("ingest", "datasets", "validate", "tokenize", "pretrain", "finetune", "benchmark")
FLOWS = (sys.executable, "-m", "flows")
FLOW = (*FLOWS, "pipeline")


# Registers the same model again and again, until told to stop, but three times at least, however quickly the others
# were done; prints each version, or the sentence of a failure.
REGISTER = """
import sys, time
from pathlib import Path
from deepmoji import registry
from deepmoji.errors import ServiceError
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
done = 0
while done < 3 or not (root / "stop").exists():
    try:
        print(registry.register(root, folder, tags={}, metrics={"top5": 0.5}), flush=True)
        done += 1
    except ServiceError as error:
        print(f"error: {error}", flush=True)
    time.sleep(1)
"""


@dataclass
class House:
    """The servers, and what was done on them at once: two pipelines, and a process that registers models."""

    folder: Path
    url: str
    variables: dict[str, str]
    projects: dict[str, Path]  # by the queue of the worker that runs it
    states: dict[str, dict[str, Any]]  # how each pipeline ended
    workers: dict[str, servers.Server]
    registered: CompletedProcess[str]
    finished_before: set[str]
    database: Path

    @property
    def project(self) -> Path:
        return self.projects["default"]


@pytest.fixture(autouse=True)
def logged_in(house: House, own_surroundings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, house.variables[name])


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
    deployments = yaml.safe_load((project / "prefect.yaml").read_text())
    deployments["deployments"] = [entry for entry in deployments["deployments"] if entry["name"] == "pipeline"]
    deployments["deployments"][0] |= {"concurrency_limit": 2, "schedules": [], "parameters": {"promote": True}}
    (project / "prefect.yaml").write_text(yaml.safe_dump(deployments))
    return project


def refused(project: Path) -> Path:
    """Stages that compute nothing, a model that is registered, and a gate that no model passes."""
    gates = project / "mlflow" / "promotion.yaml"
    gates.write_text(gates.read_text().replace("top5: 0.0", "top5: 0.99"))
    return project


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, warm_stages: None) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("servers")
    with (
        servers.postgres(PASSWORDS["postgres"]) as (postgres, address, data),
        servers.s3(folder, "mlflow", "dvc") as s3,
        pytest.MonkeyPatch.context() as patch,  # for this process, while it disturbs
        ExitStack() as started,
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
        for name in ("refused", "registering"):
            (folder / name).mkdir()
        projects = {
            "default": small(write_tiny_project(folder / "project")),
            "gpu": refused(mini.write_mini_project(folder / "refused")),
        }
        started.enter_context(mlflow)
        started.enter_context(prefect)
        deployed = run_in(projects["default"], *FLOWS, "deploy", variables=variables)
        assert deployed.returncode == 0, deployed.stderr
        workers = {
            queue: started.enter_context(worker(folder, queue, projects[queue], variables)) for queue in projects
        }
        code = (sys.executable, "-c", REGISTER, str(folder / "registering"), str(tiny_model(folder / "tiny")))
        # This one has its password in the address.
        inside = {"MLFLOW_TRACKING_URI": url.replace("://", f"://deepmoji:{PASSWORDS['mlflow']}@")}
        registering = started.enter_context(
            subprocess.Popen(
                code,
                cwd=folder,
                env={**os.environ, **inside},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        runs = {}
        try:
            for queue in projects:
                command = (*FLOWS, "trigger", "pipeline", "--queue", queue)
                done = run_in(projects["default"], *command, variables=variables)
                assert done.returncode == 0, done.stderr
                runs[queue] = f"{api}/flow_runs/{done.stdout.strip().rpartition('/')[2]}"
            before = disturb(lambda: bool(ended(runs["default"], user)), url, mlflow, postgres)
            (folder / "registering" / "stop").touch()
            limit = time.monotonic() + LIMIT
            states: dict[str, dict[str, Any]] = {}
            while len(states) < len(runs):
                assert time.monotonic() < limit, "\n".join(path.read_text()[-3000:] for path in folder.glob("worker-*"))
                states |= {queue: state for queue, run in runs.items() if (state := ended(run, user))}
                time.sleep(0.5)
        finally:
            (folder / "registering" / "stop").touch()
            output, errors = registering.communicate(timeout=100)
        registered = CompletedProcess(code, registering.returncode, output, errors)
        yield House(folder, url, variables, projects, states, workers, registered, before, data)


def worker(folder: Path, queue: str, project: Path, variables: dict[str, str]) -> servers.Server:
    """The Dockerfile's CMD of the target worker, ready when its health check says so."""
    steps = dict(servers.image("worker"))
    port = str(servers.free_port())
    check = json.loads(steps["HEALTHCHECK"].partition("CMD ")[2])
    assert "127.0.0.1:8080" in check[-1]
    check = [sys.executable, "-c", check[-1].replace("8080", port)]
    settings = {
        "WORK_POOL": "deepmoji",
        "WORK_QUEUE": queue,
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": port,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(project if (project / "flows").is_dir() else ROOT),
    }
    return servers.Server(
        json.loads(steps["CMD"]),
        folder / f"worker-{queue}.log",
        lambda: subprocess.run(check, check=True, capture_output=True, timeout=20),
        environment(project) | variables | settings,
        cwd=project,
    )


def ended(run: str, user: str) -> dict[str, Any]:
    """The state of a flow run that is over; empty while it goes on, or while nobody can say."""
    header = {"Authorization": "Basic " + b64encode(user.encode()).decode()}
    try:
        with urllib.request.urlopen(urllib.request.Request(run, headers=header), timeout=10) as answer:
            state: dict[str, Any] = json.load(answer)["state"]
    except OSError:
        return {}
    return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else {}


def disturb(over: Callable[[], bool], url: str, *victims: servers.Server) -> set[str]:
    """End each server without warning while stages run, and start it again; the runs that had ended well before."""
    before: set[str] = set()
    for number, victim in enumerate(victims):
        limit = time.monotonic() + 120
        while len(now := finished(url, *STAGES)) < 2 * number + 1:
            assert time.monotonic() < limit and not over(), "too few stages ran in time"
            time.sleep(0.5)
        before |= now | finished(url, "release")
        # SIGQUIT is PostgreSQL's immediate shutdown: no checkpoint, the next start recovers from its log.
        victim.end(signal.SIGKILL if number == 0 else signal.SIGQUIT)
        time.sleep(1)
        victim.start()
    return before


def test_the_interrupted_run_passes_or_says_in_a_sentence_why_not(house: House) -> None:
    state = house.states["default"]
    if state["type"] != "COMPLETED":
        assert state["message"] and "\n" not in state["message"].strip(), state
    done = run_in(house.project, *FLOW, variables=house.variables)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Champion: deepmoji version" in done.stdout


def test_the_other_workers_model_is_registered_and_refused(house: House) -> None:
    state = house.states["gpu"]
    assert state["type"] in ("FAILED", "CRASHED"), state
    if "top5" not in state["message"]:  # a server was away while it registered
        again = house.variables | {"PYTHONPATH": str(ROOT)}
        done = run_in(house.projects["gpu"], *FLOWS, "release", variables=again)
        assert done.returncode == 1 and "top5" in done.stderr, done.stderr[-3000:]


def test_both_workers_have_outlived_it(house: House) -> None:
    for one in house.workers.values():
        assert one.process is not None and one.process.poll() is None, one.log.read_text()[-3000:]
        one.ready()


def test_nothing_registered_is_lost(house: House, tmp_path: Path) -> None:
    """Every version that was handed out is there, once, with its run and its weights; each worker's model is too."""
    assert house.registered.returncode == 0, house.registered.stderr[-3000:]
    lines = house.registered.stdout.splitlines()
    versions = [line for line in lines if not line.startswith("error: ")]
    assert len(set(versions)) == len(versions) > 2
    assert len(lines) > len(versions), "no registration was interrupted, so nothing was tried here"
    assert house.finished_before and house.finished_before <= finished(house.url)
    door = tracking.client(house.url)
    runs = finished(house.url, "release")
    known = {
        (house.folder / "tiny" / "model.safetensors").read_bytes(): "registering",
        **{
            (project / "artifacts" / "pretrained" / "model.safetensors").read_bytes(): queue
            for queue, project in house.projects.items()
        },
    }
    found = {}
    for version in door.search_model_versions("name = 'deepmoji'"):
        # One whose answer was lost on the way is whole, but its registration failed: its number was given to nobody.
        assert version.run_id in runs or str(version.version) not in versions
        place = f"{door.get_model_version_download_uri('deepmoji', version.version)}/artifacts"
        folder = Path(
            download_artifacts(
                artifact_uri=place, dst_path=str(tmp_path / str(version.version)), tracking_uri=house.url
            )
        )
        (weights,) = folder.rglob("model.safetensors")
        found[str(version.version)] = known[weights.read_bytes()]
    assert {version for version, whose in found.items() if whose == "registering"} >= set(versions)
    assert set(found.values()) == set(known.values())


def test_without_a_password_nobody_enters(house: House) -> None:
    address = f"{house.url}/api/2.0/mlflow/experiments/search?max_results=5"
    assert servers.get(address) == 401
    for name, password, status in (
        ("deepmoji", PASSWORDS["mlflow"], 200),
        ("deepmoji", "wrong-password", 401),
        ("admin", "password1234", 401),  # what MLflow once came with
    ):
        header = {"Authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}
        assert servers.get(address, headers=header) == status
    assert servers.get(f"{house.variables['PREFECT_API_URL']}/flows/count", method="POST") == 401


def test_a_wrong_password_is_one_sentence(house: House) -> None:
    wrong = house.variables | {"MLFLOW_TRACKING_PASSWORD": "wrong-hunter2"}
    done = run_in(house.project, "deepmoji", "models", "list", variables=wrong)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "MLFLOW_TRACKING_PASSWORD" in done.stderr, done.stderr
    done = run_in(house.project, "deepmoji", "models", "list", variables=house.variables)
    assert done.returncode == 0 and "champion" in done.stdout, done.stderr


def test_the_champion_is_served_by_mlflow(house: House) -> None:
    """`mlflow models serve`, as mlflow/README.md tells: per-text probabilities, features, explain as parameters."""
    port = servers.free_port()
    texts = ["I love this", "not happy at all", ""]

    def ask(**parameters: object) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            data=json.dumps({"inputs": texts, "params": parameters}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["predictions"]
            return rows

    command = ["mlflow", "models", "serve", "-m", "models:/deepmoji@champion", "--env-manager", "local"]
    with servers.Server(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        house.folder / "serve.log",
        lambda: servers.healthy(f"http://127.0.0.1:{port}/ping"),
        house.variables | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])},
        cwd=house.folder,
    ):
        labels = [row["labels"] for row in ask(output="predict", top_k=3)]
        probabilities = ask(output="probabilities")
        features = [row["features"] for row in ask(output="features")]
        explained = ask(output="explain")
        with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error [45]00"):
            ask(output="nonsense")
    model = load_folder(house.project / "artifacts" / "pretrained")
    expected = model.probabilities(texts)
    assert [list(row.values()) for row in probabilities] == [pytest.approx(row, abs=1e-5) for row in expected.tolist()]
    assert labels == [[best.label for best in row] for row in model.predict(texts, top_k=3)]
    assert features == [pytest.approx(row, abs=1e-5) for row in model.encode(texts).tolist()]
    assert [row["tokens"] for row in explained] == [[a.token for a in row] for row in model.explain(texts)]


def test_data_goes_to_s3_and_comes_back(house: House, tmp_path: Path) -> None:
    """A clone with nothing but the address and the keys pulls everything and has nothing to do."""
    project, variables = house.project, house.variables
    commit = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qam", "Lock")
    clone = tmp_path / "clone"
    for command in (
        ("dvc", "remote", "add", "--default", "s3", "s3://dvc/deepmoji"),
        ("dvc", "add", "-q", "data"),
        ("dvc", "push", "-q"),
        ("git", "add", "-A"),
        commit,
        ("git", "clone", "-q", ".", str(clone)),
    ):
        done = run_in(project, *command, variables=variables)
        assert done.returncode == 0, done.stderr
    assert not (clone / ".state").exists() and not (clone / "artifacts").exists()
    done = run_in(clone, "dvc", "pull", "-q", variables=variables)
    assert done.returncode == 0, done.stderr
    assert json.loads(run_in(clone, "dvc", "status", "--json").stdout) == {}
    weights = Path("artifacts") / "pretrained" / "model.safetensors"
    assert (clone / weights).read_bytes() == (project / weights).read_bytes()


def test_the_champion_is_served_by_the_image(house: House, tmp_path: Path) -> None:
    """The Dockerfile's CMD of the target serve, in a folder that holds what the image holds."""
    steps = servers.image("serve")
    for name, rest in steps:
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                shutil.copy2(house.project / source, tmp_path)
    (tmp_path / ".state").mkdir()
    port = servers.free_port()
    command = [word.replace("0.0.0.0", "127.0.0.1").replace("8000", str(port)) for word in json.loads(steps[-1][1])]
    settings = {
        "MODEL": "models:/deepmoji@champion",
        "DEEPMOJI_PROJECT": str(tmp_path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    # As in compose.yaml: the server's address and the user, no key to S3, whose artifacts MLflow hands out.
    given = {key: value for key, value in house.variables.items() if key.startswith("MLFLOW_")}
    with servers.Server(
        command,
        house.folder / "image-serve.log",
        lambda: servers.healthy(f"http://127.0.0.1:{port}/health"),
        given | settings,
        cwd=tmp_path,
    ):
        assert servers.get(f"http://127.0.0.1:{port}/") == 200


def test_the_password_is_changed_as_the_readme_tells(house: House) -> None:
    """Nothing after this talks to MLflow, whose password is another one from here on."""
    lines = (ROOT / "mlflow" / "README.md").read_text()
    found = re.search(r"curl -X PATCH -u deepmoji http://127.0.0.1:5000(\S+) .*\n.*-d '(.*)'", lines)
    assert found is not None

    def basic(password: str) -> dict[str, str]:
        return {"Authorization": "Basic " + b64encode(f"deepmoji:{password}".encode()).decode()}

    new = "changed-hunter2"
    body = found[2].replace("OLD", PASSWORDS["mlflow"]).replace("NEW", new).encode()
    headers = basic(PASSWORDS["mlflow"]) | {"Content-Type": "application/json"}
    assert servers.get(house.url + found[1], method="PATCH", data=body, headers=headers) == 200
    address = f"{house.url}/api/2.0/mlflow/experiments/search?max_results=5"
    assert servers.get(address, headers=basic(PASSWORDS["mlflow"])) == 401
    assert servers.get(address, headers=basic(new)) == 200


def test_no_secret_is_left_anywhere(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a log or file of the project, nor in the rows of both databases, nor in what lies in S3."""
    assert SECRET in PASSWORDS["mlflow"].encode()
    for text in (house.registered.stdout, house.registered.stderr):
        assert SECRET not in text.encode()
    found = [
        str(path)
        for top in (house.folder, house.database)
        for path in top.rglob("*")
        if path.is_file() and SECRET in path.read_bytes()
    ]
    assert found == []
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, house.variables[name])
    store = boto3.client("s3")
    objects = store.list_objects_v2(Bucket="mlflow")["Contents"]
    assert len(objects) > 100
    for key in {entry["ETag"]: entry["Key"] for entry in objects}.values():  # each content once
        assert SECRET not in store.get_object(Bucket="mlflow", Key=key)["Body"].read(), key
