"""Oracles: scipy.stats' laws and Kolmogorov-Smirnov test, exact integrals, hand computation.

Samples are of N = 20,000 draws under a fixed key. The KS statistic of a right sampler exceeds
1.95 / sqrt(N) = 0.0138 one time in a thousand.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import time_sampling

N = 20_000
KS_LIMIT = 1.95 / np.sqrt(N)


def draw_batch(seed, batch_size, histogram=None, **kwargs):
    """(t_B, density_B) of a whole global batch."""
    histogram = None if histogram is None else jnp.asarray(histogram, jnp.float32)

    def one(position):
        return time_sampling.draw(jax.random.key(seed), position, batch_size, histogram, **kwargs)

    t_B, density_B = jax.vmap(one)(jnp.arange(batch_size))
    assert np.all((t_B > 0) & (t_B <= 1))
    assert np.all(density_B > 0)
    return np.asarray(t_B, np.float64), np.asarray(density_B, np.float64)


@pytest.mark.parametrize("spacing_fn", [time_sampling.uniform, time_sampling.stratified])
def test_uniform_law(spacing_fn):
    t, density = draw_batch(0, N, spacing_fn=spacing_fn)
    assert stats.kstest(t, "uniform").statistic < KS_LIMIT
    np.testing.assert_array_equal(density, 1)


def test_uniform_draws_are_independent():
    t, _ = draw_batch(1, N)
    # Stratified or repeated draws would not be: 20,000 in 1,000 cells have variance 20.
    counts = np.histogram(t, 1000, (0, 1))[0]
    assert abs(counts.var() / 20 - 1) < 4 * np.sqrt(2 / 1000)
    assert abs(np.corrcoef(t[1:], t[:-1])[0, 1]) < 4 / np.sqrt(N)


@pytest.mark.parametrize("batch_size", [1, 8, 50])
def test_stratified_has_one_draw_in_every_interval(batch_size):
    for seed in range(3):
        t, _ = draw_batch(seed, batch_size, spacing_fn=time_sampling.stratified)
        gaps = np.diff(np.sort(np.append(t, t.min() + 1)))
        np.testing.assert_allclose(gaps, 1 / batch_size, atol=1e-6)


def test_each_stratified_draw_is_uniform_over_the_steps():
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(2)))(jnp.arange(N))
    t = jax.vmap(lambda key: time_sampling.stratified(key, 3, 8))(keys)
    assert stats.kstest(np.asarray(t), "uniform").statistic < KS_LIMIT


@pytest.mark.parametrize("spacing_fn", [time_sampling.uniform, time_sampling.stratified])
def test_the_draw_does_not_depend_on_the_device(spacing_fn):
    histogram = jnp.asarray(time_sampling.logit_normal_histogram(64), jnp.float32)

    def one(position):
        return time_sampling.draw(jax.random.key(3), position, 8, histogram, spacing_fn=spacing_fn)

    whole = jax.vmap(one)(jnp.arange(8))
    shares = jax.pmap(jax.vmap(one))(jnp.arange(8).reshape(2, 4))
    for a, b in zip(whole, shares, strict=True):
        np.testing.assert_allclose(a, b.ravel(), rtol=1e-6)


def test_warp_by_hand():
    # Two bins that hold 1 : 3. u = 1/4 is the first bin's end, u = 5/8 the middle of the second.
    histogram = jnp.array([1.0, 3.0])
    expected = {0.125: (0.25, 0.5), 0.25: (0.5, 0.5), 0.625: (0.75, 1.5), 1.0: (1.0, 1.5)}
    for u, pair in expected.items():
        np.testing.assert_allclose(time_sampling.warp(jnp.float32(u), histogram), pair, rtol=1e-6)


def test_a_bin_without_mass_is_never_drawn():
    histogram = [0, 1, 0, 0, 2, 0]
    t, density = draw_batch(4, N, histogram)
    bins = np.ceil(t * 6 - 1e-6).astype(int)
    assert set(bins) == {2, 5}
    np.testing.assert_allclose(density, np.where(bins == 2, 2, 4), rtol=1e-5)
    # Even at the cells' exact edges.
    t_edge, _ = time_sampling.warp(jnp.float32(1), jnp.asarray(histogram, jnp.float32))
    np.testing.assert_allclose(t_edge, 5 / 6, rtol=1e-6)


# ln(sigma / alpha) of a schedule geometric from 0.002 to 80, and of the flow alpha = 1 - t,
# sigma = t, whose ends are infinite.
BINS = 2000
EDGES = np.arange(BINS + 1) / BINS
GEOMETRIC = np.log(0.002) + EDGES * np.log(80 / 0.002)


def flow_log_sigmas(t):
    with np.errstate(divide="ignore"):
        return np.log(t) - np.log1p(-t)


@pytest.mark.parametrize("spacing_fn", [time_sampling.uniform, time_sampling.stratified])
def test_log_normal_law(spacing_fn):
    histogram = time_sampling.log_normal_histogram(GEOMETRIC)
    t, density = draw_batch(5, N, histogram, spacing_fn=spacing_fn)
    log_sigma = np.log(0.002) + t * np.log(80 / 0.002)
    cut = [(np.log(end) + 1.2) / 1.2 for end in (0.002, 80)]
    law = stats.truncnorm(*cut, loc=-1.2, scale=1.2)
    assert stats.kstest(log_sigma, law.cdf).statistic < KS_LIMIT
    # dP/dt = dP/d(ln sigma) d(ln sigma)/dt, to the width of a bin.
    expected = law.pdf(log_sigma) * np.log(80 / 0.002)
    np.testing.assert_allclose(density, expected, rtol=0.02, atol=1e-3)


def test_log_normal_law_of_a_schedule_with_infinite_ends():
    t, _ = draw_batch(6, N, time_sampling.log_normal_histogram(flow_log_sigmas(EDGES)))
    law = stats.norm(-1.2, 1.2)
    assert stats.kstest(flow_log_sigmas(t), law.cdf).statistic < KS_LIMIT


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 1.8)])
def test_logit_normal_law(mean, std):
    t, density = draw_batch(7, N, time_sampling.logit_normal_histogram(BINS, mean=mean, std=std))
    logit = np.log(t) - np.log1p(-t)
    assert stats.kstest(logit, stats.norm(mean, std).cdf).statistic < KS_LIMIT
    # dP/dt = dP/d(logit) / (t (1 - t)), to the width of a bin: not at the very ends.
    inner = (t > 0.05) & (t < 0.95)
    expected = stats.norm(mean, std).pdf(logit) / (t * (1 - t))
    np.testing.assert_allclose(density[inner], expected[inner], rtol=0.02)


def f(t):
    return np.exp(-5 * t)


@pytest.mark.parametrize(
    "histogram",
    [np.exp(-4 * np.arange(10) / 10), time_sampling.logit_normal_histogram(100, std=3.0)],
    ids=["importance", "logit_normal"],
)
def test_dividing_by_the_density_is_unbiased(histogram):
    # The integral of exp(-5 t) over [0, 1] is (1 - exp(-5)) / 5.
    exact = (1 - np.exp(-5)) / 5
    t, density = draw_batch(8, N, histogram)
    estimates = f(t) / density
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / np.sqrt(N)
    # Stratified, the mean is a quadrature, and far sharper.
    t, density = draw_batch(8, N, histogram, spacing_fn=time_sampling.stratified)
    np.testing.assert_allclose(np.mean(f(t) / density), exact, rtol=1e-3)


@pytest.mark.parametrize("levels", [5, 8, 30])
def test_snapped_draws_count_every_level_alike(levels):
    # Uniformly: each level as often; with a histogram of 8 bins, after division by the density.
    expected = np.mean(f(np.arange(1, levels + 1) / levels))
    for histogram in (None, np.arange(1, 9)):
        t, density = draw_batch(9, N, histogram, spacing_fn=time_sampling.stratified, levels=levels)
        steps = t * levels
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
        np.testing.assert_allclose(np.mean(f(t) / density), expected, rtol=2e-3)
        shares = np.histogram(np.round(steps), np.arange(levels + 1) + 0.5, weights=1 / density)[0]
        np.testing.assert_allclose(shares / N, 1 / levels, rtol=0.01)


def test_update_of_importance_by_hand():
    # Bins (0, 1/2] and (1/2, 1], a window of 4. First batch: losses 1, 3 and 2.
    state = time_sampling.create_importance(2)
    state = time_sampling.update_importance(
        state, jnp.array([0.1, 0.5, 1.0]), jnp.array([1.0, 3.0, 2.0]), window=4
    )
    np.testing.assert_allclose(state.square, [(1 + 9) / 2, 4])
    np.testing.assert_array_equal(state.count, [2, 1])
    # One more in the first bin is averaged in: (1 + 9 + 16) / 3.
    state = time_sampling.update_importance(state, jnp.array([0.3]), jnp.array([4.0]), window=4)
    np.testing.assert_allclose(state.square, [26 / 3, 4], rtol=1e-6)
    # Two more make five; of the window's four they are half: (26/3 + 0) / 2.
    state = time_sampling.update_importance(state, jnp.array([0.3, 0.2]), jnp.zeros(2), window=4)
    np.testing.assert_allclose(state.square, [13 / 3, 4], rtol=1e-6)
    np.testing.assert_array_equal(state.count, [4, 1])
    # Six at once replace what was known.
    state = time_sampling.update_importance(state, jnp.full(6, 0.9), jnp.full(6, 3.0), window=4)
    np.testing.assert_allclose(state.square, [13 / 3, 9], rtol=1e-6)


def test_importance_histogram_by_hand():
    state = time_sampling.Importance(jnp.array([1.0, 4.0, 0.0, 9.0]), jnp.array([5, 5, 5, 4]))
    # The last bin has seen 4 of 5: uniform still.
    np.testing.assert_allclose(time_sampling.importance_histogram(state, window=5), 0.25)
    # Roots 1, 2, 0, 3 of sum 6, of which a tenth goes to uniform.
    got = time_sampling.importance_histogram(state, window=4, uniform_fraction=0.1)
    np.testing.assert_allclose(got, 0.9 * np.array([1, 2, 0, 3]) / 6 + 0.025, rtol=1e-6)
    nothing = time_sampling.Importance(jnp.zeros(4), jnp.full(4, 10))
    np.testing.assert_allclose(time_sampling.importance_histogram(nothing), 0.25)


@pytest.mark.parametrize("levels", [10, 49, 1000])
def test_a_snapped_severity_falls_into_its_own_bin(levels):
    # k / levels is bin k's upper edge; in float32 (k / levels) levels often exceeds k.
    t_B = jnp.arange(1, levels + 1, dtype=jnp.float32) / levels
    state = time_sampling.create_importance(levels)
    state = time_sampling.update_importance(state, t_B, jnp.ones(levels))
    np.testing.assert_array_equal(state.count, 1)


@pytest.mark.parametrize("levels", [30, 300, 500, 1000])
def test_a_jitted_snap_stays_in_its_bin(levels):
    k = np.arange(1, levels + 1)
    snapped = jax.jit(lambda k: time_sampling.snap((k - 0.5) / levels, levels))(jnp.asarray(k))
    got = jax.jit(time_sampling.bin_index, static_argnums=1)(snapped, 10)
    np.testing.assert_array_equal(got, (10 * k + levels - 1) // levels - 1)  # whole numbers


def test_update_on_two_devices_is_the_update_of_the_whole_batch():
    rng = np.random.default_rng(0)
    t_B, losses_B = jnp.asarray(rng.uniform(0.01, 1, (2, 16)), jnp.float32)
    state = time_sampling.create_importance(5)
    whole = time_sampling.update_importance(state, t_B, losses_B)
    update = functools.partial(time_sampling.update_importance, axis_name="devices")
    shares = jax.pmap(update, axis_name="devices", in_axes=(None, 0, 0))(
        state, t_B.reshape(2, 8), losses_B.reshape(2, 8)
    )
    for device in range(2):
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, d=device: x[d], shares), whole, rtol=1e-6
        )


def test_importance_learns_the_law_and_lowers_the_variance():
    # The loss at t is exp(-5 t): roots of its mean square per bin, by exact integrals.
    edges = np.arange(11) / 10
    square = (np.exp(-10 * edges[:-1]) - np.exp(-10 * edges[1:])) / 10 / 0.1
    ideal = np.sqrt(square) / np.sqrt(square).sum()
    state = time_sampling.create_importance(10)
    t, _ = draw_batch(10, N, spacing_fn=time_sampling.stratified)
    state = time_sampling.update_importance(state, jnp.asarray(t, jnp.float32), jnp.asarray(f(t)))
    histogram = time_sampling.importance_histogram(state)
    np.testing.assert_allclose(histogram, 0.999 * ideal + 1e-4, rtol=1e-3)
    t, density = draw_batch(11, N, histogram)
    plain, _ = draw_batch(11, N)
    # Within a bin exp(-5 t) falls by exp(-1/2): what is left of the variance is its share.
    assert np.std(f(t) / density) < 0.2 * np.std(f(plain))


def test_laws_that_cannot_be_raise():
    with pytest.raises(ValueError, match="std must be positive"):
        time_sampling.logit_normal_histogram(10, std=0.0)
    with pytest.raises(ValueError, match="edges must increase"):
        time_sampling.log_normal_histogram(np.array([0.0, 1.0, 0.5]))
    with pytest.raises(ValueError, match="meet the normal law's bulk"):
        time_sampling.log_normal_histogram(np.array([50.0, 60.0]))
    with pytest.raises(AssertionError):
        time_sampling.warp(jnp.float32(0.5), jnp.ones((2, 2)))


class VariantsTest(chex.TestCase):
    @chex.all_variants()
    def test_variants_agree(self):
        # u = 5/8 by hand, as above; the draw itself against uniform's definition.
        got = self.variant(time_sampling.warp)(jnp.float32(0.625), jnp.array([1.0, 3.0]))
        np.testing.assert_allclose(got, (0.75, 1.5), rtol=1e-6)
        key = jax.random.key(12)
        draw = functools.partial(time_sampling.draw, batch_size=4, levels=10)
        t, density = self.variant(lambda position: draw(key, position))(jnp.int32(2))
        expected = 1 - jax.random.uniform(jax.random.fold_in(key, 2))
        np.testing.assert_allclose(t, np.ceil(expected * 10) / 10, rtol=1e-6)
        np.testing.assert_array_equal(density, 1)
