"""Training by two processes of one thread each against one process of one thread, on two cores.

    python benchmarks/two_processes.py [--steps 40] [--batch 512]

At the published sizes, on texts as long as tweets, bf16 where the machine gains from it. Both learn from the same
batches of 512 texts, which two processes share, so that they compute the same losses; gradients are summed by gloo.
What two processes exchange does not depend on the batch: with 256 texts in all it weighs twice as much. Runs take
turns, and the best of each counts.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

AIM = 1.5


def work(steps: int, batch: int) -> None:
    """One process of a training; the first prints the seconds of its steps."""
    import torch
    import torch.distributed as dist
    from model_speed import CLASSES, WORDS, tweets

    from deepmoji.model import DeepMoji
    from deepmoji.phases import Phase
    from deepmoji.training import fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    data, seen = tweets(batch * steps), tweets(batch)
    model = DeepMoji(WORDS, CLASSES)
    options: dict[str, Any] = {"batch_size": batch, "seed": 1, "balance": 0.0, "precision": "auto"}
    fit(model, seen, seen, [Phase("warm up", ("all",), 1e-3, 1, None, 2 * batch)], **options)
    began = time.perf_counter()
    fit(model, data, seen, [Phase("timed", ("all",), 1e-3, 1, None, len(data.rows))], **options)
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(time.perf_counter() - began, flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


def seconds(processes: int, steps: int, batch: int) -> float:
    own = [__file__, "--work", "--steps", str(steps), "--batch", str(batch)]
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(many if processes > 1 else []), *own]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "3000"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    if options.work:
        work(options.steps, options.batch)
        return
    best = {1: float("inf"), 2: float("inf")}
    for _ in range(options.repeats):
        for processes in best:
            best[processes] = min(best[processes], seconds(processes, options.steps, options.batch))
    examples = options.steps * options.batch
    for processes, taken in best.items():
        print(f"{processes} process(es) of one thread: {taken:6.1f} s, {examples / taken:,.0f} examples/s")
    print(f"ratio {best[1] / best[2]:.2f} (aim {AIM})")


if __name__ == "__main__":
    main()
