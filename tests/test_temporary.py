"""The Prefect server of one command: there while the command is, and never after it."""

import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepmoji.errors import ServiceError
from flows.__main__ import asking_prefect
from tests import servers
from tests.conftest import ROOT

START = """
import sys
from flows import temporary
address, end = temporary.start()
print(address, flush=True)
sys.stdin.read()
"""


def start() -> tuple[subprocess.Popen[str], str, psutil.Process]:
    """A process with a server of its own: it, the server's address, and the server once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", START], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert httpx.get(f"{address}/health", timeout=120).json() is True, "the first request waits"
    (server,) = psutil.Process(process.pid).children()
    return process, address, server


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))


def test_it_listens_on_loopback_and_ends_with_the_command() -> None:
    process, _, server = start()
    heard = {c.laddr.ip for c in server.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert heard == {"127.0.0.1"}
    process.communicate("")
    assert process.returncode == 0
    assert not server.is_running()


def test_it_outlives_no_command_that_is_killed() -> None:
    process, address, server = start()
    with process:
        process.kill()
    server.wait(timeout=20)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_one_that_a_profile_names_is_asked_instead() -> None:
    before = set(psutil.Process().children())
    named = f"http://127.0.0.1:{servers.free_port()}/api"
    with (
        temporary_settings({PREFECT_API_URL: named}),
        pytest.raises(ServiceError, match=named),
        asking_prefect(serve=True),
    ):
        pytest.fail("nobody answers there")
    until = time.monotonic() + 20
    while set(psutil.Process().children()) - before and time.monotonic() < until:
        time.sleep(0.1)
    assert set(psutil.Process().children()) - before == set()
