"""`python -m flows shards STAGE`: a stage whose shards are Prefect tasks, in processes here or on a Dask cluster.

`dvc repro` maps shards over its own processes and needs no server; this is the way to more than one machine. One
setting says where shards run: `processes`, `dask` (a cluster made here for the run) or a scheduler's address. What is
written does not depend on it, so DVC is told that the stage is done and `make run` goes on from there.
"""

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner

from deepmoji import stages
from deepmoji.errors import DeepMojiError, UsageError
from deepmoji.lock import one_run

Result = TypeVar("Result")
STAGES = ("ingest", "tokenize")
CONNECT_SECONDS = 10


@task(name="shard", cache_policy=NO_CACHE, persist_result=False)
def run_shard(work: Callable[[], Any]) -> Any:
    """One shard. Arrow keeps what it freed; given back, so that a worker does not grow with their number."""
    result = work()
    pa.default_memory_pool().release_unused()
    return result


def map_shards(function: Callable[[Any], Result], items: Sequence[Any], /) -> Iterable[Result]:
    """Apply a function to every item by the task runner of the running flow; results in the order of the items."""
    # One opaque argument: neither Prefect nor Dask searches it for futures, or rebuilds what it holds.
    futures = [run_shard.submit(partial(function, item)) for item in items]
    return (future.result() for future in futures)


def task_runner(runner: str, workers: int) -> TaskRunner[Any]:
    """The task runner that the setting names. UsageError for one that is unknown or does not answer."""
    if runner == "processes":
        return ProcessPoolTaskRunner(max_workers=workers)
    if runner != "dask" and "://" not in runner:
        raise UsageError(
            f"There is no runner {runner!r}: choose processes, dask, or a scheduler's address (tcp://host:8786)."
        )
    try:
        import distributed
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError:
        raise UsageError(f"The runner {runner!r} needs Dask: install it with `pip install 'deepmoji[dask]'`.") from None
    if runner == "dask":
        return DaskTaskRunner(cluster_kwargs={"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None})
    try:
        distributed.Client(runner, timeout=CONNECT_SECONDS, set_as_default=False).close()  # type: ignore[no-untyped-call]
    except (OSError, ValueError):
        raise UsageError(
            f"No Dask scheduler answers at {runner}: start one with `dask scheduler`, or mend the address."
        ) from None
    if not PREFECT_API_URL.value():
        raise UsageError(
            "Workers of a cluster report to a Prefect server, and PREFECT_API_URL names none: start one with "
            "`prefect server start` where they reach it, and set PREFECT_API_URL."
        )
    return DaskTaskRunner(address=runner)


def run_stage(root: Path, stage: str, runner: str) -> stages.Numbers:
    """Run `ingest` or `tokenize` over shards, as `dvc repro` would have left it; returns the stage's numbers."""
    project = stages.Project(root)
    workers = int(project.params.section(stage)["workers"])
    with one_run(project.root):
        flow_here = shards.with_options(task_runner=task_runner(runner, workers))
        numbers: stages.Numbers = flow_here(str(project.root), stage)
        _tell_dvc(project.root, stage)
        return numbers


@flow(name="shards", flow_run_name="shards-{stage}", persist_result=False)
def shards(root: str, stage: str) -> stages.Numbers:
    """The stage in this process, its shards wherever the flow's task runner puts them."""
    run = {"ingest": stages.ingest, "tokenize": stages.tokenize}[stage]
    return run(stages.Project(Path(root)), map_shards=map_shards)


def _tell_dvc(root: Path, stage: str) -> None:
    """Write the stage's outputs to dvc.lock and the cache, so that DVC does not run it again."""
    done = subprocess.run(
        ["dvc", "commit", "--force", "--quiet", stage], cwd=root, capture_output=True, text=True, env=os.environ
    )
    if done.returncode:
        reason = " ".join(done.stderr.split())[-300:]
        raise DeepMojiError(f"The stage {stage} is done, but DVC did not take it ({reason}): run `dvc repro {stage}`.")
