"""The paper's ablations: the road's own recipe with one thing changed, and what that costs on the labelled sets.

A variant learns from the road's tokens, so it sees the same texts; other labels are made by mapping the emojis that a
text already has. It is then fine-tuned as params.yaml says and compared with the road's own results. All variants
draw equally many examples in pretraining: where there are fewer, each comes more often.

An ablation is an experiment beside the road, many hours long at real sizes and wanted once, so it is no stage of
dvc.yaml: each part notes down what it was made from, and is made again when that has changed.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deepmoji.ablation_stores import derive_store, load_groups
from deepmoji.benchmark import Entry, compare, read_entry
from deepmoji.checkpoints import load_model
from deepmoji.datasets import Dataset, load_dataset
from deepmoji.errors import InputError, UsageError
from deepmoji.finetuning import finetune, prefixed
from deepmoji.pretraining import pretrain
from deepmoji.provenance import made_by
from deepmoji.shards import open_work, read_json, write_json
from deepmoji.splits import SPLITS
from deepmoji.tokens import read_meta

logger = logging.getLogger(__name__)

BASE = "base"  # the road's own model, with which every variant is compared
ABLATIONS = {
    "posneg": "two labels instead of all emojis: whether the published sentiment of the emoji is positive or negative",
    "types8": "eight labels instead of all emojis: laughter, love, joy, approval, mischief, sadness, anger, weariness",
    "no-attention": "no attention and no skip connections: the last states of the second LSTM alone",
    "size": "pretraining on a share of the texts; the road's own model has all of them",
}
SHARES = (0.01, 0.1)
Report = Callable[[dict[str, float], int], None]
RunReport = Callable[[str, str, str, int, Mapping[str, Any]], None]  # variant, dataset, method, seed, numbers


@dataclass(frozen=True)
class Variant:
    """One change: other labels (`groups`, a file in deepmoji/data), a share of the training texts, no attention."""

    name: str
    groups: str | None = None
    share: float = 1.0
    attention: bool = True
    published: str | None = None  # its row in the paper's table, which was made by the method last


@dataclass(frozen=True)
class Road:
    """What the stages left, and what they were told: folders of artifacts/ and sections of params.yaml."""

    tokens: Path
    datasets: Path
    pretrained: Path
    finetuned: Path
    pretrain: Mapping[str, Any]  # arguments of pretraining.pretrain
    finetune: Mapping[str, Any]  # arguments of finetuning.finetune
    bootstrap: int
    seed: int


def variants_of(name: str, shares: Sequence[float] = ()) -> list[Variant]:
    """The variants of an ablation. UsageError: an unknown name, or shares that make no sense."""
    if name not in ABLATIONS:
        raise UsageError(f"There is no ablation {name!r}: choose one of {', '.join(ABLATIONS)}.")
    if shares and name != "size":
        raise UsageError(f"The ablation {name} takes no shares: leave them out, or choose the ablation size.")
    wrong = [share for share in shares if not 0 < share < 1 or list(shares).count(share) > 1]
    if wrong:
        raise UsageError(f"The share {wrong[0]} cannot be used: give shares between 0 and 1, each once.")
    if name == "size":
        return [Variant(f"share-{share:g}", share=share) for share in sorted(shares or SHARES)]
    if name == "no-attention":
        return [Variant(name, attention=False, published="plain LSTM")]
    if name == "posneg":
        return [Variant(name, groups="posneg2.tsv", published="positive/negative emojis")]
    return [Variant(name, groups="types8.tsv")]


def ablate(
    name: str,
    road: Road,
    out: Path,
    work: Path,
    *,
    sets: Sequence[str],
    methods: Sequence[str],
    shares: Sequence[float] = (),
    report: Report | None = None,
    report_run: RunReport | None = None,
) -> dict[str, Any]:
    """Pretrain and fine-tune the variants of an ablation and compare them with the road's results.

    Writes out/<variant>/pretrained, out/<variant>/finetuned/<set>/<method>, and last out/report.json and report.md;
    for `size` also curve.png and curve.csv. What stands there from the same data, options and code is not made again;
    a killed pretraining goes on from its checkpoint below `work`.
    shares: of the texts, for `size` alone; by default SHARES. report(metrics, step) hears of every epoch,
    report_run(variant, set, method, seed, numbers) of every finished fine-tune. Returns the content of report.json.
    UsageError: a name or a method that does not fit; InputError: the road's results are missing or made otherwise.
    """
    from deepmoji.ablation_report import summarise, write_report  # draws

    variants = variants_of(name, shares)
    judged = [*methods, "new"] if name == "size" else list(methods)
    _check(name, road, methods)
    tables = {one: load_dataset(road.datasets / f"{one}.parquet") for one in sets}
    entries = {(one, method): [_base(road, table, method)] for one, table in tables.items() for method in judged}
    facts = {BASE: _size(road.tokens, road.pretrained)}
    for variant in variants:
        folder = out / variant.name
        _pretrain(variant, road, folder, work, prefixed(report, variant.name))
        facts[variant.name] = _size(None, folder / "pretrained")
        for one, table in tables.items():
            for method in methods:
                _finetune(variant, road, folder, table, method, report, report_run)
                entry = read_entry(folder / "finetuned" / one / method, table, method)
                assert entry is not None
                entries[one, method].append(replace(entry, method=variant.name))
    compared: dict[str, dict[str, Any]] = {
        one: {
            method: compare(table, entries[one, method], road.bootstrap, road.seed, reference=BASE) for method in judged
        }
        for one, table in tables.items()
    }
    for one, table in tables.items():
        for method in judged:
            _published(compared[one][method]["rows"], table, method, variants)
    content: dict[str, Any] = {
        "ablation": name,
        "changed": ABLATIONS[name],
        "drawn": int(road.pretrain["epochs"]) * _epoch_size(road),
        "bootstrap": road.bootstrap,
        "pretrained": facts,
        "datasets": compared,
    }
    content["summary"] = summarise(content, methods)
    write_report(out, content, methods)
    return content


def _check(name: str, road: Road, methods: Sequence[str]) -> None:
    """What can be refused before the hours of training."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("An ablation runs in one process: start it without torchrun.")
    if not methods or "new" in methods:
        raise UsageError("An ablation changes the pretraining, which new does without: name other methods.")
    if name == "no-attention" and not road.pretrain["attention"]:
        raise UsageError("pretrain.attention is false already: set it to true, run `make run`, then this ablation.")
    for method in methods if name == "no-attention" else ():
        if any("attention" in phase["train"] for phase in road.finetune["schedules"].get(method, ())):
            raise UsageError(f"The schedule {method!r} trains the attention that is left out: name other methods.")
    if not road.pretrained.is_dir():
        raise InputError(f"{road.pretrained} is not there, with which to compare: run `make run` first.")
    base = load_model(road.pretrained)
    _same_options(road.pretrained, base.metrics.get("options"), road.pretrain)
    if base.vocabulary.digest != read_meta(road.tokens / "train")["vocabulary"]:
        raise InputError(f"{road.pretrained} was made with other tokens than there are now: run `make run` first.")


