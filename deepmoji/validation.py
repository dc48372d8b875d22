"""Great Expectations over raw input, corpus, labelled sets and token stores; a failing rule stops the road.

Each suite is a list of `Rule`, which is one expectation with a name and a sentence. Row rules run on each shard by
itself and are summed; rules on totals (copies, leaks, texts per label) run once, on what all shards say together.
Raw shards are gone when ingest is done: the suite of the raw input judges what ingest counted of them, source by
source, and every row that it set aside.
The report, validation.json and validation.html, is written whether or not a rule fails.
Great Expectations takes seconds to import and phones home if it may: only the functions here import it.
"""

import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from deepmoji import validation_frames as frames
from deepmoji.corpus import SCHEMA as CORPUS_SCHEMA
from deepmoji.dataset_formats import SPLITS
from deepmoji.datasets import SCHEMA as SET_SCHEMA
from deepmoji.errors import InputError, ValidationFailed
from deepmoji.shards import open_shard
from deepmoji.tokens import load_store
from deepmoji.validation_report import render
from deepmoji.validation_rules import (
    LEAST_MEAN_TOKENS,
    MAX_BROKEN_ENCODING_SHARE,
    MAX_RAW_BLANK_SHARE,
    MAX_RAW_TOO_LONG_SHARE,
    MAX_RAW_TOO_SHORT_SHARE,
    Rule,
    between,
    corpus_rules,
    example_rules,
    reject_rules,
    schema,
    set_rules,
    source_rules,
    store_rules,
)
from deepmoji.vocabulary import Vocabulary

Report = Callable[[dict[str, float], int], None]
_ENCODING_MARKS = ("UTF-", "surrogate", "NUL")  # in what ingest says of a row whose bytes are no text


@dataclass
class Outcome:
    """What a rule found over all places where it ran."""

    suite: str
    rule: str
    says: str
    checked: int = 0
    failed: int = 0
    passed: bool = True
    observed: str = ""
    places: list[dict[str, Any]] = field(default_factory=list)  # where it failed: place, rows
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Total:
    """A rule on one number, which lies between `low` and `high`; `count` rows of `among` are behind it."""

    name: str
    says: str
    value: float
    low: float | None
    high: float | None
    observed: str
    count: int = 1
    among: int = 1
    examples: list[dict[str, Any]] = field(default_factory=list)


def _share(name: str, what: str, count: int, among: int, limit: float, examples: list[dict[str, Any]]) -> Total:
    share = count / max(1, among)
    observed = f"{count} of {among} ({share:.3%})"
    return Total(name, f"at most {limit:.2%} are {what}", share, 0, limit, observed, count, among, examples)


def _every_split(sizes: np.ndarray) -> Total:
    observed = ", ".join(f"{split} {size}" for split, size in zip(SPLITS, sizes, strict=True))
    return Total("every split", "every split has rows", int(sizes.min()), 1, None, observed)


def validate(
    corpus: Path,
    datasets: Path,
    out: Path,
    *,
    min_per_label: int,
    max_duplicate_share: float,
    max_leaked_share: float,
    max_dataset_leaked_share: float,
    report: Report | None = None,
) -> dict[str, Any]:
    """Check the raw input, the corpus shard by shard and every labelled set; returns the numbers of the report.

    Writes out/validation.html and, last, out/validation.json. ValidationFailed names the first failing rule, where
    and in how many rows. InputError when there is nothing to check.
    """
    run = _Run()
    raw = _check_raw(run, corpus)
    facts = {"raw": raw} | _check_corpus(run, corpus, min_per_label, max_duplicate_share, max_leaked_share)
    sets = sorted(datasets.glob("*.parquet"))
    if not sets:
        raise InputError(f"{datasets} holds no set (*.parquet): run `deepmoji datasets --write` first.")
    facts["datasets"] = {path.stem: _check_set(run, path, max_dataset_leaked_share) for path in sets}
    return _finish(run, out, facts, report)


def validate_tokens(
    tokens: Path, *, max_unknown_share: float, out: Path | None = None, report: Report | None = None
) -> dict[str, Any]:
    """Check the token stores tokens/{train,val,test} against tokens/vocabulary.json and labels.json.

    Writes validation.html and validation.json into `out`, by default `tokens` itself. ValidationFailed as `validate`.
    """
    run = _Run()
    words = len(Vocabulary.load(tokens / "vocabulary.json"))
    classes = len(frames.read_facts(tokens / "labels.json"))
    facts = {split: _check_store(run, tokens / split, split, words, classes, max_unknown_share) for split in SPLITS}
    return _finish(run, out or tokens, facts, report)


def validate_raw(corpus: Path, out: Path) -> dict[str, Any]:
    """Check the raw input of a corpus alone, by what ingest counted of it; report and errors as `validate`."""
    run = _Run()
    return _finish(run, out, {"raw": _check_raw(run, corpus)}, None)


