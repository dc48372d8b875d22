"""Every test runs in its own surroundings: no user settings, no telemetry, own servers, no network (`run_in`)."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from xdist.scheduler import LoadScopeScheduling

from flows import warm

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("DEEPMOJI_DATA", ROOT.parent / "shared" / "data"))

WARM = "DEEPMOJI_TESTS_WARM"  # in the environment: the folder of the commands that are forked
USERS_OWN = ("MLFLOW_TRACKING", "MLFLOW_REGISTRY", "PREFECT_API", "PREFECT_HOME", "PREFECT_PROFILE")

# Set before any tool is imported: each of them phones home unless told not to.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",  # of repositories that a test makes; this project's own says so in .dvc/config
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",  # a test worker has one core
    "GOMP_SPINCOUNT": "3000",  # as the command does
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


# Files whose tests ask for `server`; the process that hands out files cannot see that.
SERVED = {"test_road", "test_flows", "test_refresh", "test_shards_flow"}
# The files that take longest, begun first so that no worker ends the run alone with one of them.
LONGEST = ("test_road", "test_real_servers", "test_servers", "test_flows", "test_refresh", "test_intake")


def pytest_configure(config: pytest.Config) -> None:
    """One pair of warm processes for all test workers, which load nothing before the first command."""
    # Ctrl-C reaches what the tests start, also where they run in a shell's background, which ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if WARM in os.environ:  # a worker's, from the process that started it
        return
    started = ExitStack()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests" / "offline"))
        patch.setenv("DEEPMOJI_TRIED", os.devnull)
        patch.setenv("PATH", os.environ["PATH"])
        patch.delenv(warm.FOLDER, raising=False)
        started.enter_context(warm.warm())
        folder = os.environ.pop(warm.FOLDER, "")  # for the files that ask for `warm_stages`
    os.environ[WARM] = folder
    config.add_cleanup(started.close)


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """A test worker takes a file at a time, but those that ask for `server` are one worker's: each would start one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "server" if Path(file).stem in SERVED else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    return Scheduler(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on real data run wherever the data is; elsewhere they are deselected, which pytest counts and prints."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    asking = {item.path.stem for item in items if "server" in getattr(item, "fixturenames", ())}
    assert asking <= SERVED, f"{asking - SERVED} ask for `server`"
    if REAL_DATA.is_dir():
        return
    left_out = [item for item in items if item.get_closest_marker("realdata")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the user's MLflow server, Prefect profile or project, nor the random numbers of the one before."""
    import torch

    torch.manual_seed(0)
    for name in list(os.environ):
        if name.startswith((*USERS_OWN, "DEEPMOJI_PROJECT")):
            monkeypatch.delenv(name)
    yield


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """Prefect's own test server, one for all files of a test worker: a start costs as much as the tests that use it."""
    from prefect.testing import utilities

    from deepmoji import tracking
    from flows.database import place

    with warnings.catch_warnings():  # MLflow warns while it is imported, which a flow does in a thread
        warnings.simplefilter("ignore")
        tracking.load()

    def make_folder() -> str:
        folder = tempfile.mkdtemp()
        place(Path(folder) / "prefect-test.db")
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", make_folder)
        with utilities.prefect_test_harness(server_startup_timeout=90):
            yield


@pytest.fixture(scope="module")
def warm_stages() -> Iterator[None]:
    """The flows and commands of a file find those processes running, so that none loads torch and MLflow for itself."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ[WARM]:
            patch.setenv(warm.FOLDER, os.environ[WARM])
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    return REAL_DATA


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


TINY = {
    "ingest": {"eval_per_label": 20, "workers": 1},
    "datasets": {"names": ["sample-sentiment"]},
    "validate": {"min_per_label": 5},
    "tokenize": {"workers": 1},
    "pretrain": {"embedding_size": 16, "hidden_size": 16, "epochs": 1, "learning_rate": 0.01},
    "finetune": {"methods": ["new", "chain-thaw"], "epochs": 1, "epoch_size": 200},
    "benchmark": {"baselines": ["majority"], "bootstrap": 20},
}
TINY_GATES = """\
minimum: {top5: 0.0, transfer_gain: -1.0}
maximum_drop: {top5: 1.0}
required_tags: [git_commit, code, data, dvc_lock]
same_data: data
significance: null
"""


def network_notes(project: Path) -> Path:
    """Where the processes of a project note what they tried to reach; it is there once one has run."""
    return project.with_name(f"{project.name}-network.txt")


def commands() -> str:
    """A PATH that begins with this environment's commands, before them the forked ones where they are asked for."""
    quick = [os.environ[warm.FOLDER]] if warm.FOLDER in os.environ else []
    return os.pathsep.join([*quick, str(Path(sys.executable).parent), os.environ["PATH"]])


def run_in(
    project: Path, *command: str, timeout: float = 200, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command inside a project as a user would, with this environment's commands on the PATH.

    Where `warm_stages` is asked for, `deepmoji` and `dvc` are forked from its process, as in a flow.
    A connection off this machine fails, and is noted in `network_notes`.
    variables: of the environment, besides the tests' own.
    """
    environment = os.environ | {
        "PATH": commands(),
        "DEEPMOJI_PROJECT": str(project),
        # The copy's own code, not the checkout's.
        "PYTHONPATH": os.pathsep.join([str(project), str(ROOT / "tests" / "offline")]),
        "DEEPMOJI_TRIED": str(network_notes(project)),
    }
    for name in list(environment):
        if name == "DEEPMOJI_DATA" or name.startswith(USERS_OWN):
            del environment[name]
    environment |= variables or {}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=timeout)


def deepmoji(*arguments: str | bytes, **options: Any) -> "subprocess.CompletedProcess[Any]":
    """The command as a user types it, forked where `warm_stages` is asked for."""
    command = shutil.which("deepmoji", path=commands())
    assert command is not None
    return subprocess.run([command, *arguments], capture_output=True, timeout=120, **options)


def write_tiny_project(folder: Path) -> Path:
    """A copy of this project in its own git and DVC repository, with a cut sample and tiny parameters."""
    from deepmoji.sample import write_sample

    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "data.dvc", "dvc.lock")):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    write_sample(folder / "data")
    for file in (folder / "data" / "tweets").iterdir():
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2500]))
    content = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in TINY.items():
        content[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "mlflow" / "promotion.yaml").write_text(TINY_GATES)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "A tiny project"]):
        subprocess.run(
            ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org", *command],
            check=True,
        )
    return folder


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project that the tests of the road share, in the order of their file."""
    return write_tiny_project(tmp_path_factory.mktemp("project"))
