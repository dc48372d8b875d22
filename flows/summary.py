"""The last screen of a run: what happened, where to look, what to ask."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepmoji import registry, tracking

if TYPE_CHECKING:
    from flows.pipeline import StageResult


def last_screen(root: Path, results: Sequence["StageResult"], seconds: float) -> str:
    """Plain text for a terminal, at most 100 columns wide."""
    lines = ["", "What happened", "  stage        run  up to date  seconds"]
    lines += [f"  {r.stage:<11}{r.ran:>5}{r.unchanged:>12}{r.seconds:>9.1f}" for r in results]
    lines += [f"  everything                   {seconds:>9.1f}", ""]
    pretrain = root / "artifacts" / "metrics" / "pretrain.json"
    if pretrain.is_file():
        numbers = json.loads(pretrain.read_text(encoding="utf-8"))
        lines += [f"Emoji prediction on the balanced test set: top-1 {numbers['top1']:.3f}, top-5 {numbers['top5']:.3f}"]
    lines += benchmark_table(root / "artifacts" / "benchmark" / "report.json")
    champion = registry.champion(root)
    lines += [
        f"Champion: deepmoji version {champion}" if champion else "No champion yet.",
        "",
        "Where to look",
        f"  report      {root / 'artifacts' / 'benchmark' / 'report.md'}",
        f"  validation  {root / 'artifacts' / 'validation' / 'validation.html'}",
        f"  MLflow      make ui   (runs and models of {tracking.hide_secrets(tracking.tracking_uri(root))})",
        "Ask it",
        "  .venv/bin/deepmoji predict \"I love mom's cooking\"",
        "  .venv/bin/deepmoji serve      a page and a REST service on loopback",
    ]
    return "\n".join(lines)
