"""The network: embedding -> tanh -> BiLSTM -> BiLSTM -> attention over [lstm1, lstm0, embedding] -> output.

Shapes: B batch, T tokens, E embedding_size, H hidden_size, C classes, F features = 4H + E.
Rows are right-padded with id 0 up to T; what stands behind a row's length never reaches its result.
Source: paper, section 3.2 (architecture); Keras' hard sigmoid is needed only for the published weights.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deepmoji.errors import UsageError

Task = Literal["multiclass", "binary", "multilabel"]
RecurrentActivation = Literal["sigmoid", "hard_sigmoid"]

TASKS = ("multiclass", "binary", "multilabel")
RECURRENT_ACTIVATIONS = ("sigmoid", "hard_sigmoid")


class DeepMoji(nn.Module):
    """DeepMoji with flat arguments; 22.4 M parameters with 50,000 words, 64 classes and the default sizes.

    `classes` counts output columns: a binary task has one. `embedding_dropout` drops whole embedding channels of
    a text, `final_dropout` single features. Without `attention` the features are the two last states of `lstm1`
    (the paper's plain LSTM, section 5.3), so (B, 2H). UsageError: an argument outside its range.
    """

    def __init__(
        self,
        vocabulary_size: int,
        classes: int,
        embedding_size: int = 256,
        hidden_size: int = 512,
        task: Task = "multiclass",
        recurrent_activation: RecurrentActivation = "sigmoid",
        embedding_dropout: float = 0.25,
        final_dropout: float = 0.5,
        attention: bool = True,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "vocabulary_size": vocabulary_size,
            "classes": classes,
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
            "task": task,
            "recurrent_activation": recurrent_activation,
            "embedding_dropout": embedding_dropout,
            "final_dropout": final_dropout,
            "attention": attention,
        }
        _check(self.config)
        self.task: Task = task
        self.feature_size = 4 * hidden_size + embedding_size if attention else 2 * hidden_size
        layer = HardSigmoidLSTM if recurrent_activation == "hard_sigmoid" else MaskedLSTM
        # Given its weight, the layer draws no random one, which on the meta device would import all of torch.compile.
        weight = torch.empty(vocabulary_size, embedding_size)
        self.embedding: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            weight, freeze=False, padding_idx=0
        )
        self.lstm0: nn.LSTM = layer(embedding_size, hidden_size)
        self.lstm1: nn.LSTM = layer(2 * hidden_size, hidden_size)
        self.attention = Attention(self.feature_size) if attention else None
        self.output = nn.Linear(self.feature_size, classes)
        self.channel_dropout = nn.Dropout1d(embedding_dropout)
        self.final_dropout = nn.Dropout(final_dropout)
        if not weight.is_meta:
            self._initialise()

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, C) float32 of ids (B, T) int64 with lengths (B,) int64, best kept on the CPU."""
        features, _ = self.features(ids, lengths)
        logits: Tensor = self.output(self.final_dropout(features))
        return logits.float()

    def features(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) float32 and attention weights (B, T), which sum to 1 over a row's tokens.

        A row of length 0 has features and attention 0. Without attention the weights are all 0.
        """
        if ids.shape[1] == 0:  # only empty texts: one column of padding gives the layers something to run on
            features, weights = self.features(ids.new_zeros(ids.shape[0], 1), lengths)
            return features, weights[:, :0]
        lengths = lengths.cpu()  # packing wants them there; a copy only if the caller left them on a GPU
        embedded = torch.tanh(self.embedding(ids)).to(self.lstm0.all_weights[0][0].dtype)  # (B, T, E)
        # Dropout1d drops channels of (B, E, T): one draw per text and channel, the same for all its tokens.
        embedded = self.channel_dropout(embedded.transpose(1, 2)).transpose(1, 2)
        states0, _ = self.lstm0(embedded, lengths)  # (B, T, 2H)
        states1, last1 = self.lstm1(states0, lengths)  # (B, T, 2H), (B, 2H)
        present = torch.arange(ids.shape[1])[None, :] < lengths[:, None]  # (B, T)
        present = present.to(ids.device, non_blocking=True)
        if self.attention is None:
            return last1.float() * present[:, :1], torch.zeros(present.shape, device=ids.device)
        features, weights = self.attention([states1, states0, embedded], present)
        return features, weights

    def _initialise(self) -> None:
        """Keras' defaults, as the paper's code: uniform embedding, orthogonal recurrence, forget gate open.

        On one thread: more of them round the orthogonal matrices otherwise, and a training that was begun on other
        cores would not know its own start again.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._draw()
        finally:
            torch.set_num_threads(threads)

    def _draw(self) -> None:
        nn.init.uniform_(self.embedding.weight, -0.5, 0.5)
        with torch.no_grad():
            self.embedding.weight[0].zero_()
        for lstm in (self.lstm0, self.lstm1):
            for name, parameter in lstm.named_parameters():
                if "weight_ih" in name:
                    nn.init.xavier_uniform_(parameter)
                elif "weight_hh" in name:
                    for gate in parameter.data.chunk(4):
                        nn.init.orthogonal_(gate)
                else:
                    nn.init.zeros_(parameter)
                    if "bias_ih" in name:
                        with torch.no_grad():
                            parameter.chunk(4)[1].fill_(1.0)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)


