"""The network: sizes, its two gate functions, and that a text's result is its own."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deepmoji.errors import UsageError
from deepmoji.model import DeepMoji, MaskedLSTM, lengths_of, probabilities
from deepmoji.phases import LAYERS

LENGTHS = torch.tensor([9, 3, 0, 1, 5, 9, 2])


def tiny(seed: int = 0, /, **options: object) -> DeepMoji:
    torch.manual_seed(seed)
    return DeepMoji(50, 4, 6, 5, **options).eval()  # type: ignore[arg-type]


def padded_ids() -> Tensor:
    ids = torch.randint(1, 50, (len(LENGTHS), 9), generator=torch.Generator().manual_seed(3))
    return ids * (torch.arange(9) < LENGTHS[:, None])


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = DeepMoji(50_000, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_403_392  # "22.4 million", paper table 2
    assert model.feature_size == 2304
    assert set(LAYERS) <= {name for name, _ in model.named_children()}


@pytest.mark.parametrize("options", [{}, {"recurrent_activation": "hard_sigmoid"}, {"attention": False}])
def test_a_text_is_independent_of_batch_padding_and_order(options: dict[str, object]) -> None:
    model, ids = tiny(0, **options), padded_ids()
    wide = torch.nn.functional.pad(ids, (0, 4))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features, attention = model.features(ids, LENGTHS)
        wide_features, wide_attention = model.features(wide, LENGTHS)
        mixed, _ = model.features(ids[order], LENGTHS[order])
        torch.testing.assert_close(wide_features, features, atol=1e-5, rtol=0)
        torch.testing.assert_close(wide_attention[:, :9], attention, atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed, features[order], atol=1e-5, rtol=0)
        for row, length in enumerate(LENGTHS.tolist()):
            alone, weights = model.features(ids[row : row + 1, :length], LENGTHS[row : row + 1])
            torch.testing.assert_close(alone[0], features[row], atol=1e-5, rtol=0)
            torch.testing.assert_close(weights[0], attention[row, :length], atol=1e-5, rtol=0)


def test_what_stands_behind_the_length_does_not_matter() -> None:
    model, ids = tiny(), padded_ids()
    noise = torch.where(torch.arange(9) < LENGTHS[:, None], ids, 7)
    with torch.inference_mode():
        torch.testing.assert_close(model(noise, LENGTHS), model(ids, LENGTHS), atol=1e-6, rtol=0)


def test_attention_sums_to_one_over_the_tokens_and_nothing_for_an_empty_text() -> None:
    with torch.inference_mode():
        features, attention = tiny().features(padded_ids(), LENGTHS)
    np.testing.assert_allclose(attention.sum(1), (LENGTHS > 0).float(), atol=1e-6)
    assert not attention[torch.arange(9) >= LENGTHS[:, None]].any()
    assert not features[2].any() and features[3].any()


def test_features_concatenate_second_layer_first_layer_embedding() -> None:
    model = tiny()
    ids, lengths = torch.tensor([[5]]), torch.tensor([1])
    with torch.inference_mode():
        features, _ = model.features(ids, lengths)
        embedded = torch.tanh(model.embedding(ids))
        first, _ = model.lstm0(embedded, lengths)
        second, _ = model.lstm1(first, lengths)
    torch.testing.assert_close(features, torch.cat([second, first, embedded], dim=2)[:, 0])


def reference_lstm(model: DeepMoji, x: Tensor, reverse: bool) -> Tensor:
    """One direction of lstm0 over x (T, E), one step and one text at a time, with Keras' hard sigmoid."""
    end = "_reverse" if reverse else ""
    w, u, b = (getattr(model.lstm0, f"{name}_l0{end}") for name in ("weight_ih", "weight_hh", "bias_ih"))
    hidden, cell = torch.zeros(5), torch.zeros(5)
    outputs = []
    for step in reversed(range(len(x))) if reverse else range(len(x)):
        i, f, g, o = (w @ x[step] + u @ hidden + b).chunk(4)
        hard_i, hard_f, hard_o = ((0.2 * gate + 0.5).clamp(0, 1) for gate in (i, f, o))
        cell = hard_f * cell + hard_i * torch.tanh(g)
        hidden = hard_o * torch.tanh(cell)
        outputs.append(hidden)
    return torch.stack(outputs[::-1] if reverse else outputs)


