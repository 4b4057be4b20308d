import pytest
import torch

from app.learning.heads import FixedHead, LinearHead, Params, SharedRowHead, build_head


def test_shared_row_gives_every_class_the_one_row():
    head = SharedRowHead()
    theta = head.initial(6, torch.Generator().manual_seed(0))
    assert {name: tuple(value.shape) for name, value in theta.items()} == {
        "head.weight": (1, 6),
        "head.bias": (1,),
    }
    phi = head.start(theta, 4)
    assert phi["head.weight"].tolist() == theta["head.weight"].tolist() * 4
    assert phi["head.bias"].tolist() == theta["head.bias"].tolist() * 4
    assert float(head.rate_factor(torch.tensor([True, True, True, False]))) == 3


def test_fixed_head_has_rows_of_its_own_and_takes_no_other_number_of_classes():
    head = FixedHead(3)
    theta = head.initial(6, torch.Generator().manual_seed(0))
    phi = head.start(theta, 3)
    assert phi["head.weight"].shape == (3, 6)
    assert not torch.equal(phi["head.weight"][0], phi["head.weight"][1])
    with pytest.raises(ValueError, match="3 classes, the task has 4"):
        head.start(theta, 4)


PHI = {
    "head.weight": torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]]),
    "head.bias": torch.tensor([0.5, 0.0, -1.0]),
}
FEATURES = torch.tensor([[1.0, 1.0], [2.0, -1.0]])
PRODUCTS = torch.tensor([[3.5, -1.0, 2.0], [0.5, 1.0, 5.0]])
"""The rows of PHI times FEATURES, plus the biases."""
ALL = torch.ones(3, dtype=torch.bool)


def test_outputs_of_regression_are_the_rows_times_the_features_plus_the_biases():
    assert torch.equal(LinearHead(3).apply(PHI, FEATURES, ALL), PRODUCTS)


@pytest.mark.parametrize("head", [SharedRowHead(), FixedHead(3)])
def test_logits_are_the_same_less_their_mean(head):
    expected = PRODUCTS - PRODUCTS.mean(1, keepdim=True)
    torch.testing.assert_close(head.apply(PHI, FEATURES, ALL), expected)


def test_what_stands_in_the_rows_of_padding_is_in_no_logit_of_a_class():
    filled = {name: value.clone() for name, value in PHI.items()}
    filled["head.weight"][2], filled["head.bias"][2] = torch.inf, torch.nan
    classes = torch.tensor([True, True, False])
    expected = PRODUCTS[:, :2] - PRODUCTS[:, :2].mean(1, keepdim=True)
    torch.testing.assert_close(SharedRowHead().apply(filled, FEATURES, classes)[:, :2], expected)


def near_one_row(ways: int) -> tuple[Params, torch.Tensor]:
    """φ whose classes differ little from one row, and features along that row."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1024, generator=generator)
    weight = common + torch.randn(ways, 1024, generator=generator) / 32
    features = torch.randn(ways, 1024, generator=generator) + 0.2 * common
    return {"head.weight": weight, "head.bias": torch.zeros(ways)}, features


def test_what_all_classes_have_in_common_costs_no_digits():
    phi, features = near_one_row(5)
    exact = (features.double() @ phi["head.weight"].double().T).softmax(-1)
    every = torch.ones(5, dtype=torch.bool)
    probabilities = SharedRowHead().apply(phi, features, every).softmax(-1)
    assert (probabilities - exact).abs().max() < 1e-6


def test_every_class_has_as_exact_a_gradient_as_the_first():
    phi, features = near_one_row(100)
    classes, labels = torch.ones(100, dtype=torch.bool), torch.arange(100)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        bias = phi["head.bias"].to(weight)
        outputs = SharedRowHead().apply(
            {"head.weight": weight, "head.bias": bias}, features.to(weight), classes
        )
        return torch.nn.functional.cross_entropy(outputs, labels)

    gradient = torch.func.grad(loss)(phi["head.weight"])
    exact = torch.func.grad(loss)(phi["head.weight"].double())
    errors = (gradient - exact).abs().max(1).values
    assert errors.max() < 4 * errors.median()


def test_heads_are_built_by_name():
    assert isinstance(build_head("shared-row"), SharedRowHead)
    fixed = build_head("fixed-20")
    assert isinstance(fixed, FixedHead)
    assert fixed.ways == 20


@pytest.mark.parametrize(
    "name", ["", "shared", "fixed", "fixed-", "fixed-1", "fixed-x", "fixed--5"]
)
def test_other_names_of_heads_are_refused_with_the_choices(name):
    with pytest.raises(ValueError, match=r'no head .*"shared-row", "fixed-5".*"linear-1"'):
        build_head(name)
