"""The funnel: where every row that went into the corpus has gone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepmoji.filters import RULES
from deepmoji.splits import SPLITS

Facts = Sequence[Mapping[str, Any]]


def account(cut: Facts, cleaned: Facts, merged: Facts, written: Facts, labels: Sequence[str]) -> dict[str, Any]:
    """Add up what each step says of its shards; asserts that no row is lost or counted twice.

    `labels` and `sources` are lists of records, as tables for people: examples (a text counts once per label) by
    split, and rows in (without rejects) and out.
    """
    dropped = Counter(dict.fromkeys(RULES, 0))
    for part in (*cleaned, *merged):
        dropped.update(part["dropped"])
    rejects = sum(part["rejects"] for part in cut)
    rows_in = rejects + sum(part["rows"] for part in cleaned)
    splits = np.sum([part["rows"] for part in written], axis=0).tolist()
    examples = np.sum([part["labels"] for part in written], axis=0)  # (split, label)
    sources_in: Counter[str] = Counter()
    for part in cleaned:
        sources_in[part["source"]] += part["rows"]
    sources_out = sum((Counter(part["sources"]) for part in written), Counter[str]())
    reasons = sum((Counter(part["reasons"]) for part in cut), Counter[str]())
    funnel = {
        "rows_in": rows_in,
        "rejects": rejects,
        "dropped": dict(dropped),
        "rows_out": sum(splits),
        "examples": int(examples.sum()),
        "splits": dict(zip(SPLITS, splits, strict=True)),
        "labels": [
            {"label": label, **dict(zip(SPLITS, counts, strict=True))}
            for label, counts in zip(labels, examples.T.tolist(), strict=True)
        ],
        "sources": [
            {"source": name, "rows_in": sources_in[name], "rows_out": sources_out[name]} for name in sorted(sources_in)
        ],
        "reject_reasons": [{"reason": reason, "rows": rows} for reason, rows in sorted(reasons.items())],
    }
    assert rows_in == rejects + sum(dropped.values()) + funnel["rows_out"], f"rows were lost on the way: {funnel}"
    return funnel


def describe(funnel: Mapping[str, Any]) -> str:
    """The funnel as a table for people."""
    lines = [("rows in", funnel["rows_in"], ""), ("set aside", funnel["rejects"], "could not be read: rejects.jsonl")]
    lines += [(f"- {rule}", count, RULES[rule]) for rule, count in funnel["dropped"].items() if count]
    lines += [("rows out", funnel["rows_out"], " ".join(f"{name} {rows}" for name, rows in funnel["splits"].items()))]
    lines += [("examples", funnel["examples"], "a text counts once for each of its labels")]
    table = [f"{name:<16}{count:>12,}  {remark}".rstrip() for name, count, remark in lines]
    labels = [f"{entry['label']} {'/'.join(str(entry[split]) for split in SPLITS)}" for entry in funnel["labels"]]
    table += [f"per label ({'/'.join(SPLITS)}):"]
    table += ["  " + "   ".join(labels[start : start + 6]) for start in range(0, len(labels), 6)]
    return "\n".join(table)


def most(counts: Mapping[str, int]) -> str:
    """The largest counts that are not zero, in one line."""
    return ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common(5) if count) or "none"
