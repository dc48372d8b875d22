"""How fast the model is against a plain reference, as ratios from one run.

    python benchmarks/model_speed.py [--threads 2] [--repeats 3] [--batches 32] [--processor-time]

The reference is what one writes first: every text padded to 30, in the order it comes, fp32, `torch.optim.Adam` over
all parameters. Both sides run at the published sizes on the same texts (lengths like tweets, 13 tokens in the mean),
take turns, and the best of the repeats counts, so that other work on the machine hits both. The last lines say what
bf16 costs in accuracy.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from deepmoji.batches import bucket, collate
from deepmoji.model import DeepMoji
from deepmoji.optimiser import RowAdam, clip_gradients
from deepmoji.precision import autocast, for_inference
from deepmoji.tokens import Examples
from deepmoji.training import predict_features

WORDS, CLASSES, E, H, PADDED, BATCH = 50_000, 64, 256, 512, 30, 128
CPU = torch.device("cpu")
Clock = Callable[[], float]


class Plain(nn.Module):
    """DeepMoji as one writes it first: no packing, the whole concatenation, everything padded."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, E)
        self.lstm0 = nn.LSTM(E, H, batch_first=True, bidirectional=True)
        self.lstm1 = nn.LSTM(2 * H, H, batch_first=True, bidirectional=True)
        self.attention = nn.Parameter(torch.randn(4 * H + E) / 20)
        self.output = nn.Linear(4 * H + E, CLASSES)

    def features(self, ids: Tensor) -> Tensor:
        embedded = torch.tanh(self.embedding(ids))
        first, _ = self.lstm0(embedded)
        second, _ = self.lstm1(first)
        joined = torch.cat([second, first, embedded], dim=2)
        scores = (joined @ self.attention).masked_fill(ids == 0, -1e9)
        return (joined * torch.softmax(scores, dim=1)[:, :, None]).sum(1)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.output(self.features(ids))
        return logits


def tweets(count: int) -> Examples:
    rng = np.random.default_rng(0)
    lengths = np.clip(np.round(rng.gamma(3.2, 4.1, count)), 1, PADDED).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = (10 + (rng.zipf(1.15, offsets[-1]) - 1) % (WORDS - 10)).astype(np.uint16)
    return Examples(ids, offsets, np.arange(count), rng.integers(0, CLASSES, count))


def padded(examples: Examples) -> Tensor:
    rows = np.zeros((len(examples.offsets) - 1, PADDED), dtype=np.int64)
    lengths = np.diff(examples.offsets)
    rows[np.arange(PADDED) < lengths[:, None]] = examples.ids
    return torch.from_numpy(rows)


def best(sides: dict[str, Callable[[], object]], repeats: int, clock: Clock) -> dict[str, float]:
    """Seconds of the fastest call of each side; the sides take turns after one warm-up each."""
    for run in sides.values():
        run()
    seconds = dict.fromkeys(sides, float("inf"))
    for _ in range(repeats):
        for name, run in sides.items():
            begin = clock()
            run()
            seconds[name] = min(seconds[name], clock() - begin)
    return seconds


def multiply_rate() -> Callable[[], object]:
    """A bf16 product as large as the machine likes it: 2 * 2048^3 operations."""
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    return lambda: a @ b


def forward_operations(tokens: int) -> int:
    """Multiplications and additions of both BiLSTM layers; all else is below 1 %."""
    return 2 * tokens * 2 * 4 * H * ((E + H) + (2 * H + H))


def show(what: str, theirs: float, mine: float, wanted: float) -> None:
    print(f"{what:<44}{theirs * 1e3:>10.1f} ms{mine * 1e3:>10.1f} ms{theirs / mine:>8.2f} x   (aim {wanted})")


def encoding(model: DeepMoji, plain: Plain, data: Examples, repeats: int, clock: Clock) -> None:
    rows = padded(data)

    def reference() -> None:
        with torch.inference_mode():
            for part in torch.split(rows, BATCH):
                plain.features(part)

    def ours(precision: str) -> Callable[[], object]:
        return lambda: predict_features(model, data, batch_size=BATCH, precision=precision, device="cpu")

    seconds = best(
        {"plain": reference, "fp32": ours("fp32"), "bf16": ours("bf16"), "multiply": multiply_rate()}, repeats, clock
    )
    show("encode, batch 128, fp32", seconds["plain"], seconds["fp32"], 2.2)
    show("encode, batch 128, bf16", seconds["plain"], seconds["bf16"], 4.5)
    machine = 2 * 2048**3 / seconds["multiply"]
    useful = forward_operations(len(data.ids)) / seconds["bf16"]
    rates = f"{useful / 1e9:.0f} of {machine / 1e9:.0f} GFLOP/s"
    print(f"useful work, bf16 encode: {rates}, {useful / machine:.0%} (aim 70 %)")
    texts = len(data.rows)
    print(f"texts/s: plain {texts / seconds['plain']:,.0f}, fp32 {texts / seconds['fp32']:,.0f}, ", end="")
    print(f"bf16 {texts / seconds['bf16']:,.0f}")


