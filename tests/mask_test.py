"""Oracles: masks of a few pixels worked out by hand, and counts in closed form."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.degradations import mask
from diffjax.degradations.base import degrade

SHAPE = (8, 8, 3)

# 1 - exp(-d^2 / 2) at d^2 = 1, 2, 4, 5, 8.
SIDE, CORNER, TWO, KNIGHT, FAR = (
    0.3934693403,
    0.6321205588,
    0.8646647168,
    0.9179150014,
    0.9816843611,
)


def test_fade_table_by_hand():
    # 4 x 4, center at [1, 1]: the hole of an even image lies above and left of its middle.
    once = np.array(
        [
            [CORNER, SIDE, CORNER, KNIGHT],
            [SIDE, 0, SIDE, TWO],
            [CORNER, SIDE, CORNER, KNIGHT],
            [KNIGHT, TWO, KNIGHT, FAR],
        ]
    )
    squares, distance = mask.distances((4, 4), (1, 1))
    assert squares.tolist() == [0, 1, 2, 4, 5, 8]
    table = mask.fade_table([1.0, 1.0], squares)[:, distance]
    np.testing.assert_allclose(table, [once, once**2], atol=1e-7)
    assert table[0, 1, 1] == 0
    reverse = mask.fade_table([1.0, 1.0], squares, reverse=True)[:, distance]
    np.testing.assert_allclose(reverse, [1 - once, np.zeros((4, 4))], atol=1e-7)
    np.testing.assert_array_equal(reverse[1], 0)


def test_fade_table_scales_with_std():
    # A hole of std 2 at distance 4 is one of std 1 at distance 2.
    table = mask.fade_table([2.0], np.array([4, 16]))
    np.testing.assert_allclose(table[0], [SIDE, TWO], atol=1e-7)


def test_cover_by_hand():
    x0 = jnp.array([[[0.5, -1.0], [0.2, 0.4]]])
    covered = mask.cover(x0, jnp.array([[0.25, 0.0]]), jnp.array([1.0, -0.2]))
    np.testing.assert_allclose(covered, [[[0.875, -0.4], [1.0, -0.2]]], atol=1e-7)


def test_window_moves_the_hole():
    height, width = 4, 6
    squares, distance = mask.distances((2 * height, 2 * width), (height - 1, width - 1))
    table = mask.fade_table([0.3], squares)
    params = mask.Fade(jnp.asarray(table), jnp.asarray(distance), jnp.zeros(1))
    x0 = jnp.ones((height, width, 1))
    degrade = jax.jit(mask.degrade_fade)
    for row, col in [(0, 0), (1, 2), (3, 5), (4, 6)]:
        omega = mask.FadeDraw(jnp.array([row, col]), None)
        xt = np.asarray(degrade(params, x0, jnp.float32(1), omega))[..., 0]
        holes = np.argwhere(xt == 0).tolist()
        hole = [height - 1 - row, width - 1 - col]
        assert holes == ([] if -1 in hole else [hole])


def test_draws_cover_their_range():
    keys = jax.random.split(jax.random.key(0), 2000)
    size = jnp.array([3, 1])

    @jax.jit
    @jax.vmap
    def draw(key):
        return (
            mask.draw_offset(key, (4, 2)),
            mask.draw_color(key, 3),
            mask.draw_corner(key, size, (5, 2)),
        )

    offsets, colors, corners = (np.asarray(draws) for draws in draw(keys))
    assert set(offsets[:, 0]) == {0, 1, 2, 3, 4}
    assert set(offsets[:, 1]) == {0, 1, 2}
    assert colors.shape == (2000, 3)
    assert -0.5 <= colors.min() < -0.49
    assert 0.49 < colors.max() <= 0.5
    assert set(corners[:, 0]) == {0, 1, 2}
    assert set(corners[:, 1]) == {0, 1}


def test_box_grows_about_its_center():
    # 6 x 8 box with its corner at [1, 2] on 9 x 12; at t = 0.4 the pixel centers within
    # 0.4 of the half sides 3 and 4 are those at 0.5 of 1.2 rows, 0.5 and 1.5 of 1.6 columns.
    tau = mask.box_loss_time(jnp.array([1, 2]), jnp.array([6, 8]), (9, 12))
    for t, rows, cols in [(1.0, (1, 7), (2, 10)), (0.4, (3, 5), (4, 8))]:
        expected = np.ones((9, 12))
        expected[slice(*rows), slice(*cols)] = 0
        np.testing.assert_array_equal(mask.keep_hard(tau, jnp.float32(t)), expected)
    np.testing.assert_array_equal(mask.keep_hard(tau, jnp.float32(0)), np.ones((9, 12)))


def test_pixels_are_lost_in_the_order_of_u():
    u = jnp.array([[0.0, 0.1, 0.3, 0.5, 0.9]])
    tau = mask.pixels_loss_time(u, jnp.float32(0.5))  # 0, 0.2, 0.6, 1, 1.8
    kept = [mask.keep_hard(tau, jnp.float32(t))[0].tolist() for t in (0, 0.1, 0.5, 1)]
    assert kept == [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]


def test_keep_soft_by_hand():
    keep = mask.keep_soft(jnp.array([[0.0, 0.5, 1.0]]), jnp.float32(0.5))
    np.testing.assert_array_equal(keep, [[1, 0.75, 0.5]])


def test_shapes_that_differ_raise():
    with pytest.raises(AssertionError):
        mask.cover(jnp.zeros((4, 4, 3)), jnp.ones((4, 5)), jnp.zeros(3))
    with pytest.raises(AssertionError):
        mask.cover(jnp.zeros((4, 4, 3)), jnp.ones((4, 4)), jnp.zeros(1))


@pytest.mark.parametrize(("shape", "hole"), [((8, 6, 1), (3, 2)), ((7, 5, 3), (3, 2))])
def test_fade_is_centered_above_and_left_of_the_middle(shape, hole):
    x0 = jnp.ones(shape)
    xt = np.asarray(degrade(mask.fade(shape, stds=[0.5]), x0, 1.0))
    assert {tuple(place[:2]) for place in np.argwhere(xt == 0).tolist()} == {hole}


def test_reverse_fade_ends_in_the_color_exactly():
    x0 = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
    constant = mask.fade(SHAPE, stds=[1, 2], color=[0.1, -0.3, 0.7], reverse=True)
    expected = np.broadcast_to(np.float32([0.1, -0.3, 0.7]), SHAPE)
    np.testing.assert_array_equal(degrade(constant, x0, 1.0), expected)
    # One step of two: what is kept is what one hole of std 1 destroys, so the center stays.
    xt = degrade(constant, x0, 0.5)
    np.testing.assert_array_equal(xt[3, 3], x0[3, 3])
    kept = np.exp(-0.5 * (1 + 4))  # at [4, 5], 1 and 2 pixels away
    np.testing.assert_allclose(xt[4, 5], kept * x0[4, 5] + (1 - kept) * expected[4, 5], atol=1e-6)


def test_masks_of_ones_own_by_hand():
    x0, own = jnp.full((1, 3, 1), 0.8), [[[0.0], [0.5], [1.0]]]
    hard = mask.mask(x0.shape, mask=own, fill=-1.0)
    soft = mask.mask(x0.shape, mask=own, fill=-1.0, soft=True)
    at_half, at_one = ([degrade(d, x0, t)[0, :, 0] for d in (hard, soft)] for t in (0.5, 1.0))
    np.testing.assert_allclose(at_half, [[0.8, 0.8, -1], [0.8, 0.35, -0.1]], atol=1e-6)
    np.testing.assert_allclose(at_one, [[0.8, -1, -1], [0.8, -0.1, -1]], atol=1e-6)


WRONG = [
    (mask.fade, {"stds": []}, "stds must list one number a step"),
    (mask.fade, {"stds": [-1.0]}, "stds must be positive"),
    (mask.fade, {"stds": [1.0], "place": "corner"}, "place must be center or random"),
    (mask.fade, {"stds": [1.0], "color": "red"}, "color must be drawn, one number"),
    (mask.fade, {"stds": [1.0], "color": [0, 0]}, "color must be one number or one a"),
    (mask.mask, {}, "mask takes one of mask, fraction and size; got 0"),
    (mask.mask, {"fraction": 0.5, "size": 3}, "mask takes one of"),
    (mask.mask, {"mask": np.ones((8, 7))}, "mask must have shape (8, 8)"),
    (mask.mask, {"mask": np.full((8, 8), 2.0)}, "mask must lie in [0, 1]"),
    (mask.mask, {"fraction": 0.0}, "fraction must lie in (0, 1]"),
    (mask.mask, {"fraction": 1.5}, "fraction must lie in (0, 1]"),
    (mask.mask, {"size": (4, 9)}, "size must be positive and fit the 8 x 8 image"),
    (mask.mask, {"size": 0}, "size must be positive and fit"),
    (mask.mask, {"fraction": 0.5, "fill": [0, 0]}, "fill must be one number"),
]


@pytest.mark.parametrize(("constructor", "arguments", "message"), WRONG)
def test_an_argument_that_cannot_be_raises(constructor, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        constructor(SHAPE, **arguments)
