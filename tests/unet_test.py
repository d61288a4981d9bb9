"""Oracles: numpy in float64 for the time embedding; counts of modules by hand.

A parameter that is zero at first hides what lies behind it, so most tests move all of
them a little ("perturbed").
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import unet

SHAPE = (7, 5, 3)
# 16 features: with one channel in each of the 8 groups a norm would cancel the biases before it.
MODEL = unet.UNet(channels=3, width=16, multipliers=(1, 2), blocks=1, attention=(1,), num_classes=3)


# What needs a compilation of its own is tried on fewer blocks.
SMALL = unet.UNet(channels=3, width=8, multipliers=(1,), blocks=1, num_classes=3)

apply = jax.jit(MODEL.apply)


def image(seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float32)


def described(model, shape):
    """(output, parameters) as shapes and dtypes; nothing is compiled."""
    arguments = jax.random.key(0), jnp.zeros(shape), jnp.zeros(())
    return jax.eval_shape(model.init_with_output, *arguments)


def leaves_by_name(tree):
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def perturbed(model):
    """Parameters drawn by numpy: the norms' scales around 1, all else around 0."""
    rng = np.random.default_rng(1)

    def drawn(path, leaf):
        center = 1 if path[-1].key == "scale" else 0
        return (center + 0.1 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, described(model, SHAPE)[1])


