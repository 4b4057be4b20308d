from math import cos, exp, radians, sin

import numpy as np
import pytest
import torch
from torch import Tensor

from app.data.augment import KNOTS, Deformations, Jitter, deform, deformations

SIZE = 12
STILL = np.eye(2, 3, dtype=np.float32)[None, None, None]
WILD = [Jitter(30, 0.2, 0.2, 0.1), Jitter(elastic=0.1), Jitter(stroke=1.0)]


class Utmost(np.random.Generator):
    """A generator whose uniform numbers are all the upper end of their range."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.full(size, high)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def jitter(images: Tensor, rng, of_class: Jitter, of_picture: Jitter) -> Tensor:
    return deform(images, deformations(rng, of_class, of_picture, images.shape[:3]))


def utmost(images: Tensor, of_class: Jitter, of_picture: Jitter | None = None) -> Tensor:
    return jitter(images, Utmost(), of_class, of_picture or Jitter())


def bilinear(picture: np.ndarray, x: float, y: float) -> float:
    """The value at pixel coordinates, 0 outside, by the four pixels around."""
    total, left, top = 0.0, int(np.floor(x)), int(np.floor(y))
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < picture.shape[0] and 0 <= column < picture.shape[1]:
                weight = (1 - abs(x - column)) * (1 - abs(y - row))
                total += weight * picture[row, column]
    return total


def pulled(picture: np.ndarray, matrix: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    """Each pixel takes what lies at matrix (p - centre) + centre + shift, p = (x, y)."""
    height, width = picture.shape
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    result = np.empty_like(picture)
    for y in range(height):
        for x in range(width):
            result[y, x] = bilinear(picture, *(matrix @ ([x, y] - centre) + centre + shift))
    return result


@pytest.mark.parametrize("channels", [1, 3])
def test_zero_widths_are_the_identity(channels):
    images = noise(2, 3, 4, channels, SIZE, SIZE)
    moved = jitter(images, np.random.default_rng(0), Jitter(), Jitter())
    torch.testing.assert_close(moved, images, rtol=0, atol=1e-5)


def test_a_shift_by_whole_pixels_moves_them_and_lets_ground_in():
    images = noise(1, 1, 2, 1, SIZE, SIZE)
    for of_class, of_picture in (
        (Jitter(shift=3 / SIZE), None),
        (Jitter(), Jitter(shift=3 / SIZE)),
    ):
        moved = utmost(images, of_class, of_picture)
        expected = torch.zeros_like(images)
        expected[..., : SIZE - 3, : SIZE - 3] = images[..., 3:, 3:]
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [SIZE, 9])
@pytest.mark.parametrize("quarters", [1, 2])
def test_quarter_turns_are_exact(size, quarters):
    images = noise(1, 2, 2, 1, size, size)
    moved = utmost(images, Jitter(degrees=90 * quarters))
    expected = torch.from_numpy(np.rot90(images.numpy(), quarters, axes=(-2, -1)).copy())
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_a_turn_of_the_class_and_one_of_the_picture_add_up():
    images = noise(1, 2, 2, 1, SIZE, SIZE)
    moved = utmost(images, Jitter(degrees=60), Jitter(degrees=30))
    torch.testing.assert_close(moved, utmost(images, Jitter(degrees=90)), rtol=0, atol=1e-5)


def test_rotation_scale_shear_and_shift_are_bilinear_samples_at_the_moved_places():
    picture = noise(10, 14).double().numpy()
    degrees, scale, shear, shift = 25.0, 0.2, 0.15, 0.1
    a, k = radians(degrees), exp(scale)
    rotation = np.array([[cos(a), -sin(a)], [sin(a), cos(a)]])
    matrix = k * rotation @ np.array([[1, shear], [0, 1]])  # of pixels, which are square
    expected = pulled(picture, matrix, (14 * shift, 10 * shift))
    images = torch.from_numpy(picture).float().view(1, 1, 1, 1, 10, 14)
    moved = utmost(images, Jitter(degrees, scale, shear, shift))
    np.testing.assert_allclose(moved[0, 0, 0, 0].numpy(), expected, rtol=0, atol=1e-5)


def test_all_channels_of_a_picture_move_together():
    images = noise(1, 2, 3, 1, SIZE, SIZE).expand(-1, -1, -1, 3, -1, -1)
    moved = jitter(images, np.random.default_rng(0), Jitter(30, 0.1, 0.1, 0.1), Jitter(10))
    assert torch.equal(moved[..., 0, :, :], moved[..., 2, :, :])


@pytest.mark.parametrize("wild", WILD)
def test_of_class_moves_all_pictures_of_a_class_alike_and_classes_apart(wild):
    images = noise(1, 1, 1, 1, SIZE, SIZE).expand(3, 4, 5, -1, -1, -1)
    moved = jitter(images, np.random.default_rng(0), wild, Jitter())
    assert torch.equal(moved, moved[:, :, :1].expand(-1, -1, 5, -1, -1, -1))
    classes = moved[:, :, 0].flatten(0, 1)
    assert len({picture.numpy().tobytes() for picture in classes}) == 12


@pytest.mark.parametrize("wild", WILD)
def test_of_picture_moves_each_by_itself(wild):
    images = noise(1, 1, 1, 1, SIZE, SIZE).expand(3, 4, 5, -1, -1, -1)
    moved = jitter(images, np.random.default_rng(0), Jitter(), wild)
    assert len({picture.numpy().tobytes() for picture in moved.flatten(0, 2)}) == 60


def test_deformations_stay_within_their_half_widths_on_both_sides():
    """A single bright pixel in the middle shows how far a picture was shifted."""
    images = torch.zeros(1, 1, 500, 1, 21, 21)
    images[..., 10, 10] = 1
    moved = jitter(images, np.random.default_rng(0), Jitter(), Jitter(shift=3 / 21)).squeeze()
    places = torch.arange(21.0)
    mass = moved.sum((1, 2))
    for axis in (1, 2):
        centre = (moved.sum(3 - axis) * places).sum(1) / mass - 10
        assert centre.abs().max() <= 3 + 1e-4
        assert centre.min() < -2.8
        assert centre.max() > 2.8


def test_outside_a_photograph_lies_the_photograph_mirrored_at_its_edge():
    images = noise(1, 1, 2, 3, SIZE, SIZE)
    matrices = deformations(Utmost(), Jitter(shift=3 / SIZE), Jitter(), images.shape[:3])
    moved = deform(images, matrices, "reflection")
    expected = torch.cat([images, images.flip(-1)], -1)[..., 3 : SIZE + 3]
    expected = torch.cat([expected, expected.flip(-2)], -2)[..., 3 : SIZE + 3, :]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def bent(image: Tensor, knots: np.ndarray) -> Tensor:
    bends = knots.astype(np.float32)[None, None, None]
    return deform(image.view(1, 1, 1, 1, *image.shape), Deformations(STILL, bends, None)).squeeze()


def test_control_points_that_move_alike_shift_the_picture():
    image = noise(SIZE, SIZE)
    knots = np.zeros((2, KNOTS, KNOTS))
    knots[0] = 2 * 3 / SIZE  # three pixels along x
    expected = torch.zeros_like(image)
    expected[:, : SIZE - 3] = image[:, 3:]
    torch.testing.assert_close(bent(image, knots), expected, rtol=0, atol=1e-5)


def test_a_control_point_moves_what_is_near_it_and_leaves_the_far_corner():
    image = noise(SIZE, SIZE)
    knots = np.zeros((2, KNOTS, KNOTS))
    knots[:, 0, 0] = 2 / SIZE  # the first corner takes its colour from one pixel further in
    moved = bent(image, knots)
    torch.testing.assert_close(moved[0, 0], image[1, 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[-3:, -3:], image[-3:, -3:], rtol=0, atol=1e-5)


def test_elastic_displacements_have_their_standard_deviation():
    drawn = deformations(np.random.default_rng(0), Jitter(elastic=0.1), Jitter(), (50, 10, 3))
    assert drawn.bends is not None
    assert drawn.bends.shape == (50, 10, 3, 2, KNOTS, KNOTS)
    # A picture is two units wide in the grid's coordinates.
    assert drawn.bends.std() == pytest.approx(2 * 0.1, rel=0.03)


@pytest.mark.parametrize(("width", "reference"), [(1.0, np.max), (-1.0, np.min)])
def test_strokes_widen_to_the_dilation_and_narrow_to_the_erosion(width, reference):
    image = noise(SIZE, 9)
    padded = np.pad(image.numpy(), 1, mode="edge")
    expected = np.array(
        [[reference(padded[y : y + 3, x : x + 3]) for x in range(9)] for y in range(SIZE)]
    )
    for share in (1.0, 0.25):
        strokes = np.full((1, 1, 1), share * width, np.float32)
        moved = deform(image.view(1, 1, 1, 1, SIZE, 9), Deformations(STILL, None, strokes))
        part = image.numpy() + share * (expected - image.numpy())
        np.testing.assert_allclose(moved.squeeze().numpy(), part, rtol=0, atol=1e-5)


def test_deformations_of_some_tasks_are_those_of_all():
    images = noise(4, 2, 3, 1, SIZE, SIZE)
    wild = Jitter(30, 0.2, 0.2, 0.1, 0.1, 0.5)
    drawn = deformations(np.random.default_rng(0), wild, wild, (4, 2, 3))
    some = slice(1, 3)
    torch.testing.assert_close(
        deform(images[some], drawn.part(some)), deform(images, drawn)[some], rtol=0, atol=1e-6
    )
