"""Oracles: scipy.ndimage.correlate1d, applied k times in float64; scipy.fft.dct.

Resampling: Pillow (BOX, NEAREST), scipy.ndimage.map_coordinates at order 1, and the
cubic kernel worked out by hand at quarters and halves of a pixel.
"""

import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import fft, ndimage

from diffjax.operators import separable

# scipy's names for the three rules: its "reflect" repeats the edge pixel, its "mirror" does not.
SCIPY_MODES = {"circular": "wrap", "reflect": "mirror", "symmetric": "reflect"}


def iterated_blur(image, stds, kernel_sizes, mode):
    """k convolutions along rows and columns, one after another, in float64."""
    for std, kernel_size in zip(stds, kernel_sizes, strict=True):
        offsets = np.arange(kernel_size) - kernel_size // 2
        kernel = np.exp(-(offsets**2) / (2 * std**2))
        for axis in (0, 1):
            image = ndimage.correlate1d(image, kernel / kernel.sum(), axis=axis, mode=mode)
    return image


@pytest.mark.parametrize("boundary", separable.BOUNDARIES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (13, 8)])
def test_tabulated_blur_is_the_iterated_convolution(boundary, height, width):
    stds, kernel_sizes = np.linspace(0.4, 3, 12), [11] * 6 + [3] * 5 + [31]
    tables = separable.Separable(
        *(
            jnp.asarray(separable.blur_table(stds, kernel_sizes, size, boundary), jnp.float32)
            for size in (height, width)
        )
    )
    image = np.random.default_rng(0).uniform(-1, 1, (height, width, 3))
    for k in (0, 1, 2, 7, 12):
        degraded = separable.degrade_separable(
            tables, jnp.asarray(image, jnp.float32), jnp.float32(k / 12)
        )
        expected = iterated_blur(image, stds[:k], kernel_sizes[:k], SCIPY_MODES[boundary])
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


@pytest.mark.parametrize("boundary", separable.BOUNDARIES)
def test_individual_blur_is_one_convolution(boundary):
    image = np.random.default_rng(5).uniform(-1, 1, (9, 9))
    table = separable.blur_table([0.5, 2.0, 4.0], [3, 5, 7], 9, boundary, cumulative=False)
    for matrix, std, kernel_size in zip(table, [0.5, 2.0, 4.0], [3, 5, 7], strict=True):
        expected = iterated_blur(image, [std], [kernel_size], SCIPY_MODES[boundary])
        np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=1e-14)


def test_the_largest_published_blur_is_tabulated_within_two_seconds():
    start = time.perf_counter()
    table = separable.blur_table(np.exp(0.01 * np.arange(300)), [27] * 300, 128, "circular")
    assert time.perf_counter() - start < 2
    # A blur keeps constants, and so long a chain leaves little else.
    np.testing.assert_allclose(table.sum(axis=2), 1, atol=1e-12)
    np.testing.assert_allclose(table[-1], 1 / 128, atol=1e-3)


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


# The cubic kernel with a = -0.75 at distances 1.25, 0.25, 0.75, 1.75, as fractions of 512:
# (a+2) d^3 - (a+3) d^2 + 1 = 450 and 134 within 1; a (d^3 - 5 d^2 + 8 d - 4) = -54 and -18 beyond.
QUARTER = np.array([-54, 450, 134, -18]) / 512
HALF = np.array([-3, 19, 19, -3]) / 32


def test_bicubic_by_hand():
    halved = np.zeros((4, 8))
    for i in range(4):
        for tap, j in zip(HALF, range(2 * i - 1, 2 * i + 3), strict=True):
            halved[i, min(max(j, 0), 7)] += tap
    np.testing.assert_allclose(separable.resize_matrix(8, 4, "bicubic"), halved, atol=1e-15)
    # 3 -> 2: pixel 0 lies at 0.25, and pixel -1 is pixel 0 again; pixel 1 mirrors it.
    row = [QUARTER[0] + QUARTER[1], QUARTER[2], QUARTER[3]]
    np.testing.assert_allclose(
        separable.resize_matrix(3, 2, "bicubic"), [row, row[::-1]], atol=1e-15
    )
    np.testing.assert_array_equal(separable.resize_matrix(5, 5, "bicubic"), np.eye(5))


@pytest.mark.parametrize(("size", "new_size"), [(32, 16), (32, 31), (9, 4), (7, 1), (6, 6)])
def test_bilinear_is_scipys(size, new_size):
    signal = np.random.default_rng(6).normal(size=size)
    position = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    expected = ndimage.map_coordinates(signal, position[None], order=1, mode="nearest")
    matrix = separable.resize_matrix(size, new_size, "bilinear")
    np.testing.assert_allclose(matrix @ signal, expected, atol=1e-13)


@pytest.mark.parametrize(("size", "new_size"), [(32, 16), (12, 3), (9, 9), (5, 1)])
def test_area_is_pillows_box(size, new_size):
    image = np.random.default_rng(7).normal(size=(size, size)).astype(np.float32)
    expected = Image.fromarray(image).resize((new_size, new_size), Image.Resampling.BOX)
    matrix = separable.resize_matrix(size, new_size, "area")
    np.testing.assert_allclose(matrix @ image @ matrix.T, np.asarray(expected), atol=1e-6)


@pytest.mark.parametrize(("size", "new_size"), [(4, 32), (5, 8), (7, 7), (1, 3), (13, 32)])
def test_nearest_is_pillows(size, new_size):
    image = np.random.default_rng(8).normal(size=(size, size)).astype(np.float32)
    expected = Image.fromarray(image).resize((new_size, new_size), Image.Resampling.NEAREST)
    matrix = separable.resize_matrix(size, new_size, "nearest")
    np.testing.assert_array_equal(matrix @ image @ matrix.T, np.asarray(expected))


def test_later_bicubic_halvings_are_means_of_two():
    table = separable.resample_table([16, 8, 4], 32, "bicubic")
    mean_of_two = np.kron(np.eye(16), [[0.5, 0.5]])  # [16, 32]
    up = np.repeat(np.eye(16), 2, axis=0)
    for k, groups in ((1, 8), (2, 4)):
        kept = table[k - 1][:: 32 // (2 * groups)]  # one of each run of equal rows
        expected = mean_of_two[:groups, : 2 * groups] @ kept
        np.testing.assert_allclose(table[k], np.repeat(expected, 32 // groups, axis=0), atol=1e-15)
    np.testing.assert_allclose(
        table[0], up @ separable.resize_matrix(32, 16, "bicubic"), atol=1e-15
    )


def test_resampling_that_cannot_be_raises():
    with pytest.raises(ValueError, match="area needs sizes that divide the image's: 5 not 32"):
        separable.resample_table([5], 32, "area")
    with pytest.raises(ValueError, match="method must be nearest or one of bicubic, bilinear"):
        separable.resize_matrix(4, 2, "lanczos")


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_variants_agree(self):
        table = separable.blur_table([1.0, 2.0], [5, 5], 6, "reflect")
        x0 = np.random.default_rng(4).uniform(-1, 1, (6, 6, 1)).astype(np.float32)
        degraded = self.variant(separable.degrade_separable)(
            separable.Separable(jnp.asarray(table, jnp.float32), None), x0, jnp.float32(1)
        )
        expected = iterated_blur(x0.astype(np.float64), [1.0, 2.0], [5, 5], "mirror")
        np.testing.assert_allclose(degraded, expected, atol=1e-5)
