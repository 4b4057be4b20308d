from itertools import pairwise
from math import log

import pytest
import torch
from torch import nn

from app.learning.heads import build_head
from app.learning.inner_loop import adapt, descend
from app.learning.learner import HEAD, NETWORK, Learner
from app.learning.networks import Mlp
from app.learning.tasks import Examples
from app.learning.vjp import vjp_once
from tests.unit.learning.common import (
    PICTURE,
    VECTOR,
    SgdRun,
    assert_same,
    conv_learner,
    examples_of,
    existing,
    mlp_learner,
    theta_of,
)

RAGGED = (1, 4, 2)


VJPS = pytest.mark.parametrize("vjp", [torch.func.vjp, vjp_once], ids=["func", "once"])


@VJPS
def test_fixed_head_with_one_alpha_is_plain_sgd(vjp):
    learner = conv_learner("fixed-3")
    theta, support = theta_of(learner), examples_of(PICTURE, RAGGED)
    run = SgdRun(learner, theta, 3)
    run.train(support, 4, lambda name, step: 0.1)
    phi, losses, _ = adapt(learner, theta, support, existing(3), 0.1, 4, vjp)
    assert_same(phi, run.parameters, to=1e-10)
    assert losses.tolist() == pytest.approx(run.losses, abs=1e-10)
    assert losses[-1] < losses[0]


@VJPS
@pytest.mark.parametrize("shots", [RAGGED, (2, 2, 2, 2, 2)])
def test_shared_row_is_plain_sgd_of_equal_rows_with_their_rate_times_n(shots, vjp):
    learner, ways = conv_learner(), len(shots)
    theta, support = theta_of(learner), examples_of(PICTURE, shots)
    run = SgdRun(learner, theta, ways)
    run.train(support, 4, lambda name, step: 0.1 * (ways if name.startswith(HEAD) else 1))
    phi, losses, _ = adapt(learner, theta, support, existing(ways), 0.1, 4, vjp)
    assert_same(phi, run.parameters, to=1e-10)
    assert losses.tolist() == pytest.approx(run.losses, abs=1e-10)


@pytest.mark.parametrize("head", ["shared-row", "fixed-3"])
def test_with_a_temperature_it_is_sgd_on_cooler_logits_and_reports_the_loss_without(head):
    learner = conv_learner(head)
    learner.temperature = 4.0
    theta, support = theta_of(learner), examples_of(PICTURE, RAGGED)
    factor = 3 if head == "shared-row" else 1
    run = SgdRun(learner, theta, 3)
    run.train(support, 3, lambda name, step: 0.4 * (factor if name.startswith(HEAD) else 1))
    phi, losses, _ = adapt(learner, theta, support, existing(3), 0.4, 3)
    assert_same(phi, run.parameters, to=1e-10)
    assert losses.tolist() == pytest.approx(run.losses, abs=1e-10)
    learner.temperature = 1.0
    assert adapt(learner, theta, support, existing(3), 0.4, 3).support_loss[1] != losses[1]


def test_equal_rows_give_the_network_no_gradient_in_the_first_step():
    learner = conv_learner()
    theta, support = theta_of(learner), examples_of(PICTURE, RAGGED)
    run = SgdRun(learner, theta, 3)
    run.train(support, 1, lambda name, step: 0.1)
    for name, gradient in run.first_gradient.items():
        size = gradient.abs().max()
        assert size > 1e-2 if name == HEAD + "weight" else size < 1e-15, name
    phis, _ = descend(learner, theta, support, existing(3), 0.1, 2)
    moved = [
        {name for name in after if not torch.equal(before[name], after[name])}
        for before, after in pairwise(phis)
    ]
    # The bias's first gradient is zero too, for classes weigh the same, but only up to rounding.
    assert moved[0] - {HEAD + "bias"} == {HEAD + "weight"}
    assert moved[1] == set(theta)


