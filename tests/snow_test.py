"""Oracles: scipy.ndimage.zoom and correlate1d, in float64; the ends of each level by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from diffjax.degradations import snow


@pytest.mark.parametrize("size", [8, 28, 32, 33, 64, 128])
@pytest.mark.parametrize("zoom", [2.5, 3.0])
def test_zoom_is_scipys(size, zoom):
    field = np.random.default_rng(0).normal(size=(size, size))
    crop = int(np.ceil(size / zoom))
    middle = field[(size - crop) // 2 :][:crop, (size - crop) // 2 :][:, :crop]
    zoomed = ndimage.zoom(middle, zoom, order=1, mode="nearest")
    start = (zoomed.shape[0] - size) // 2
    expected = zoomed[start : start + size, start : start + size]
    matrix = snow.zoom_matrix(size, zoom)
    np.testing.assert_allclose(matrix @ middle @ matrix.T, expected, atol=1e-12)


def test_zoom_of_one_pixel():
    np.testing.assert_array_equal(snow.zoom_matrix(2, 3.0), [[1], [1]])


def snow_in_numpy(x0, flakes, vertical, threshold, kernel, brightness):
    """One step, in float64, for three channels."""
    layer = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    axis = 0 if vertical else 1
    layer = ndimage.correlate1d(layer, kernel, axis=axis, mode="constant")
    x = (x0 + 1) / 2
    gray = 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]
    pale = np.maximum(x, (1.5 * gray + 0.5)[..., None])
    x = brightness * x + (1 - brightness) * pale
    return 2 * (x + layer[..., None] + np.rot90(layer, 2)[..., None]).clip(0, 1) - 1


# threshold, motion std and brightness of the first and the last step, and taps.
ENDS = {
    1: ((0.7, 0.5, 0.95), (0.3, 5.0, 0.7), 5),
    2: ((1.15, 0.05, 0.95), (0.7, 12.0, 0.55), 11),
    3: ((1.15, 0.05, 0.95), (0.7, 16.0, 0.4), 11),
    4: ((1.15, 0.05, 0.95), (0.55, 20.0, 0.3), 11),
}


@pytest.mark.parametrize("level", ENDS)
@pytest.mark.parametrize("pale", [True, False])
def test_first_middle_and_last_step_of_every_level(level, pale):
    shape = (16, 12, 3)
    params = snow.snow_tables(shape, snow.LEVELS[level - 1], 5, pale=pale)
    rng = np.random.default_rng(level)
    x0 = rng.uniform(-1, 1, shape).astype(np.float32)
    flakes = rng.normal(0.6, 0.4, shape[:2]).astype(np.float32)
    first, last, taps = ENDS[level]
    middle = [(a + b) / 2 for a, b in zip(first, last, strict=True)]
    degrade = jax.jit(snow.degrade_snow)
    for k, (threshold, std, brightness) in ((1, first), (3, middle), (5, last)):
        kernel = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * std**2))
        for vertical in (True, False):
            omega = snow.SnowDraw(jnp.asarray(flakes), jnp.asarray(vertical))
            expected = snow_in_numpy(
                x0,
                flakes,
                vertical,
                np.float32(threshold),
                kernel / kernel.sum(),
                brightness if pale else 1,
            )
            np.testing.assert_allclose(
                degrade(params, x0, jnp.float32(k / 5), omega), expected, atol=2e-6
            )


def test_identity_at_zero_bit_for_bit():
    params = snow.snow_tables((8, 8, 1), snow.LEVELS[2], 3, pale=True)
    x0 = jax.random.uniform(jax.random.key(0), (8, 8, 1), minval=-1, maxval=1)
    omega = jax.jit(snow.draw_snow)(params, jax.random.key(1), x0)
    xt = jax.jit(snow.degrade_snow)(params, x0, jnp.float32(0), omega)
    np.testing.assert_array_equal(xt, x0)


def test_gray_of_another_number_of_channels_is_the_mean():
    params = snow.snow_tables((8, 8, 2), snow.LEVELS[2], 3, pale=True)
    np.testing.assert_array_equal(params.gray, [0.5, 0.5])


def test_draws():
    # A pixel in the middle of an odd zoom is one draw itself: N(0.55, 0.3^2), 4000 of them.
    params = snow.snow_tables((5, 5, 3), snow.LEVELS[2], 3, pale=True)
    keys = jax.random.split(jax.random.key(2), 4000)
    omega = jax.jit(jax.vmap(lambda key: snow.draw_snow(params, key, None)))(keys)
    corner = np.asarray(omega.flakes[:, 0, 0])
    assert abs(corner.mean() - 0.55) < 4 * 0.3 / np.sqrt(4000)
    assert abs(corner.std() - 0.3) < 4 * 0.3 / np.sqrt(8000)
    assert abs(np.mean(omega.vertical) - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_cost_does_not_grow_with_T():
    def flops(steps):
        params = snow.snow_tables((16, 16, 3), snow.LEVELS[2], steps, pale=True)
        x0 = jnp.zeros((16, 16, 3))
        omega = snow.SnowDraw(jnp.zeros((16, 16)), jnp.asarray(True))
        lowered = jax.jit(snow.degrade_snow).lower(params, x0, jnp.float32(0.5), omega)
        return lowered.compile().cost_analysis()["flops"]

    assert flops(100) == flops(5)


def test_image_of_another_size_raises():
    params = snow.snow_tables((8, 8, 3), snow.LEVELS[0], 3, pale=True)
    omega = snow.SnowDraw(jnp.zeros((8, 8)), jnp.asarray(True))
    with pytest.raises(AssertionError):
        snow.degrade_snow(params, jnp.zeros((8, 8, 1)), jnp.float32(1), omega)


WRONG = [
    ({"steps": 0}, "steps must be positive"),
    ({"steps": 5, "level": 5}, "level must be one of 1, 2, 3, 4; got 5"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_an_argument_that_cannot_be_raises(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        snow.snow((8, 8, 3), **arguments)
