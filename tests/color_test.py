"""Oracles: color mixes worked out by hand, and numpy in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.degradations import color
from diffjax.degradations.base import degrade


def test_decolor_table_by_hand():
    # w = 0.4, three channels: 0.4 + 0.6/3 = 0.6 on the diagonal, 0.2 off it.
    expected = [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]
    table = color.decolor_table([0.4, 0.0], 3)
    np.testing.assert_allclose(table[0], expected, atol=1e-15)
    np.testing.assert_array_equal(table[1], np.full((3, 3), 1 / 3))
    np.testing.assert_array_equal(color.decolor_table([0.3], 1), [[[1.0]]])


def test_mix_channels_is_a_matrix_on_every_pixel():
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(4, 5, 3)), rng.normal(size=(3, 3))
    expected = np.empty_like(x)
    for i in range(4):
        for j in range(5):
            expected[i, j] = matrix @ x[i, j]
    mixed = color.mix_channels(jnp.float32(x), jnp.float32(matrix))
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 3, 4, 7])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_gray_is_equal_in_all_channels_bit_for_bit(channels, transform):
    x0 = np.random.default_rng(1).uniform(-1, 1, (13, 17, channels)).astype(np.float32)
    table = jnp.asarray(color.decolor_table([0.5, 0.0], channels), jnp.float32)
    gray = np.asarray(transform(color.degrade_color)(table, x0, jnp.float32(1)))
    np.testing.assert_array_equal(gray, np.broadcast_to(gray[..., :1], gray.shape))
    np.testing.assert_allclose(gray[..., 0], x0.astype(np.float64).mean(axis=-1), atol=1e-6)


def test_another_number_of_channels_raises():
    table = jnp.asarray(color.decolor_table([0.5], 3), jnp.float32)
    with pytest.raises(AssertionError):
        color.degrade_color(table, jnp.zeros((4, 4, 1)), jnp.float32(1))


def test_decolor_weights_by_hand():
    x0 = np.array([[[0.9, 0.3, -0.6]]], np.float32)  # mean 0.2
    linear = color.decolor(x0.shape, steps=4)
    np.testing.assert_allclose(degrade(linear, x0, 0.25), [[[0.725, 0.275, -0.4]]], atol=1e-6)
    gray = np.asarray(degrade(linear, x0, 1.0))
    assert gray[0, 0, 0] == gray[0, 0, 1] == gray[0, 0, 2]
    constant = color.decolor(x0.shape, steps=2, schedule="constant", factor=0.5)
    np.testing.assert_allclose(degrade(constant, x0, 1.0), [[[0.375, 0.225, 0.0]]], atol=1e-6)
    ended = color.decolor(x0.shape, steps=2, schedule="constant", factor=0.5, gray_at_end=True)
    np.testing.assert_allclose(degrade(ended, x0, 1.0), [[[0.2, 0.2, 0.2]]], atol=1e-6)
    np.testing.assert_allclose(degrade(ended, x0, 0.5), [[[0.55, 0.25, -0.2]]], atol=1e-6)


WRONG = [
    ({"steps": 0}, "steps must be positive"),
    ({"steps": 2, "schedule": "cosine"}, "schedule must be linear or constant"),
    ({"steps": 2, "schedule": "constant", "factor": 1.0}, "factor must lie in"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_an_argument_that_cannot_be_raises(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        color.decolor((8, 8, 3), **arguments)
