"""The built-in sample: synthetic tweets over 64 emojis, and three small synthetic sets to transfer to.

Nothing in it was written by anyone on a network: every text is put together from the phrases of
`data/sample.toml`. What the tweets teach (mood words, what happens to people, negation, amplifiers, slang whose
small words decide, sarcasm as praise for a mishap) is what the three sets ask for, but their training sets are
so small that most of these words first come in the test set.
"""

import csv
import io
import json
import random
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from deepmoji.errors import InputError

T = TypeVar("T")
SEED = 2017
MD5 = "be7260ce3756740a117562f2015778df.dir"  # by which data.dvc names the whole folder
LEAST_PER_EMOJI = 200
BY_WEIGHT = 15_500  # further tweets, shared out by the emojis' weights: common ones come more often
SOURCES = ("synthetic-1", "synthetic-2", "synthetic-3")  # the tweets' files, as funnel.json names them
SET_SIZES = {"train": 200, "val": 100, "test": 800}
EMOTIONS = ("joy", "love", "sadness", "anger", "fear")

README = """This folder holds a SYNTHETIC sample, written by `deepmoji sample`. No person wrote these texts.

tweets/      invented tweets with emojis, one JSON object {"text": ...} a line; among them retweets, links, copies,
             other languages and a few broken lines, so that every filter of the ingest has something to do
benchmark/   three invented labelled sets, one CSV a split: sample-sentiment (positive or negative),
             sample-emotion (any of joy, love, sadness, anger, fear, or none), sample-sarcasm (sarcastic or sincere)

The texts are put together at random from phrases. They show that the software works; they show nothing about
people, and figures reached on them say nothing about real text. Licence: MIT, as the software.
"""


@dataclass(frozen=True)
class Words:
    """The phrases of sample.toml, split at their commas."""

    moods: dict[str, dict[str, list[str]]]  # mood -> feel, thing, event
    sign: dict[str, int]  # mood -> +1 or -1
    opposite: dict[str, str]
    emojis: dict[str, str]  # emoji -> mood
    hints: dict[str, list[str]]
    weights: dict[str, int]
    neutral: dict[str, list[str]]
    slang: dict[str, list[str]]
    sarcasm: dict[str, list[str]]
    foreign: list[str]


def load_words() -> Words:
    """The word lists as they ship with the package."""
    raw: dict[str, Any] = tomllib.loads((files("deepmoji") / "data" / "sample.toml").read_text(encoding="utf-8"))
    moods, emojis = raw["moods"], raw["emojis"]
    return Words(
        moods={mood: {kind: moods[mood][kind].split(", ") for kind in ("feel", "thing", "event")} for mood in moods},
        sign={mood: moods[mood]["sign"] for mood in moods},
        opposite={mood: moods[mood]["opposite"] for mood in moods},
        emojis={emoji: emojis[emoji]["mood"] for emoji in emojis},
        hints={emoji: emojis[emoji]["hints"].split(", ") for emoji in emojis},
        weights={emoji: emojis[emoji]["weight"] for emoji in emojis},
        neutral={kind: phrases.split(", ") for kind, phrases in raw["neutral"].items()},
        slang={k: v.split() if "emojis" in k else v.split(", ") for k, v in raw["slang"].items()},
        sarcasm={k: v.split() if "emojis" in k else v.split(", ") for k, v in raw["sarcasm"].items()},
        foreign=raw["foreign"]["lines"].split(", "),
    )


