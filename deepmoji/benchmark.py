"""Methods and baselines side by side on every labelled set, with intervals and paired tests.

Only test rows are scored here, and nothing is chosen by them: which method a set is best served by, its validation
rows say. A score is the mean over seeds. Its interval and
the paired test resample the test rows (bootstrap): all methods of a set see the same resamples, so their
differences keep what they have in common.
"""

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from deepmoji.baselines import BASELINES, LEAKY, MINILM_PACKAGE, RANDOM, check_baseline, run_baseline
from deepmoji.datasets import CATALOG, Dataset, fingerprint, load_dataset, shared_texts
from deepmoji.errors import InputError
from deepmoji.metrics import Scorer, scorer
from deepmoji.predictions import Predictions, comparable, read_predictions, rescore, write_predictions
from deepmoji.provenance import made_by
from deepmoji.shards import read_json, write_json

logger = logging.getLogger(__name__)

REFERENCE = "chain-thaw"  # what every other row is compared with
STANDARD_METHODS = ("new", "probe", "last", "full", REFERENCE, "probe-thaw")
Report = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Entry:
    """One row of a set's table: a method's runs, their figures on test by seed, and facts about them."""

    method: str
    runs: list[Predictions]
    test: list[dict[str, float]]
    facts: dict[str, Any]
    made_from: dict[str, Any] = field(default_factory=dict)  # digests of the set and of the model it began from


