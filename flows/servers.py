"""`python -m flows up`: a Prefect server, an MLflow server and a worker on this machine, until one Ctrl-C.

All three listen on loopback alone and keep their state and their logs below `.state/`. The MLflow server is over the
same database and the same artifacts as a run without any server. If one ends, all are ended.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import click
import psutil

from deepmoji import tracking
from deepmoji.errors import ServiceError, UsageError
from deepmoji.lock import held
from flows.environment import addresses, running, up_lock

HOST = "127.0.0.1"
POOL = "deepmoji"
READY_SECONDS = 180.0  # a machine under load starts them slowly
GRACE_SECONDS = 15.0  # how long each may take to end by itself
POLL_SECONDS = 0.3
LOOK_SECONDS = 2.0  # other commands hold the lock for a moment, to see whether an `up` has it
# In the environment of everything that an `up` starts: which one of its processes did, and the project's folder.
MARK, OF = "DEEPMOJI_UP", "DEEPMOJI_UP_OF"

Processes = dict[str, subprocess.Popen[bytes]]


def up(root: Path, prefect_port: int, mlflow_port: int) -> None:
    """Start everything, say where it is, and wait for Ctrl-C, SIGTERM or the end of one of them; then end them all.

    Raises UsageError for a port that is taken, ServiceError for a server that ends or does not answer in time.
    """
    if named := running(root):
        raise UsageError(f"`up` runs for this project already ({named['PREFECT_API_URL']}): end it before another one.")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        if os.environ.get(name):
            raise UsageError(f"{name} names a server elsewhere, and `up` starts one here: unset it.")
    with held(up_lock(root), "Another `up`", LOOK_SECONDS):
        addresses(root).unlink(missing_ok=True)  # of one that was killed
        if count := _end_marked(OF, str(root)):
            click.echo(f"{count} process(es) of an earlier `up` that was killed went on: they are ended now.")
        for option, port in (("--prefect-port", prefect_port), ("--mlflow-port", mlflow_port)):
            _check_port(port, option)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: stop.set())
        processes: Processes = {}
        mark = uuid4().hex
        try:
            if _start_all(root, prefect_port, mlflow_port, processes, stop, mark):
                click.echo("Ready; `make deploy` registers what is scheduled, Ctrl-C ends it all.")
                while not stop.wait(POLL_SECONDS):
                    _all_alive(processes, root)
        finally:
            addresses(root).unlink(missing_ok=True)
            end(processes, mark)


def _start_all(
    root: Path, prefect_port: int, mlflow_port: int, processes: Processes, stop: threading.Event, mark: str
) -> bool:
    """Start servers, wait until they answer, then the worker; False if it was stopped meanwhile."""
    prefect, mlflow = (f"http://{HOST}:{port}" for port in (prefect_port, mlflow_port))
    variables = {"PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow}
    uri = tracking.prepare(root)
    artifacts = root / ".state" / "mlflow" / "artifacts"

    def start(name: str, *command: str, **variables: str) -> None:
        processes[name] = _start(root, name, *command, **variables, **{MARK: f"{mark} {name}", OF: str(root)})

    start(
        "mlflow", "mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1",
        "--backend-store-uri", uri, "--default-artifact-root", str(artifacts), "--no-serve-artifacts",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",  # else a dozen processes for jobs that nobody here submits
    )  # fmt: skip
    start("prefect", "prefect", "server", "start", "--host", HOST, "--port", str(prefect_port))

    def wait(ready: Callable[[], bool]) -> bool:
        until = time.monotonic() + READY_SECONDS
        while not ready():
            _all_alive(processes, root)
            if time.monotonic() > until:
                raise ServiceError(
                    f"Not all of {', '.join(processes)} answered within {READY_SECONDS:.0f} s: see {_logs(root)}."
                )
            if stop.wait(POLL_SECONDS):
                return False
        return True

    if not wait(lambda: _answers(f"{mlflow}/health") and _answers(f"{prefect}/api/health")):
        return False
    os.environ.update(variables)
    from flows.deployments import end_left_over, make_pools  # Prefect reads PREFECT_API_URL when it loads

    make_pools(root)
    if count := end_left_over():
        click.echo(f"{count} flow run(s) had ended with an earlier `up`: they count as crashed now.")
    start("worker", "prefect", "worker", "start", "--type", "process", "--pool", POOL, **variables)
    if not wait(lambda: _worker_is_online(variables["PREFECT_API_URL"])):
        return False
    beside = addresses(root).with_suffix(".tmp")
    beside.write_text(json.dumps(variables, indent=2) + "\n", encoding="utf-8")
    beside.replace(addresses(root))
    click.echo(f"Prefect  {prefect}\nMLflow   {mlflow}\nworker   pool {POOL}, log in {_logs(root) / 'worker.log'}")
    return True


def _logs(root: Path) -> Path:
    return root / ".state" / "logs"


def _start(root: Path, name: str, *command: str, **variables: str) -> subprocess.Popen[bytes]:
    """In a session of its own, so that a Ctrl-C in the terminal reaches `up` alone, which ends them in order."""
    _logs(root).mkdir(parents=True, exist_ok=True)
    with (_logs(root) / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=root,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _check_port(port: int, option: str) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"Port {port} of {HOST} cannot be used ({error.strerror}): stop what listens there, or choose another "
                f"one with {option}."
            ) from None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _worker_is_online(api: str) -> bool:
    request = urllib.request.Request(
        f"{api}/work_pools/{POOL}/workers/filter", b"{}", {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return any(worker["status"] == "ONLINE" for worker in json.load(answer))
    except (OSError, urllib.error.URLError):
        return False


def _all_alive(processes: Mapping[str, subprocess.Popen[bytes]], root: Path) -> None:
    for name, process in processes.items():
        if process.poll() is not None:
            raise ServiceError(
                f"The {name} process ended with exit code {process.returncode}, and everything with it: see "
                f"{_logs(root) / f'{name}.log'}."
            )


def end(processes: Processes, mark: str) -> None:
    """End what was started last first, each with all that it started, by SIGTERM and after a grace by SIGKILL.

    Whoever starts a process hands its environment on, so the mark finds those whose parents are gone already: runs
    of a worker that was killed, say, which can still report to the server.
    """
    for name, process in reversed(processes.items()):
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        _end_marked(MARK, f"{mark} {name}")
        process.wait(GRACE_SECONDS)


def _end_marked(variable: str, value: str) -> int:
    """SIGTERM, and after a grace SIGKILL, for all with that in their environment; returns how many they were."""
    left = _marked(variable, value)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.terminate()
    psutil.wait_procs(left, timeout=GRACE_SECONDS)
    for one in _marked(variable, value):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    return len(left)


def _marked(variable: str, value: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # of another user, or gone meanwhile
            if process.environ().get(variable) == value:
                found.append(process)
    return found