def write_sample(data: Path) -> dict[str, int]:
    """Write the sample into the folder `data`, the same bytes each time; other files there are left alone.

    Returns the number of rows of each file by its path below `data`.
    """
    words = load_words()
    rows: dict[str, int] = {}
    tweets = tweet_lines(words)
    share = -(-len(tweets) // len(SOURCES))
    _write(data / "README.txt", README)
    for number, source in enumerate(SOURCES):
        part = tweets[number * share : (number + 1) * share]
        name = f"tweets/{source}.jsonl"
        _write(data / name, "".join(line + "\n" for line in part))
        rows[name] = len(part)
    makers = {"sample-sentiment": _sentiment, "sample-emotion": _emotion, "sample-sarcasm": _sarcasm}
    for set_name, make in makers.items():
        rng = random.Random(f"{SEED} {set_name}")
        for split, table in _split_sets(make(rng, words), set_name).items():
            name = f"benchmark/{set_name}/{split}.csv"
            _write(data / name, _csv(table))
            rows[name] = len(table)
    return rows


def tweet_lines(words: Words) -> list[str]:
    """The lines of the tweet files: JSON objects with a `text`, and a few broken ones, in random order."""
    rng = random.Random(SEED)
    total = sum(words.weights.values())
    texts: list[str] = []
    for emoji, weight in words.weights.items():
        texts += [_tweet(rng, words, emoji) for _ in range(LEAST_PER_EMOJI + BY_WEIGHT * weight // total)]
    texts += _noise(rng, words, texts)
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    lines += ['{"text": "cut off in the mid', '{"text": null}', '{"text": 17}', "not JSON at all", '{"tweet": "hi 😂"}']
    return _shuffled(rng, lines)


def _tweet(rng: random.Random, words: Words, emoji: str) -> str:
    mood = words.emojis[emoji]
    if rng.random() < 0.06:  # people are not consistent
        mood = _pick(rng, sorted(words.moods))
    hint = _pick(rng, words.hints[emoji]) if rng.random() < 0.5 else ""
    if emoji in words.sarcasm["emojis"] and rng.random() < 0.5:
        body = _remark(rng, words, praise=True, sign=-1)
    elif emoji in words.slang["good_emojis"] and rng.random() < 0.2:
        body = _fill(rng, words, _pick(rng, words.slang["good"]))
    elif emoji in words.slang["bad_emojis"] and rng.random() < 0.2:
        body = _fill(rng, words, _pick(rng, words.slang["bad"]))
    elif rng.random() < 0.15:
        sign = words.sign[mood]
        body = _remark(rng, words, praise=sign > 0, sign=sign, mood=mood)
    else:
        body = _sentence(rng, words, mood)
    if rng.random() < 0.3 or not hint:
        body = f"{body}{_pick(rng, ['. ', ', ', ' and ', ' ... '])}{_sentence(rng, words, mood)}"
    parts = [hint, body] if rng.random() < 0.5 else [body, hint]
    text = _dress(rng, words, _pick(rng, [" ", ", ", "! ", ". "]).join(part for part in parts if part))
    shown = emoji * _pick(rng, [1, 1, 1, 1, 2, 3])
    if rng.random() < 0.12:
        shown += _pick(rng, [other for other, its in words.emojis.items() if its == words.emojis[emoji]])
    if rng.random() < 0.12:
        at = text.find(" ", len(text) // 2)
        return f"{text[:at]} {shown}{text[at:]}" if at > 0 else f"{shown} {text}"
    return f"{text} {shown}"


def _sentence(rng: random.Random, words: Words, mood: str, negations: float = 0.08) -> str:
    """One clause in a mood: a person's state, a thing's worth or something that happened."""
    part = words.moods[mood]
    kind = rng.random()
    if rng.random() < negations:
        part = words.moods[words.opposite[mood]]
        no = _pick(rng, ["not", "not at all", "never", "no longer", "far from"])
        if kind < 0.5:
            return _fill(rng, words, f"{{being}} {no} {_pick(rng, part['feel'])} {{when}}")
        return _fill(rng, words, f"{{topic}} is {no} {_pick(rng, part['thing'])}")
    amp = "{amp} " if rng.random() < 0.5 else ""
    if kind < 0.3:
        place = _pick(rng, ["{when}", "{where}", "about {topic}", ""])
        return _fill(rng, words, f"{{being}} {amp}{_pick(rng, part['feel'])} {place}").strip()
    if kind < 0.5:
        was = _pick(rng, ["is", "was", "looks", "seems"])
        return _fill(rng, words, f"{{topic}} {was} {amp}{_pick(rng, part['thing'])}")
    if kind < 0.75:
        return _fill(rng, words, f"{_pick(rng, part['event'])} {_pick(rng, ['{when}', '{where}', ''])}").strip()
    return _fill(rng, words, f"{{being}} {amp}{_pick(rng, part['feel'])} {{link}} {_pick(rng, part['event'])}")


def _remark(rng: random.Random, words: Words, *, praise: bool, sign: int, mood: str | None = None) -> str:
    """A comment on something that happened. Praise for what went wrong is how people mock."""
    mood = mood or _pick(rng, [name for name in sorted(words.moods) if words.sign[name] == sign])
    happened = _pick(rng, words.moods[mood]["event"])
    comment = _pick(rng, words.sarcasm["lead" if praise else "plain"])
    after = _fill(rng, words, _pick(rng, [" {when}", " {where}", ""]))
    return f"{comment} {happened}{after}"


def _dress(rng: random.Random, words: Words, text: str) -> str:
    """How people write: openers, names, hashtags, sooo long words, capitals, exclamation marks."""
    if rng.random() < 0.3:
        text = f"{_pick(rng, words.neutral['opener'])} {text}"
    if rng.random() < 0.12:
        text = f"{_pick(rng, words.neutral['name'])} {text}"
    if rng.random() < 0.12:
        text = f"{text} {_pick(rng, words.neutral['tag'])}"
    if rng.random() < 0.15:
        parts = text.split(" ")
        at = int(rng.random() * len(parts))
        if parts[at].isalpha() and parts[at][-1] in "aeiouywh":
            parts[at] += parts[at][-1] * (2 + int(rng.random() * 6))
        text = " ".join(parts)
    if rng.random() < 0.06:
        text = text.upper()
    elif rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    return text + _pick(rng, ["", "", "", ".", "!", "!!", "..."])


def _noise(rng: random.Random, words: Words, texts: Sequence[str]) -> list[str]:
    """What a real dump holds beside the good rows: something for each filter of the ingest."""
    name = words.neutral["name"]
    noise = [f"RT {_pick(rng, name)}: {_pick(rng, texts)}" for _ in range(450)]
    noise += [f"{_pick(rng, texts)} https://example.com/{int(rng.random() * 10**8):08x}" for _ in range(450)]
    noise += [f"{_pick(rng, name)} {_pick(rng, name)} {_pick(rng, list(words.emojis))}" for _ in range(80)]
    foreign = [line.replace("{n}", str(2 + int(rng.random() * 200))) for line in words.foreign * 15]
    noise += [f"{line} {_pick(rng, list(words.emojis))}" for line in foreign]
    noise += [_pick(rng, texts) for _ in range(250)]  # exact copies
    noise += [_pick(rng, texts).lower() + " !" for _ in range(100)]  # near copies
    noise += [f"follow me and win a new phone number {number} 😍" for number in (7, 8) for _ in range(30)]  # spam
    noise += [_dress(rng, words, _sentence(rng, words, _pick(rng, sorted(words.moods)))) for _ in range(200)]
    noise += [f"{_sentence(rng, words, 'joy')} {_pick(rng, ['🦖', '🛰️', '🧦'])}" for _ in range(60)]
    noise += [f"{' '.join(_sentence(rng, words, 'tired') for _ in range(40))} 😴" for _ in range(12)]  # far too long
    noise += ["😂", "😭😭😭", " ❤️ ", "", "   "]
    return noise


def _sentiment(rng: random.Random, words: Words) -> Iterable[tuple[str, str]]:
    while True:
        sign = _pick(rng, [-1, 1])
        moods = [mood for mood in sorted(words.moods) if words.sign[mood] == sign]
        text = _sentence(rng, words, _pick(rng, moods), negations=0.15)
        yield _plain_dress(rng, words, text), "positive" if sign > 0 else "negative"


def _emotion(rng: random.Random, words: Words) -> Iterable[tuple[str, str]]:
    while True:
        moods = _shuffled(rng, EMOTIONS)[: _pick(rng, [0, 1, 1, 1, 2])]
        clauses = [_sentence(rng, words, mood, negations=0.05) for mood in moods]
        clauses = clauses or [_fill(rng, words, "{who} saw {topic} {where} {when}")]
        text = _pick(rng, [" and ", " but ", ". "]).join(clauses)
        yield _plain_dress(rng, words, text), "|".join(sorted(moods))


def _sarcasm(rng: random.Random, words: Words) -> Iterable[tuple[str, str]]:
    while True:
        label = _pick(rng, ["sincere", "sarcastic"])
        praise, sign = (True, -1) if label == "sarcastic" else _pick(rng, [(True, 1), (True, 1), (False, -1)])
        yield _plain_dress(rng, words, _remark(rng, words, praise=praise, sign=sign)), label


def _plain_dress(rng: random.Random, words: Words, text: str) -> str:
    if rng.random() < 0.3:
        text = f"{_pick(rng, words.neutral['opener'])} {text}"
    return text + _pick(rng, ["", "", ".", "!"])


def _split_sets(rows: Iterable[tuple[str, str]], name: str) -> dict[str, list[tuple[str, str]]]:
    """Distinct texts for train, val and test, in the order in which they are made."""
    wanted = iter(rows)
    seen: set[str] = set()
    tables: dict[str, list[tuple[str, str]]] = {}
    for split, size in SET_SIZES.items():
        table: list[tuple[str, str]] = []
        while len(table) < size:
            text, label = next(wanted)
            if text not in seen:
                seen.add(text)
                table.append((text, label))
        tables[split] = table
    return tables


def _fill(rng: random.Random, words: Words, template: str) -> str:
    for kind, phrases in words.neutral.items():
        if "{" + kind + "}" in template:
            template = template.replace("{" + kind + "}", _pick(rng, phrases))
    return template


def _pick(rng: random.Random, items: Sequence[T]) -> T:
    """One item by chance. Only `random()` is promised to stay the same from one Python to the next."""
    return items[int(rng.random() * len(items))]


def _shuffled(rng: random.Random, items: Iterable[T]) -> list[T]:
    return [item for _, _, item in sorted((rng.random(), at, item) for at, item in enumerate(items))]


def _csv(table: list[tuple[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "label"])
    writer.writerows(table)
    return out.getvalue()


def _write(path: Path, content: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(content, encoding="utf-8", newline="\n")
        beside.replace(path)
    except OSError as error:
        raise InputError(f"The sample cannot be written to {path} ({error.strerror}): choose another folder.") from None
