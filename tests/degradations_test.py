"""The type, and what Algorithm 2 does to it in closed form (REFERENCE: the error of a linear D).

Oracles: hand computation for the toys, scipy.ndimage.correlate1d for A_T of a blur.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from diffjax import cold, samplers
from diffjax.degradations import Degradation, LinearMap, degrade, draw, infer, keep, require

SHAPE = (4, 3, 2)


def draw_direction(params, key, x0):
    return jax.random.normal(key, x0.shape)


def add_direction(params, x0, t, omega):
    return x0 + t * params["scale"] * omega


def infer_direction(params, xt, t, x0_hat, omega):
    return (xt - x0_hat) / (t * params["scale"])


def straight(scale=1.0):
    """D = x0 + t e, where e = scale omega."""
    return Degradation(
        {"scale": jnp.float32(scale)},
        draw_fn=draw_direction,
        apply_fn=add_direction,
        infer_fn=infer_direction,
    )


def images(count=1):
    return np.random.default_rng(0).uniform(-1, 1, (count, *SHAPE)).astype(np.float32)


def walk(sampler, degradation, restore_fn, xT, ts, omega=None):
    return samplers.sample(
        sampler,
        restore_fn,
        functools.partial(degrade, degradation),
        functools.partial(infer, degradation),
        jax.random.key(0),
        xT,
        ts,
        omega,
    )


@pytest.mark.parametrize("t", [-0.1, 1.5, -1, 2, float("nan")])
def test_number_outside_the_severities_raises(t):
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]; got"):
        degrade(straight(), images()[0], t, images()[0])


@pytest.mark.parametrize("t", [0, 1, 0.25, np.float64(0.25), jnp.float32(0.25)])
def test_severity_may_be_any_number(t):
    x0, omega = images(2)
    xt = degrade(straight(2.0), x0, t, omega)
    np.testing.assert_allclose(xt, x0 + 2 * np.float32(t) * omega, rtol=1e-6)
    assert xt.dtype == jnp.float32


def test_apply_fn_is_asked_for_by_name():
    with pytest.raises(TypeError, match="apply_fn"):
        Degradation({})


def test_defaults_have_no_realisation_and_keep_the_one_given():
    degradation = Degradation((), apply_fn=lambda params, x0, t, omega: x0)
    assert draw(degradation, jax.random.key(0), images()[0]) is None
    omega = {"mask": images()[0]}
    assert infer(degradation, images()[0], 0.5, images()[0], omega) is omega
    assert keep((), None, None, None, 7) == 7
    assert degradation.linear_fn is None
    assert LinearMap() == (1.0, 0.0, None, None, None)


def test_draw_and_infer_see_the_params():
    x0, omega = images(2)
    degradation = straight(4.0)
    key = jax.random.key(3)
    np.testing.assert_array_equal(draw(degradation, key, x0), jax.random.normal(key, SHAPE))
    xt = x0 + 0.5 * 4 * omega
    np.testing.assert_allclose(infer(degradation, xt, 0.5, x0), omega, atol=1e-6)


def test_require():
    require(True, "never said")
    with pytest.raises(ValueError, match=r"^stds must be positive$"):
        require(False, "stds must be positive")


def test_degradation_is_frozen():
    with pytest.raises(AttributeError):
        straight().params = {}


def test_leaves_are_the_params_alone():
    leaves, structure = jax.tree.flatten(straight(3.0))
    assert leaves == [3.0]
    assert structure == jax.tree.structure(straight(5.0))
    assert structure != jax.tree.structure(
        Degradation({"scale": jnp.float32(3)}, apply_fn=add_direction)
    )
    doubled = jax.tree.map(lambda leaf: 2 * leaf, straight(3.0))
    assert doubled.params["scale"] == 6


class VariantsTest(chex.TestCase):
    @chex.all_variants
    def test_degradation_is_an_argument(self):
        x0, omega = images(2)
        xt = self.variant(degrade)(straight(2.0), x0, jnp.float32(0.5), omega)
        np.testing.assert_allclose(xt, x0 + omega, atol=1e-6)


@chex.assert_max_traces(n=1)
def counted_degrade(degradation, x0, t, omega):
    return degrade(degradation, x0, t, omega)


def test_constructions_share_one_trace():
    chex.clear_trace_counter()
    jitted = jax.jit(counted_degrade)
    x0, omega = images(2)
    for scale, t in ((1.0, 0.5), (2.0, 0.75)):
        xt = jitted(straight(scale), x0, jnp.float32(t), omega)
        np.testing.assert_allclose(xt, x0 + t * scale * omega, atol=1e-6)


def test_a_new_lambda_is_a_new_trace():
    chex.clear_trace_counter()
    jitted = jax.jit(counted_degrade)
    arguments = images()[0], jnp.float32(0), None
    first, second = (Degradation((), apply_fn=lambda params, x0, t, omega: x0) for _ in range(2))
    jitted(first, *arguments)
    with pytest.raises(AssertionError, match="traced > 1 times"):
        jitted(second, *arguments)


def test_stack_of_params_is_a_sweep():
    x0, omega = images(2)
    scales = [0.5, 1.0, 3.0]
    sweep = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(straight, scales))
    swept = jax.vmap(degrade, in_axes=(0, None, None, None))(sweep, x0, jnp.float32(0.5), omega)
    expected = np.stack([x0 + 0.5 * scale * omega for scale in scales])
    np.testing.assert_allclose(swept, expected, atol=1e-6)


def test_two_devices_take_a_degradation_each():
    x0, omega = images(2)
    pair = jax.tree.map(lambda *leaves: jnp.stack(leaves), straight(1.0), straight(2.0))
    spread = jax.pmap(degrade, in_axes=(0, None, None, None))(pair, x0, jnp.float32(1), omega)
    np.testing.assert_allclose(spread, [x0 + omega, x0 + 2 * omega], atol=1e-6)


def test_scan_carries_a_degradation():
    x0, omega = images(2)

    def stronger(degradation, t):
        doubled = jax.tree.map(lambda leaf: 2 * leaf, degradation)
        return doubled, degrade(degradation, x0, t, omega)

    last, xts = jax.lax.scan(stronger, straight(1.0), jnp.array([1.0, 0.5, 0.25]))
    assert last.params["scale"] == 8
    # 1 x 1, 2 x 1/2 and 4 x 1/4 are all 1.
    np.testing.assert_allclose(xts, np.broadcast_to(x0 + omega, (3, *SHAPE)), atol=1e-6)


def zeros(xt, t):
    return jnp.zeros_like(xt)


def nonsense(xt, t):
    return 3 * jnp.cos(5 * xt + t) - 1


@pytest.mark.parametrize("restore_fn", [zeros, nonsense])
@pytest.mark.parametrize("steps", [1, 4, 64])
def test_straight_line_algorithm_2_is_exact_under_any_restorer(restore_fn, steps):
    # x_s = x_t - (x0_hat + t e) + (x0_hat + s e) = x_t - (t - s) e, whatever x0_hat is.
    x0, e = images(2)
    degradation = straight()
    ts = samplers.uniform_grid(steps)
    x = walk(samplers.cold, degradation, restore_fn, x0 + e, ts, e)
    np.testing.assert_allclose(x, x0, atol=2e-5)
    # Algorithm 1 ends with D(x0_hat, 0) = x0_hat, the restorer's last answer.
    x = walk(samplers.naive, degradation, zeros, x0 + e, ts, e)
    np.testing.assert_array_equal(x, np.zeros(SHAPE))


def blurred(image, stds, kernel_size):
    """A_T c: every step's kernel along both axes, circular, in float64."""
    offsets = np.arange(kernel_size) - kernel_size // 2
    for std in stds:
        kernel = np.exp(-(offsets**2) / (2 * std**2))
        for axis in (0, 1):
            image = ndimage.correlate1d(image, kernel / kernel.sum(), axis=axis, mode="wrap")
    return image


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_constant_restorer_of_a_linear_degradation(steps):
    # The corrections telescope: x_0 = x_T + (I - A_T) c, for any number of steps.
    stds = [0.5, 0.8, 1.1]
    rng = np.random.default_rng(1)
    xT, c = rng.uniform(-1, 1, (2, 7, 6, 1))
    degradation = cold.gaussian_blur((7, 6, 1), stds=stds, kernel_size=5)
    answer = jnp.asarray(c, jnp.float32)
    x = walk(
        samplers.cold,
        degradation,
        lambda xt, t: answer,
        jnp.asarray(xT, jnp.float32),
        samplers.uniform_grid(steps),
    )
    np.testing.assert_allclose(x, xT + c - blurred(c, stds, 5), atol=1e-5)


def test_exact_restorer_with_inferred_realisation_walks_along_the_line():
    x0, e = images(2)
    degradation = straight(2.0)
    omega_hat = infer(degradation, degrade(degradation, x0, 1.0, e), 1.0, x0)
    np.testing.assert_allclose(omega_hat, e, atol=1e-6)
    np.testing.assert_allclose(degrade(degradation, x0, 0.5, omega_hat), x0 + e, atol=1e-6)
