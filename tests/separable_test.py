"""Oracles: scipy.ndimage.correlate1d, applied k times in float64; scipy.fft.dct."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, ndimage

from diffjax.operators import separable

# scipy's names for the three rules: its "reflect" repeats the edge pixel, its "mirror" does not.
SCIPY_MODES = {"circular": "wrap", "reflect": "mirror", "symmetric": "reflect"}


def iterated_blur(image, stds, kernel_size, mode):
    """k convolutions along rows and columns, one after another, in float64."""
    offsets = np.arange(kernel_size) - kernel_size // 2
    for std in stds:
        kernel = np.exp(-(offsets**2) / (2 * std**2))
        for axis in (0, 1):
            image = ndimage.correlate1d(image, kernel / kernel.sum(), axis=axis, mode=mode)
    return image


@pytest.mark.parametrize("boundary", separable.BOUNDARIES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (13, 8)])
def test_tabulated_blur_is_the_iterated_convolution(boundary, height, width):
    stds, kernel_size = np.linspace(0.4, 3, 12), 11
    tables = separable.Separable(
        *(
            jnp.asarray(separable.blur_table(stds, kernel_size, size, boundary), jnp.float32)
            for size in (height, width)
        )
    )
    image = np.random.default_rng(0).uniform(-1, 1, (height, width, 3))
    for k in (0, 1, 2, 7, 12):
        degraded = separable.degrade_separable(
            tables, jnp.asarray(image, jnp.float32), jnp.float32(k / 12)
        )
        expected = iterated_blur(image, stds[:k], kernel_size, SCIPY_MODES[boundary])
        np.testing.assert_allclose(degraded, expected, atol=1e-5)


@pytest.mark.parametrize("boundary", separable.BOUNDARIES)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_convolution_matrix_with_a_kernel_wider_than_the_image(boundary, size):
    kernel = np.random.default_rng(1).normal(size=13)
    signal = np.random.default_rng(2).normal(size=size)
    matrix = separable.convolution_matrix(kernel, size, boundary)
    expected = ndimage.correlate1d(signal, kernel, mode=SCIPY_MODES[boundary])
    np.testing.assert_allclose(matrix @ signal, expected, atol=1e-12)


def test_convolution_matrix_by_hand():
    # a b c d with taps 1 2 4: output i is x[i-1] + 2 x[i] + 4 x[i+1].
    middle = [[1, 2, 4, 0], [0, 1, 2, 4]]
    expected = {
        "circular": [[2, 4, 0, 1], *middle, [4, 0, 1, 2]],
        "reflect": [[2, 5, 0, 0], *middle, [0, 0, 5, 2]],
        "symmetric": [[3, 4, 0, 0], *middle, [0, 0, 1, 6]],
    }
    for boundary, matrix in expected.items():
        got = separable.convolution_matrix(np.array([1.0, 2.0, 4.0]), 4, boundary)
        np.testing.assert_array_equal(got, matrix)


def test_unknown_boundary_raises():
    with pytest.raises(ValueError, match="boundary must be one of circular, reflect, symmetric"):
        separable.convolution_matrix(np.ones(3), 4, "wrap")


def test_gaussian_kernel():
    # exp(-1/2) = 0.60653066 on either side of 1.
    side = 0.6065306597126334
    expected = np.array([side, 1, side]) / (1 + 2 * side)
    np.testing.assert_allclose(separable.gaussian_kernel(3, 1.0), expected, rtol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_dct_matrix(size):
    matrix = separable.dct_matrix(size)
    np.testing.assert_allclose(matrix, fft.dct(np.eye(size), norm="ortho", axis=0), atol=1e-13)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-13)


def test_step_index_rounds_and_clips():
    steps = [separable.step_index(jnp.float32(t), 10).item() for t in (-1, 0, 0.04, 0.06, 1, 2)]
    assert steps == [0, 0, 0, 1, 10, 10]


def test_transform_multiplies_rows_and_columns():
    rng = np.random.default_rng(3)
    x, rows, cols = (rng.normal(size=shape) for shape in ((4, 5, 2), (3, 4), (6, 5)))
    expected = np.stack([rows @ x[..., c] @ cols.T for c in range(2)], axis=-1)
    np.testing.assert_allclose(separable.transform(x, rows, cols), expected, atol=1e-5)


def test_image_of_another_size_raises():
    tables = separable.Separable(jnp.eye(4)[None], None)
    with pytest.raises(AssertionError):
        separable.degrade_separable(tables, jnp.zeros((4, 5, 1)), jnp.float32(1))


@pytest.mark.parametrize("steps", [5, 50])
def test_cost_grows_with_neither_t_nor_T(steps):
    tables = separable.Separable(jnp.ones((steps, 8, 8)), None)
    compiled = jax.jit(separable.degrade_separable).lower(
        tables, jnp.zeros((8, 8, 1)), jnp.float32(0.5)
    )
    # Two products of 8 x 8 by 8 x 8 are 2 * 2 * 8^3 = 2,048 operations.
    flops = compiled.compile().cost_analysis()["flops"]
    assert flops < 4000


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_variants_agree(self):
        table = separable.blur_table(np.array([1.0, 2.0]), 5, 6, "reflect")
        x0 = np.random.default_rng(4).uniform(-1, 1, (6, 6, 1)).astype(np.float32)
        degraded = self.variant(separable.degrade_separable)(
            separable.Separable(jnp.asarray(table, jnp.float32), None), x0, jnp.float32(1)
        )
        expected = iterated_blur(x0.astype(np.float64), [1.0, 2.0], 5, "mirror")
        np.testing.assert_allclose(degraded, expected, atol=1e-5)
