"""What the soak calls growth."""

import pytest

from benchmarks.soak import growth


@pytest.mark.parametrize("slope", [0.0, 1.5, -0.25])
def test_growth_is_the_slope_of_the_second_half_in_mebibytes_a_minute(slope):
    warm_up = [(5.0 * n, 100.0 * n) for n in range(60)]
    steady = [(300 + 5.0 * n, 900 + slope * 5 * n / 60) for n in range(60)]
    assert growth(warm_up + steady) == pytest.approx(slope, abs=1e-6)
