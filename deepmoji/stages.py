"""What `dvc repro` runs: each stage of dvc.yaml, with its parameters, its MLflow run and its numbers on disk.

A stage function lives in the module of its trade and knows nothing of params.yaml or MLflow; here they meet.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from deepmoji import tracking
from deepmoji.config import Params, load_params
from deepmoji.errors import DeepMojiError, ServiceError, UsageError, ValidationFailed
from deepmoji.provenance import digest

if TYPE_CHECKING:
    from deepmoji.shards import MapShards

Numbers = dict[str, Any]
log = logging.getLogger(__name__)


class Project:
    """A project folder: where params.yaml is, what came from outside, and where results go."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.params: Params = load_params(self.root / "params.yaml")
        self.data = self.root / self.params.data
        self.artifacts = self.root / "artifacts"
        self.state = self.root / ".state"

    def write_numbers(self, stage: str, numbers: Mapping[str, Any]) -> None:
        """Write a stage's numbers where `dvc metrics` reads them; plots and tables stay in the stage's own output."""
        target = self.artifacts / "metrics" / f"{stage}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_suffix(".tmp")
        beside.write_text(json.dumps(only_numbers(numbers), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(target)


def only_numbers(value: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mapping without lists and texts, which belong to a stage's own output."""
    kept: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            inner = only_numbers(item)
            if inner:
                kept[str(key)] = inner
        elif isinstance(item, int | float) and not isinstance(item, bool):
            kept[str(key)] = item
    return kept


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """`{"a": {"b": 1}}` to `{"a.b": 1.0}`, numbers only: MLflow knows no nesting."""
    flat: dict[str, float] = {}
    for key, item in only_numbers(value).items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = float(item)
    return flat


@contextmanager
def stage_run(project: Project, stage: str, name: str | None = None, **tags: str) -> Iterator[tracking.Run]:
    """An MLflow run for one execution of a stage, with the stage's section of params.yaml as its parameters."""
    with tracking.start_run(
        project.root,
        experiment=stage,
        name=name or f"{stage}-{project.params.preset}",
        params=project.params.section(stage),
        tags={"stage": stage, "preset": project.params.preset, **_experiment(), **tags},
    ) as run:
        yield run


def _experiment() -> dict[str, str]:
    """The name that `dvc exp run` gave, so that its runs can be found in MLflow."""
    name = os.environ.get("DVC_EXP_NAME")
    return {"experiment": name} if name else {}


def ingest(project: Project, map_shards: "MapShards | None" = None) -> Numbers:
    from deepmoji import corpus
    from deepmoji.emojis import load_labels

    options = project.params.section("ingest")
    source = project.data / str(options.pop("tweets"))
    labels = load_labels(str(options.pop("labels")))
    with stage_run(project, "ingest") as run:
        out = project.artifacts / "corpus"
        funnel = corpus.ingest(source, out, labels=labels, report=run.metrics, map_shards=map_shards, **options)
        run.dataset("corpus", digest(out), str(source), int(funnel["rows_out"]))
        run.metrics(flatten(funnel), 0)
        run.artifacts(out / "funnel.json")
        project.write_numbers("ingest", funnel)
    return funnel


def datasets(project: Project) -> Numbers:
    from deepmoji.datasets import write_datasets

    with stage_run(project, "datasets") as run:
        out = project.artifacts / "datasets"
        numbers = write_datasets(project.params.datasets.names, project.data, out)
        for name in project.params.datasets.names:
            run.dataset(name, digest(out / f"{name}.parquet"), str(project.data), int(str(numbers[name]["rows"])))
        run.metrics(flatten(numbers), 0)
        project.write_numbers("datasets", numbers)
    return numbers


def validate(project: Project) -> Numbers:
    from deepmoji import validation

    options = project.params.section("validate")
    del options["max_unknown_share"]  # of the tokens, which come after this stage
    with stage_run(project, "validate") as run:
        out = project.artifacts / "validation"
        corpus, sets = project.artifacts / "corpus", project.artifacts / "datasets"
        run.dataset("corpus", digest(corpus), "artifacts/corpus")
        _name_sets(run, sets)
        try:
            numbers = validation.validate(corpus, sets, out, report=run.metrics, **options)
        except ValidationFailed:
            # A failed validation is the one whose report somebody wants to read, but its sentence matters more.
            try:
                run.artifacts(out)
            except ServiceError as error:
                log.warning("The report stays in %s alone: %s", out, error)
            raise
        run.artifacts(out)
        run.metrics(flatten(numbers), 0)
        project.write_numbers("validate", numbers)
    return numbers


def tokenize(project: Project, map_shards: "MapShards | None" = None) -> Numbers:
    from deepmoji import tokens, validation

    with stage_run(project, "tokenize") as run:
        out = project.artifacts / "tokens"
        numbers = tokens.tokenize_corpus(
            project.artifacts / "corpus",
            out,
            report=run.metrics,
            map_shards=map_shards,
            **project.params.section("tokenize"),
        )
        validation.validate_tokens(out, max_unknown_share=project.params.validate_.max_unknown_share)
        run.dataset("tokens", digest(out), "artifacts/corpus", int(numbers["train"]["rows"]))
        run.metrics(flatten(numbers), 0)
        project.write_numbers("tokenize", numbers)
    return numbers


def pretrain(project: Project) -> Numbers:
    from deepmoji.checkpoints import clear_state
    from deepmoji.pretraining import pretrain as run_pretrain
    from deepmoji.pretraining import processes
    from deepmoji.tokens import read_meta

    source, out = project.artifacts / "tokens", project.artifacts / "pretrained"
    options = _pretrain_options(project)
    # Under torchrun: first of all, since the others wait only so long for one that asks MLflow.
    with processes() as rank:
        tokens = digest(source)
        options["checkpoints"] = _checkpoints(project, options, tokens)
        if rank > 0:
            # The first process alone writes and tells MLflow.
            return run_pretrain(source, out, **options)
        with stage_run(project, "pretrain") as run:
            run.dataset("tokens", tokens, "artifacts/tokens", int(read_meta(source / "train")["rows"]))
            numbers = run_pretrain(source, out, report=run.metrics, **options)
            run.metrics(flatten(numbers), 0)
            for name in ("report.md", "plots", "metrics.json"):
                run.artifacts(out / name)
            project.write_numbers("pretrain", numbers)
        clear_state(options["checkpoints"])  # only now: an MLflow that does not answer would cost the training
    return numbers


def _checkpoints(project: Project, options: Mapping[str, Any], tokens: str) -> Path:
    """The folder for this training's checkpoints; a killed one under other settings keeps its own, and may go on."""
    from deepmoji.precision import choose_device, uses_bf16

    shaping = {key: options[key] for key in sorted({*options} - {"checkpoint_seconds", "sentiment_ranking"})}
    shaping["precision"] = uses_bf16(options["precision"], choose_device("auto"))  # auto depends on the machine
    name = hashlib.sha256(json.dumps([tokens, shaping]).encode()).hexdigest()[:16]
    folder = project.state / "checkpoints" / f"pretrain-{name}"
    others = [path for path in folder.parent.glob("pretrain*") if path != folder]
    if others:
        log.info("%s: kept for when their settings and data are back; else delete them", ", ".join(map(str, others)))
    return folder


def finetune(project: Project, dataset: str, method: str) -> Numbers:
    import torch

    from deepmoji import finetuning
    from deepmoji.datasets import CATALOG, load_dataset

    # Batches of 64 short texts gain little from a second core; the flow runs one fine-tune per core instead, and
    # the numbers do not depend on how many cores there are.
    torch.set_num_threads(1)
    options = project.params.section("finetune")
    del options["methods"]
    if dataset not in project.params.datasets.names:
        known = " (a known set: add it to datasets.names)" if dataset in CATALOG else ""
        raise UsageError(
            f"There is no dataset {dataset!r} in params.yaml{known}: choose one of {project.params.datasets.names}."
        )
    table = project.artifacts / "datasets" / f"{dataset}.parquet"
    out = project.artifacts / "finetuned" / dataset / method
    with stage_run(project, "finetune", f"{dataset}/{method}", dataset=dataset, method=method) as run:
        examples = load_dataset(table)
        run.dataset(dataset, digest(table), "artifacts/datasets", len(examples.texts))

        numbers = finetuning.finetune(
            examples,
            project.artifacts / "pretrained",
            out,
            method=method,
            report=run.metrics,
            report_seed=seed_reporter(run, dataset, method),
            **options,
        )
        means = {split: numbers["mean"][split] for split in ("validation", "test")}
        run.metrics(flatten(means), 0)
        run.artifacts(out / "results.json")
    return means


def seed_reporter(run: tracking.Run, dataset: str, method: str) -> Callable[[int, Mapping[str, Any]], None]:
    """What turns a finished seed into a run below `run`, so that the UI can compare (dataset, method, seed)."""
    began = time.time()

    def report_seed(seed: int, numbers: Mapping[str, Any]) -> None:
        nonlocal began
        params = {"method": method, "dataset": dataset, "seed": seed}
        run.child(f"{dataset}/{method}/seed {seed}", params, flatten(numbers), began, dataset)
        began = time.time()  # one seed comes after the other

    return report_seed


def finetune_own(
    project: Project,
    table: Path,
    *,
    text_column: str,
    label_column: str,
    split: str,
    method: str,
    model: str,
    name: str,
    out: Path | None,
) -> Numbers:
    """A user's own table to a model folder, a registered version deepmoji-<name> and a report beside the folder.

    With the options of the section finetune. Writes <out>/finetuned/<name>/<method> (the model), <out>/report and
    the table as it was read, <out>/datasets; `out` is by default below models/<name> of the project. The version is
    registered before the report is made, which can fail by what else lies in `out`. Its numbers are the kept model's
    own on test rows, and mean and std over the seeds of the metric. Errors: see
    datasets.dataset_from_table; DeepMojiError: registered, but without a report.
    """
    from deepmoji import benchmark as bench
    from deepmoji import finetuning, registry
    from deepmoji.datasets import CATALOG, dataset_from_table, save_dataset

    try:
        registry.check_name(f"deepmoji-{name}")  # which also names folders; before the work, not after it
    except UsageError as error:
        sentence = str(error).removesuffix(".")
        raise UsageError(f"{sentence} (it comes of the file's name, or of --name where that is given).") from None
    if not name.strip("."):
        raise UsageError(f"The name {name!r} is not usable, since a folder gets it: take letters or digits too.")
    if name in CATALOG:
        raise UsageError(f"{name} is a published set, with figures of its own: name your table otherwise with --name.")
    dataset = replace(
        dataset_from_table(table, text_column, label_column, split, project.params.benchmark.seed), name=name
    )
    options = project.params.section("finetune")
    del options["methods"]
    target = (out or project.root / "models" / name).resolve()
    folder = target / "finetuned" / dataset.name / method
    tags = {"dataset": dataset.name, "method": method, "start": model, "data": digest(table)}
    start = registry.resolve(model, project.root)
    finetuning.check(start, method, options)
    with stage_run(project, "finetune", f"{name}/{method}", **tags) as run:
        run.dataset(dataset.name, digest(table), str(table), len(dataset.texts))
        results = finetuning.finetune(
            dataset,
            start,
            folder,
            method=method,
            report=run.metrics,
            report_seed=seed_reporter(run, name, method),
            **options,
        )
        save_dataset(dataset, target / "datasets" / f"{dataset.name}.parquet")
        figures = {key: results[key]["test"][dataset.metric] for key in ("mean", "std")}
        kept = next(seed for seed in results["seeds"] if seed["seed"] == results["best_seed"])
        # Where models of one class each were judged, the folder holds the model of all classes beside them.
        metrics = figures | kept.get("one_model", kept)["test"]
        version = registry.register(project.root, folder, f"deepmoji-{name}", tags=tags, metrics=metrics)
        try:
            numbers = bench.benchmark(
                target / "datasets",
                target / "finetuned",
                target / "report",
                seeds=project.params.finetune.seeds,
                kept=project.state / "baselines",
                start=results["start"],
                **project.params.section("benchmark"),
            )
        except DeepMojiError as error:
            raise DeepMojiError(
                f"The model is registered as models:/deepmoji-{name}/{version}, but its report was not made: {error}"
            ) from None
        run.metrics(flatten(numbers), 0)
        run.artifacts(target / "report")
    return {"version": version, "model": str(folder), "report": str(target / "report" / "report.md"), "scores": numbers}


def ablation(
    project: Project, name: str, sets: Sequence[str] = (), methods: Sequence[str] = (), shares: Sequence[float] = ()
) -> Numbers:
    """An ablation of the paper beside the road, below artifacts/ablations; see `ablations.ablate`.

    With the options of params.yaml, on its sets and by its methods (but new) unless others are named.
    """
    from deepmoji import ablations

    params = project.params
    foreign = sorted(set(sets) - set(params.datasets.names)) + sorted(set(methods) - set(params.finetune.methods))
    if foreign:
        raise UsageError(
            f"{foreign[0]!r} is not in params.yaml: choose among the sets {', '.join(params.datasets.names)} "
            f"and the methods {', '.join(params.finetune.methods)}."
        )
    ablations.variants_of(name, shares)  # refused before MLflow hears of it
    pretraining, finetuning = _pretrain_options(project), params.section("finetune")
    del finetuning["methods"]
    road = ablations.Road(
        tokens=project.artifacts / "tokens",
        datasets=project.artifacts / "datasets",
        pretrained=project.artifacts / "pretrained",
        finetuned=project.artifacts / "finetuned",
        pretrain=pretraining,
        finetune=finetuning,
        bootstrap=params.benchmark.bootstrap,
        seed=params.benchmark.seed,
    )
    out = project.artifacts / "ablations" / name
    with (
        _alone(project.state / "ablations" / f"{name}.lock"),
        tracking.start_run(
            project.root,
            experiment="ablation",
            name=name,
            params={"ablation": name, **{f"pretrain.{key}": value for key, value in pretraining.items()}},
            tags={"stage": "ablation", "preset": params.preset, "ablation": name},
        ) as run,
    ):

        def report_run(variant: str, dataset: str, method: str, seed: int, numbers: Mapping[str, Any]) -> None:
            facts = {"variant": variant, "dataset": dataset, "method": method, "seed": seed}
            run.child(f"{variant}/{dataset}/{method}/seed {seed}", facts, flatten(numbers))

        content = ablations.ablate(
            name,
            road,
            out,
            project.state / "ablations" / name,
            sets=sets or params.datasets.names,
            methods=methods or [method for method in params.finetune.methods if method != "new"],
            shares=shares,
            report=run.metrics,
            report_run=report_run,
        )
        run.metrics(flatten(content["summary"]), 0)
        for path in (out / "report.md", out / "report.json", *sorted(out.glob("curve.*"))):
            run.artifacts(path)
    return {"report": str(out / "report.md"), **content["summary"]}


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Two runs would write into each other's folders."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise DeepMojiError(
            f"Another run of this ablation holds {lock}: wait until it is done, then run again."
        ) from None


def _pretrain_options(project: Project) -> dict[str, Any]:
    options = project.params.section("pretrain")
    ranking = options["sentiment_ranking"]
    return options | {"sentiment_ranking": project.data / ranking if ranking is not None else None}


def benchmark(project: Project) -> Numbers:
    from deepmoji import benchmark as bench

    with stage_run(project, "benchmark") as run:
        out, sets = project.artifacts / "benchmark", project.artifacts / "datasets"
        _name_sets(run, sets)
        numbers = bench.benchmark(
            sets,
            project.artifacts / "finetuned",
            out,
            methods=project.params.finetune.methods,
            seeds=project.params.finetune.seeds,
            kept=project.state / "baselines",
            report=run.metrics,
            **project.params.section("benchmark"),
        )
        run.metrics(flatten(numbers), 0)
        run.artifacts(out)
        _report_baselines(run, out / "report.json")
        project.write_numbers("benchmark", numbers)
    return numbers


def _name_sets(run: tracking.Run, sets: Path) -> None:
    for table in sorted(sets.glob("*.parquet")):
        run.dataset(table.stem, digest(table), "artifacts/datasets")


def _report_baselines(run: tracking.Run, report: Path) -> None:
    """A run for each (dataset, baseline, seed), as the fine-tunes have theirs, so that the UI compares all of them."""
    for dataset, entry in json.loads(report.read_text(encoding="utf-8"))["datasets"].items():
        for row in entry["rows"]:
            if row.get("baseline"):
                tell = seed_reporter(run, dataset, row["method"])
                for seed, figures in zip(row["seeds"], row["test"], strict=True):
                    tell(seed, {"test": figures})
