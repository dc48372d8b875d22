"""Gate, promote, roll back: what stands between a trained model and its users."""

import json
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, pause_flow_run
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from deepmoji import registry, stages
from deepmoji.errors import InputError, RegistryError
from deepmoji.lock import one_run
from deepmoji.provenance import digest
from deepmoji.sample import SOURCES
from flows.environment import project_of
from flows.notify import tell


@flow(name="release", flow_run_name="release", retries=0, on_failure=[tell], on_crashed=[tell])
def release(root: str | None = None, approval: bool = False) -> int:
    """Register artifacts/pretrained as a challenger and make it the champion if it passes mlflow/promotion.yaml.

    Returns the champion's version. A model that is registered already is not registered again. Raises
    RegistryError naming the numbers that fell short.
    """
    logger = get_run_logger()
    project = project_of(root)
    gates = registry.load_gates(project / "mlflow" / "promotion.yaml")
    folder = project / "artifacts" / "pretrained"
    with run_of(project):
        tags = challenger_tags(project)
        known = registry.find(project, "model_digest", tags["model_digest"])
        if known is not None and not approval and registry.was_rolled_back(project, known):
            raise RegistryError(
                f"deepmoji version {known} was champion and was rolled back: train anew, or bring it back by hand with "
                f"`deepmoji models promote {known}`."
            )
        numbers = release_numbers(project)
        version = registry.find(project, "model_digest", tags["model_digest"], metrics=numbers)
        if version is None:
            version = registry.register(project, folder, tags=tags, metrics=numbers)
            logger.info(f"Registered deepmoji version {version}")
    if registry.champion(project) == version:
        logger.info(f"deepmoji version {version} is the champion already")
        return version
    if approval:
        logger.info(f"deepmoji version {version} waits for approval: resume this flow run to promote it")
        pause_flow_run(timeout=24 * 3600, poll_interval=5)
        if registry.champion(project) == version:
            logger.info(f"deepmoji version {version} was promoted meanwhile")
            return version
    try:
        with run_of(project):
            registry.promote(project, version, gates, evaluate=partial(measure, project))
    except RegistryError as refusal:
        create_markdown_artifact(key="release", markdown=f"# Version {version} refused\n\n{refusal}\n")
        raise
    create_markdown_artifact(key="release", markdown=f"# deepmoji version {version} is the champion\n")
    return version


def measure(project: Path, model: Path) -> dict[str, float]:
    """What a gate compares of the model in a folder, on the project's own test texts."""
    from deepmoji.evaluation import gate_numbers  # torch: a champion measured on the same data does without

    return gate_numbers(model, project / "artifacts" / "corpus")


def run_of(project: Path) -> AbstractContextManager[None]:
    """Keeps other runs from artifacts/; a flow that this one is part of does that already.

    Not held while a person thinks: the version waits in the registry, and promotion compares on what is there then.
    """
    return nullcontext() if flow_run.get_parent_flow_run_id() else one_run(project)


@flow(name="rollback", flow_run_name="rollback", retries=0)
def rollback(root: str) -> int:
    """Give the alias champion back to the version that had it before; returns that version."""
    return registry.rollback(Path(root))


def challenger_tags(project: Path) -> dict[str, str]:
    """What a version must carry to be traced back: the model's own bytes, its data and its preset.

    `data` is the corpus, not the tokens: two models with other vocabularies still share their test texts. `synthetic`
    is told by where the texts come from: the preset sample may stand on texts of the user's own.
    """
    artifacts = project / "artifacts"
    sources = {entry["source"] for entry in read_facts(artifacts / "corpus" / "funnel.json")["sources"]}
    return {
        "model_digest": digest(artifacts / "pretrained"),
        "data": digest(artifacts / "corpus"),
        "preset": stages.Project(project).params.preset,
        "synthetic": "yes" if sources <= set(SOURCES) else "no",
    }


def read_facts(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run the pipeline (`make run`) before a release.") from None


def release_numbers(project: Path) -> dict[str, float]:
    """The numbers that gates may name: top1, top5 and loss of pretraining, and what transfer gained by it."""
    metrics = project / "artifacts" / "metrics"
    numbers = {stage: read_facts(metrics / f"{stage}.json") for stage in ("pretrain", "benchmark")}
    emoji = {name: float(numbers["pretrain"][name]) for name in ("top1", "top5", "loss")}
    gains = {
        f"gain.{dataset}": methods["chain-thaw"]["mean"] - methods["new"]["mean"]
        for dataset, methods in numbers["benchmark"].items()
        if {"chain-thaw", "new"} <= methods.keys()
    }
    # Without both methods nothing is known of the transfer; a gate on it then refuses by itself.
    return emoji | gains | ({"transfer_gain": sum(gains.values()) / len(gains)} if gains else {})