def _same_options(folder: Path, noted: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
    """InputError where a base was made with other options than the variants will be."""
    if noted is None:
        raise InputError(f"{folder} does not say with which options it was made: run `make run` first.")
    other = [name for name, value in noted.items() if json.loads(json.dumps(wanted.get(name))) != value]
    if other:
        raise InputError(f"{folder} was made with another {other[0]} than params.yaml has: run `make run` first.")


def _base(road: Road, dataset: Dataset, method: str) -> Entry:
    """The road's own result, if it was made as the variants will be."""
    folder = road.finetuned / dataset.name / method
    entry = read_entry(folder, dataset, method)
    if entry is None:
        raise InputError(f"{folder} holds no result to compare with: run `make run` first, with that set and method.")
    own = {"schedules": {method: road.finetune["schedules"].get(method)}}
    noted = read_json(folder / "results.json").get("options")
    if noted is not None:
        noted |= {"schedules": {method: noted["schedules"].get(method)}}
    _same_options(folder, noted, {**road.finetune, **own})
    return replace(entry, method=BASE)


def _pretrain(variant: Variant, road: Road, folder: Path, work: Path, report: Report | None) -> None:
    options = {**road.pretrain, "epoch_size": _epoch_size(road)}
    options["attention"] = bool(options["attention"]) and variant.attention
    if variant.groups is not None:
        options["sentiment_ranking"] = None  # of emojis, which are no longer the labels
    groups = load_groups(variant.groups) if variant.groups is not None else None
    plan = {
        "options": {key: str(value) for key, value in options.items()},
        "variant": asdict(variant),
        "groups": groups,
        "tokens": _digest(*(road.tokens / split / part for split in SPLITS for part in ("ids.npy", "labels.npy"))),
        "vocabulary": read_meta(road.tokens / "train")["vocabulary"],
        **made_by("ablation_stores", "pretraining"),
    }
    done = folder / "pretrained.json"
    if _is_done(done, plan, folder / "pretrained" / "config.json"):
        logger.info("%s is pretrained already", variant.name)
        return
    done.unlink(missing_ok=True)
    unfinished = open_work(work, folder, plan)
    store = unfinished / "tokens"
    derive_store(road.tokens, store, groups=groups, share=variant.share, seed=int(options["seed"]))
    pretrain(store, folder / "pretrained", checkpoints=unfinished / "checkpoints", report=report, **options)
    facts = {split: read_meta(store / split)["texts"] for split in SPLITS}
    shutil.rmtree(unfinished)
    write_json(done, {"plan": plan, "texts": facts})


def _finetune(
    variant: Variant,
    road: Road,
    folder: Path,
    dataset: Dataset,
    method: str,
    report: Report | None,
    report_run: RunReport | None,
) -> None:
    out = folder / "finetuned" / dataset.name / method
    plan = {
        "options": json.loads(json.dumps(road.finetune, default=str)),
        "start": _digest(folder / "pretrained" / "model.safetensors", folder / "pretrained" / "vocabulary.json"),
        "dataset": _digest(road.datasets / f"{dataset.name}.parquet"),
        **made_by("finetuning"),
    }
    done = out.with_name(f"{method}.json")
    if _is_done(done, plan, out / "results.json"):
        logger.info("%s by %s is fine-tuned from %s already", dataset.name, method, variant.name)
        return
    done.unlink(missing_ok=True)

    def tell(seed: int, numbers: Mapping[str, Any]) -> None:
        if report_run is not None:
            report_run(variant.name, dataset.name, method, seed, numbers)

    told = prefixed(report, f"{variant.name}/{dataset.name}/{method}")
    finetune(dataset, folder / "pretrained", out, method=method, report=told, report_seed=tell, **road.finetune)
    write_json(done, {"plan": plan})


def _is_done(done: Path, plan: Mapping[str, Any], result: Path) -> bool:
    return done.is_file() and result.is_file() and read_json(done)["plan"] == json.loads(json.dumps(plan))


def _epoch_size(road: Road) -> int:
    """Examples drawn per epoch, the same for every variant: what the road's model saw."""
    return int(road.pretrain["epoch_size"] or read_meta(road.tokens / "train")["examples"])


def _size(tokens: Path | None, pretrained: Path) -> dict[str, Any]:
    """Texts and examples to train on, labels, and how well these were predicted."""
    model = load_model(pretrained)
    if tokens is not None:
        texts = int(read_meta(tokens / "train")["rows"])
    else:
        texts = int(read_json(pretrained.with_suffix(".json"))["texts"]["train"])
    figures = {key: model.metrics[key] for key in ("top1", "top5", "loss", "epochs")}
    return {"texts": texts, "examples": model.metrics["train_examples"], "labels": len(model.labels), **figures}


def _published(rows: Sequence[dict[str, Any]], dataset: Dataset, method: str, variants: Sequence[Variant]) -> None:
    """Put the paper's figure of a row where the paper has it: the base by this method, a variant by `last` alone."""
    names = {variant.name: variant.published if method == "last" else None for variant in variants} | {BASE: method}
    for row in rows:
        row["paper"] = dataset.paper.get(names[row["method"]] or "")


def _digest(*paths: Path) -> str:
    total = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        except FileNotFoundError:
            raise InputError(f"{path} is missing: run `make run` first.") from None
    return total.hexdigest()[:16]
