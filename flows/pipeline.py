"""The whole road: `python -m flows pipeline`.

Each task runs one stage of dvc.yaml with `dvc repro --single-item`, so a scheduled run and a hand-typed
`dvc repro` leave the same dvc.lock, and DVC alone decides what is up to date.
"""

import json
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from deepmoji.cli import TEMPORARY
from deepmoji.errors import DeepMojiError
from deepmoji.stages import Project, flatten
from flows.release import release

# Every stage in an order that dvc.yaml allows; of the first two neither reads what the other writes.
STAGES = ("ingest", "datasets", "validate", "tokenize", "pretrain", "finetune", "benchmark")
# The longest a stage may take before it is ended: pretraining may run for days, nothing may hang for ever.
STAGE_LIMIT_SECONDS = 14 * 24 * 3600
STATUS_SECONDS = 600
# How long a run waits for another one before it gives up.
LOCK_SECONDS = 60.0


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
    timeout_seconds=STAGE_LIMIT_SECONDS,
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
    items = [f"{stage}@{name}-{method}" for name in params.datasets.names for method in params.finetune.methods]
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
    with subprocess.Popen(
        ["dvc", "--wait-for-lock", "repro", "--single-item", target],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
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
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
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
    numbers: dict[str, float] = {}
    for path in sorted((root / "artifacts" / "finetuned").glob("*/*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        numbers[f"{path.parts[-3]} {path.parts[-2]} {results['metric']}"] = float(
            results["mean"]["test"][results["metric"]]
        )
    return numbers


def run_road(root: Path, stages: Sequence[str] = STAGES) -> list[StageResult]:
    """The stages in order; each publishes its numbers before the next begins."""
    first = [stage for stage in stages if stage in ("ingest", "datasets")]
    futures = [run_stage.submit(root, stage) for stage in first]
    wait(futures)
    results = [publish(root, future.result()) for future in futures]
    for stage in stages[len(first) :]:
        results.append(publish(root, run_items(root, stage) if stage == "finetune" else run_stage(root, stage)))
    return results


@flow(
    name="pipeline",
    flow_run_name="pipeline-{preset}",
    retries=0,
    task_runner=ThreadPoolTaskRunner(max_workers=max(os.cpu_count() or 1, 2)),  # type: ignore[arg-type]  # invariant
)
def pipeline(root: str, preset: str, promote: bool = True) -> list[StageResult]:
    """Every stage in order, then the release gate."""
    project = Path(root)
    (project / ".state").mkdir(exist_ok=True)
    try:
        with FileLock(project / ".state" / "pipeline.lock", timeout=LOCK_SECONDS):
            results = run_road(project)
            if promote:
                release(root)
            return results
    except Timeout:
        raise DeepMojiError(
            f"Another run holds {project / '.state' / 'pipeline.lock'}: wait until it is done, then run again."
        ) from None
