"""Stages without the seconds that imports take: commands forked from a process that has the heavy modules loaded.

DVC starts a `deepmoji` for every stage, and each spends some five seconds on torch and MLflow. During a flow a
`deepmoji` of this module stands first on PATH. It hands its arguments, environment and open files to a server that
forks, and waits for the exit code. Only other people's modules are loaded before the fork: the project's own code is
read by every command, as always. The command ends when the one who called it does, and where no server answers the
real `deepmoji` runs. Standard library only, since the caller has to start at once.
"""

import importlib
import json
import multiprocessing
import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

# What the stages import of others, the slow ones.
LOADED = (
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "numpy",
    "pandas",
    "pyarrow.parquet",
    "sklearn.linear_model",
    "sklearn.metrics",
    "torch.optim",
)
SOCKET = "DEEPMOJI_WARM"
ENDED = 143  # what a shell says of a command that SIGTERM ended
HEADER = 8
TAKEN = b"+"  # what a caller is told first; one that is not told it runs the real command


@contextmanager
def warm(ahead: bool = False) -> Iterator[None]:
    """Put the quick `deepmoji` first on this process's PATH until the block ends; nothing where forks are unsafe.

    The modules are loaded for the first command, or with `ahead` at once, where something else takes time meanwhile.
    """
    if sys.platform != "linux":
        yield
        return
    if SOCKET in os.environ:  # there already, but others may stand before it by now
        before = os.environ["PATH"]
        os.environ["PATH"] = os.pathsep.join([str(Path(os.environ[SOCKET]).parent), before])
        try:
            yield
        finally:
            os.environ["PATH"] = before
        return
    with tempfile.TemporaryDirectory(prefix="deepmoji-") as name, socket.socket(socket.AF_UNIX) as listener:
        address = str(Path(name) / "socket")
        listener.bind(address)
        listener.listen(64)
        quick = Path(name) / "deepmoji"
        quick.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {shlex.quote(__file__)} "$@"\n')
        quick.chmod(0o700)
        # -P: modules come from where the real command finds them. A session of its own: Ctrl-C is the flow's.
        command = [sys.executable, "-P", __file__, "--serve", str(listener.fileno()), *(["--ahead"] if ahead else [])]
        before = os.environ["PATH"]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            env={"GOMP_SPINCOUNT": "3000"} | os.environ,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        ):
            listener.close()  # the server's alone: were it killed, callers would else wait for nobody
            os.environ |= {"PATH": os.pathsep.join([name, before]), SOCKET: address}
            try:
                yield
            finally:
                os.environ["PATH"] = before
                del os.environ[SOCKET]
        # Popen closed the server's input, which is how it learns that the flow is over.


def serve(listener: socket.socket, ahead: bool) -> None:
    """Fork a process for every caller until this process's own input ends."""
    if ahead:
        load()
    context = multiprocessing.get_context("fork")
    while True:
        # Asking for the children buries those that are done.
        ready = wait([listener, sys.stdin.fileno(), *(child.sentinel for child in multiprocessing.active_children())])
        if sys.stdin.fileno() in ready:
            os._exit(0)  # a command that still runs belongs to its caller
        if listener in ready:
            connection, _ = listener.accept()
            load()
            context.Process(target=answer, args=(connection,)).start()
            connection.close()


@cache
def load() -> None:
    """Import what takes long, once. What cannot be imported is left to the command to report."""
    for name in LOADED:
        with suppress(Exception):
            importlib.import_module(name)
    with suppress(Exception):
        torch: Any = sys.modules["torch"]
        torch.optim.SGD([torch.zeros(1)])  # the first optimiser imports a good second's worth of torch


def answer(connection: socket.socket) -> None:
    """In the forked process: be the command that the caller asked for, and tell it the exit code."""
    header, files, _, _ = socket.recv_fds(connection, HEADER, 3)
    if len(header) < HEADER:
        return  # the caller is gone already
    request = json.loads(connection.makefile("rb").read(int.from_bytes(header)))
    connection.sendall(TAKEN)
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    # Made anew: those of the server believe in its own files, which may be of another kind.
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(request["folder"])
    sys.path[:] = search_path(sys.path, os.environ.get("PYTHONPATH", ""), request["environment"].get("PYTHONPATH", ""))
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    threading.Thread(target=_end_with_caller, args=(connection,), daemon=True).start()
    sys.argv = ["deepmoji", *request["arguments"]]
    code = 1
    try:
        from deepmoji.cli import main

        main(request["arguments"])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:
        traceback.print_exc()  # now: the caller is gone, and this process with it, once the code is sent
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError):
            connection.sendall(bytes([code & 255]))


def search_path(path: list[str], own: str, wanted: str) -> list[str]:
    """Where a process finds modules that was started with the PYTHONPATH `own`, had it been `wanted`."""
    rest = [place for place in path if place not in own.split(os.pathsep)]
    return [*filter(None, wanted.split(os.pathsep)), *rest]


def call(address: str, arguments: list[str]) -> int | None:
    """Run a command at the server of that address; its exit code, or None where none answers."""
    message = json.dumps({"folder": str(Path.cwd()), "environment": dict(os.environ), "arguments": arguments}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            socket.send_fds(connection, [len(message).to_bytes(HEADER)], [0, 1, 2])
            connection.sendall(message)
            if connection.recv(1) != TAKEN:
                return None
        except OSError:
            return None
        code = connection.recv(1)
    if not code:
        print(f"error: `deepmoji {' '.join(arguments)}` was killed, often for want of memory.", file=sys.stderr)
    return code[0] if code else ENDED


def _end_with_caller(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.recv(1)  # nothing more is sent: this returns when the caller is gone
    os._exit(ENDED)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(socket.socket(fileno=int(sys.argv[2])), "--ahead" in sys.argv)
    address = os.environ[SOCKET]
    code = call(address, sys.argv[1:])
    if code is None:
        rest = [part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != Path(address).parent]
        os.environ["PATH"] = os.pathsep.join(rest)
        os.execvp("deepmoji", ["deepmoji", *sys.argv[1:]])
    sys.exit(code)


if __name__ == "__main__":
    main()
