"""Oracles: scipy.ndimage.correlate1d, applied k times in float64.

Resampling: Pillow (BOX, NEAREST), scipy.ndimage.map_coordinates at order 1, and the
cubic kernel worked out by hand at quarters and halves of a pixel.
"""

import itertools
import re
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import iterated_blur
from PIL import Image
from scipy import ndimage

from diffjax.degradations import blur
from diffjax.degradations.base import degrade

# scipy's names for the three rules: its "reflect" repeats the edge pixel, its "mirror" does not.
SCIPY_MODES = {"circular": "wrap", "reflect": "mirror", "symmetric": "reflect"}


@pytest.mark.parametrize("boundary", blur.BOUNDARIES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (13, 8)])
def test_tabulated_blur_is_the_iterated_convolution(boundary, height, width):
    stds, kernel_sizes = np.linspace(0.4, 3, 12), [11] * 6 + [3] * 5 + [31]
    tables = blur.Separable(
        *(
            jnp.asarray(blur.blur_table(stds, kernel_sizes, size, boundary), jnp.float32)
            for size in (height, width)
        )
    )
    image = np.random.default_rng(0).uniform(-1, 1, (height, width, 3))
    for k in (0, 1, 2, 7, 12):
        degraded = blur.degrade_separable(
            tables, jnp.asarray(image, jnp.float32), jnp.float32(k / 12)
        )
        expected = iterated_blur(image, stds[:k], kernel_sizes[:k], SCIPY_MODES[boundary])
        np.testing.assert_allclose(degraded, expected, atol=1e-5)


@pytest.mark.parametrize("boundary", blur.BOUNDARIES)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_convolution_matrix_with_a_kernel_wider_than_the_image(boundary, size):
    kernel = np.random.default_rng(1).normal(size=13)
    signal = np.random.default_rng(2).normal(size=size)
    matrix = blur.convolution_matrix(kernel, size, boundary)
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
        got = blur.convolution_matrix(np.array([1.0, 2.0, 4.0]), 4, boundary)
        np.testing.assert_array_equal(got, matrix)


@pytest.mark.parametrize("boundary", blur.BOUNDARIES)
def test_individual_blur_is_one_convolution(boundary):
    image = np.random.default_rng(5).uniform(-1, 1, (9, 9))
    table = blur.blur_table([0.5, 2.0, 4.0], [3, 5, 7], 9, boundary, cumulative=False)
    for matrix, std, kernel_size in zip(table, [0.5, 2.0, 4.0], [3, 5, 7], strict=True):
        expected = iterated_blur(image, [std], [kernel_size], SCIPY_MODES[boundary])
        np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=1e-14)


@pytest.mark.parametrize("boundary", blur.BOUNDARIES)
@pytest.mark.parametrize("size", [9, 16])
def test_whole_gaussians_add_up_however_small(boundary, size):
    # 400 of 0.1 pixels are one of 2, which scipy samples, 20 pixels to each side.
    signal = np.random.default_rng(6).normal(size=size)
    table = blur.blur_table([0.1] * 400, [None] * 400, size, boundary)
    mode = SCIPY_MODES[boundary]
    expected = ndimage.gaussian_filter1d(signal, 2.0, mode=mode, truncate=10)
    np.testing.assert_allclose(table[-1] @ signal, expected, atol=1e-6)
    alone = blur.blur_table([2.0], [None], size, boundary, cumulative=False)
    np.testing.assert_allclose(alone[0], table[-1], atol=1e-12)


def test_the_largest_published_blur_is_tabulated_within_two_seconds():
    start = time.perf_counter()
    table = blur.blur_table(np.exp(0.01 * np.arange(300)), [27] * 300, 128, "circular")
    assert time.perf_counter() - start < 2
    # A blur keeps constants, and so long a chain leaves little else.
    np.testing.assert_allclose(table.sum(axis=2), 1, atol=1e-12)
    np.testing.assert_allclose(table[-1], 1 / 128, atol=1e-3)


def test_unknown_boundary_raises():
    with pytest.raises(ValueError, match="boundary must be one of circular, reflect, symmetric"):
        blur.convolution_matrix(np.ones(3), 4, "wrap")


