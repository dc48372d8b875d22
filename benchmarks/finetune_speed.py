"""Chain-thaw on a published set, timed: in all, by phase, and against a plain loop.

    python benchmarks/finetune_speed.py DATA [--model FOLDER] [--dataset SS-Youtube] [--embedding 128 --hidden 256]

The settings are those of the preset table. DATA is the folder with the published sets. Without --model the start has
random weights of the sizes given, which tells the time of an epoch but not how many a pretrained model needs. The plain
loop does the same steps of the last phase, all layers, without length buckets and with one dense Adam. The mark: three
minutes on two cores.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepmoji.checkpoints import load_model, save_model
from deepmoji.config import load_params
from deepmoji.datasets import Dataset, read_dataset
from deepmoji.finetuning import Options, default_epoch, finetune, phases_for, prepare, starting_model
from deepmoji.model import DeepMoji
from deepmoji.predictions import rows_of
from deepmoji.vocabulary import build_vocabulary, count_words

MARK_SECONDS = 180
PRESET = Path(__file__).resolve().parents[1] / "presets" / "table.yaml"


def settings_of_preset(epochs: int | None) -> dict[str, Any]:
    """How real data is fine-tuned, from one seed and at most `epochs` a phase."""
    settings = load_params(PRESET).section("finetune") | {"seeds": [1]}
    del settings["methods"]
    return settings | ({"epochs": epochs} if epochs is not None else {})


def random_start(folder: Path, texts: list[str], embedding: int, hidden: int) -> None:
    """A model folder over 64 labels that knows the texts' words."""
    vocabulary = build_vocabulary(count_words(texts), 50_000)
    model = DeepMoji(len(vocabulary), 64, embedding_size=embedding, hidden_size=hidden)
    save_model(folder, model, vocabulary, [str(k) for k in range(64)], metrics={}, card="# random")


def plain_seconds(dataset: Dataset, start: Path, settings: dict[str, Any], steps: int) -> float:
    """Seconds per step of a loop that pads to the longest allowed text and updates every word vector."""
    folder = load_model(start)
    phase_keys = ("learning_rate", "finetune_rate", "epochs", "patience", "epoch_size", "schedules")
    phases = phases_for("full", **{key: settings[key] for key in phase_keys})
    prepared = prepare(dataset, folder.vocabulary, max_length=settings["max_length"], new_words=0)
    keys = ("batch_size", "balance", "class_weights", "embedding_l2", "embedding_dropout", "final_dropout")
    options = Options(phases, *(settings[key] for key in keys))
    model = starting_model(folder, len(folder.vocabulary), 1, "binary", options, seed=1, fresh=False)
    part = prepared.examples["train"]
    count = len(part.rows)
    ids = np.zeros((count, prepared.max_length), dtype=np.int64)
    for row in range(count):
        words = part.ids[part.offsets[row] : part.offsets[row + 1]]
        ids[row, : len(words)] = words
    lengths = torch.from_numpy(np.diff(part.offsets))
    targets = torch.from_numpy(part.targets.astype(np.float32))
    adam = torch.optim.Adam(model.parameters(), settings["finetune_rate"])
    model.train()
    began = time.perf_counter()
    for _ in range(steps):
        rows = torch.randint(count, (settings["batch_size"],))
        adam.zero_grad()
        logits = model(torch.from_numpy(ids)[rows], lengths[rows])
        torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets[rows]).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dataset", default="SS-Youtube")
    parser.add_argument("--embedding", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="at most so many a phase")
    options = parser.parse_args()
    settings = settings_of_preset(options.epochs)
    torch.set_num_threads(options.threads)
    dataset = read_dataset(options.dataset, options.data)
    with tempfile.TemporaryDirectory() as folder:
        start = options.model or Path(folder) / "start"
        if options.model is None:
            random_start(start, dataset.texts, options.embedding, options.hidden)
        told: list[float] = [time.perf_counter()]
        cpu = time.process_time()

        def report(metrics: dict[str, float], step: int) -> None:
            if any(name.endswith("/validation_loss") for name in metrics):
                told.append(time.perf_counter())

        results = finetune(dataset, start, Path(folder) / "out", method="chain-thaw", report=report, **settings)
        total, cpu = time.perf_counter() - told[0], time.process_time() - cpu
        (run,) = results["seeds"]
        print(f"{'phase':14} {'epochs':>6} {'seconds':>8} {'s/epoch':>8}")
        place = 0
        for phase in run["phases"]:
            seconds = told[place + phase["epochs"]] - told[place]
            place += phase["epochs"]
            print(f"{phase['name']:14} {phase['epochs']:6} {seconds:8.1f} {seconds / phase['epochs']:8.2f}")
        last = (told[-1] - told[-1 - run["phases"][-1]["epochs"]]) / run["phases"][-1]["epochs"]
        drawn = settings["epoch_size"] or default_epoch(len(rows_of(dataset, "train")))
        steps = -(-drawn // settings["batch_size"])
        plain = plain_seconds(dataset, start, settings, steps) * steps
        print(f"\nin all {total:.1f} s ({cpu:.1f} s of CPU time); the mark is {MARK_SECONDS} s on two cores")
        print(f"an epoch of all layers: {last:.2f} s, the plain loop {plain:.2f} s, ratio {plain / last:.2f}")
        print(f"test {dataset.metric}: {run['test'][dataset.metric]:.3f}")


if __name__ == "__main__":
    main()