def judge(suite: str, totals: Sequence[Total], out: Path, facts: dict[str, Any]) -> list[str]:
    """Check numbers against their limits; returns the names of the rules that fail, for the caller to decide upon.

    Writes validation.html and validation.json into `out`, with `facts` as the summary.
    """
    run = _Run()
    run.totals(suite, totals)
    broken, _ = _write_report(run, out, facts)
    return [outcome.rule for outcome in broken]


def _check_raw(run: "_Run", corpus: Path) -> dict[str, Any]:
    funnel = frames.read_facts(corpus / "funnel.json")
    reasons: Counter[str] = Counter()
    of_source: Counter[str] = Counter()
    for frame in frames.reject_frames(corpus / "rejects.jsonl"):
        run.check("raw input", "rejects.jsonl", frame, reject_rules())
        for file, reason, rows in zip(frame["file"], frame["reason"], frame["rows"], strict=True):
            reasons[str(reason)] += int(rows)
            of_source[frames.source_of(str(file))] += int(rows)
    sources = funnel["sources"]
    run.check("raw input", "funnel.json", frames.source_frame(sources, of_source), source_rules())
    rows, dropped, rejects = funnel["rows_in"], Counter(funnel["dropped"]), reasons.total()
    said = {entry["reason"]: entry["rows"] for entry in funnel["reject_reasons"]}
    differ = sum(reasons[reason] != said.get(reason, 0) for reason in {*reasons, *said})
    missed = rows - rejects - sum(entry["rows_in"] for entry in sources)
    broken = sum(count for reason, count in reasons.items() if any(mark in reason for mark in _ENCODING_MARKS))
    run.totals("raw input", [
        Total("rejects as in the funnel", "the rows set aside are those of the funnel, reason by reason", differ, 0, 0,
              f"{rejects} rows, {differ} reasons differ"),
        Total("sources as in the funnel", "rows of all sources and rows set aside are the rows in", missed, 0, 0,
              f"{missed} rows missing"),
        _share("encoding", "rows in no readable encoding", broken, rows, MAX_BROKEN_ENCODING_SHARE, []),
        _share("few blank rows", "blank rows", dropped["empty"], rows, MAX_RAW_BLANK_SHARE, []),
        _share("few rows too long", "rows longer than wanted", dropped["too_long"], rows, MAX_RAW_TOO_LONG_SHARE, []),
        _share("few rows too short", "rows shorter than wanted", dropped["too_short"], rows,
               MAX_RAW_TOO_SHORT_SHARE, []),
    ])  # fmt: skip
    return {
        "rows": rows,
        "sources": len(sources),
        "set_aside_share": rejects / max(1, rows),
        **{f"{name}_share": dropped[name] / max(1, rows) for name in ("empty", "too_long", "too_short")},
        "kept_share": funnel["rows_out"] / max(1, rows),
    }


def _check_corpus(
    run: "_Run", corpus: Path, min_per_label: int, max_duplicate_share: float, max_leaked_share: float
) -> dict[str, Any]:
    funnel = frames.read_facts(corpus / "funnel.json")
    labels = frames.read_facts(corpus / "labels.json")
    shards = sorted(corpus.glob("part-*.parquet"))
    if not shards:
        raise InputError(f"{corpus} holds no part-*.parquet: run `deepmoji ingest` first.")
    rules = corpus_rules(len(labels))
    counts = np.zeros((len(SPLITS), len(labels)), np.int64)
    rows, sound = 0, True
    for path in shards:
        table = open_shard(path)
        rows += table.num_rows
        if run.check(
            "corpus", path.name, frames.schema_frame(table.schema), [schema(frames.column_names(CORPUS_SCHEMA))]
        ):
            run.check("corpus", path.name, frames.corpus_frame(table, len(labels)), rules)
            counts += frames.label_counts(table, len(labels))
        else:
            sound = False
    lost = funnel["rows_in"] - funnel["rejects"] - sum(funnel["dropped"].values()) - funnel["rows_out"]
    totals = [
        Total("every row is accounted for", "rows in = rejected + dropped + kept", lost, 0, 0, f"{lost} rows missing"),
        Total("rows as in the funnel", f"the shards hold the {funnel['rows_out']} rows that the funnel says", rows,
              funnel["rows_out"], funnel["rows_out"], f"{rows} rows"),
    ]  # fmt: skip
    if not sound:  # without their columns, rows cannot be compared across shards
        run.totals("corpus", totals)
        return {"rows": rows}
    per_label = pd.DataFrame({"label": labels, "texts": counts.sum(axis=0)})
    says = f"every label has at least {min_per_label} texts"
    run.check("corpus", "all shards", per_label, [between("texts per label", says, "texts", min_per_label, None)])
    copies, leaks, copied, leaked = frames.copies_and_leaks(shards, rows)
    run.totals("corpus", [
        *totals,
        _every_split(counts.sum(axis=1)),
        _share("no copies", "rows whose id came before", copies, rows, max_duplicate_share, copied),
        _share("no leaks", "held-out rows whose id is in an earlier split", leaks, rows, max_leaked_share, leaked),
    ])  # fmt: skip
    shares = {"duplicate_share": copies / max(1, rows), "leaked_share": leaks / max(1, rows)}
    return {"rows": rows, "shards": len(shards), "least_per_label": int(counts.sum(axis=0).min()), **shares}


