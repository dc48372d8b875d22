"""Surroundings of every tool: state inside the project, no telemetry, loopback.

Imports nothing heavy, since Prefect reads its settings when it is first imported. A variable that the user has
set is left alone, so `PREFECT_API_URL` or `MLFLOW_TRACKING_URI` point the same flows at real servers.
"""

import json
import os
import sys
from pathlib import Path

from deepmoji.config import find_project
from deepmoji.errors import DeepMojiError
from deepmoji.lock import held
from flows.database import NAME, place


def environment(root: Path) -> dict[str, str]:
    """The variables that the flows, their workers and the stages run with."""
    state = root / ".state"
    return {
        "DEEPMOJI_PROJECT": str(root),
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # 500 is what a Prefect server answers while its PostgreSQL restarts; asked again a little later it is well.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        "PREFECT_LOGGING_LEVEL": "INFO",
        # Stages are called by name, so the environment's commands must be found whether or not it is activated.
        "PATH": os.pathsep.join(
            dict.fromkeys([str(Path(sys.executable).parent), *os.environ["PATH"].split(os.pathsep)])
        ),
    }


def enter(root: Path) -> None:
    """Make the surroundings this process's own; what is already set wins, but for PATH."""
    for name, value in (environment(root) | running(root)).items():
        if name == "PATH":
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)
    home = Path(os.environ["PREFECT_HOME"])
    home.mkdir(parents=True, exist_ok=True)  # Prefect's temporary server makes its database there, but not the folder
    place(home / NAME)


def project_of(root: str | None) -> Path:
    """The project folder: the one given, else DEEPMOJI_PROJECT, which a worker runs with, else where this process is.

    Raises UsageError outside of any.
    """
    if root is not None:
        return Path(root).resolve()
    return find_project(Path(os.environ.get("DEEPMOJI_PROJECT") or Path.cwd()).resolve())


def addresses(root: Path) -> Path:
    """Where `up` writes what its servers answer to, as the variables that name them."""
    return root / ".state" / "servers.json"


def up_lock(root: Path) -> Path:
    """What `up` holds as long as it runs."""
    return root / ".state" / "up.lock"


def running(root: Path) -> dict[str, str]:
    """PREFECT_API_URL and MLFLOW_TRACKING_URI of the servers that `up` runs for this project; empty if it does not."""
    if not addresses(root).is_file():
        return {}
    try:
        with held(up_lock(root), "`up`", 0, shared=True):  # as others may look at this moment
            return {}  # it was killed, and what it wrote is stale
    except DeepMojiError:
        variables: dict[str, str] = json.loads(addresses(root).read_text(encoding="utf-8"))
        return variables
