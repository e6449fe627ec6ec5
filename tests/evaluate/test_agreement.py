import math

import numpy as np
import pytest

from diffalign.evaluate.agreement import krippendorff

N = math.nan
# The example of Krippendorff (2011): four observers, twelve units.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_published_example(level, alpha):
    assert krippendorff(PUBLISHED, level) == pytest.approx(alpha, abs=5e-4)


def test_two_raters_by_hand():
    # Coincidences: (0,0) twice, (1,1) twice, (0,1) and (1,0) once each from 3 items; n_0 = n_1 = 3, n = 6.
    # Observed disagreement 2 of 6, expected 2 * 3 * 3 / (6 * 5): alpha = 1 - (2 / 6) / (18 / 30).
    assert krippendorff([[0, 1, 0], [0, 1, 1]]) == pytest.approx(1 - (2 / 6) / (18 / 30))


def test_agreement_chance_and_contrariness():
    rng = np.random.default_rng(0)
    a, b = rng.integers(2, size=(2, 4000)).astype(float)
    assert krippendorff([a, a]) == 1.0
    assert krippendorff([a, b]) == pytest.approx(0, abs=0.05)
    assert krippendorff([a, 1 - a]) < -0.9


def test_nothing_to_say_is_nan():
    assert math.isnan(krippendorff([[1, 1], [1, 1]]))
    assert math.isnan(krippendorff([[1, N], [N, 2]]))


def test_wrong_use():
    with pytest.raises(ValueError, match="raters, items"):
        krippendorff([1, 2])
    with pytest.raises(ValueError, match="nominal"):
        krippendorff([[1, 2], [1, 3]], "ratio")