def _check_set(run: "_Run", path: Path, max_leaked_share: float) -> dict[str, Any]:
    table = open_shard(path)
    about = json.loads((table.schema.metadata or {}).get(b"deepmoji", b"{}"))
    if not {"classes", "task"} <= set(about):
        raise InputError(f"{path} does not say its classes and task: write it again with `deepmoji datasets --write`.")
    suite, classes, rows = f"set {path.stem}", about["classes"], table.num_rows
    wanted = frames.column_names(pa.schema(list(SET_SCHEMA.items())))
    if not run.check(suite, path.name, frames.schema_frame(table.schema), [schema(wanted)]):
        return {"rows": rows}
    frame = frames.text_frame(table, len(classes))
    run.check(suite, path.name, frame, set_rules(len(classes), about["task"]))
    counts = frames.label_counts(table, len(classes))
    sizes = np.array([(frame["split"] == split).sum() for split in SPLITS])
    held_out = int(sizes[1:].sum())
    run.check(suite, path.name, pd.DataFrame({"class": classes, "train": counts[0], "test": counts[2]}), [
        between("classes in train", "every class has a row in train", "train", 1, None),
        between("classes in test", "every class has a row in test", "test", 1, None),
    ])  # fmt: skip
    repeated, leaked = frames.shared_rows(frame["text"].tolist(), frame["split"].tolist())
    shown = frame[["row", "text", "split", "labels"]]
    copied, leaks = (_records(shown.iloc[found[: frames.EXAMPLES]], path.name) for found in (repeated, leaked))
    held = "rows of val and test whose text is in an earlier split"
    run.totals(suite, [
        _every_split(sizes),
        _share("few copies", "rows that repeat a text of their split", len(repeated), rows, max_leaked_share, copied),
        _share("few leaks", held, len(leaked), held_out, max_leaked_share, leaks),
    ])  # fmt: skip
    return {
        "rows": rows,
        "duplicate_share": len(repeated) / max(1, rows),
        "leaked_share": len(leaked) / max(1, held_out),
    }


def _check_store(
    run: "_Run", folder: Path, split: str, words: int, classes: int, max_unknown_share: float
) -> dict[str, Any]:
    store = load_store(folder)
    rules = store_rules(words)
    lengths: list[np.ndarray] = []
    unknown = 0
    for frame in frames.token_frames({"ids": store.ids, "offsets": store.offsets}):
        run.check("tokens", split, frame, rules)
        lengths.append(frame["length"].to_numpy())
        unknown += int(frame["unknown"].sum())
    lengths_of_all = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    texts, tokens = len(lengths_of_all), int(lengths_of_all.sum())
    for start in range(0, len(store.rows), 1_000_000):
        part = slice(start, start + 1_000_000)
        examples = pd.DataFrame({"text": np.asarray(store.rows[part]), "label": np.asarray(store.targets[part])})
        run.check("tokens", split, examples, example_rules(texts, classes))
    mean = tokens / max(1, texts)
    says = f"a text has {LEAST_MEAN_TOKENS:g} tokens or more on average"
    what = "tokens that are no word of the vocabulary"
    run.totals("tokens", [
        Total(f"length distribution of {split}", says, mean, LEAST_MEAN_TOKENS, None, f"{mean:.2f} tokens a text"),
        _share(f"unknown words in {split}", what, unknown, tokens, max_unknown_share, []),
    ])  # fmt: skip
    spread = np.percentile(lengths_of_all, [5, 50, 95]).tolist() if texts else [0.0, 0.0, 0.0]
    return {
        "texts": texts,
        "tokens": tokens,
        "unknown_share": unknown / max(1, tokens),
        "mean_length": mean,
        **dict(zip(("length_p5", "length_p50", "length_p95"), spread, strict=True)),
    }