@pytest.mark.parametrize(("head", "factor"), [("shared-row", 3), ("fixed-3", 1)])
def test_alpha_by_parameter_and_step_is_sgd_with_changing_rates_the_last_kept(head, factor):
    learner = mlp_learner(head)
    theta, support = theta_of(learner), examples_of(VECTOR, RAGGED)
    generator = torch.Generator().manual_seed(3)
    alpha = {name: 0.3 * torch.rand(3, generator=generator).double() for name in theta}
    run = SgdRun(learner, theta, 3)
    run.train(
        support,
        5,
        lambda name, step: (
            float(alpha[name][min(step, 2)]) * (factor if name.startswith(HEAD) else 1)
        ),
    )
    phi, losses, _ = adapt(learner, theta, support, existing(3), alpha, 5)
    assert_same(phi, run.parameters, to=1e-10)
    assert losses.tolist() == pytest.approx(run.losses, abs=1e-10)


def test_any_module_of_torch_can_be_the_network():
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8), nn.Tanh())
    learner = Learner(network, build_head("shared-row"), 8)
    theta, support = theta_of(learner), examples_of(PICTURE, RAGGED)
    run = SgdRun(learner, theta, 3)
    run.train(support, 3, lambda name, step: 0.2 * (3 if name.startswith(HEAD) else 1))
    phi, *_ = adapt(learner, theta, support, existing(3), 0.2, 3)
    assert_same(phi, run.parameters, to=1e-10)


def test_no_steps_leave_theta_and_tell_its_loss():
    learner = mlp_learner("fixed-3")
    theta, support = theta_of(learner), examples_of(VECTOR, RAGGED)
    phi, losses, _ = adapt(learner, theta, support, existing(3), 0.1, 0)
    assert_same(phi, theta, to=0)
    run = SgdRun(learner, theta, 3)
    run.train(support, 0, lambda name, step: 0.0)
    assert losses.tolist() == pytest.approx(run.losses, abs=1e-12)


def test_descend_tells_every_phi_on_the_way():
    learner = mlp_learner()
    theta, support = theta_of(learner), examples_of(VECTOR, RAGGED)
    phis, losses = descend(learner, theta, support, existing(3), 0.1, 3)
    assert (len(phis), len(losses)) == (4, 3)
    for steps, phi in enumerate(phis):
        expected = adapt(learner, theta, support, existing(3), 0.1, steps)
        assert_same(phi, expected.phi, to=1e-14)
        before = [float(loss) for loss in losses[:steps]]
        assert before == pytest.approx(expected.support_loss[:-1].tolist(), abs=1e-14)


def test_theta_is_left_alone():
    learner = mlp_learner()
    theta, support = theta_of(learner), examples_of(VECTOR, RAGGED)
    before = {name: value.clone() for name, value in theta.items()}
    adapt(learner, theta, support, existing(3), 0.5, 3)
    assert_same(theta, before, to=0)


