"""One run of the road at a time, and no stage left over from a run that was killed."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepmoji.errors import DeepMojiError

# How long a run waits for another one before it gives up.
LOCK_SECONDS = 60.0
POLL_SECONDS = 0.1


@contextmanager
def held(path: Path, holder: str, seconds: float | None = None, shared: bool = False) -> Iterator[int]:
    """Hold the lock file `path`; gives its descriptor, and a child that gets it holds the lock as long as it lives.

    `shared` holders do not keep each other away. The system frees the lock of a process that was killed.
    DeepMojiError naming `holder` when the lock is not free within `seconds` (default LOCK_SECONDS).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + (LOCK_SECONDS if seconds is None else seconds)
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise DeepMojiError(f"{holder} holds {path}: wait until it is done, then run again.") from None
                time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def one_run(root: Path, seconds: float | None = None) -> Iterator[None]:
    """Whatever changes artifacts/ or data/ does it inside this.

    DeepMojiError when another run does not end, or a stage that a killed run left behind.
    """
    with held(root / ".state" / "pipeline.lock", "Another run", seconds):
        with held(stage_lock(root), "A stage of a run that was killed", seconds):
            pass  # none is left over; from here on others are kept away
        yield


def stage_lock(root: Path) -> Path:
    """What the process of a stage holds. It outlives a flow that was killed, and then keeps the next one waiting."""
    return root / ".state" / "stage.lock"
