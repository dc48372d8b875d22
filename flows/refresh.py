"""New data: compared with the corpus, taken in, and a new model trained at once if it differs too much.

    new file or folder --ingest--> .state/refresh/corpus --compare--> artifacts/drift/ --accept--> data/<tweets>/

Data that differs little is taken in too; the next run of the pipeline trains on it.
"""

import filecmp
import shutil
import subprocess
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from deepmoji import drift, stages, validation
from deepmoji.corpus import ingest
from deepmoji.emojis import load_labels
from deepmoji.errors import DeepMojiError, InputError, UsageError
from deepmoji.readers import list_files
from flows.environment import project_of
from flows.lock import one_run
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
    project, logger = project_of(root), get_run_logger()
    source = project / new
    with one_run(project):
        target = place_of(project, source)
        drifted = check(project, source)
        accept(project, source, target)
        if not drifted:
            logger.info(f"{target} differs little from the corpus: the next run of the pipeline takes it up")
            return []
        logger.warning(f"{target} differs from the corpus ({', '.join(drifted)}): a model is trained on it now")
        results = run_road(project)
        if promote:
            release(str(project))
        return results


def place_of(project: Path, source: Path) -> Path:
    """Where new data goes. UsageError when something is there already, or when tweets are one file."""
    params = stages.Project(project).params
    tweets = project / params.data / params.ingest.tweets
    if tweets.is_file():
        raise UsageError(f"{tweets} is one file, and new data is added to a folder: name a folder as ingest.tweets.")
    list_files(source)
    target = tweets / source.resolve().name
    if target.exists():
        if _same(source, target):
            raise UsageError(f"{target} holds the same data already: run the pipeline to train on it.")
        raise UsageError(f"{target} holds other data of that name: give the new data another name.")
    return target


def _same(source: Path, target: Path) -> bool:
    if source.is_file() or target.is_file():
        return source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False)
    names = [sorted(p.relative_to(folder) for p in list_files(folder)) for folder in (source, target)]
    return names[0] == names[1] and all(filecmp.cmp(source / name, target / name, shallow=False) for name in names[0])


@task(name="check", cache_policy=NO_CACHE, persist_result=False)
def check(project: Path, source: Path) -> list[str]:
    """Ingest new data by itself, check and compare it; returns the names of the drift rules that it breaks."""
    here = stages.Project(project)
    reference, vocabulary = here.artifacts / "corpus", here.artifacts / "tokens" / "vocabulary.json"
    for path in (reference / "labels.json", vocabulary):
        if not path.is_file():
            raise InputError(f"{path} is missing, so there is nothing to compare with: run the pipeline first.")
    options = here.params.section("ingest")
    del options["tweets"]
    work, out = here.state / "refresh", here.artifacts / "drift"
    ingest(source, work / "corpus", **options | {"labels": load_labels(str(options["labels"]))})
    validation.validate_raw(work / "corpus", work / "validation")
    numbers = drift.compare(reference, work / "corpus", vocabulary, out, **here.params.section("drift"))
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
def accept(project: Path, source: Path, target: Path) -> None:
    """Copy new data to its place, whole or not at all, and give DVC the new version of data/ if it has one."""
    beside = target.with_name(f".{target.name}.tmp")  # hidden: no reader takes it for data
    if beside.is_dir():
        shutil.rmtree(beside)
    if source.is_dir():
        shutil.copytree(source, beside)
    else:
        shutil.copyfile(source, beside)
    beside.replace(target)
    data = stages.Project(project).data
    if data.with_name(f"{data.name}.dvc").is_file():
        done = subprocess.run(["dvc", "add", "--quiet", str(data)], cwd=project, capture_output=True, text=True)
        if done.returncode:
            reason = " ".join(done.stderr.split())[-300:]
            raise DeepMojiError(f"{target} is there, but DVC did not take it ({reason}): run `dvc add {data}`.")
