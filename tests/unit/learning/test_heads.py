import pytest
import torch

from app.learning import heads
from app.learning.heads import FixedHead, SharedRowHead, build_head


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


def test_logits_are_the_rows_times_the_features_plus_the_biases():
    phi = {
        "head.weight": torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]]),
        "head.bias": torch.tensor([0.5, 0.0, -1.0]),
    }
    features = torch.tensor([[1.0, 1.0], [2.0, -1.0]])
    assert heads.logits(phi, features).tolist() == [[3.5, -1.0, 2.0], [0.5, 1.0, 5.0]]


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