def test_hard_sigmoid_layer_follows_the_equations() -> None:
    model = tiny(recurrent_activation="hard_sigmoid")
    x = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        states, _ = model.lstm0(x, torch.full((3,), 7))
        for row in range(3):
            both = torch.cat([reference_lstm(model, x[row], False), reference_lstm(model, x[row], True)], dim=1)
            torch.testing.assert_close(states[row], both)


def test_padded_rows_give_what_packed_ones_give() -> None:
    layer = tiny().lstm0
    assert isinstance(layer, MaskedLSTM)
    x, lengths = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(3)), torch.tensor([7, 1, 4, 6])
    with torch.inference_mode():
        states, last = layer(x, lengths)
        packed_states, packed_last = layer.run_packed(x, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(states[row, :length], packed_states[row, :length])
    torch.testing.assert_close(last, packed_last)


def test_both_gate_functions_share_weights_but_not_results() -> None:
    soft, hard = tiny(), tiny(1, recurrent_activation="hard_sigmoid")
    hard.load_state_dict(soft.state_dict())
    with torch.inference_mode():
        gap = (soft(padded_ids(), LENGTHS) - hard(padded_ids(), LENGTHS)).abs().max()
    assert 1e-5 < gap < 0.1


@pytest.mark.parametrize("activation", ["sigmoid", "hard_sigmoid"])
def test_padding_gets_no_gradient(activation: str) -> None:
    model = tiny(recurrent_activation=activation)
    model(padded_ids(), LENGTHS).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert model.embedding.weight.grad is not None and not model.embedding.weight.grad[0].any()


def test_embedding_dropout_drops_whole_channels_of_a_text() -> None:
    model = tiny(embedding_dropout=0.5).train()
    seen: list[Tensor] = []
    model.channel_dropout.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(torch.full((8, 9), 5), torch.full((8,), 9))
    dropped = seen[0] == 0  # (B, E, T)
    assert torch.equal(dropped.any(2), dropped.all(2))
    assert 0 < dropped.any(2).float().mean() < 1


def test_lengths_end_at_the_last_word() -> None:
    assert lengths_of(padded_ids()).tolist() == LENGTHS.tolist()
    assert lengths_of(torch.tensor([[4, 0, 6, 0]])).tolist() == [3]
    assert lengths_of(torch.zeros(2, 0, dtype=torch.int64)).tolist() == [0, 0]


def test_probabilities_by_task() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    assert probabilities(logits, "multiclass").sum(1).tolist() == pytest.approx([1, 1])
    assert probabilities(logits, "multilabel")[0, 0].item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"task": "regression"}, "regression"),
        ({"recurrent_activation": "relu"}, "hard_sigmoid"),
        ({"task": "binary"}, "one output column"),
        ({"embedding_dropout": 1.0}, "embedding_dropout"),
        ({"hidden_size": 0}, "hidden_size"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, object], word: str) -> None:
    arguments: dict[str, object] = {"vocabulary_size": 50, "classes": 4, **options}
    with pytest.raises(UsageError, match=word):
        DeepMoji(**arguments)  # type: ignore[arg-type]


def test_a_seed_means_the_same_weights_on_any_number_of_threads() -> None:
    def made(threads: int) -> dict[str, Tensor]:
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        return DeepMoji(50, 4, 16, 512).state_dict()

    before = torch.get_num_threads()
    try:
        one, two = made(1), made(2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one[name], two[name]) for name in one)