def training(model: DeepMoji, plain: Plain, data: Examples, repeats: int, clock: Clock) -> None:
    rows, targets = padded(data), torch.from_numpy(data.targets)
    plan = list(bucket(data, np.arange(len(data.rows)), BATCH, (0,)))
    adam = torch.optim.Adam(plain.parameters(), 1e-3)
    layers = [p for name, p in model.named_parameters() if name != "embedding.weight"]
    optimisers = [RowAdam(model.embedding.parameters(), 1e-3, 1e-6), torch.optim.Adam(layers, 1e-3, fused=True)]
    everything = list(model.parameters())

    def reference() -> None:
        for part, truth in zip(torch.split(rows, BATCH), torch.split(targets, BATCH), strict=True):
            adam.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(plain(part), truth))
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            adam.step()

    def ours() -> None:
        for chosen in plan:
            batch = collate(data, chosen, WORDS)
            for optimiser in optimisers:
                optimiser.zero_grad(set_to_none=True)
            with autocast(True, CPU):
                logits = model(batch.ids, batch.lengths)
            torch.autograd.backward(nn.functional.cross_entropy(logits, batch.targets))
            clip_gradients(everything, 1.0)
            for optimiser in optimisers:
                optimiser.step()

    plain.train()
    model.train()
    model.embedding.sparse = True
    seconds = best({"plain": reference, "ours": ours}, max(repeats // 2, 2), clock)
    model.embedding.sparse = False
    plain.eval()
    model.eval()
    show(f"training, {len(plan)} steps of 128, bf16", seconds["plain"], seconds["ours"], 3.5)


def latency(model: DeepMoji, plain: Plain, repeats: int, clock: Clock) -> None:
    data = tweets(400)
    middle = int(np.argsort(np.diff(data.offsets), kind="stable")[200])
    ids = torch.from_numpy(data.ids[data.offsets[middle] : data.offsets[middle + 1]].astype(np.int64))[None]
    row, lengths = padded(data)[middle][None], torch.tensor([ids.shape[1]])

    def reference() -> None:
        with torch.inference_mode():
            plain(row)

    def ours(network: DeepMoji) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                network(ids, lengths)

        return run

    sides = {"plain": reference, "fp32": ours(model), "bf16": ours(for_inference(model, bf16=True))}
    seconds = best(sides, repeats * 10, clock)
    for precision in ("fp32", "bf16"):
        show(f"one text of {ids.shape[1]} tokens, {precision}", seconds["plain"], seconds[precision], 2.0)


def gates(soft: DeepMoji, hard: DeepMoji, data: Examples, repeats: int, clock: Clock) -> None:
    for precision in ("fp32", "bf16"):
        sides: dict[str, Callable[[], object]] = {
            name: lambda model=model, precision=precision: predict_features(  # type: ignore[misc]
                model, data, batch_size=BATCH, precision=precision, device="cpu"
            )
            for name, model in (("soft", soft), ("hard", hard))
        }
        seconds = best(sides, repeats, clock)
        slower = seconds["hard"] / seconds["soft"]
        print(f"hard sigmoid takes {slower:.2f} times the sigmoid's time in {precision} (aim 2.5)")


def accuracy(model: DeepMoji, data: Examples) -> None:
    exact, rounded = (predict_features(model, data, precision=p, device="cpu") for p in ("fp32", "bf16"))
    head = model.output.weight.detach().numpy().T
    same = ((exact @ head).argmax(1) == (rounded @ head).argmax(1)).mean()
    print(f"bf16 features are off by {np.abs(exact - rounded).max():.4f} at most; {same:.1%} keep their top label")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--batches", type=int, default=32, help="of 128 texts per measurement; of few, hardly any has one length"
    )
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine, with --threads 1")
    options = parser.parse_args()
    clock: Clock = time.process_time if options.processor_time else time.perf_counter
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    plain, data = Plain().eval(), tweets(BATCH * options.batches)
    model, hard = DeepMoji(WORDS, CLASSES).eval(), DeepMoji(WORDS, CLASSES, recurrent_activation="hard_sigmoid").eval()
    mean = len(data.ids) / len(data.rows)
    print(f"{len(data.rows)} texts, {mean:.1f} tokens in the mean, {options.threads} threads, {clock.__name__}")
    print(f"{'':<44}{'plain':>13}{'ours':>13}")
    encoding(model, plain, data, options.repeats, clock)
    latency(model, plain, options.repeats, clock)
    gates(model, hard, data, options.repeats, clock)
    accuracy(model, data)
    training(model, plain, data, options.repeats, clock)


if __name__ == "__main__":
    main()
