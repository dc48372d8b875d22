"""The suites of the data validation: what must hold of a corpus, a labelled set and a token store.

A rule is one expectation of Great Expectations with a name and a sentence; `validation.py` runs them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepmoji.dataset_formats import SPLITS
from deepmoji.filters import MAX_REPLACED

MAX_BLANK_SHARE = 0.01  # published sets hold a few texts that were nothing but a link
MAX_EMPTY_SHARE = 0.01
LEAST_MEAN_TOKENS = 2.0
MAX_UNREADABLE_SHARE = 0.5  # of a source: more is no broken row here and there, but a wrong format
LEAST_SOURCE_ROWS = 100  # of fewer rows a share says little
MAX_BROKEN_ENCODING_SHARE = 0.1  # of all raw rows: more were written in another encoding
MAX_RAW_BLANK_SHARE = 0.5
MAX_RAW_TOO_LONG_SHARE = 0.5  # half the rows are no tweets, but documents or lines that lost their breaks
MAX_RAW_TOO_SHORT_SHARE = 0.9


@dataclass(frozen=True)
class Rule:
    """One expectation: its name, what it says to a person, and what Great Expectations is told."""

    name: str
    says: str
    expectation: str  # class name in great_expectations.expectations
    options: Mapping[str, Any]


def one_of(name: str, says: str, column: str, *values: object) -> Rule:
    return Rule(name, says, "ExpectColumnValuesToBeInSet", {"column": column, "value_set": list(values)})


def between(name: str, says: str, column: str, low: float | None, high: float | None, mostly: float = 1.0) -> Rule:
    options = {"column": column, "min_value": low, "max_value": high, "mostly": mostly}
    return Rule(name, says, "ExpectColumnValuesToBeBetween", options)


def not_null(name: str, says: str, column: str) -> Rule:
    return Rule(name, says, "ExpectColumnValuesToNotBeNull", {"column": column})


def schema(columns: Sequence[str]) -> Rule:
    says = f"the columns are {', '.join(columns)}"
    return Rule("schema", says, "ExpectTableColumnsToMatchOrderedList", {"column_list": list(columns)})


def text_rules(classes: int) -> list[Rule]:
    return [
        not_null("text is there", "every row has a text", "text"),
        one_of("text is UTF-8", "a text is valid UTF-8, without lone surrogates", "readable", True),
        one_of("no NUL", "a text holds no NUL character", "nul", False),
        between(
            "no flood of U+FFFD", f"at most {MAX_REPLACED:.0%} of a text is the replacement character",
            "replaced_share", 0, MAX_REPLACED,
        ),
        one_of("label domain", f"a label is an id from 0 to {classes - 1}", "foreign_labels", 0),
        one_of("labels are distinct", "no row names a label twice", "repeated_labels", 0),
        not_null("split is there", "every row has a split", "split"),
        one_of("split domain", f"a split is one of {', '.join(SPLITS)}", "split", *SPLITS),
    ]  # fmt: skip


def source_rules() -> list[Rule]:
    """What must hold of each source of raw text, as ingest counted it."""
    says = f"of a source with {LEAST_SOURCE_ROWS} rows or more, at most {MAX_UNREADABLE_SHARE:.0%} could not be read"
    return [
        between("source is readable", says, "judged_share", 0, MAX_UNREADABLE_SHARE),
        between("no source grows", "a source gives no more rows than it had", "gained", None, 0),
    ]


def reject_rules() -> list[Rule]:
    """What must hold of each record of rows that ingest set aside."""
    return [
        not_null("reject names its file", "a row set aside names its file", "file"),
        not_null("reject names its place", "a row set aside names its place in the file", "place"),
        not_null("reject has a reason", "a row set aside says why", "reason"),
        between("reject stands for rows", "a record stands for one row or more", "rows", 1, None),
    ]


def corpus_rules(classes: int) -> list[Rule]:
    hexadecimal = {"column": "id", "regex": "^[0-9a-f]{32}\\Z"}
    return [
        not_null("id is there", "every row has an id", "id"),
        Rule("id format", "an id is 32 hexadecimal digits", "ExpectColumnValuesToMatchRegex", hexadecimal),
        one_of("id fits text", "an id is the BLAKE2b hash of its text", "id_fits", True),
        *text_rules(classes),
        one_of("text is not blank", "a text holds more than white space", "blank", False),
        one_of("text is free of emojis", "no emoji is left in a text: it would give the answer away", "emojis", ""),
        between("label is there", "every row has a label", "label_count", 1, None),
        not_null("source is there", "every row names its source", "source"),
    ]


def set_rules(classes: int, task: str) -> list[Rule]:
    few = f"at least {1 - MAX_BLANK_SHARE:.0%} of the texts hold more than white space"
    blank = Rule(
        "few blank texts", few, "ExpectColumnValuesToBeInSet",
        {"column": "blank", "value_set": [False], "mostly": 1 - MAX_BLANK_SHARE},
    )  # fmt: skip
    least, most = (0, classes) if task == "multilabel" else (1, 1)
    says = f"a row has {least} to {most} labels" if most > 1 else "a row has exactly one label"
    return [*text_rules(classes), blank, between("label count", says, "label_count", least, most)]


def store_rules(words: int) -> list[Rule]:
    """What must hold of each text of a token store."""
    few = f"at most {MAX_EMPTY_SHARE:.0%} of the texts have no token"
    return [
        between("ids in the vocabulary", f"an id is below {words}", "highest_id", 0, words - 1),
        between("offsets ascend", "no text has a negative length", "length", 0, None),
        between("texts have tokens", few, "length", 1, None, mostly=1 - MAX_EMPTY_SHARE),
    ]


def example_rules(texts: int, classes: int) -> list[Rule]:
    """What must hold of each (text, label) pair of a token store."""
    return [
        between("label domain", f"a label is an id from 0 to {classes - 1}", "label", 0, classes - 1),
        between("examples show texts", "an example shows a text of its store", "text", 0, texts - 1),
    ]
