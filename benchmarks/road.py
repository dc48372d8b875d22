"""The whole road on the sample: how long, how much memory, and how much of it is orchestration.

    python benchmarks/road.py [--preset sample] [--data FOLDER]

In a copy of the project: a first run of the flow, a second one that finds everything up to date, and the stages'
functions called without Prefect, DVC and MLflow, the fine-tunes as many at once as there are cores and in the order of
the flow. What the first run takes beyond that is orchestration: servers, processes, imports, hashes, records.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]


def copy_project(folder: Path) -> None:
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file() and name != "dvc.lock":
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    git = ["git", "-C", str(folder), "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a model is promoted only from a known commit"], check=True)


def run(folder: Path, *command: str) -> tuple[float, float]:
    """Seconds and peak MiB (resident memory of the process and all below it, every 0.2 s)."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PYTHONPATH": str(folder), "PATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as `make run` does
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            total = 0
            for one in [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]:
                try:
                    total += psutil.Process(one).memory_info().rss
                except psutil.Error:
                    continue
            peak = max(peak, total / 2**20)
            time.sleep(0.2)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    code = process.wait()
    if code != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit code {code}")
    return time.monotonic() - started, peak


def get_ready() -> None:
    """Import what a fine-tune needs, in a process that will run some."""
    import torch

    from deepmoji import datasets, finetuning  # noqa: F401

    torch.set_num_threads(1)  # as the stage does


def finetune(out: Path, name: str, method: str, options: dict[str, Any]) -> None:
    """One fine-tune, as its stage runs it, in a process that is ready."""
    from deepmoji import datasets, finetuning

    dataset = datasets.load_dataset(out / "datasets" / f"{name}.parquet")
    finetuning.finetune(dataset, out / "pretrained", out / "finetuned" / name / method, method=method, **options)


def direct(folder: Path) -> dict[str, float]:
    """Seconds of each stage's own work, called as functions; torch and the like are imported before."""
    from deepmoji import benchmark, corpus, datasets, pretraining, sample, tokens, validation
    from deepmoji.config import load_params
    from deepmoji.emojis import load_labels

    params = load_params(folder / "params.yaml")
    data, out = folder / params.data, folder / "direct"
    out.mkdir()
    seconds: dict[str, float] = {}

    def call(name: str, function: Callable[..., object], *arguments: object, **options: object) -> None:
        started = time.monotonic()
        function(*arguments, **options)
        seconds[name] = time.monotonic() - started

    if params.data == "data":  # which the first run has to write
        call("sample", sample.write_sample, out / "data")
    options = params.section("ingest")
    source, labels = data / options.pop("tweets"), load_labels(options.pop("labels"))
    call("ingest", corpus.ingest, source, out / "corpus", labels=labels, **options)
    call("datasets", datasets.write_datasets, params.datasets.names, data, out / "datasets")
    options = params.section("validate")
    unknown = options.pop("max_unknown_share")
    call("validate", validation.validate, out / "corpus", out / "datasets", out / "validation", **options)
    call("tokenize", tokens.tokenize_corpus, out / "corpus", out / "tokens", **params.section("tokenize"))
    call("validate tokens", validation.validate_tokens, out / "tokens", max_unknown_share=unknown)
    options = params.section("pretrain")
    if options["sentiment_ranking"] is not None:
        options["sentiment_ranking"] = data / options["sentiment_ranking"]
    call("pretrain", pretraining.pretrain, out / "tokens", out / "pretrained", **options)
    options = params.section("finetune")
    methods, cores = options.pop("methods")[::-1], os.cpu_count() or 1
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=get_ready) as pool:
        list(pool.map(time.sleep, [1.0] * cores))  # each process is up

        def all_of_them() -> None:
            jobs = [pool.submit(finetune, out, name, one, options) for one in methods for name in params.datasets.names]
            for job in jobs:
                job.result()

        call("finetune", all_of_them)
    call(
        "benchmark", benchmark.benchmark, out / "datasets", out / "finetuned", out / "benchmark",
        **params.section("benchmark"),
    )  # fmt: skip
    seconds["ingest"] -= min(seconds["ingest"], seconds["datasets"])  # they run beside each other
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sample")
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command does
    flow = [sys.executable, "-m", "flows", "pipeline", "--preset", arguments.preset]
    flow += ["--data", str(arguments.data.resolve())] if arguments.data else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_project(folder)
        first, peak = run(folder, *flow)
        print(f"first run            {first:8.1f} s   peak {peak:,.0f} MiB", flush=True)
        second, _ = run(folder, *flow)
        print(f"second run           {second:8.1f} s", flush=True)
        os.environ["PYTHONPATH"] = str(folder)  # of the processes that fine-tune
        seconds = direct(folder)
    own = sum(seconds.values())
    print(f"stages, called plain {own:8.1f} s   {', '.join(f'{name} {value:.1f}' for name, value in seconds.items())}")
    print(f"orchestration        {first - own:8.1f} s   {(first - own) / first:.0%} of the first run")


if __name__ == "__main__":
    main()