def benchmark(
    datasets: Path,
    finetuned: Path,
    out: Path,
    *,
    baselines: Sequence[str],
    bootstrap: int,
    seed: int,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    kept: Path | None = None,
    start: str | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Compare everything found and write report.json, report.md, two tables and a plot for each set.

    datasets: folder of <name>.parquet. finetuned: folder of <dataset>/<method>/ as `finetune` writes them.
    baselines: names in baselines.BASELINES, run here. bootstrap: number of resamples.
    methods: fine-tunes by other methods, left from before, are not read; None: each method that any set has.
    seeds: of the baselines that start at random; None, and for the others, `seed` alone.
    kept: folder where the baselines' results wait for the next time; those of the same table and code are not made
        again.
    start: digest of the model that fine-tunes have to begin from, as in their results.json. Those from another one, and
        those of other texts or labels, are then left out, with a warning and a line in the report. None: begun from
        any, and those of other texts or labels are refused.
    A (dataset, method) that is not there is named in the report: expected is each of the methods for every set.
    `report` is called with a set's mean scores after each set.
    Returns {dataset: {method: {mean, std, low, high}}}. InputError: nothing to compare, or predictions that do not
    belong to the set's test rows; UsageError: an unknown baseline.
    """
    from deepmoji.report import write_report  # draws, so matplotlib loads here and not with the module

    for name in baselines:
        check_baseline(name)
    tables = sorted(datasets.glob("*.parquet"))
    if not tables:
        raise InputError(f"There is no labelled set in {datasets}: run the stage datasets first.")
    methods = _methods(finetuned, methods)
    content: dict[str, Any] = {"reference": REFERENCE, "bootstrap": bootstrap, "datasets": {}, "missing": []}
    unknown = {path.parent.parent.name for path in finetuned.glob("*/*/results.json")} - {t.stem for t in tables}
    content["not_listed"] = sorted(unknown)
    for step, table in enumerate(tqdm(tables, desc="benchmark", disable=None)):
        dataset = load_dataset(table)
        runs = {name: (seeds or [seed]) if name in RANDOM else [seed] for name in baselines}
        entries = [_baseline(name, dataset, runs[name], table, kept) for name in baselines]
        for method in methods:
            entry = read_entry(finetuned / dataset.name / method, dataset, method)
            if entry is None:
                content["missing"].append({"dataset": dataset.name, "method": method})
                logger.warning("%s by %s was not fine-tuned: it is missing from the table", dataset.name, method)
                continue
            try:
                _check_rows(dataset, entry)
                _check_start(dataset, entry, start)
            except InputError as error:
                if start is None:
                    raise
                content["missing"].append({"dataset": dataset.name, "method": method, "older": True})
                logger.warning("%s Until then the report leaves it out.", error)
            else:
                entries.append(entry)
        content["datasets"][dataset.name] = compare(dataset, entries, bootstrap, seed)
        if report is not None:
            rows = content["datasets"][dataset.name]["rows"]
            report({f"{dataset.name}.{row['method']}": row["mean"] for row in rows}, step)
    beside = out.with_name(f".{out.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    write_report(beside, content)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (beside / "report.json").write_text(text, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    beside.replace(out)
    return {
        name: {row["method"]: {key: row[key] for key in ("mean", "std", "low", "high")} for row in entry["rows"]}
        for name, entry in content["datasets"].items()
    }


def compare(
    dataset: Dataset, entries: Sequence[Entry], bootstrap: int, seed: int, reference: str = REFERENCE
) -> dict[str, Any]:
    """One set's part of the report: a row for each entry, in the order of `entries`.

    A row has mean and std (over seeds), low and high (95 % of the resamples), and, where the method `reference` is
    among the entries, `against`: the reference's mean minus this one's, with its interval and p-value.
    `chosen` is method and mean of the fine-tune from the pretrained model with the best validation score, the first
    of equals, and `by_class` says of each class how it does.
    """
    classes = len(dataset.classes)
    for entry in entries:
        _check_rows(dataset, entry)
    scorers = {
        entry.method: [scorer(dataset.metric, *comparable(run, dataset.metric, classes)) for run in entry.runs]
        for entry in entries
    }
    # The name is part of the seed: a set keeps its resamples whatever other sets are there.
    rng = np.random.default_rng([seed, zlib.crc32(dataset.name.encode())])
    resampled = _resample(scorers, int((dataset.splits == "test").sum()), bootstrap, rng)
    rows = []
    for entry in entries:
        scores = [rescore(run, dataset.metric, classes) for run in entry.runs]
        low, high = _interval(resampled[entry.method])
        row: dict[str, Any] = {
            "method": entry.method,
            "seeds": [run.seed for run in entry.runs],
            "scores": _rounded(scores),
            "mean": _round(float(np.mean(scores))),
            "std": _round(float(np.std(scores, ddof=1))) if len(scores) > 1 else 0.0,
            "low": low,
            "high": high,
            "paper": dataset.paper.get(entry.method),
            "test": [{name: _round(value) for name, value in figures.items()} for figures in entry.test],
            **entry.facts,
        }
        if reference in scorers and entry.method != reference:
            row["against"] = _paired(resampled[reference], resampled[entry.method])
        rows.append(row)
    means = {row["method"]: row["mean"] for row in rows}
    pretrained = [row for row in rows if "validation" in row and row["method"] != "new"]
    chosen = max(pretrained, key=lambda row: row["validation"], default=None)
    for row in rows:
        if "against" in row:
            row["against"]["difference"] = _round(means[reference] - row["mean"])
    return {
        "metric": dataset.metric,
        "task": dataset.task,
        "classes": list(dataset.classes),
        "texts": {split: int((dataset.splits == split).sum()) for split in ("train", "val", "test")},
        "shared": shared_texts(dataset),
        "paper": dict(dataset.paper),
        "peers": dict(CATALOG[dataset.name].peers) if dataset.name in CATALOG else {},
        "chosen": {key: chosen[key] for key in ("method", "mean")} if chosen else None,
        "by_class": next((by_class(dataset, e.runs) for e in entries if chosen and e.method == chosen["method"]), []),
        "rows": rows,
    }


def by_class(dataset: Dataset, runs: Sequence[Predictions]) -> list[dict[str, Any]]:
    """Of each class its name, its number of test texts, and precision, recall and F1, mean over the runs."""
    from sklearn.metrics import precision_recall_fscore_support

    ids = range(len(dataset.classes))
    scores = [precision_recall_fscore_support(r.truth, r.decisions, labels=ids, zero_division=0) for r in runs]
    columns = np.mean(np.array(scores, dtype=np.float64), axis=0)
    keys = ("precision", "recall", "f1", "texts")
    return [
        {"class": name, **{key: _round(float(value)) for key, value in zip(keys, columns[:, k], strict=True)}}
        for k, name in enumerate(dataset.classes)
    ]


def _baseline(name: str, dataset: Dataset, seeds: Sequence[int], table: Path, kept: Path | None) -> Entry:
    runs = [_kept_run(name, dataset, seed, table, kept / dataset.name if kept else None) for seed in seeds]
    facts = {"baseline": True, **runs[0].facts} | ({"leaky": True} if name in LEAKY else {})
    return Entry(name, [run.runs[0] for run in runs], [run.test[0] for run in runs], facts)


def _kept_run(name: str, dataset: Dataset, seed: int, table: Path, folder: Path | None) -> Entry:
    """One run of a baseline, from `folder` if it was made there from the same table by the same code."""
    if folder is None:
        judged = run_baseline(name, dataset, seed)
        return Entry(name, [judged.predictions], [judged.test], dict(judged.facts))
    made_from = {
        "table": hashlib.sha256(table.read_bytes()).hexdigest(),
        **made_by("baselines", libraries=[MINILM_PACKAGE] if name == "minilm" else []),
    }
    note, predictions = folder / f"{name}-{seed}.json", folder / f"{name}-{seed}.parquet"
    known = read_json(note) if note.is_file() and predictions.is_file() else {}
    if known.get("made_from") == made_from:
        logger.info("%s by %s, seed %d, was measured before", dataset.name, name, seed)
        return Entry(name, read_predictions(predictions), [known["test"]], known["facts"])
    judged = run_baseline(name, dataset, seed)
    folder.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    write_predictions(predictions, [judged.predictions])
    write_json(note, {"made_from": made_from, "test": judged.test, "facts": judged.facts})  # last: it makes it whole
    return Entry(name, [judged.predictions], [judged.test], dict(judged.facts))


def _methods(finetuned: Path, wanted: Sequence[str] | None) -> list[str]:
    """The methods wanted, or every one of any set: the paper's in their order, then own schedules by name."""
    found = {path.parent.name for path in finetuned.glob("*/*/results.json")}
    methods = found if wanted is None else set(wanted)
    if not found & methods:
        which = "" if wanted is None else f" by {', '.join(wanted)}"
        raise InputError(f"There is no fine-tuned model{which} in {finetuned}: run the stage finetune first.")
    return [name for name in STANDARD_METHODS if name in methods] + sorted(methods - set(STANDARD_METHODS))


def read_entry(folder: Path, dataset: Dataset, method: str) -> Entry | None:
    """A fine-tune's results; None where there is none (results.json is written last)."""
    source = folder / "results.json"
    if not source.is_file():
        return None
    if method in BASELINES:
        raise InputError(f"{folder} has the name of a baseline: give the schedule another name.")
    try:
        results = json.loads(source.read_text(encoding="utf-8"))
        facts = {key: results[key] for key in ("max_length", "truncated", "new_words", "class_average", "pretrained")}
        facts["validation"] = _round(results["mean"]["validation"][dataset.metric])
        made_from = {key: results.get(key) for key in ("data", "start")}
        test = [run["test"] for run in results["seeds"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{source} is not a fine-tune's result ({error!r}): run the fine-tune again.") from None
    return Entry(method, read_predictions(folder / "predictions.parquet"), test, facts, made_from)


def _check_rows(dataset: Dataset, entry: Entry) -> None:
    rows = np.flatnonzero(dataset.splits == "test")
    for run in entry.runs:
        if not np.array_equal(run.rows, rows):
            raise InputError(
                f"The predictions of {entry.method} do not cover the test rows of {dataset.name}: the set has changed, "
                "run the fine-tune again."
            )
        known = dataset.labels[rows]
        expected = known if run.truth.ndim == known.ndim else (known[:, None] == np.arange(len(dataset.classes)))
        if not np.array_equal(run.truth, expected):
            raise InputError(
                f"The predictions of {entry.method} hold other labels than {dataset.name}: the set has changed, "
                "run the fine-tune again."
            )
    if entry.made_from.get("data") not in (None, fingerprint(dataset)):
        raise InputError(
            f"The fine-tune {entry.method} of {dataset.name} saw other texts: the set has changed, run it again."
        )


def _check_start(dataset: Dataset, entry: Entry, start: str | None) -> None:
    if start is not None and entry.made_from.get("start") not in ("", start):  # new begins from none
        raise InputError(
            f"The fine-tune {entry.method} of {dataset.name} began from another model than the last one: run it again."
        )


def _resample(
    scorers: Mapping[str, Sequence[Scorer]], rows: int, times: int, rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """For each method (times,) scores, mean over its seeds, of rows drawn with replacement, the same for all."""
    scores = {method: np.zeros(times) for method in scorers}
    for draw in range(times):
        weights = np.bincount(rng.integers(rows, size=rows), minlength=rows).astype(np.float64)
        for method, seeds in scorers.items():
            scores[method][draw] = np.mean([weighted(weights) for weighted in seeds])
    return scores


def _paired(reference: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    """Interval and two-sided p-value of reference - other over paired resamples."""
    differences = reference - other
    low, high = _interval(differences)
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    # One is added above and below, so that no finite number of resamples claims p = 0.
    return {"low": low, "high": high, "p": _round(min(1.0, 2 * (rarer + 1) / (len(differences) + 1)))}


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return _round(float(low)), _round(float(high))


def _round(value: float) -> float:
    """Five digits: what is printed needs no more, and the last bits of a sum are nobody's finding."""
    return round(value, 5)


def _rounded(values: Sequence[float]) -> list[float]:
    return [_round(value) for value in values]
