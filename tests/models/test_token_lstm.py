import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fl_lightning.errors import ConfigurationError
from fl_lightning.models import CharLSTM, WordLSTM
from fl_lightning.updates import layout


def test_parameter_counts_are_the_published_ones_and_second_biases():
    assert sum(p.numel() for p in CharLSTM(num_symbols=80).parameters()) == 817_872 + 2 * 4 * 256
    assert sum(p.numel() for p in CharLSTM().parameters()) == 817_872 + 2_048 + 8 + 256 + 1  # a symbol for all others
    words, layers = 50_002, 2 * (4 * 200 * 400 + 8 * 200)
    assert sum(p.numel() for p in WordLSTM(num_words=words).parameters()) == 200 * words + words + layers
    untied = WordLSTM(num_words=30, dimension=7, hidden=5, tied=False)
    assert sum(p.numel() for p in untied.parameters()) == 30 * 7 + 4 * 5 * 12 + 40 + 4 * 5 * 10 + 40 + 30 * 5 + 30


def test_tied_weights_are_exchanged_once_and_stay_tied():
    torch.manual_seed(0)
    model = WordLSTM(num_words=30, dimension=6, hidden=6)
    parameters = layout.parameter_layout(model)
    assert parameters.num_coordinates == 30 * 6 + 30 + 2 * (4 * 6 * 12 + 48)
    parameters.load(model, torch.arange(parameters.num_coordinates, dtype=torch.float32))
    assert torch.equal(model.head.weight, model.embedding.weight)
    assert WordLSTM().embedding.weight.abs().max() <= 0.1


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slow_states(model, tokens):
    """The last layer's states (L, h) of one text, by the equations of the LSTM."""
    states = list(model.embedding.weight.detach().double().numpy()[tokens])
    for layer in model.layers:
        w_in, w_rec, b_in, b_rec = (p.detach().double().numpy() for p in layer.parameters())
        hidden = cell = np.zeros(w_rec.shape[1])
        outputs = []
        for state in states:
            i, f, g, o = np.split(w_in @ state + b_in + w_rec @ hidden + b_rec, 4)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(cell)
            outputs.append(hidden)
        states = outputs
    return np.stack(states)


@pytest.mark.parametrize("every_position", [False, True])
def test_logits_are_those_of_the_equations(every_position):
    torch.manual_seed(0)
    model = CharLSTM(num_symbols=9, dimension=3, hidden=5, every_position=every_position).eval()
    tokens = torch.randint(0, 9, (2, 6))
    weight, bias = (p.detach().double().numpy() for p in model.head.parameters())
    expected = np.stack([slow_states(model, row.numpy()) @ weight.T + bias for row in tokens])
    expected = expected if every_position else expected[:, -1]
    np.testing.assert_allclose(model(tokens).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_what_stands_behind_a_position_does_not_matter():
    torch.manual_seed(0)
    model = WordLSTM(num_words=9, dimension=4, hidden=4).eval()
    tokens = torch.randint(0, 9, (2, 6))
    other = torch.cat([tokens[:, :4], torch.randint(0, 9, (2, 5))], dim=1)
    torch.testing.assert_close(model(other)[:, :4], model(tokens)[:, :4])


def test_dropout_follows_the_seed_and_lies_before_between_and_behind_the_layers():
    torch.manual_seed(0)
    model = WordLSTM(num_words=9, dimension=4, hidden=4, dropout=0.5)
    tokens = torch.randint(0, 9, (2, 6))
    torch.manual_seed(1)
    found = model(tokens)
    torch.manual_seed(1)
    states = F.dropout(model.embedding(tokens), 0.5)
    for layer in model.layers:
        states = F.dropout(layer(states)[0], 0.5)
    assert torch.equal(model.head(states), found)
    assert torch.equal(model.eval()(tokens), model(tokens))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CharLSTM(num_symbols=0), r"CharLSTM\.num_symbols must be at least 1, got 0"),
        (lambda: CharLSTM(hidden=0), r"CharLSTM\.hidden must be at least 1, got 0"),
        (lambda: CharLSTM(num_layers=0), r"CharLSTM\.num_layers must be at least 1, got 0"),
        (lambda: CharLSTM(dropout=1.0), r"CharLSTM\.dropout must be at least 0 and less than 1, got 1.0"),
        (lambda: WordLSTM(num_words=0), r"WordLSTM\.num_words must be at least 1, got 0"),
        (lambda: WordLSTM(hidden=100), r"WordLSTM\.tied needs .* dimension is 200 and hidden 100"),
        (lambda: WordLSTM()(torch.zeros(2, 5)), r"WordLSTM reads tokens as whole numbers, \(b, L\), but .* torch.float32"),
        (lambda: CharLSTM()(torch.zeros(2, 5, 3).long()), r"CharLSTM reads tokens .*shape \(2, 5, 3\)"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
