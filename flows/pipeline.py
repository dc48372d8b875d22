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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from deepmoji.cli import TEMPORARY
from deepmoji.errors import DeepMojiError
from flows.environment import project_of
from flows.lock import held, one_run, stage_lock
from flows.notify import tell
from flows.release import release

STAGES = ("ingest", "datasets", "validate", "tokenize", "pretrain", "finetune", "benchmark")
# The longest a stage may take before it is ended: pretraining may run for days, nothing may hang for ever.
STAGE_LIMIT_SECONDS = 14 * 24 * 3600


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
    task_run_name="{stage}",
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_condition_fn=may_pass_again,
    timeout_seconds=STAGE_LIMIT_SECONDS,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(root: Path, stage: str) -> StageResult:
    """Run one DVC stage, stream its log, publish its numbers as an artifact."""
    started = time.monotonic()
    ran, unchanged = reproduce(root, stage)
    result = StageResult(stage, ran, unchanged, time.monotonic() - started)
    create_markdown_artifact(key=stage, markdown=describe(root, result), description=f"Numbers of the stage {stage}")
    return result


def reproduce(root: Path, stage: str) -> tuple[int, int]:
    """`dvc repro --single-item`: how many of the stage's items ran, and how many were up to date."""
    logger = get_run_logger()
    environment = os.environ | {"DEEPMOJI_FLOW_RUN_ID": flow_run.get_id() or ""}
    ran = unchanged = 0
    tail: deque[str] = deque(maxlen=40)
    # A session of its own, so that ending the task ends the stage and everything it started.
    with (
        held(stage_lock(root), "A stage of a run that was killed") as lock,
        subprocess.Popen(
            ["dvc", "repro", "--single-item", stage],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=[lock],
        ) as process,
    ):
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
        raise StageFailed(f"The stage {stage} failed: {sentence}", temporary=temporary)
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
    from deepmoji.stages import flatten

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


def run_name() -> str:
    """pipeline-<preset>, or pipeline-deployed where a deployment leaves the preset to params.yaml."""
    return f"pipeline-{flow_run.get_parameters().get('preset') or 'deployed'}"


@flow(name="pipeline", flow_run_name=run_name, retries=0, on_failure=[tell], on_crashed=[tell])
def pipeline(root: str | None = None, preset: str | None = None, promote: bool = True) -> list[StageResult]:
    """Every stage in order, then the release gate. Without `root`, of the project that the worker stands in."""
    project = project_of(root)
    with one_run(project):
        results = [run_stage(project, stage) for stage in STAGES]
        if promote:
            release(str(project))
        return results


@flow(name="benchmark", flow_run_name="benchmark", retries=0, on_failure=[tell], on_crashed=[tell])
def benchmark(root: str | None = None) -> list[StageResult]:
    """Fine-tunes and baselines side by side on the pretrained model that is there; nothing is released."""
    project = project_of(root)
    with one_run(project):
        return [run_stage(project, stage) for stage in ("finetune", "benchmark")]
