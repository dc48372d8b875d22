"""Stages without the seconds that imports take: commands forked from processes that have the heavy modules loaded.

A flow starts a `dvc` for every stage and that a `deepmoji`, and they would spend some five seconds on MLflow, torch and
the like. During a flow a `dvc` and a `deepmoji` of this module stand first on PATH. They hand their arguments,
environment and open files to servers that fork, and wait for the exit code. Only other people's modules are loaded
before the fork: the project's own code is read by every command, as always. The command ends when the one who called
it does, and where no server answers the real one runs. Standard library only, since the caller has to start at once.
"""

import importlib
import json
import logging
import multiprocessing
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

# What the programs import of others, the slow ones: first what is always needed, then what stages need along the road.
LOADED = {
    "dvc": (("dvc.repo", "dvc.commands.repro"),),
    "deepmoji": (
        ("mlflow", "mlflow.store.tracking.sqlalchemy_store", "numpy", "pandas", "pyarrow.parquet"),
        ("great_expectations",),
        ("torch.optim", "sklearn.linear_model", "sklearn.metrics"),
    ),
}
NEEDED = {"validate": 1, "tokenize": 1, "pretrain": 2, "finetune": 2, "benchmark": 2}  # the last of those parts
PAUSE_SECONDS = 0.3  # without a call, before more is loaded: it keeps the next one waiting
Request = dict[str, Any]
FOLDER = "DEEPMOJI_WARM"  # of the quick commands and the sockets of their servers
ENDED = 143  # what a shell says of a command that SIGTERM ended
HEADER = 8
TAKEN = b"+"  # what a caller is told first; one that is not told it runs the real command


@contextmanager
def warm(ahead: bool = False) -> Iterator[None]:
    """Put the quick commands first on this process's PATH until the block ends; nothing where forks are unsafe.

    What all of them import is loaded for the first, or with `ahead` at once, where something else takes time meanwhile;
    and what the stages after this one import while this one works.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.environ["PATH"]
    if FOLDER in os.environ:  # there already, but others may stand before it by now
        os.environ["PATH"] = os.pathsep.join([os.environ[FOLDER], before])
        try:
            yield
        finally:
            os.environ["PATH"] = before
        return
    with tempfile.TemporaryDirectory(prefix="deepmoji-") as name, ExitStack() as servers:
        for program in LOADED:
            servers.enter_context(_server(Path(name), program, ahead))
        os.environ |= {"PATH": os.pathsep.join([name, before]), FOLDER: name}
        try:
            yield
        finally:
            os.environ["PATH"] = before
            os.environ.pop(FOLDER, None)
    # Popen closed the servers' input, which is how they learn that the flow is over.


def _server(folder: Path, program: str, ahead: bool) -> "subprocess.Popen[bytes]":
    """Write the quick command, and start the server that it calls: one for each, so that a DVC stays small."""
    quick = folder / program
    caller = shlex.join([sys.executable, "-IS", __file__, "--call", str(folder), program])
    quick.write_text(f'#!/bin/sh\nexec {caller} "$@"\n')
    quick.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(_address(folder, program))
        listener.listen(64)
        # -P: modules come from where the real command finds them. A session of its own: Ctrl-C is the flow's.
        options = ["--serve", program, str(listener.fileno()), *(["--ahead"] if ahead else [])]
        return subprocess.Popen(
            [sys.executable, "-P", __file__, *options],
            stdin=subprocess.PIPE,
            env={"GOMP_SPINCOUNT": "3000"} | os.environ,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    # The listener is the server's alone now: were it killed, callers would else wait for nobody.


def _address(folder: Path, program: str) -> str:
    return str(folder / f"{program}.socket")


def serve(program: str, listener: socket.socket, ahead: bool) -> None:
    """Fork a process for every caller until this process's own input ends."""
    parts = LOADED[program]
    if ahead:
        load(parts[0])
    context = multiprocessing.get_context("fork")
    upcoming: list[str] = []  # what the stages after the last one import
    while True:
        # Asking for the children buries those that are done.
        watched = [listener, sys.stdin.fileno(), *(child.sentinel for child in multiprocessing.active_children())]
        ready = wait(watched, timeout=PAUSE_SECONDS if upcoming else None)
        if sys.stdin.fileno() in ready:
            os._exit(0)  # a command that still runs belongs to its caller
        if listener in ready:
            connection, _ = listener.accept()
            with connection:
                request = hear(connection)
                if request is None:
                    continue
                part = NEEDED.get(next(iter(request["arguments"]), ""), 0)
                load([*parts[0], *parts[part]])
                upcoming = [name for names in parts[part + 1 :] for name in names if name not in sys.modules]
                context.Process(target=answer, args=(program, connection, request)).start()
                for file in request["files"]:
                    os.close(file)
        elif upcoming and not ready:
            load([upcoming.pop(0)])


