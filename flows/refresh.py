"""New data: compared with the corpus, taken in, and a new model trained at once if it differs too much.

    new file or folder --ingest--> .state/refresh/corpus --compare--> artifacts/drift/ --accept--> data/<tweets>/

Data that differs little is taken in too; the next run of the pipeline trains on it.
"""

import shutil
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from deepmoji import drift, validation
from deepmoji.corpus import ingest
from deepmoji.emojis import load_labels
from deepmoji.errors import InputError
from deepmoji.intake import place_of, take
from deepmoji.lock import one_run
from deepmoji.stages import Project
from flows.environment import project_of
from flows.notify import tell
from flows.pipeline import StageResult, run_road, side_by_side
from flows.release import release


@flow(
    name="refresh", flow_run_name="refresh", retries=0, on_failure=[tell], on_crashed=[tell], task_runner=side_by_side()
)
def refresh(new: str, root: str | None = None, promote: bool = True) -> list[StageResult]:
    """Take in a file or folder of tweets; returns what ran, nothing where no retraining was called for.

    `new` may be relative to the project folder. InputError or ValidationFailed when it cannot be used, UsageError
    when it is there already; nothing is changed then.
    """
    folder, logger = project_of(root), get_run_logger()
    source = folder / new
    with one_run(folder):
        project = Project(folder)
        target = place_of(project, source)
        drifted = check(project, source)
        accept(project, source, target)
        if not drifted:
            logger.info(f"{target} differs little from the corpus: the next run of the pipeline takes it up")
            return []
        logger.warning(f"{target} differs from the corpus ({', '.join(drifted)}): a model is trained on it now")
        results = run_road(folder)
        if promote:
            release(str(folder))
        return results


@task(name="check", cache_policy=NO_CACHE, persist_result=False)
def check(project: Project, source: Path) -> list[str]:
    """Ingest new data by itself, check and compare it; returns the names of the drift rules that it breaks."""
    reference, vocabulary = project.artifacts / "corpus", project.artifacts / "tokens" / "vocabulary.json"
    for path in (reference / "labels.json", vocabulary):
        if not path.is_file():
            raise InputError(f"{path} is missing, so there is nothing to compare with: run the pipeline first.")
    options = project.params.section("ingest")
    del options["tweets"], options["leave_out"]  # of the project's own folder
    work, out = project.state / "refresh", project.artifacts / "drift"
    ingest(source, work / "corpus", **options | {"labels": load_labels(str(options["labels"]))})
    validation.validate_raw(work / "corpus", work / "validation")
    numbers = drift.compare(reference, work / "corpus", vocabulary, out, **project.params.section("drift"))
    shutil.rmtree(work)
    create_markdown_artifact(
        key="drift", markdown=describe(numbers, source.name), description="New data and the corpus"
    )
    drifted: list[str] = numbers["drifted"]
    return drifted


def describe(numbers: dict[str, Any], name: str) -> str:
    """The comparison as Markdown."""
    drifted = numbers["drifted"]
    verdict = f"differs by {', '.join(drifted)}: a model is trained anew" if drifted else "differs little"
    rows = "".join(f"| {key} | {value:.6g} |\n" for key, value in numbers.items() if key != "drifted")
    return f"# {name}\n\n{verdict}\n\n| number | value |\n| --- | --- |\n{rows}"


@task(name="accept", cache_policy=NO_CACHE, persist_result=False)
def accept(project: Project, source: Path, target: Path) -> None:
    """Copy new data to its place, and give DVC the new version of data/ if it has one."""
    take(project, source, target, version=project.data.with_name(f"{project.data.name}.dvc").is_file())
