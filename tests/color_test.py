"""Oracles: colour mixes worked out by hand, and numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.operators import color


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