@pytest.mark.parametrize("head", ["shared-row", "fixed-3"])
def test_phi_and_losses_have_the_right_derivatives_of_theta_and_alpha(head):
    learner = Learner(Mlp((3,), hidden=(4,)), build_head(head), 4)
    theta, support = theta_of(learner), examples_of((3,), RAGGED)
    names = list(theta)
    alpha = [torch.full((2,), 0.2, dtype=torch.float64) for _ in names]

    def adapted(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        theta = dict(zip(names, values[: len(names)], strict=True))
        alpha = dict(zip(names, values[len(names) :], strict=True))
        phi, losses, _ = adapt(learner, theta, support, existing(3), alpha, 3)
        return (*phi.values(), losses)

    values = [value.clone().requires_grad_() for value in (*theta.values(), *alpha)]
    assert torch.autograd.gradcheck(adapted, values, atol=1e-7, rtol=1e-5)


def test_permuting_the_labels_permutes_the_logits():
    learner = conv_learner()
    theta, support = theta_of(learner), examples_of(PICTURE, (1, 4, 2, 3))
    query = torch.rand((6, *PICTURE), generator=torch.Generator().manual_seed(9)).double()
    order = torch.tensor([2, 0, 3, 1])
    phi, losses, _ = adapt(learner, theta, support, existing(4), 0.2, 3)
    renamed = support._replace(labels=order[support.labels])
    other, other_losses, _ = adapt(learner, theta, renamed, existing(4), 0.2, 3)
    logits = learner.logits(phi, query)
    torch.testing.assert_close(learner.logits(other, query)[:, order], logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(other_losses, losses, rtol=0, atol=1e-12)
    assert (logits.max(1).values - logits.min(1).values).min() > 1e-2


@pytest.mark.parametrize("shots", [(1, 1), (2,) * 5, (1,) * 20, (1, 5, 2, 9), (7, 1)])
def test_first_step_moves_each_row_by_alpha_times_its_class_mean_about_the_mean(shots):
    learner = mlp_learner()
    theta, support = theta_of(learner), examples_of(VECTOR, shots)
    phis, losses = descend(learner, theta, support, existing(len(shots)), 0.3, 1)
    features = learner.features(theta, support.inputs)
    means = torch.stack([features[support.labels == c].mean(0) for c in range(len(shots))])
    expected = theta["head.weight"] + 0.3 * (means - means.mean(0))
    torch.testing.assert_close(phis[1]["head.weight"], expected, rtol=0, atol=1e-12)
    biases = theta["head.bias"].expand(len(shots))
    torch.testing.assert_close(phis[1]["head.bias"], biases, rtol=0, atol=1e-12)
    assert float(losses[0]) == pytest.approx(log(len(shots)), abs=1e-12)


@pytest.mark.parametrize("times", [(1, 5, 1), (4, 4, 4), (3, 1, 2)])
@pytest.mark.parametrize("head", ["shared-row", "fixed-3"])
def test_repeating_the_examples_of_a_class_changes_nothing(head, times):
    learner = conv_learner(head)
    theta, support = theta_of(learner), examples_of(PICTURE, RAGGED)
    again = torch.cat([torch.nonzero(support.labels == c)[:, 0].repeat(times[c]) for c in range(3)])
    more = Examples(*(tensor[again] for tensor in support))
    phi, losses, _ = adapt(learner, theta, support, existing(3), 0.2, 3)
    other, other_losses, _ = adapt(learner, theta, more, existing(3), 0.2, 3)
    assert len(more.labels) > len(support.labels)
    assert_same(other, phi, to=1e-12)
    torch.testing.assert_close(other_losses, losses, rtol=0, atol=1e-12)
    body = [name for name in theta if name.startswith(NETWORK)]
    assert max((phi[name] - theta[name]).abs().max() for name in body) > 1e-3


def test_vjp_once_gives_what_the_library_gives_and_is_no_part_of_a_graph():
    values = torch.linspace(-1, 2, 6, dtype=torch.float64).requires_grad_()

    def function(named: dict[str, torch.Tensor], shift: torch.Tensor):
        product = named["a"] * shift.exp() + 0 * named["unused"].sum()
        return product.square(), product

    primals = {"a": values, "unused": torch.ones(2, dtype=torch.float64)}, values.detach() / 2
    weights = torch.arange(6, dtype=torch.float64)
    got, pull, extra = vjp_once(function, *primals, has_aux=True)
    want, library, also = torch.func.vjp(function, *primals, has_aux=True)
    torch.testing.assert_close((got, extra), (want, also))
    torch.testing.assert_close(pull(weights), library(weights))
    assert not any(value.requires_grad for value in (got, extra, pull_once(function, primals)))


def pull_once(function, primals) -> torch.Tensor:
    """One of the gradients."""
    value, pull, _ = vjp_once(function, *primals, has_aux=True)
    gradient: torch.Tensor = pull(torch.ones_like(value))[1]
    return gradient


def test_vjp_once_has_zeros_for_what_the_value_does_not_depend_on():
    one = torch.ones(3)
    _, pull = vjp_once(lambda used, unused: used.sum(), one, one)
    torch.testing.assert_close(pull(torch.ones(())), (torch.ones(3), torch.zeros(3)))