@pytest.mark.parametrize("size", [(28, 28), (7, 7), (13, 9), (5, 8), (1, 1), (32, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_keeps_its_size(size, channels):
    model = unet.UNet(channels=channels, width=8, multipliers=(1, 2, 2), blocks=1, attention=(2,))
    output, _ = described(model, (*size, channels))
    assert output.shape == (*size, channels)
    assert output.dtype == jnp.float32


def test_output_may_have_other_channels_than_the_input():
    assert described(unet.UNet(channels=3, width=8), (8, 8, 6))[0].shape == (8, 8, 3)


def test_bfloat16_is_for_the_computation_alone():
    for dtype in (jnp.float32, jnp.bfloat16):
        model = MODEL.clone(dtype=dtype)
        output, params = described(model, SHAPE)
        assert output.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        jaxpr = jax.make_jaxpr(model.apply)(params, image(), jnp.float32(0.5))
        convolutions = [
            equation.outvars[0].aval.dtype
            for equation in jaxpr.eqns
            if equation.primitive.name == "conv_general_dilated"
        ]
        # The last convolution, which makes the image, is always in float32.
        assert len(convolutions) > 10
        assert set(convolutions[:-1]) == {jnp.dtype(dtype)}
        assert convolutions[-1] == jnp.float32


def test_bfloat16_agrees_with_float32():
    params = perturbed(SMALL)

    @jax.jit
    def both(xt, t):
        return SMALL.apply(params, xt, t), SMALL.clone(dtype=jnp.bfloat16).apply(params, xt, t)

    exact, low = both(image(), jnp.float32(0.5))
    # bfloat16 rounds to 2^-9, and fewer than 30 roundings follow one another.
    assert 0 < np.abs(low - exact).max() < 30 * 2.0**-9 * np.abs(exact).max()


def test_output_is_zero_at_first():
    # This generator compiles in half the time of the default one.
    settings = {"width": 8, "multipliers": (1,), "blocks": 1}
    init_fn, apply_fn = unet.network(SHAPE, 3, 3, 3, **settings)
    initial = init_fn(jax.random.key(0, impl="rbg"))
    output = jax.jit(apply_fn)(initial, image(), jnp.float32(0.5))
    np.testing.assert_array_equal(output, np.zeros(SHAPE))


def test_a_network_is_the_unet_of_its_settings():
    # As a file of settings holds them: lists, and the dtype's name. It sees 6 channels, answers 3.
    settings = {"width": 8, "multipliers": [1, 2], "blocks": 1, "dtype": "bfloat16"}
    init_fn, apply_fn = unet.network(SHAPE, 6, 3, 3, **settings)
    params = jax.eval_shape(init_fn, jax.random.key(0))
    model = SMALL.clone(multipliers=(1, 2), dtype=jnp.bfloat16)
    output, expected = described(model, (*SHAPE[:2], 6))
    assert params == expected
    arguments = (jnp.zeros((*SHAPE[:2], 6)), jnp.float32(0.5), jnp.int32(1))
    assert jax.eval_shape(apply_fn, params, *arguments) == output


def test_output_depends_on_image_time_and_label():
    params = perturbed(MODEL)
    first = apply(params, image(), jnp.float32(0.2), jnp.int32(0))
    for arguments in (
        (image(2), jnp.float32(0.2), jnp.int32(0)),
        (image(), jnp.float32(0.7), jnp.int32(0)),
        (image(), jnp.float32(0.2), jnp.int32(1)),
    ):
        other = apply(params, *arguments)
        assert np.all(np.isfinite(other))
        assert np.max(np.abs(other - first)) > 1e-3 * np.max(np.abs(first))


def test_no_label_is_the_last_one():
    params = perturbed(SMALL)
    none, last, first = jax.jit(
        lambda xt, t: [SMALL.apply(params, xt, t, label) for label in (None, 3, 0)]
    )(image(), jnp.float32(0.2))
    np.testing.assert_allclose(none, last, atol=1e-6)
    assert np.max(np.abs(first - last)) > 1e-3 * np.max(np.abs(last))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("features", [8, 64])
def test_time_embedding(t, features):
    # 1000 t 10^(-4 j / (n - 1)) for j = 0..n-1, n = features / 2: sines, then cosines.
    j = np.arange(features // 2)
    angles = 1000 * np.float64(np.float32(t)) * 10.0 ** (-4 * j / (features // 2 - 1))
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    # An angle near 1000 is known to 2^-14 in float32.
    embedding = unet.time_embedding(jnp.float32(t), features)
    np.testing.assert_allclose(embedding, expected, atol=3e-4)


@pytest.mark.parametrize(
    # A level has one block down and one up; the last has the middle one as well.
    ("attention", "count"),
    [((), 0), ((0,), 2), ((1,), 3), ((0, 1), 5)],
)
def test_attention_is_where_the_config_says(attention, count):
    _, params = described(MODEL.clone(attention=attention), SHAPE)
    modules = [name for name in params["params"] if name.startswith("SelfAttention")]
    assert len(modules) == count
    for name in modules:
        kernel = leaves_by_name(params["params"][name])
        features = {leaf.shape[0] for path, leaf in kernel.items() if "query']['kernel" in path}
        assert features <= {16 * (1, 2)[level] for level in attention}


def test_gradient_reaches_every_parameter():
    weights = image(3)

    def loss(params, xt):
        return jnp.sum(weights * MODEL.apply(params, xt, jnp.float32(0.3), jnp.int32(1)))

    gradients, slope = jax.jit(jax.grad(loss, argnums=(0, 1)))(perturbed(MODEL), image())
    assert np.all(np.isfinite(slope))
    assert np.any(slope)
    by_name = leaves_by_name(gradients)
    assert len(by_name) > 50
    for name, gradient in by_name.items():
        assert np.all(np.isfinite(gradient)), name
        # A bias of the keys adds the same to all logits of a query, which softmax ignores.
        if "key']['bias" not in name:
            assert np.max(np.abs(gradient)) > 1e-5, name


def test_batch_by_vmap_is_the_loop():
    params = perturbed(MODEL)
    images, ts, labels = np.stack([image(4), image(5)]), jnp.array([0.1, 0.9]), jnp.array([0, 2])
    batch = jax.jit(jax.vmap(MODEL.apply, in_axes=(None, 0, 0, 0)))(params, images, ts, labels)
    loop = [apply(params, *one) for one in zip(images, ts, labels, strict=True)]
    np.testing.assert_allclose(batch, np.stack(loop), atol=1e-5)


@pytest.mark.parametrize(("shape", "t_shape"), [((1, 7, 5, 3), ()), ((7, 5), ()), (SHAPE, (1,))])
def test_a_batch_or_a_vector_of_times_raises(shape, t_shape):
    with pytest.raises(AssertionError):
        jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(t_shape))
