"""The whole road: `python -m flows pipeline`.

Each task runs one stage of dvc.yaml with `dvc repro --single-item`, so a scheduled run and a hand-typed
`dvc repro` leave the same dvc.lock, and DVC alone decides what is up to date.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from deepmoji import tracking
from deepmoji.cli import TEMPORARY
from deepmoji.config import load_params
from deepmoji.errors import DeepMojiError
from deepmoji.lock import held, one_run, stage_lock
from deepmoji.stages import Project, flatten
from flows.environment import project_of
from flows.notify import tell
from flows.release import release
from flows.warm import warm

# Every stage in an order that dvc.yaml allows; of the first two neither reads what the other writes.
STAGES = ("ingest", "datasets", "validate", "tokenize", "pretrain", "finetune", "benchmark")
# The longest a stage may take before it is ended: pretraining may run for days, nothing may hang for ever.
STAGE_LIMIT_SECONDS = 14 * 24 * 3600
STATUS_SECONDS = 600


class StageFailed(DeepMojiError):
    """A stage that ended with an error; `temporary` when trying again may help."""

    def __init__(self, message: str, temporary: bool) -> None:
        super().__init__(message)
        self.temporary = temporary


@dataclass(frozen=True)
class StageResult:
    """What a task hands on: small facts only, the data stays on disk."""

    stage: str
    ran: int
    unchanged: int
    seconds: float


def may_pass_again(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Retry a server or storage that did not answer; bad data and wrong parameters stay wrong."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.temporary


@task(
    task_run_name="{target}",
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_condition_fn=may_pass_again,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(root: Path, target: str) -> StageResult:
    """Run one DVC stage, or one item of a matrix (stage@item), and stream its log."""
    started = time.monotonic()
    ran, unchanged = reproduce(root, target)
    return StageResult(target, ran, unchanged, time.monotonic() - started)


def run_items(root: Path, stage: str) -> StageResult:
    """Run what is out of date of a matrix stage, as many items at once as there are cores."""
    started = time.monotonic()
    items, changed = matrix_items(root, stage)
    futures = [run_stage.submit(root, item) for item in changed]
    wait(futures)
    results = [future.result() for future in futures]
    unchanged = len(items) - len(changed) + sum(result.unchanged for result in results)
    return StageResult(stage, sum(result.ran for result in results), unchanged, time.monotonic() - started)


def matrix_items(root: Path, stage: str) -> tuple[list[str], list[str]]:
    """All items of the matrix stage, and those of them that DVC finds out of date."""
    params = Project(root).params
    # Methods are listed from quick to thorough as a rule; the long ones first, so that no core ends alone with one.
    methods = params.finetune.methods[::-1]
    items = [f"{stage}@{name}-{method}" for method in methods for name in params.datasets.names]
    question = ["dvc", "--wait-for-lock", "status", "--json", stage]
    done = subprocess.run(question, cwd=root, capture_output=True, text=True, timeout=STATUS_SECONDS)
    if done.returncode != 0:
        raise StageFailed(f"`{' '.join(question)}` failed: {done.stderr.strip()[-500:]}", temporary=False)
    state = json.loads(done.stdout)
    return items, [name for name in items if name in state]


def publish(root: Path, result: StageResult) -> StageResult:
    """The stage's numbers as an artifact that the Prefect UI shows."""
    create_markdown_artifact(
        key=result.stage, markdown=describe(root, result), description=f"Numbers of the stage {result.stage}"
    )
    return result


def reproduce(root: Path, target: str) -> tuple[int, int]:
    """`dvc repro --single-item`: how many of the target's items ran, and how many were up to date.

    While a stage's command runs DVC lets go of its lock, so that others can run beside it.
    """
    logger = get_run_logger()
    environment = os.environ | {"DEEPMOJI_FLOW_RUN_ID": flow_run.get_id() or ""}
    ran = unchanged = 0
    tail: deque[str] = deque(maxlen=40)
    # A session of its own, so that ending the task ends the stage and everything it started.
    with (
        held(stage_lock(root), "A stage of a run that was killed", shared=True) as lock,
        subprocess.Popen(
            ["dvc", "--wait-for-lock", "repro", "--single-item", target],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=[lock],
        ) as process,
        ExitStack() as undo,
    ):
        undo.callback(os.killpg, process.pid, signal.SIGTERM)
        # Prefect's own limit cannot end what runs in a thread.
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGTERM)

        timer = threading.Timer(STAGE_LIMIT_SECONDS, end)
        timer.start()
        undo.callback(timer.cancel)
        assert process.stdout is not None
        for line in process.stdout:
            text = line.rstrip()
            if not text:
                continue
            tail.append(text)
            ran += text.startswith("Running stage")
            # The second is DVC's run cache: the same inputs ran before, nothing is computed.
            unchanged += "didn't change, skipping" in text or "is cached - skipping run" in text
            logger.info(text)
        code = process.wait()
        timer.cancel()
        undo.pop_all()
    if late.is_set():
        raise StageFailed(f"The stage {target} was ended after {STAGE_LIMIT_SECONDS:,} seconds.", temporary=False)
    if code != 0:
        reason = next((line for line in tail if line.startswith(("error", TEMPORARY))), "") or " / ".join(
            list(tail)[-3:]
        )
        temporary = reason.startswith(TEMPORARY)
        sentence = reason.removeprefix(TEMPORARY).removeprefix("error: ")
        raise StageFailed(f"The stage {target} failed: {sentence}", temporary=temporary)
    return ran, unchanged


