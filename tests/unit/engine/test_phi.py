"""What is written to a vector is read from it, whatever the rows and however many at once."""

import pytest
import torch

from app.engine.phi import ALIGNED, VIEW_BYTES, Contents, Layout, Phi, Ready
from app.learning.heads import Params, SharedRowHead
from app.learning.learner import Learner
from app.learning.networks import ConvNet

SHAPE = (2, 9, 7)


def made() -> tuple[Learner, Params]:
    network = ConvNet(SHAPE, filters=6, blocks=2, groups=3)
    learner = Learner(network, SharedRowHead(), network.features)
    theta = learner.initial(1)
    theta["network.scale"] = torch.tensor(2.0)  # a parameter without dimensions
    return learner, theta


@pytest.fixture
def layout() -> Layout:
    return Layout(*made())


def contents(layout: Layout, rows: int, *, seed: int, leading: tuple[int, ...] = ()) -> Contents:
    """Random numbers in the form that a layout reads."""
    generator = torch.Generator().manual_seed(seed)
    form = layout.read(torch.zeros(layout.length(rows)), rows)

    def random(value: torch.Tensor) -> torch.Tensor:
        return torch.randn((*leading, *value.shape), generator=generator)

    parameters = {name: random(value) for name, value in form.parameters.items()}
    return Contents(parameters, random(form.means), random(form.size))


def assert_same(one: Contents, other: Contents) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_order_of_theta_does_not_matter():
    learner, theta = made()
    one, other = Layout(learner, theta), Layout(learner, dict(reversed(theta.items())))
    vector, rows = torch.rand(one.length(3)), 3
    assert_same(one.read(vector, rows), other.read(vector, rows))


@pytest.mark.parametrize("leading", [(), (3,)])
@pytest.mark.parametrize("rows", [1, 5])
def test_what_is_written_is_read(layout, rows, leading):
    vectors, written = (
        torch.zeros(*leading, layout.length(rows)),
        contents(layout, rows, seed=1, leading=leading),
    )
    layout.write(vectors, written)
    read = layout.read(vectors, rows)
    assert_same(read, written)
    assert read.parameters["head.weight"].shape == (*leading, rows, 6 * 3 * 2)
    assert read.parameters["network.scale"].shape == leading


def test_a_vector_of_fewer_rows_is_the_beginning_of_one_of_more(layout):
    few, many = contents(layout, 2, seed=1), torch.full((layout.length(5),), torch.nan)
    layout.write(many[: layout.length(2)], few)
    assert_same(layout.read(many, 2), few)
    longer = layout.read(many, 5)
    assert longer.parameters["head.weight"][2:].isnan().all()
    assert_same(longer._replace(**_first_rows(longer, 2)), few)


def _first_rows(longer: Contents, rows: int) -> dict:
    head = {
        name: value[:rows] if name.startswith("head.") else value
        for name, value in longer.parameters.items()
    }
    return {"parameters": head, "means": longer.means[:rows]}


def test_writing_to_one_slot_leaves_the_others_alone(layout):
    slots = torch.zeros(3, layout.length(4))
    layout.write(slots[1:2], contents(layout, 4, seed=1, leading=(1,)))
    assert slots[1].count_nonzero() > layout.length(4) / 2
    assert not slots[[0, 2]].any()


def test_parameters_begin_where_tensors_of_their_own_would(layout):
    read = layout.read(torch.zeros(layout.length(2)), 2)
    begins = [value.storage_offset() for value in read.parameters.values() if value.ndim != 1]
    assert {begin % ALIGNED for begin in begins} == {0}


def test_bytes_are_those_of_the_vector_and_of_the_head_that_is_ready(layout):
    vector, classes = torch.zeros(layout.length(2)), torch.ones(2, dtype=torch.bool)
    parameters, means, size = layout.read(vector, 2)
    weight, bias = parameters["head.weight"] + 1, parameters["head.bias"] + 1
    ready = Ready(parameters, weight, bias, means, size, classes, None)
    head = 4 * 2 * (weight.shape[1] + 1) + 2 + VIEW_BYTES * (len(parameters) + 5)
    assert Phi(vector, 2, 2).bytes == 4 * layout.length(2)
    assert Phi(vector, 2, 2, ready).bytes == 4 * layout.length(2) + head


def test_what_is_written_comes_back_as_it_is_read(layout):
    vector = torch.zeros(layout.length(3))
    held = layout.write(vector, contents(layout, 3, seed=1))
    assert_same(held, layout.read(vector, 3))
    assert held.means.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
