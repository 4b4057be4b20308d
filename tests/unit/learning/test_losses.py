from math import exp, log

import pytest
import torch
from torch.nn import functional as F

from app.learning.losses import (
    class_balanced_cross_entropy,
    example_weights,
    masked_log_softmax,
)
from app.learning.tasks import Examples
from tests.unit.learning.common import examples_of, existing


def logits_of(rows: int, ways: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, ways, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_balanced_loss_is_the_cross_entropy_of_torch(dtype):
    examples = examples_of((1,), (3, 3, 3, 3))
    examples = examples._replace(inputs=examples.inputs.to(dtype))
    logits = logits_of(12, 4).to(dtype)
    loss = class_balanced_cross_entropy(logits, examples, existing(4))
    torch.testing.assert_close(loss, F.cross_entropy(logits, examples.labels))


def test_ragged_loss_is_the_mean_over_classes_by_hand():
    # Two examples of class 0 and one of class 1; p(right) = 1/2, 1/4 and 1/5.
    logits = torch.tensor([[0.0, 0.0], [0.0, log(3)], [log(4), 0.0]], dtype=torch.float64)
    examples = Examples(torch.zeros(3, 1).double(), torch.tensor([0, 0, 1]), torch.ones(3) > 0)
    loss = class_balanced_cross_entropy(logits, examples, existing(2))
    assert float(loss) == pytest.approx(((log(2) + log(4)) / 2 + log(5)) / 2, abs=1e-12)


def test_of_several_outputs_for_the_same_examples_there_are_as_many_losses():
    examples = examples_of((1,), (2, 1, 3))
    outputs = torch.stack([logits_of(6, 3, seed) for seed in range(4)])
    losses = class_balanced_cross_entropy(outputs.unflatten(0, (2, 2)), examples, existing(3))
    each = [class_balanced_cross_entropy(one, examples, existing(3)) for one in outputs]
    torch.testing.assert_close(losses, torch.stack(each).unflatten(0, (2, 2)))


@pytest.mark.parametrize("ways", [2, 5, 20])
@pytest.mark.parametrize("ragged", [False, True])
def test_equal_rows_cost_log_n(ways, ragged):
    shots = [1 + (c % 3 if ragged else 1) for c in range(ways)]
    examples = examples_of((1,), shots)
    logits = logits_of(sum(shots), 1).expand(-1, ways)
    loss = class_balanced_cross_entropy(logits, examples, existing(ways))
    assert float(loss) == pytest.approx(log(ways), abs=1e-12)


def test_probabilities_sum_to_one_over_the_classes_that_exist():
    classes = torch.tensor([True, False, True, True, False])
    logits = logits_of(6, 5)
    logits[:, ~classes] = 1e9
    log_probabilities = masked_log_softmax(logits, classes)
    assert bool(log_probabilities.isfinite().all())
    torch.testing.assert_close(log_probabilities[:, classes], logits[:, classes].log_softmax(-1))
    torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(6).double())
    assert bool((log_probabilities[:, ~classes].exp() == 0).all())
    assert bool((log_probabilities[:, ~classes] == torch.finfo(torch.float64).min).all())


def test_a_class_that_does_not_exist_has_a_finite_log_probability_beside_huge_logits():
    log_probabilities = masked_log_softmax(
        torch.tensor([[1e37, 0.0, 0.0]]), torch.tensor([True, True, False])
    )
    lowest = torch.finfo(torch.float32).min
    assert log_probabilities.tolist() == [[0.0, pytest.approx(-1e37), lowest]]


@pytest.mark.parametrize("garbage", [1e300, float("inf"), float("nan")])
def test_what_a_network_made_of_padding_does_not_reach_the_loss(garbage):
    examples = examples_of((1,), (2, 1, 3))
    logits = logits_of(6, 3)
    expected = class_balanced_cross_entropy(logits, examples, existing(3))
    padded = Examples(
        torch.cat((examples.inputs, torch.zeros(2, 1))),
        torch.cat((examples.labels, torch.tensor([0, 2]))),
        torch.cat((examples.mask, torch.zeros(2) > 0)),
    )
    logits = torch.cat((logits, torch.full((2, 3), garbage, dtype=torch.float64)))
    assert class_balanced_cross_entropy(logits, padded, existing(3)) == expected


def test_weights_sum_to_one_by_class_and_padding_weighs_nothing():
    labels = torch.tensor([0, 0, 0, 2, 1, 2, 1])
    mask = torch.tensor([True, True, True, True, True, True, False])
    examples = Examples(torch.zeros(7, 2).double(), labels, mask)
    weights = example_weights(examples, torch.tensor([True, True, True, False]))
    expected = [1 / 9, 1 / 9, 1 / 9, 1 / 6, 1 / 3, 1 / 6, 0]
    assert weights.tolist() == pytest.approx(expected, abs=1e-15)


def test_weights_of_bytes_are_real_numbers():
    examples = Examples(torch.zeros(3, 2).byte(), torch.tensor([0, 1, 1]), torch.ones(3) > 0)
    assert example_weights(examples, existing(2)).tolist() == [0.5, 0.25, 0.25]


def test_loss_has_the_right_derivatives_where_examples_and_classes_are_missing():
    labels = torch.tensor([0, 2, 1, 0, 2])
    mask = torch.tensor([True, True, False, True, False])
    examples = Examples(torch.zeros(5, 1).double(), labels, mask)
    classes = torch.tensor([True, False, True, False])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return class_balanced_cross_entropy(logits, examples, classes)

    logits = logits_of(5, 4).requires_grad_()
    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    assert bool((gradient[:, ~classes] == 0).all())
    assert bool((gradient[~mask] == 0).all())


def test_a_confident_wrong_answer_costs_its_margin_and_stays_finite():
    logits = torch.tensor([[1e4, 0.0], [0.0, 0.0]], requires_grad=True)
    examples = Examples(torch.zeros(2, 1), torch.tensor([1, 0]), torch.ones(2) > 0)
    loss = class_balanced_cross_entropy(logits, examples, existing(2))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx((1e4 + log(2)) / 2)
    assert gradient[0].tolist() == pytest.approx([0.5, -0.5], abs=exp(-20))