def describe(root: Path, result: StageResult) -> str:
    """The stage's numbers as a Markdown table, or the report where there is one."""
    head = f"# {result.stage}\n\n{result.ran} run, {result.unchanged} up to date, {result.seconds:.1f} s\n\n"
    report = root / "artifacts" / "benchmark" / "report.md"
    if result.stage == "benchmark" and report.is_file():
        return head + report.read_text(encoding="utf-8")
    numbers = stage_numbers(root, result.stage)
    rows = "".join(f"| {name} | {value:.6g} |\n" for name, value in list(numbers.items())[:200])
    return f"{head}| number | value |\n| --- | --- |\n{rows}"


def stage_numbers(root: Path, stage: str) -> dict[str, float]:
    """A stage's numbers from artifacts/, flat; the fine-tunes' are gathered from their results."""
    if stage != "finetune":
        path = root / "artifacts" / "metrics" / f"{stage}.json"
        return flatten(json.loads(path.read_text(encoding="utf-8")))
    params = load_params(root / "params.yaml")
    numbers: dict[str, float] = {}
    for path in sorted((root / "artifacts" / "finetuned").glob("*/*/results.json")):
        name, method = path.parts[-3:-1]
        if name in params.datasets.names and method in params.finetune.methods:  # the others are left from before
            results = json.loads(path.read_text(encoding="utf-8"))
            metric = results["metric"]
            numbers[f"{name} {method} {metric}"] = float(results["mean"]["test"][metric])
    return numbers


def run_road(root: Path, stages: Sequence[str] = STAGES) -> list[StageResult]:
    """The stages in order; each publishes its numbers before the next begins. For a flow with `side_by_side`."""
    first = [stage for stage in stages if stage in ("ingest", "datasets")]
    with warm(), no_stage_left():
        futures = [run_stage.submit(root, stage) for stage in first]
        wait(futures)
        results = [publish(root, future.result()) for future in futures]
        for stage in stages[len(first) :]:
            run = run_items if stage == "finetune" else run_stage
            results.append(publish(root, run(root, stage)))
        return results


@contextmanager
def no_stage_left() -> Iterator[None]:
    """End what still runs in other threads when this one is interrupted, as by Ctrl-C; they would work to the end."""
    try:
        yield
    finally:  # after a run that was not interrupted there is none
        for child in psutil.Process().children():
            with suppress(ProcessLookupError, psutil.Error):
                if "repro" in child.cmdline() and os.getpgid(child.pid) == child.pid:
                    os.killpg(child.pid, signal.SIGTERM)


def side_by_side() -> TaskRunner[PrefectFuture[Any]]:
    """A task runner for as many stages at once as there are cores."""
    runner: Any = ThreadPoolTaskRunner(max_workers=max(os.cpu_count() or 1, 2))
    return runner  # type: ignore[no-any-return]  # its future is one, but the type of task runners is invariant


def run_name() -> str:
    """pipeline-<preset of params.yaml>, or pipeline where that cannot be read: the run then fails and says why."""
    with suppress(DeepMojiError):
        root = project_of(flow_run.get_parameters().get("root"))
        return f"pipeline-{load_params(root / 'params.yaml').preset}"
    return "pipeline"


@flow(
    name="pipeline", flow_run_name=run_name, retries=0, on_failure=[tell], on_crashed=[tell], task_runner=side_by_side()
)
def pipeline(root: str | None = None, promote: bool = True) -> list[StageResult]:
    """Every stage in order, then the release gate. Without `root`, of the project that the worker stands in."""
    project = project_of(root)
    with one_run(project):
        if promote:
            threading.Thread(target=tracking.load, daemon=True).start()
        results = run_road(project)
        if promote:
            release(str(project))
        return results


@flow(
    name="benchmark",
    flow_run_name="benchmark",
    retries=0,
    on_failure=[tell],
    on_crashed=[tell],
    task_runner=side_by_side(),
)
def benchmark(root: str | None = None) -> list[StageResult]:
    """Fine-tunes and baselines side by side on the pretrained model that is there; nothing is released."""
    project = project_of(root)
    with one_run(project):
        return run_road(project, ("finetune", "benchmark"))
