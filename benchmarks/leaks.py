"""Twenty pipelines in a row, in one process as a long-lived worker would run them: what does each leave behind?

    python benchmarks/leaks.py [--runs 20]

On a tiny project, whose stages are up to date from the second run on. Prints a row per run: seconds, open file
handles, threads and children of this process, and locks that are held in the project. Exit code 1 if there are
processes or locks after the last run, or more handles or threads than after the second, when all is warm.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parents[1]
SPARE = 3  # handles or threads that come and go, of the logger's queue and the event loop


def held(project: Path) -> int:
    """Locks that nobody should hold between runs: the flow's, MLflow's, and what DVC notes as in use."""
    count = 0
    for lock in (project / ".state" / "pipeline.lock", *(project / ".state" / "mlflow").glob("*.lock")):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            count += 1
    noted = project / ".dvc" / "tmp" / "rwlock"
    count += len(json.loads(noted.read_text() or "{}")) if noted.is_file() else 0
    return count + len(list(project.rglob(".git/index.lock")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = max(3, parser.parse_args().runs)
    sys.path.insert(0, str(ROOT))
    from flows.environment import enter
    from tests.conftest import write_tiny_project

    with tempfile.TemporaryDirectory(prefix="deepmoji-") as name:
        project = write_tiny_project(Path(name) / "project")
        os.environ |= {"DEEPMOJI_PROJECT": str(project), "PYTHONPATH": str(project), "PREFECT_LOGGING_LEVEL": "ERROR"}
        enter(project)
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from flows import temporary
        from flows.pipeline import pipeline

        own = psutil.Process()
        facts: list[tuple[int, int, int, int]] = []
        address, end = temporary.start()  # one for all runs, as in production
        try:
            served = len(own.children(recursive=True))
            print("  run  seconds  handles  threads  children  locks")
            with temporary_settings({PREFECT_API_URL: address}):
                for number in range(1, runs + 1):
                    started = time.monotonic()
                    pipeline(str(project))
                    children = len(own.children(recursive=True)) - served
                    facts.append((own.num_fds(), own.num_threads(), children, held(project)))
                    print(f"{number:>5}{time.monotonic() - started:>9.1f}{facts[-1][0]:>9}{facts[-1][1]:>9}", end="")
                    print(f"{children:>10}{facts[-1][3]:>7}", flush=True)
        finally:
            end()  # before its database goes
    warm, last = facts[1], facts[-1]
    leaks = [
        f"{last[i] - warm[i]} {what}" for i, what in enumerate(("handles", "threads")) if last[i] > warm[i] + SPARE
    ]
    leaks += [f"{last[i]} {what}" for i, what in ((2, "processes"), (3, "locks")) if last[i]]
    print(f"left behind: {', '.join(leaks) or 'nothing'}")
    sys.exit(bool(leaks))


if __name__ == "__main__":
    main()