def hear(connection: socket.socket) -> Request | None:
    """What a caller asks for, with the open files it hands on; None if it is gone meanwhile."""
    files: list[int] = []
    try:
        header, files, _, _ = socket.recv_fds(connection, HEADER, 3)
        with connection.makefile("rb") as stream:
            request: Request = json.loads(stream.read(int.from_bytes(header)))
    except (OSError, ValueError):
        for file in files:
            os.close(file)
        return None
    return request | {"files": files}


def load(names: Iterable[str]) -> None:
    """Import what takes long. What cannot be imported is left to the command to report."""
    for name in names:
        if name in sys.modules:
            continue
        with suppress(Exception):
            importlib.import_module(name)
            if name == "torch.optim":
                torch: Any = sys.modules["torch"]
                torch.optim.SGD([torch.zeros(1)])  # the first optimiser imports a good second's worth of torch


def answer(program: str, connection: socket.socket, request: Request) -> None:
    """In the forked process: be the command that the caller asked for, and tell it the exit code."""
    os.setsid()  # so that it ends with all that it started
    connection.sendall(TAKEN)
    for place, file in enumerate(request["files"]):
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
    sys.argv = [program, *request["arguments"]]
    code = 1
    try:
        code = command(program)(request["arguments"]) or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:
        traceback.print_exc()  # now: the caller is gone, and this process with it, once the code is sent
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError):
            connection.sendall(bytes([code & 255]))


def command(program: str) -> Callable[[list[str]], int | None]:
    """The function that is the program."""
    if program == "dvc":
        from dvc.cli import main as dvc
        from dvc.logger import setup

        for name in ("dvc", "dvc_data", "dvc_objects"):
            logging.getLogger(name).handlers.clear()  # they write to the server's files
        setup()
        return dvc  # type: ignore[no-any-return]  # DVC has no types
    from deepmoji.cli import main as deepmoji

    return deepmoji


def search_path(path: list[str], own: str, wanted: str) -> list[str]:
    """Where a process finds modules that was started with the PYTHONPATH `own`, had it been `wanted`."""
    rest = [place for place in path if place not in own.split(os.pathsep)]
    return [*filter(None, wanted.split(os.pathsep)), *rest]


def call(folder: Path, program: str, arguments: list[str]) -> int | None:
    """Run a command at its server in that folder; its exit code, or None where none answers."""
    request = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    message = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(_address(folder, program))
            socket.send_fds(connection, [len(message).to_bytes(HEADER)], [0, 1, 2])
            connection.sendall(message)
            if connection.recv(1) != TAKEN:
                return None
        except OSError:
            return None
        code = connection.recv(1)
    if not code:
        print(f"error: `{program} {' '.join(arguments)}` was killed, often for want of memory.", file=sys.stderr)
    return code[0] if code else ENDED


def _end_with_caller(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.recv(1)  # nothing more is sent: this returns when the caller is gone
    os.killpg(0, signal.SIGTERM)  # this process's own session
    os._exit(ENDED)


def main() -> None:
    way, *rest = sys.argv[1:]
    if way == "--serve":
        program, number, *options = rest
        serve(program, socket.socket(fileno=int(number)), "--ahead" in options)
    name, program, *arguments = rest
    code = call(Path(name), program, arguments)
    if code is None:
        others = [place for place in os.environ["PATH"].split(os.pathsep) if place != name]
        os.environ["PATH"] = os.pathsep.join(others)
        os.execvp(program, [program, *arguments])
    sys.exit(code)


if __name__ == "__main__":
    main()
