"""Oracles: `model.init` of flax, leaf by leaf, and the closed form of its laws.

A standard normal number cut off at +-2 has variance 1 - 2 * 2 phi(2) / (2 Phi(2) - 1) = 0.8796^2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import dit, initialize, unet

SHAPE = (7, 5, 2)
MODELS = {
    "unet": unet.UNet(
        channels=1, width=24, multipliers=(1, 2), blocks=1, attention=(1,), num_classes=9, patch=2
    ),
    "dit": dit.DiT(channels=1, width=48, depth=2, heads=3, num_classes=9),
}


def leaves_by_name(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


@pytest.fixture(scope="module", params=MODELS)
def both(request):
    """The leaves by name: drawn here, drawn by flax."""
    model = MODELS[request.param]
    # This generator compiles in half the time of the default one.
    flax = jax.jit(model.init)(jax.random.key(1, impl="rbg"), jnp.zeros(SHAPE), jnp.zeros(()))
    ours = initialize.init(model, jax.random.key(0), SHAPE)
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    return leaves_by_name(ours), leaves_by_name(flax)


def fan_in(name, shape):
    """Inputs of one output: all axes but the last; the attention's q, k, v end in two, and an
    embedding is said to be fed by its features."""
    if "embedding" in name:
        return shape[-1]
    split = any(f"'{part}'" in name for part in ("query", "key", "value"))
    return np.prod(shape[: -2 if split else -1])


def test_every_leaf_follows_its_law(both):
    ours, flax = both
    drawn = 0
    for name, leaf in flax.items():
        found = np.asarray(ours[name], np.float64)
        assert (found.shape, ours[name].dtype) == (leaf.shape, leaf.dtype), name
        if np.ptp(leaf) == 0:  # zeros or ones
            np.testing.assert_array_equal(found, leaf, err_msg=name)
            continue
        std = fan_in(name, leaf.shape) ** -0.5
        # The mean of n numbers varies by std / sqrt(n), their std by less than std / sqrt(2 n).
        assert abs(found.mean()) < 5 * std / np.sqrt(found.size), name
        assert abs(found.std() / std - 1) < 5 / np.sqrt(2 * found.size), name
        assert abs(np.asarray(leaf).std() / std - 1) < 5 / np.sqrt(2 * found.size), name
        if "kernel" in name:
            assert np.abs(found).max() <= 2 / 0.8796 * std * (1 + 1e-4), name
            assert found.size < 1000 or np.abs(found).max() > 1.9 / 0.8796 * std, name
        drawn += 1
    assert drawn > 10


def test_no_number_is_used_twice(both):
    ours, flax = both
    kernels = [
        np.ravel(leaf) * np.sqrt(fan_in(name, leaf.shape))
        for name, leaf in ours.items()
        if "kernel" in name and np.ptp(flax[name]) > 0
    ]
    numbers = np.concatenate(kernels).astype(np.float64).round(6)
    # By chance a few in a hundred agree to 6 digits.
    assert len(np.unique(numbers)) > 0.9 * len(numbers)


def test_the_key_decides():
    model = unet.UNet(channels=1, width=8, multipliers=(1,), blocks=1)
    first, again, other = (initialize.init(model, jax.random.key(k), SHAPE) for k in (0, 0, 1))
    for name, leaf in leaves_by_name(first).items():
        np.testing.assert_array_equal(leaves_by_name(again)[name], leaf)
        constant = np.ptp(leaf) == 0
        assert constant == np.array_equal(leaves_by_name(other)[name], leaf), name


def test_jit_vmap_and_eager_draw_the_same():
    model = unet.UNet(channels=1, width=8, multipliers=(1,), blocks=1)
    keys = jax.random.split(jax.random.key(0), 2)
    mapped = jax.jit(jax.vmap(lambda key: initialize.init(model, key, SHAPE)))(keys)
    for i, key in enumerate(keys):
        eager = leaves_by_name(initialize.init(model, key, SHAPE))
        for name, leaf in leaves_by_name(mapped).items():
            np.testing.assert_allclose(leaf[i], eager[name], atol=1e-6, err_msg=name)


class Unusual(nn.Module):
    """Three leaves of laws of their own, one of them a module's own parameter."""

    @nn.compact
    def __call__(self, xt, t):
        x = nn.Dense(4, kernel_init=nn.initializers.orthogonal())(xt * t)
        x = nn.Dense(3, bias_init=nn.initializers.normal(0.1))(x)
        return x * self.param("gain", nn.initializers.uniform(), (1, 1, 3))


def test_a_law_of_its_own_is_left_to_flax():
    key = jax.random.key(0)
    ours = leaves_by_name(initialize.init(Unusual(), key, SHAPE))
    flax = leaves_by_name(jax.jit(Unusual().init)(key, jnp.zeros(SHAPE), jnp.zeros(())))
    for name, leaf in flax.items():
        same = np.allclose(ours[name], leaf, rtol=1e-6)
        assert same == ("Dense_1']['kernel" not in name), name


def test_shapes_are_told_without_memory_for_them():
    model = unet.UNet(channels=1, width=8, multipliers=(10**5,))
    shapes = jax.eval_shape(lambda key: initialize.init(model, key, SHAPE), jax.random.key(0))
    # A kernel of 3x3 among 800,000 features takes 23 TB, and most begin at zero.
    found = shapes["params"]["ResidualBlock_0"]["Conv_1"]["kernel"]
    assert found.shape == (3, 3, 800_000, 800_000)
