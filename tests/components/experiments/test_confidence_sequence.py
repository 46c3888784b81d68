import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.experiments.confidence_sequence import boundary, interval

ALPHAS = st.floats(1e-6, 0.5)


@given(progress=st.floats(1e-3, 1e4), alpha=ALPHAS)
def test_the_boundary_is_where_the_mixture_of_likelihood_ratios_reaches_one_over_alpha(progress, alpha):
    # The mixture over N(0, 1 / mixed) of exp(effect * S - effect^2 * V / 2) at V = 1, integrated by hand.
    level = -2 * math.log(alpha)
    mixed = progress * (level + math.log(level + 1))
    at = boundary(progress, alpha)
    log_mixture = -0.5 * math.log1p(mixed) + at**2 * mixed / (2 * (1 + mixed))
    assert log_mixture == pytest.approx(-math.log(alpha))


@given(alpha=st.floats(1e-4, 0.2))
def test_the_interval_is_tightest_at_the_amount_asked_for(alpha):
    around = [boundary(progress, alpha) / math.sqrt(progress) / boundary(1, alpha) for progress in (0.5, 2.0)]
    # Against the best possible at each amount, which is the boundary tuned for it.
    assert all(found * math.sqrt(progress) >= 1 for found, progress in zip(around, (0.5, 2.0)))


@given(value=st.floats(-1, 1), error=st.floats(0.001, 1), progress=st.floats(0.01, 100), alpha=ALPHAS)
def test_an_interval_holds_its_estimate_and_is_wider_than_one_for_a_single_look(value, error, progress, alpha):
    from scipy.stats import norm

    found = interval(value, error, progress, alpha)
    assert found.low < value < found.high
    assert found.high - found.low > 2 * error * norm.ppf(1 - alpha / 2)


def test_a_brownian_motion_watched_all_the_time_leaves_the_boundary_as_rarely_as_promised():
    generator = np.random.default_rng(0)
    paths, looks, alpha = 2000, 1000, 0.1
    moments = np.geomspace(0.02, 50, looks)
    steps = generator.normal(size=(paths, looks)) * np.sqrt(np.diff(moments, prepend=0))
    standardized = np.abs(np.cumsum(steps, axis=1)) / np.sqrt(moments)
    left = (standardized > [boundary(moment, alpha) for moment in moments]).any(axis=1).mean()
    # 2,000 paths: three standard errors are 0.02. That it comes near says that the boundary wastes little.
    assert 0.03 < left < alpha + 0.02
    assert (standardized > 1.645).any(axis=1).mean() > 0.5