def test_gaussian_kernel():
    # exp(-1/2) = 0.60653066 on either side of 1.
    side = 0.6065306597126334
    expected = np.array([side, 1, side]) / (1 + 2 * side)
    np.testing.assert_allclose(blur.gaussian_kernel(3, 1.0), expected, rtol=1e-14)


def test_image_of_another_size_raises():
    tables = blur.Separable(jnp.eye(4)[None], None)
    with pytest.raises(AssertionError):
        blur.degrade_separable(tables, jnp.zeros((4, 5, 1)), jnp.float32(1))


@pytest.mark.parametrize("steps", [5, 50])
def test_cost_grows_with_neither_t_nor_T(steps):
    tables = blur.Separable(jnp.ones((steps, 8, 8)), None)
    compiled = jax.jit(blur.degrade_separable).lower(tables, jnp.zeros((8, 8, 1)), jnp.float32(0.5))
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
    np.testing.assert_allclose(blur.resize_matrix(8, 4, "bicubic"), halved, atol=1e-15)
    # 3 -> 2: pixel 0 lies at 0.25, and pixel -1 is pixel 0 again; pixel 1 mirrors it.
    row = [QUARTER[0] + QUARTER[1], QUARTER[2], QUARTER[3]]
    np.testing.assert_allclose(blur.resize_matrix(3, 2, "bicubic"), [row, row[::-1]], atol=1e-15)
    np.testing.assert_array_equal(blur.resize_matrix(5, 5, "bicubic"), np.eye(5))


@pytest.mark.parametrize(("size", "new_size"), [(32, 16), (32, 31), (9, 4), (7, 1), (6, 6)])
def test_bilinear_is_scipys(size, new_size):
    signal = np.random.default_rng(6).normal(size=size)
    position = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    expected = ndimage.map_coordinates(signal, position[None], order=1, mode="nearest")
    matrix = blur.resize_matrix(size, new_size, "bilinear")
    np.testing.assert_allclose(matrix @ signal, expected, atol=1e-13)


@pytest.mark.parametrize(("size", "new_size"), [(32, 16), (12, 3), (9, 9), (5, 1)])
def test_area_is_pillows_box(size, new_size):
    image = np.random.default_rng(7).normal(size=(size, size)).astype(np.float32)
    expected = Image.fromarray(image).resize((new_size, new_size), Image.Resampling.BOX)
    matrix = blur.resize_matrix(size, new_size, "area")
    np.testing.assert_allclose(matrix @ image @ matrix.T, np.asarray(expected), atol=1e-6)


@pytest.mark.parametrize(("size", "new_size"), [(4, 32), (5, 8), (7, 7), (1, 3), (13, 32)])
def test_nearest_is_pillows(size, new_size):
    image = np.random.default_rng(8).normal(size=(size, size)).astype(np.float32)
    expected = Image.fromarray(image).resize((new_size, new_size), Image.Resampling.NEAREST)
    matrix = blur.resize_matrix(size, new_size, "nearest")
    np.testing.assert_array_equal(matrix @ image @ matrix.T, np.asarray(expected))


