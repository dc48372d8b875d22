"""The last screen of a run: what happened, where to look, what to ask."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepmoji import registry, tracking

if TYPE_CHECKING:
    from flows.pipeline import StageResult


def last_screen(root: Path, results: Sequence["StageResult"], seconds: float) -> str:
    """What `pipeline` ends with: plain text for a terminal, at most 100 columns wide."""
    lines = [*stage_table(results, seconds), ""]
    pretrain = root / "artifacts" / "metrics" / "pretrain.json"
    if pretrain.is_file():
        numbers = json.loads(pretrain.read_text(encoding="utf-8"))
        lines += [
            f"Emoji prediction on the balanced test set: top-1 {numbers['top1']:.3f}, top-5 {numbers['top5']:.3f}"
        ]
    lines += ["", *benchmark_table(root / "artifacts" / "metrics" / "benchmark.json"), ""]
    champion = registry.champion(root)
    lines += [
        f"Champion: deepmoji version {champion}" if champion else "No champion yet.",
        "",
        "Where to look",
        f"  report      {root / 'artifacts' / 'benchmark' / 'report.md'}",
        f"  emojis      {root / 'artifacts' / 'pretrained' / 'report.md'}",
        f"  validation  {root / 'artifacts' / 'validation' / 'validation.html'}",
        f"  MLflow      make ui   (runs and models of {tracking.hide_secrets(tracking.tracking_uri(root))})",
        "Ask it",
        '  .venv/bin/deepmoji predict "I love mom\'s cooking"',
        "  .venv/bin/deepmoji serve      a page and a REST service on loopback",
    ]
    return "\n".join(lines)


def benchmark_screen(root: Path, results: Sequence["StageResult"], seconds: float) -> str:
    """What `benchmark` ends with."""
    scores = benchmark_table(root / "artifacts" / "metrics" / "benchmark.json")
    report = root / "artifacts" / "benchmark" / "report.md"
    return "\n".join([*stage_table(results, seconds), "", *scores, "", f"The report is {report}"])


def stage_table(results: Sequence["StageResult"], seconds: float) -> list[str]:
    """A line per stage: how much of it ran, how much was up to date, and how long it took."""
    lines = ["", "What happened", "  stage        run  up to date  seconds"]
    lines += [f"  {r.stage:<11}{r.ran:>5}{r.unchanged:>12}{r.seconds:>9.1f}" for r in results]
    return [*lines, f"  everything                   {seconds:>9.1f}"]


def benchmark_table(path: Path) -> list[str]:
    """A line per set and a column per method, each with its mean score on the test split."""
    if not path.is_file():
        return []
    numbers = json.loads(path.read_text(encoding="utf-8"))
    found = dict.fromkeys(method for scores in numbers.values() for method in scores)
    order = ("majority", "tfidf", "new", "probe", "last", "full", "chain-thaw", "probe-thaw")
    methods = [*(name for name in order if name in found), *(name for name in found if name not in order)]
    width = max(len(name) for name in numbers)
    return [
        f"  {'test score':<{width}}" + "".join(f"{method:>12}" for method in methods),
        *(
            f"  {name:<{width}}"
            + "".join(f"{scores[method]['mean']:>12.3f}" if method in scores else f"{'-':>12}" for method in methods)
            for name, scores in numbers.items()
        ),
    ]