class _Run:
    """One validation: an ephemeral Great Expectations context, and what each rule has found so far."""

    def __init__(self) -> None:
        os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what it imports itself
            import great_expectations as gx
            from great_expectations.data_context.types.base import ProgressBarsConfig

        logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it tells of each default it takes
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._gx = gx
        self._batches = context.data_sources.add_pandas("tables").add_dataframe_asset("table")
        self._batch = self._batches.add_batch_definition_whole_dataframe("whole")
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    def check(self, suite: str, place: str, frame: pd.DataFrame, rules: Sequence[Rule]) -> bool:
        """Run rules over one table; True when all hold."""
        made = [
            getattr(self._gx.expectations, rule.expectation)(**rule.options, meta={"rule": rule.name}) for rule in rules
        ]
        results = self._batch.get_batch({"dataframe": frame}).validate(
            self._gx.ExpectationSuite(name=suite, expectations=made),
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": frames.EXAMPLES},
        )
        by_name: dict[str, Any] = {}
        for result in results.results:
            assert result.expectation_config is not None
            by_name[result.expectation_config.meta["rule"]] = result
        for rule in rules:
            self._note(suite, place, frame, rule, by_name[rule.name])
        return bool(results.success)

    def totals(self, suite: str, totals: Sequence["Total"]) -> None:
        """Run rules that each judge one number; a share fails as the rows it counts."""
        frame = pd.DataFrame({total.name: [total.value] for total in totals})
        self.check(suite, "in all", frame, [between(t.name, t.says, t.name, t.low, t.high) for t in totals])
        for total in totals:
            outcome = self.outcomes[suite, total.name]
            outcome.checked, outcome.observed = total.among, total.observed
            if not outcome.passed:
                outcome.failed, outcome.examples = total.count, total.examples
                outcome.places = [{"place": "in all", "rows": total.count}]

    def _note(self, suite: str, place: str, frame: pd.DataFrame, rule: Rule, result: Any) -> None:
        found = result.result
        if "observed_value" not in found and "unexpected_count" not in found:
            raise InputError(f"The rule {rule.name!r} could not be checked in {place}: {result.exception_info}.")
        outcome = self.outcomes.setdefault((suite, rule.name), Outcome(suite, rule.name, rule.says))
        failed = int(found.get("unexpected_count", 0 if result.success else 1))
        outcome.checked += int(found.get("element_count", 1))
        outcome.failed += failed
        outcome.passed &= bool(result.success)
        if "observed_value" in found:
            outcome.observed = ", ".join(map(str, found["observed_value"]))
        if not result.success:
            outcome.places.append({"place": place, "rows": failed})
            rows = found.get("partial_unexpected_index_list") or []
            outcome.examples += _records(frame.iloc[rows], place)[: frames.EXAMPLES - len(outcome.examples)]


def _records(frame: pd.DataFrame, place: str) -> list[dict[str, Any]]:
    """Rows as plain values for the report, long texts cut."""
    return [
        {"place": place, **{str(name): _plain(value) for name, value in record.items()}}
        for record in frame.astype(object).to_dict("records")
    ]


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return None
    value = value.item() if isinstance(value, np.generic) else value
    return value[: frames.SHOWN] + "…" if isinstance(value, str) and len(value) > frames.SHOWN else value


def _finish(run: _Run, out: Path, facts: dict[str, Any], report: Report | None) -> dict[str, Any]:
    """Write the report, then say whether a rule failed."""
    broken, summary = _write_report(run, out, facts)
    if report is not None:
        report({"rules": summary["rules"], "failed_rules": len(broken)}, 0)
    if broken:
        raise ValidationFailed(_sentence(broken, out / "validation.html"))
    return summary


def _write_report(run: _Run, out: Path, facts: dict[str, Any]) -> tuple[list[Outcome], dict[str, Any]]:
    """The rules that fail, and the summary."""
    outcomes = list(run.outcomes.values())
    broken = [outcome for outcome in outcomes if not outcome.passed]
    summary = {"passed": not broken, "rules": len(outcomes), "failed_rules": len(broken), **facts}
    out.mkdir(parents=True, exist_ok=True)
    rules = [asdict(outcome) for outcome in outcomes]
    _write(out / "validation.html", render(summary, rules))
    _write(
        out / "validation.json", json.dumps({"summary": summary, "rules": rules}, indent=2, ensure_ascii=False) + "\n"
    )
    return broken, summary


def _sentence(broken: Sequence[Outcome], page: Path) -> str:
    first = broken[0]
    places = ", ".join(place["place"] for place in first.places[:3])
    more = f" (and {len(broken) - 1} more rules: {_names(broken[1:])})" if len(broken) > 1 else ""
    return (
        f"The rule {first.rule!r} ({first.says}) fails for {first.suite}, {places}, in {first.failed} of "
        f"{first.checked} rows{more}: see the rows in {page}, mend the data or change the limit in params.yaml."
    )


def _names(outcomes: Iterable[Outcome]) -> str:
    return ", ".join(f"{outcome.rule!r} of {outcome.suite}" for outcome in outcomes)


def _write(path: Path, content: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(content, encoding="utf-8", errors="backslashreplace", newline="\n")
    beside.replace(path)
