"""Oracles: numpy in float64 for the time embedding; counts of modules by hand.

A parameter that is zero at first hides what lies behind it, so most tests move all of
them a little ("perturbed").
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import initialize, unet

SHAPE = (7, 5, 3)
# 16 features: with one channel in each of the 8 groups a norm would cancel the biases before it.
MODEL = unet.UNet(channels=3, width=16, multipliers=(1, 2), blocks=1, attention=(1,), num_classes=3)


# What needs a compilation of its own is tried on fewer blocks.
SMALL = unet.UNet(channels=3, width=8, multipliers=(1,), blocks=1, num_classes=3)

apply = jax.jit(MODEL.apply)


def image(seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float32)


def patches(x, patch):
    """Each patch, read row by row, as one pixel; beyond the image its last row or column."""
    height, width = x.shape[:2]
    rows, columns = -(-height // patch), -(-width // patch)
    out = np.zeros((rows, columns, patch, patch, x.shape[2]), x.dtype)
    for i, j, down, right in np.ndindex(rows, columns, patch, patch):
        y, z = min(i * patch + down, height - 1), min(j * patch + right, width - 1)
        out[i, j, down, right] = x[y, z]
    return out.reshape(rows, columns, -1)


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


@pytest.mark.parametrize("size", [(28, 28), (13, 9), (1, 1)])
@pytest.mark.parametrize("detail", [0, 8])
def test_any_size_keeps_its_size_with_patches(size, detail):
    output, _ = described(SMALL.clone(patch=4, detail=detail), (*size, 6))
    assert output.shape == (*size, 3)
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
    for model in (SMALL, SMALL.clone(patch=2, detail=8, num_classes=None)):
        initial = initialize.init(model, jax.random.key(0), SHAPE)
        output = jax.jit(model.apply)(initial, image(), jnp.float32(0.5))
        np.testing.assert_array_equal(output, np.zeros(SHAPE))


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


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3)])
def test_patches_become_pixels_and_come_back(patch, size):
    x = np.random.default_rng(0).normal(size=(*size, 3)).astype(np.float32)
    deep = unet.space_to_depth(jnp.asarray(x), patch)
    np.testing.assert_array_equal(deep, patches(x, patch))
    np.testing.assert_array_equal(unet.depth_to_space(deep, patch, *size), x)


def test_patch_is_the_same_network_on_patches():
    model = SMALL.clone(patch=2)
    params = perturbed(model)
    output = jax.jit(model.apply)(params, image(), jnp.float32(0.3))
    # The same parameters without patch, on an image whose pixels are patches.
    plain = SMALL.clone(channels=4 * SMALL.channels)
    on_patches = jax.jit(plain.apply)(params, patches(image(), 2), jnp.float32(0.3))
    whole = np.asarray(on_patches).reshape(4, 3, 2, 2, 3)
    for y, x in np.ndindex(7, 5):
        np.testing.assert_allclose(
            output[y, x], whole[y // 2, x // 2, y % 2, x % 2], atol=1e-5, err_msg=f"{y}, {x}"
        )


def test_detail_sees_single_pixels_of_xt():
    model = SMALL.clone(patch=2, detail=8)
    params = perturbed(model)
    names = sorted(params["params"], key=lambda name: (len(name), name))
    patches_out, _, _ = [name for name in names if name.startswith("Conv_")][-3:]
    silenced = jax.tree.map(np.zeros_like, params["params"][patches_out])
    params["params"][patches_out] = silenced
    apply_model = jax.jit(model.apply)
    changed = image()
    changed[3, 2] += 1
    difference = np.abs(
        apply_model(params, changed, jnp.float32(0.3))
        - apply_model(params, image(), jnp.float32(0.3))
    ).max(axis=-1)
    # Two 3x3 convolutions reach two pixels far, and no patch is seen: its convolution is zero.
    rows, columns = np.nonzero(difference > 1e-6)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 5, 0, 4)


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


@pytest.mark.parametrize("model", [MODEL, SMALL.clone(width=16, patch=2, detail=8)])
def test_gradient_reaches_every_parameter(model):
    weights = image(3)

    def loss(params, xt):
        return jnp.sum(weights * model.apply(params, xt, jnp.float32(0.3), jnp.int32(1)))

    gradients, slope = jax.jit(jax.grad(loss, argnums=(0, 1)))(perturbed(model), image())
    assert np.all(np.isfinite(slope))
    assert np.any(slope)
    by_name = leaves_by_name(gradients)
    assert len(by_name) > 35
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