def test_later_bicubic_halvings_are_means_of_two():
    table = blur.resample_table([16, 8, 4], 32, "bicubic")
    mean_of_two = np.kron(np.eye(16), [[0.5, 0.5]])  # [16, 32]
    up = np.repeat(np.eye(16), 2, axis=0)
    for k, groups in ((1, 8), (2, 4)):
        kept = table[k - 1][:: 32 // (2 * groups)]  # one of each run of equal rows
        expected = mean_of_two[:groups, : 2 * groups] @ kept
        np.testing.assert_allclose(table[k], np.repeat(expected, 32 // groups, axis=0), atol=1e-15)
    np.testing.assert_allclose(table[0], up @ blur.resize_matrix(32, 16, "bicubic"), atol=1e-15)


def test_area_that_does_not_divide_by_hand():
    # Pixels floor(7 i / 3) to ceil(7 (i + 1) / 3) - 1: adaptive average pooling.
    expected = np.zeros((3, 7))
    for i, covered in enumerate(([0, 1, 2], [2, 3, 4], [4, 5, 6])):
        expected[i, covered] = 1 / 3
    np.testing.assert_allclose(blur.resize_matrix(7, 3, "area"), expected, atol=1e-15)
    # 8 -> 3: 0 to 2, 2 to 5, 5 to 7.
    means = blur.resize_matrix(8, 3, "area") @ np.arange(8.0)
    np.testing.assert_allclose(means, [1, 3.5, 6], atol=1e-15)


def test_unknown_method_raises():
    with pytest.raises(ValueError, match="method must be nearest or one of bicubic, bilinear"):
        blur.resize_matrix(4, 2, "lanczos")


def image(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_published_blurs():
    x0 = image((16, 12, 1))
    individual = blur.gaussian_blur(
        x0.shape, stds=[2, 6, 10], kernel_size=[1, 3, 5], cumulative=False
    )
    expected = iterated_blur(x0.astype(np.float64), [6], [3], "wrap")
    np.testing.assert_allclose(degrade(individual, x0, 2 / 3), expected, atol=1e-6)

    to_mean = blur.gaussian_blur(x0.shape, stds=[0.5, 0.5], kernel_size=3, mean_at_end=True)
    mean = np.broadcast_to(x0.astype(np.float64).mean(axis=(0, 1)), x0.shape)
    np.testing.assert_allclose(degrade(to_mean, x0, 1.0), mean, atol=1e-6)
    without = blur.gaussian_blur(x0.shape, stds=[0.5, 0.5], kernel_size=3)
    np.testing.assert_array_equal(degrade(to_mean, x0, 0.5), degrade(without, x0, 0.5))


def test_downsample_by_area_is_pillows():
    x0 = image((24, 16, 1))
    degradation = blur.downsample(x0.shape, sizes=[(12, 8), (4, 4), (2, 1)], method="area")
    step = x0[..., 0]
    for k, size in enumerate([(12, 8), (4, 4), (2, 1)], start=1):
        small = Image.fromarray(step).resize(size[::-1], Image.Resampling.BOX)
        step = np.asarray(small.resize((16, 24), Image.Resampling.NEAREST))
        np.testing.assert_allclose(degrade(degradation, x0, k / 3)[..., 0], step, atol=1e-6)


def test_bicubic_halvings_by_hand():
    # Taps (-3, 19, 19, -3) / 32 on pixels 2 i - 1 to 2 i + 2, the edge repeated: pixel 0 counts
    # -3 + 19 in result 0, pixel 3 counts 19 in result 1 and -3 in result 2. Then means of two.
    x0 = np.zeros((8, 8, 1), np.float32)
    x0[:, [0, 3]] = 32
    degradation = blur.downsample(x0.shape, steps=3)
    expected = {
        1: [16, 16, 19, 19, -3, -3, 0, 0],
        2: [17.5, 17.5, 17.5, 17.5, -1.5, -1.5, -1.5, -1.5],
        3: [8] * 8,
    }
    for k, row in expected.items():
        xt = degrade(degradation, x0, k / 3)[..., 0]
        np.testing.assert_allclose(xt, np.broadcast_to(row, (8, 8)), atol=1e-5)


def test_steps_are_halvings():
    x0 = image((16, 8, 3))
    halvings = blur.downsample(x0.shape, steps=2)
    sizes = blur.downsample(x0.shape, sizes=[(8, 4), (4, 2)])
    np.testing.assert_array_equal(degrade(halvings, x0, 1.0), degrade(sizes, x0, 1.0))


BLUR = {"stds": [1.0], "kernel_size": 3}


WRONG = [
    (blur.gaussian_blur, BLUR | {"stds": []}, "stds must list one number a step"),
    (blur.gaussian_blur, BLUR | {"stds": [[1.0]]}, "stds must list one number a step"),
    (blur.gaussian_blur, BLUR | {"stds": [1.0, -1.0]}, "stds must be positive; got -1.0"),
    (blur.gaussian_blur, BLUR | {"kernel_size": 4}, "kernel_size must be odd"),
    (blur.gaussian_blur, BLUR | {"kernel_size": -3}, "kernel_size must be odd"),
    (blur.gaussian_blur, BLUR | {"kernel_size": [3, 3]}, "one for all or one a step"),
    (blur.gaussian_blur, BLUR | {"boundary": "wrap"}, "boundary must be one of"),
    (blur.downsample, {}, "downsample takes either sizes or steps"),
    (blur.downsample, {"sizes": [4], "steps": 1}, "downsample takes either sizes or steps"),
    (blur.downsample, {"sizes": []}, "sizes must list one size a step"),
    (blur.downsample, {"sizes": [4, 5]}, "sizes must be positive and never grow"),
    (blur.downsample, {"sizes": [9]}, "sizes must be positive and never grow"),
    (blur.downsample, {"sizes": [4, 0]}, "sizes must be positive and never grow"),
    (blur.downsample, {"steps": 0}, "steps must be positive"),
    (blur.downsample, {"steps": 4}, "need 2^steps to divide the image; got 8 x 8"),
    (blur.downsample, {"steps": 1, "method": "lanczos"}, "method must be"),
]


@pytest.mark.parametrize(("constructor", "arguments", "message"), WRONG)
def test_an_argument_that_cannot_be_raises(constructor, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        constructor((8, 8, 3), **arguments)


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_variants_agree(self):
        table = blur.blur_table([1.0, 2.0], [5, 5], 6, "reflect")
        x0 = np.random.default_rng(4).uniform(-1, 1, (6, 6, 1)).astype(np.float32)
        degraded = self.variant(blur.degrade_separable)(
            blur.Separable(jnp.asarray(table, jnp.float32), None), x0, jnp.float32(1)
        )
        expected = iterated_blur(x0.astype(np.float64), [1.0, 2.0], [5, 5], "mirror")
        np.testing.assert_allclose(degraded, expected, atol=1e-5)


# Means of two neighbors, of four, and of all eight, each repeated.
MEANS = [np.kron(np.eye(8 // n), np.full((n, n), 1 / n)) for n in (1, 2, 4, 8)]


def test_steps_between_two_sizes_by_hand():
    # K = 3, w = 0.2, 0.04, 0: faintest^(1/2), faintest, nothing.
    x0 = image((8, 8, 2))
    degradation = blur.downsample(
        x0.shape, sizes=[4, 2, 1], method="area", between=3, faintest=0.04
    )
    assert degradation.steps == 9
    for size, (last, new) in enumerate(itertools.pairwise(MEANS)):
        for j, w in enumerate([0.2, 0.04, 0.0], start=1):
            axis = w * last + (1 - w) * new
            expected = np.einsum("ih,jw,hwc->ijc", axis, axis, x0)
            got = degrade(degradation, x0, (3 * size + j) / 9)
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_two_steps_between_two_sizes_by_hand():
    x0 = image((8, 8, 1))
    degradation = blur.downsample(x0.shape, steps=1, method="area", between=2, faintest=0.3)
    axis = 0.3 * np.eye(8) + 0.7 * MEANS[1]
    expected = np.einsum("ih,jw,hwc->ijc", axis, axis, x0)
    np.testing.assert_allclose(degrade(degradation, x0, 0.5), expected, atol=1e-6)


@pytest.mark.parametrize("method", blur.METHODS)
def test_steps_between_sizes_end_where_hard_ones_do(method):
    x0, sizes = image((8, 6, 1)), [(5, 4), (2, 3), (1, 1)]
    hard = blur.downsample(x0.shape, sizes=sizes, method=method)
    soft = blur.downsample(x0.shape, sizes=sizes, method=method, between=5, faintest=0.1)
    assert (hard.steps, soft.steps) == (3, 15)
    for k in (1, 2, 3):
        np.testing.assert_array_equal(degrade(soft, x0, 5 * k / 15), degrade(hard, x0, k / 3))
    one = blur.downsample(x0.shape, sizes=sizes, method=method, between=1)
    np.testing.assert_array_equal(one.params.rows, hard.params.rows)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"between": 0}, "between must be at least 1; got 0"),
        ({"between": 3, "faintest": 0.0}, "faintest must lie in (0, 1); got 0.0"),
        ({"between": 3, "faintest": 1.0}, "faintest must lie in (0, 1); got 1.0"),
    ],
)
def test_steps_between_that_cannot_be_raise(numbers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        blur.downsample((8, 8, 1), steps=1, **numbers)
