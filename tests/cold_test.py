"""Oracles: scipy.ndimage, Pillow and numpy in float64, step by step; cases worked out by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from diffjax import cold, occlusions
from diffjax.degradations import Degradation, compose, degrade, draw, infer

SHAPE = (8, 8, 3)

# Every constructor of the two files, in several settings; image shape, then the maker.
CASES = {
    "blur": (SHAPE, lambda s: cold.gaussian_blur(s, stds=[1, 2, 3], kernel_size=5)),
    "blur, individual, to the mean": (
        (8, 6, 1),
        lambda s: cold.gaussian_blur(
            s,
            stds=[2, 6, 10],
            kernel_size=[1, 3, 5],
            boundary="reflect",
            cumulative=False,
            mean_at_end=True,
        ),
    ),
    "downsample": (SHAPE, lambda s: cold.downsample(s, steps=3)),
    "downsample, sizes": (
        (8, 6, 1),
        lambda s: cold.downsample(s, sizes=[(7, 5), (3, 3), 1], method="bilinear"),
    ),
    "decolor": (SHAPE, lambda s: cold.decolor(s, steps=4)),
    "decolor, constant": (
        (4, 6, 1),
        lambda s: cold.decolor(s, steps=4, schedule="constant", gray_at_end=True),
    ),
    "fade": (SHAPE, lambda s: occlusions.fade(s, stds=[1, 2])),
    "fade, random place": (
        (7, 6, 1),
        lambda s: occlusions.fade(s, stds=[1, 2], place="random", color=0.3),
    ),
    "fade, all drawn, reverse": (
        SHAPE,
        lambda s: occlusions.fade(s, stds=[1, 2], place="random", color="drawn", reverse=True),
    ),
    "mask, given": (SHAPE, lambda s: occlusions.mask(s, mask=np.eye(8), fill=[0.1, 0.2, 0.3])),
    "mask, given, soft": ((8, 8, 1), lambda s: occlusions.mask(s, mask=np.eye(8) / 2, soft=True)),
    "mask, pixels": (SHAPE, lambda s: occlusions.mask(s, fraction=0.5)),
    "mask, box": ((8, 6, 1), lambda s: occlusions.mask(s, size=(4, 3), soft=True)),
    "snow": (SHAPE, lambda s: occlusions.snow(s, steps=5)),
    "snow, light, bright": (
        (8, 6, 1),
        lambda s: occlusions.snow(s, steps=5, level=1, fix_brightness=True),
    ),
    "composed": (
        SHAPE,
        lambda s: compose(occlusions.mask(s, fraction=0.5), cold.decolor(s, steps=3), share=0.25),
    ),
}


def image(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_laws(name):
    shape, make = CASES[name]
    keys = jax.random.split(jax.random.key(0), 3)
    x0_BHWC = jnp.asarray(np.stack([image(shape, seed) for seed in range(3)]))
    t_B = jnp.array([0.0, 0.55, 1.0])
    traces = []

    @jax.jit
    def run(degradation, x0_BHWC, t_B, keys):
        traces.append(None)

        def one(x0, t, key):
            omega = draw(degradation, key, x0)
            xt = degrade(degradation, x0, t, omega)
            again = degrade(degradation, x0, t, infer(degradation, xt, t, x0, omega))
            pulled = jax.grad(lambda x: jnp.sum(degrade(degradation, x, t, omega) ** 2))(x0)
            return xt, again, pulled

        return jax.vmap(one)(x0_BHWC, t_B, keys)

    xt, again, pulled = run(make(shape), x0_BHWC, t_B, keys)
    assert (xt.shape, xt.dtype) == (x0_BHWC.shape, x0_BHWC.dtype)
    np.testing.assert_array_equal(xt[0], x0_BHWC[0])
    if not (shape[2] == 1 and "decolor" in name):
        assert not np.array_equal(xt[2], x0_BHWC[2])
    np.testing.assert_allclose(again, xt, atol=1e-6)
    assert np.all(np.isfinite(pulled))
    run(make(shape), x0_BHWC, t_B, keys)
    assert len(traces) == 1


@pytest.mark.parametrize("t", [-0.1, 1.1])
def test_severity_outside_its_range_raises(t):
    degradation = cold.decolor(SHAPE, steps=2)
    with pytest.raises(ValueError, match="t must lie in"):
        degrade(degradation, jnp.zeros(SHAPE), t)


def test_published_blurs():
    x0 = image((16, 12, 1))
    individual = cold.gaussian_blur(
        x0.shape, stds=[2, 6, 10], kernel_size=[1, 3, 5], cumulative=False
    )
    expected = x0.astype(np.float64)
    for axis in (0, 1):
        kernel = np.exp(-(np.arange(-1, 2) ** 2) / 72)
        expected = ndimage.correlate1d(expected, kernel / kernel.sum(), axis=axis, mode="wrap")
    np.testing.assert_allclose(degrade(individual, x0, 2 / 3), expected, atol=1e-6)

    to_mean = cold.gaussian_blur(x0.shape, stds=[0.5, 0.5], kernel_size=3, mean_at_end=True)
    mean = np.broadcast_to(x0.astype(np.float64).mean(axis=(0, 1)), x0.shape)
    np.testing.assert_allclose(degrade(to_mean, x0, 1.0), mean, atol=1e-6)
    without = cold.gaussian_blur(x0.shape, stds=[0.5, 0.5], kernel_size=3)
    np.testing.assert_array_equal(degrade(to_mean, x0, 0.5), degrade(without, x0, 0.5))


def test_downsample_by_area_is_pillows():
    x0 = image((24, 16, 1))
    degradation = cold.downsample(x0.shape, sizes=[(12, 8), (4, 4), (2, 1)], method="area")
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
    degradation = cold.downsample(x0.shape, steps=3)
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
    halvings = cold.downsample(x0.shape, steps=2)
    sizes = cold.downsample(x0.shape, sizes=[(8, 4), (4, 2)])
    np.testing.assert_array_equal(degrade(halvings, x0, 1.0), degrade(sizes, x0, 1.0))


def test_decolor_weights_by_hand():
    x0 = np.array([[[0.9, 0.3, -0.6]]], np.float32)  # mean 0.2
    linear = cold.decolor(x0.shape, steps=4)
    np.testing.assert_allclose(degrade(linear, x0, 0.25), [[[0.725, 0.275, -0.4]]], atol=1e-6)
    gray = np.asarray(degrade(linear, x0, 1.0))
    assert gray[0, 0, 0] == gray[0, 0, 1] == gray[0, 0, 2]
    constant = cold.decolor(x0.shape, steps=2, schedule="constant", factor=0.5)
    np.testing.assert_allclose(degrade(constant, x0, 1.0), [[[0.375, 0.225, 0.0]]], atol=1e-6)
    ended = cold.decolor(x0.shape, steps=2, schedule="constant", factor=0.5, gray_at_end=True)
    np.testing.assert_allclose(degrade(ended, x0, 1.0), [[[0.2, 0.2, 0.2]]], atol=1e-6)
    np.testing.assert_allclose(degrade(ended, x0, 0.5), [[[0.55, 0.25, -0.2]]], atol=1e-6)


@pytest.mark.parametrize("name", ["blur", "downsample", "downsample, sizes", "decolor"])
def test_linear_map_is_the_degradation(name):
    shape, make = CASES[name]
    degradation, x0 = make(shape), image(shape)
    for t in (0.0, 0.4, 1.0):
        at_t = degradation.linear_fn(degradation.params, jnp.float32(t))
        rows, cols, colors = (
            np.eye(n) if matrix is None else np.asarray(matrix, np.float64)
            for n, matrix in zip(shape, (at_t.rows, at_t.cols, at_t.colors), strict=True)
        )
        expected = at_t.alpha * np.einsum("ih,hwc,jw,dc->ijd", rows, x0, cols, colors)
        np.testing.assert_allclose(degrade(degradation, x0, t), expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "hole"), [((8, 6, 1), (3, 2)), ((7, 5, 3), (3, 2))])
def test_fade_is_centred_above_and_left_of_the_middle(shape, hole):
    x0 = jnp.ones(shape)
    xt = np.asarray(degrade(occlusions.fade(shape, stds=[0.5]), x0, 1.0))
    assert {tuple(place[:2]) for place in np.argwhere(xt == 0).tolist()} == {hole}


def test_reverse_fade_ends_in_the_colour_exactly():
    x0 = image(SHAPE)
    constant = occlusions.fade(SHAPE, stds=[1, 2], color=[0.1, -0.3, 0.7], reverse=True)
    expected = np.broadcast_to(np.float32([0.1, -0.3, 0.7]), SHAPE)
    np.testing.assert_array_equal(degrade(constant, x0, 1.0), expected)
    # One step of two: what is kept is what one hole of std 1 destroys, so the centre stays.
    xt = degrade(constant, x0, 0.5)
    np.testing.assert_array_equal(xt[3, 3], x0[3, 3])
    kept = np.exp(-0.5 * (1 + 4))  # at [4, 5], 1 and 2 pixels away
    np.testing.assert_allclose(xt[4, 5], kept * x0[4, 5] + (1 - kept) * expected[4, 5], atol=1e-6)


def test_masks_of_ones_own_by_hand():
    x0, own = jnp.full((1, 3, 1), 0.8), [[[0.0], [0.5], [1.0]]]
    hard = occlusions.mask(x0.shape, mask=own, fill=-1.0)
    soft = occlusions.mask(x0.shape, mask=own, fill=-1.0, soft=True)
    at_half, at_one = ([degrade(d, x0, t)[0, :, 0] for d in (hard, soft)] for t in (0.5, 1.0))
    np.testing.assert_allclose(at_half, [[0.8, 0.8, -1], [0.8, 0.35, -0.1]], atol=1e-6)
    np.testing.assert_allclose(at_one, [[0.8, -1, -1], [0.8, -0.1, -1]], atol=1e-6)


def test_compose_gives_each_its_share():
    first = cold.gaussian_blur(SHAPE, stds=[1, 1], kernel_size=3)
    second = occlusions.mask(SHAPE, fraction=0.5)
    both = compose(first, second, share=0.4)
    x0 = image(SHAPE)
    omega = jax.jit(draw)(both, jax.random.key(3), x0)
    assert omega[0] is None
    blurred = degrade(first, x0, 1.0)
    np.testing.assert_array_equal(degrade(both, x0, 0.2, omega), degrade(first, x0, 0.5))
    np.testing.assert_array_equal(degrade(both, x0, 0.4, omega), blurred)
    np.testing.assert_allclose(
        degrade(both, x0, 0.7, omega), degrade(second, blurred, 0.5, omega[1]), atol=1e-6
    )
    expected = degrade(second, blurred, 1.0, omega[1])
    np.testing.assert_array_equal(degrade(both, x0, 1.0, omega), expected)


def _shift(params, x0, t, omega):
    """D = x0 + a t omega, whose realisation can be inferred."""
    return x0 + params * t * omega


def _infer_shift(params, xt, t, x0_hat, omega):
    return jnp.where(t == 0, omega, (xt - x0_hat) / jnp.where(t == 0, 1, params * t))


def test_compose_infers_what_acts():
    shifts = [Degradation(a, apply_fn=_shift, infer_fn=_infer_shift) for a in (1.0, 2.0)]
    both = compose(*shifts)
    x0 = jnp.ones((2, 2, 1))
    xt = jnp.full((2, 2, 1), 4.0)
    kept = (jnp.full((2, 2, 1), 7.0), jnp.full((2, 2, 1), 9.0))
    # t = 0.25: only the first acts, at its 0.5: 4 = 1 + 0.5 omega.
    first, second = infer(both, xt, 0.25, x0, kept)
    np.testing.assert_array_equal(first, np.full((2, 2, 1), 6.0))
    np.testing.assert_array_equal(second, kept[1])
    # t = 0.75: the first is at its end point 1 + 7; 4 = 8 + 2 * 0.5 omega.
    first, second = infer(both, xt, 0.75, x0, kept)
    np.testing.assert_array_equal(first, kept[0])
    np.testing.assert_array_equal(second, np.full((2, 2, 1), -4.0))


BLUR = {"stds": [1.0], "kernel_size": 3}

WRONG = [
    (cold.gaussian_blur, BLUR | {"stds": []}, "stds must list one number a step"),
    (cold.gaussian_blur, BLUR | {"stds": [[1.0]]}, "stds must list one number a step"),
    (cold.gaussian_blur, BLUR | {"stds": [1.0, -1.0]}, "stds must be positive; got -1.0"),
    (cold.gaussian_blur, BLUR | {"kernel_size": 4}, "kernel_size must be odd"),
    (cold.gaussian_blur, BLUR | {"kernel_size": -3}, "kernel_size must be odd"),
    (cold.gaussian_blur, BLUR | {"kernel_size": [3, 3]}, "one for all or one a step"),
    (cold.gaussian_blur, BLUR | {"boundary": "wrap"}, "boundary must be one of"),
    (cold.downsample, {}, "downsample takes either sizes or steps"),
    (cold.downsample, {"sizes": [4], "steps": 1}, "downsample takes either sizes or steps"),
    (cold.downsample, {"sizes": []}, "sizes must list one size a step"),
    (cold.downsample, {"sizes": [4, 5]}, "sizes must be positive and never grow"),
    (cold.downsample, {"sizes": [9]}, "sizes must be positive and never grow"),
    (cold.downsample, {"sizes": [4, 0]}, "sizes must be positive and never grow"),
    (cold.downsample, {"sizes": [5], "method": "area"}, "area needs sizes that divide"),
    (cold.downsample, {"steps": 0}, "steps must be positive"),
    (cold.downsample, {"steps": 4}, "need 2^steps to divide the image; got 8 x 8"),
    (cold.downsample, {"steps": 1, "method": "lanczos"}, "method must be"),
    (cold.decolor, {"steps": 0}, "steps must be positive"),
    (cold.decolor, {"steps": 2, "schedule": "cosine"}, "schedule must be linear or constant"),
    (cold.decolor, {"steps": 2, "schedule": "constant", "factor": 1.0}, "factor must lie in"),
    (occlusions.fade, {"stds": []}, "stds must list one number a step"),
    (occlusions.fade, {"stds": [-1.0]}, "stds must be positive"),
    (occlusions.fade, {"stds": [1.0], "place": "corner"}, "place must be centre or random"),
    (occlusions.fade, {"stds": [1.0], "color": "red"}, "color must be drawn, one number"),
    (occlusions.fade, {"stds": [1.0], "color": [0, 0]}, "color must be one number or one a"),
    (occlusions.mask, {}, "mask takes one of mask, fraction and size; got 0"),
    (occlusions.mask, {"fraction": 0.5, "size": 3}, "mask takes one of"),
    (occlusions.mask, {"mask": np.ones((8, 7))}, "mask must have shape (8, 8)"),
    (occlusions.mask, {"mask": np.full((8, 8), 2.0)}, "mask must lie in [0, 1]"),
    (occlusions.mask, {"fraction": 0.0}, "fraction must lie in (0, 1]"),
    (occlusions.mask, {"fraction": 1.5}, "fraction must lie in (0, 1]"),
    (occlusions.mask, {"size": (4, 9)}, "size must be positive and fit the 8 x 8 image"),
    (occlusions.mask, {"size": 0}, "size must be positive and fit"),
    (occlusions.mask, {"fraction": 0.5, "fill": [0, 0]}, "fill must be one number"),
    (occlusions.snow, {"steps": 0}, "steps must be positive"),
    (occlusions.snow, {"steps": 5, "level": 5}, "level must be one of 1, 2, 3, 4; got 5"),
]


@pytest.mark.parametrize(("constructor", "arguments", "message"), WRONG)
def test_an_argument_that_cannot_be_raises(constructor, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        constructor(SHAPE, **arguments)


@pytest.mark.parametrize("shape", [(8, 8), (8, 0, 3), (8, 8, 3, 1), (8.0, 8, 3)])
@pytest.mark.parametrize(
    ("constructor", "arguments"),
    [
        (cold.gaussian_blur, BLUR),
        (cold.downsample, {"steps": 1}),
        (cold.decolor, {"steps": 1}),
        (occlusions.fade, {"stds": [1.0]}),
        (occlusions.mask, {"fraction": 0.5}),
        (occlusions.snow, {"steps": 1}),
    ],
)
def test_a_shape_that_cannot_be_raises(shape, constructor, arguments):
    with pytest.raises(ValueError, match="image_shape must be"):
        constructor(shape, **arguments)


@pytest.mark.parametrize("name", [name for name in CASES if name != "composed"])
def test_an_image_of_another_shape_raises(name):
    shape, make = CASES[name]
    degradation = make(shape)

    def run(x0):
        return degrade(degradation, x0, 0.5, draw(degradation, jax.random.key(0), x0))

    anyone_fits = {"mask, pixels", "mask, box"}
    other = (shape[0] + 1, shape[1], shape[2])
    if name in anyone_fits or name.startswith("decolor"):
        other = (*shape[:2], shape[2] + 1)
    with pytest.raises(AssertionError):
        jax.eval_shape(run, jax.ShapeDtypeStruct(other, jnp.float32))


@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_a_share_that_cannot_be_raises(share):
    blur = cold.gaussian_blur(SHAPE, **BLUR)
    with pytest.raises(ValueError, match="share must lie strictly between 0 and 1"):
        compose(blur, blur, share=share)
