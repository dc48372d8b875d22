"""The model card of a fine-tuned model: data, method, figures, limits."""

from collections.abc import Mapping
from typing import Any

from deepmoji.predictions import Judged


def finetuned_card(results: Mapping[str, Any], judged: Judged) -> str:
    """Markdown from the content of results.json and the figures of the model that is kept."""
    metric = results["metric"]
    cut, total = (sum(part[key] for part in results["truncated"].values()) for key in ("texts", "of"))
    counts = ", ".join(f"{part['of']:,} {split}" for split, part in results["truncated"].items())
    thresholds = judged.thresholds
    decision = (
        f"A label counts from these probabilities on, found on validation texts: {_pairs(results, thresholds)}."
        if thresholds
        else "The most probable class is taken."
    )
    if judged.offsets and any(judged.offsets):
        decision += " Rare classes were made more probable first, by as much as served the metric on validation texts."
    seeds = [run["seed"] for run in results["seeds"]]
    lines = [
        f"# {results['dataset']} by {results['method']}",
        "",
        f"Tells {len(results['classes'])} classes ({results['task']}): {', '.join(results['classes'])}.",
        "",
        "## Data",
        "",
        f"{results['dataset']}: {counts} texts. Texts are cut at {results['max_length']} tokens: {cut:,} of {total:,} "
        f"were. {results['new_words']:,} words of the training texts joined the vocabulary.",
        "",
        "## Method",
        "",
        "Random start, no pretraining." if results["method"] == "new" else "Started from a model that predicts emojis.",
        "",
        "| phase | layers | rate | epochs at most |",
        "|---|---|---:|---:|",
        *(
            f"| {phase['name']} | {', '.join(phase['train'])} | "
            + ("solved | none |" if phase["solve"] else f"{_rate(phase)} | {phase['epochs']} |")
            for phase in results["schedule"]
        ),
        "",
        "After each phase the weights with the best validation loss are kept. "
        f"This is seed {results['best_seed']} of {seeds}, the best on validation texts. {decision}",
        "",
        "## Figures of this model",
        "",
        "| metric | validation | test |",
        "|---|---:|---:|",
        *(
            f"| {name}{' (the metric of this set)' if name == metric else ''} | {judged.validation[name]:.4f} "
            f"| {judged.test[name]:.4f} |"
            for name in judged.test
        ),
    ]
    if results["class_average"]:
        lines += [
            "",
            "The class-average F1 as the paper has it comes from one binary model per class, which are not kept: "
            f"{results['mean']['test'][metric]:.4f} on test, mean over the seeds.",
        ]
    lines += [
        "",
        "## Limits",
        "",
        "Learned from the texts named above and good for texts like them; other domains, times and languages than "
        "English are untested. It repeats the judgements, and the errors, of the people who labelled the set. "
        "Probabilities are not calibrated. Not made to decide about a person.",
    ]
    return "\n".join(lines) + "\n"


def _rate(phase: Mapping[str, Any]) -> str:
    return f"{phase['learning_rate']:g}{', falling to 0' if phase['decay'] else ''}"


def _pairs(results: Mapping[str, Any], thresholds: list[float]) -> str:
    names = results["classes"] if len(thresholds) == len(results["classes"]) else results["classes"][-1:]
    return ", ".join(f"{name} {limit:.2f}" for name, limit in zip(names, thresholds, strict=True))