class Attention(nn.Module):
    """One weight per channel and no bias: a softmax over x_t . w along the tokens of a text, padding left out."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size).uniform_(-0.05, 0.05))

    def forward(self, parts: list[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum (B, F) float32 of the parts (B, T, f), concatenated, and the weights (B, T)."""
        # Part by part: the (B, T, F) concatenation would be written and read again for nothing.
        vectors = torch.split(self.weight, [part.shape[2] for part in parts])
        scores = torch.stack(
            [(part @ vector.to(part.dtype)).float() for part, vector in zip(parts, vectors, strict=True)]
        )
        scores = scores.sum(0).masked_fill(~present, -torch.inf)  # (B, T)
        scores = scores.masked_fill(~present.any(1, keepdim=True), 0.0)  # no softmax over nothing
        weights = torch.softmax(scores, dim=1) * present
        summed = [torch.bmm(weights[:, None].to(part.dtype), part)[:, 0].float() for part in parts]
        return torch.cat(summed, dim=1), weights


class MaskedLSTM(nn.LSTM):
    """One bidirectional layer over right-padded rows, each direction over a row's own tokens only.

    On the CPU the padded rows are multiplied as they lie: the backward direction runs over each row reversed within
    its length, so that its padding comes last too. Packing would cost more than the little padding of a batch of
    like lengths, and brings a new shape with every batch, each of which oneDNN keeps a kernel for. cuDNN packs.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """States (B, T, 2H), of no meaning behind a row's length, and last states (B, 2H) of x (B, T, input_size)."""
        if bool((lengths == x.shape[1]).all()):
            states, (last, _) = super().forward(x)
            return states, last.transpose(0, 1).flatten(1)
        if x.is_cuda:
            return self.run_packed(x, lengths)
        rows, turned = _turned(lengths, x.shape[1])
        start = x.new_zeros(1, x.shape[0], self.hidden_size)
        ahead, back = (
            torch.lstm(part, (start, start), tuple(weights), True, 1, 0.0, self.training, False, True)[0]
            for part, weights in zip((x, x[rows, turned]), self.all_weights, strict=True)
        )
        ends = lengths.clamp(min=1) - 1
        last = torch.cat([ahead[rows[:, 0], ends], back[rows[:, 0], ends]], dim=1)
        return torch.cat([ahead, back[rows, turned]], dim=2), last

    def run_packed(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same by a packed sequence."""
        packed = pack_padded_sequence(x, lengths.clamp(min=1), batch_first=True, enforce_sorted=False)
        packed_states, (last, _) = super().forward(packed)
        states, _ = pad_packed_sequence(packed_states, batch_first=True, total_length=x.shape[1])
        return states, last.transpose(0, 1).flatten(1)


class HardSigmoidLSTM(MaskedLSTM):
    """MaskedLSTM whose gates use Keras' hard sigmoid, clip(0.2 x + 0.5, 0, 1); weights as nn.LSTM's."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """States (B, T, 2H), of no meaning behind a row's length, and last states (B, 2H) of x (B, T, input_size)."""
        # Both directions step together, the backward one over each text reversed within its length.
        b, t, _ = x.shape
        rows, turned = (index.to(x.device) for index in _turned(lengths, t))
        (w, u, b0, b1), (w_back, u_back, b0_back, b1_back) = self.all_weights
        forward_gates = nn.functional.linear(x, w, b0 + b1)
        backward_gates = nn.functional.linear(x, w_back, b0_back + b1_back)
        gates = torch.stack([forward_gates, backward_gates[rows, turned]])  # (2, B, T, 4H)
        recurrent = torch.stack([u.T, u_back.T]).to(gates.dtype)  # (2, H, 4H)
        hidden = gates.new_zeros(2, b, self.hidden_size)
        cell = torch.zeros(2, b, self.hidden_size, device=x.device)
        states = []
        for step in range(t):
            total = torch.baddbmm(gates[:, :, step], hidden, recurrent).float()
            i, f, g, o = total.chunk(4, dim=2)
            cell = _hard_sigmoid(f) * cell + _hard_sigmoid(i) * torch.tanh(g)
            hidden = (_hard_sigmoid(o) * torch.tanh(cell)).to(gates.dtype)
            states.append(hidden)
        outputs = torch.stack(states, dim=2)  # (2, B, T, H)
        ends = (lengths.clamp(min=1) - 1).to(x.device)
        last = outputs[:, rows[:, 0], ends].transpose(0, 1).flatten(1)
        return torch.cat([outputs[0], outputs[1][rows, turned]], dim=2), last


def _hard_sigmoid(x: Tensor) -> Tensor:
    return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


def _turned(lengths: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Indices (B, 1) and (B, T) that reverse each row within its length and leave what stands behind it."""
    steps = torch.arange(t)[None, :]
    turned = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    return torch.arange(len(lengths))[:, None], turned


def _check(config: Mapping[str, Any]) -> None:
    for name in ("vocabulary_size", "classes", "embedding_size", "hidden_size"):
        value = config[name]
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"The model's {name} is {value!r}: give a whole number above 0.")
    for name, choices in (("task", TASKS), ("recurrent_activation", RECURRENT_ACTIVATIONS)):
        if config[name] not in choices:
            raise UsageError(f"The model's {name} is {config[name]!r}: choose one of {', '.join(choices)}.")
    if config["task"] == "binary" and config["classes"] != 1:
        raise UsageError(f"A binary model has one output column, not {config['classes']}: give classes=1.")
    for name in ("embedding_dropout", "final_dropout"):
        value = config[name]
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise UsageError(f"The model's {name} is {value!r}: give a share from 0 up to, not including, 1.")


def lengths_of(ids: Tensor) -> Tensor:
    """Tokens per row (B,) int64 of zero-padded ids (B, T): up to the last id that is not 0."""
    positions = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    return ((ids != 0) * positions).amax(dim=1) if ids.shape[1] else torch.zeros(ids.shape[0], dtype=torch.int64)


def probabilities(logits: Tensor, task: str) -> Tensor:
    """Probabilities of logits (B, C): softmax over classes, or a sigmoid per column for binary and multilabel."""
    return torch.softmax(logits, dim=1) if task == "multiclass" else torch.sigmoid(logits)
