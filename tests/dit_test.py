"""Oracles: numpy in float64 for a block, the places of tokens and the cut into patches.

A parameter that is zero at first hides what lies behind it, so most tests move all of
them a little ("perturbed").
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import dit, initialize

SHAPE = (7, 5, 3)
MODEL = dit.DiT(channels=3, patch=2, width=24, depth=2, heads=3, num_classes=3)

apply = jax.jit(MODEL.apply)


def image(seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float32)


def described(model, shape):
    """(output, parameters) as shapes and dtypes; nothing is compiled."""
    arguments = jax.random.key(0), jnp.zeros(shape), jnp.zeros(())
    return jax.eval_shape(model.init_with_output, *arguments)


def perturbed(tree, scale=0.1):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(np.float32), tree)


PARAMS = perturbed(described(MODEL, SHAPE)[1])


@pytest.mark.parametrize("size", [(28, 28), (7, 7), (13, 9), (1, 1)])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_any_size_keeps_its_size(size, patch):
    output, _ = described(MODEL.clone(patch=patch), (*size, 6))
    assert output.shape == (*size, 3)
    assert output.dtype == jnp.float32


def test_bfloat16_is_for_the_computation_alone():
    model = MODEL.clone(dtype=jnp.bfloat16)
    output, params = described(model, SHAPE)
    assert output.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    jaxpr = jax.make_jaxpr(model.apply)(PARAMS, image(), jnp.float32(0.5))
    products = [
        equation.outvars[0].aval.dtype
        for equation in jaxpr.eqns
        if equation.primitive.name == "dot_general"
    ]
    # The last product, which makes the image, is always in float32.
    assert set(products[:-1]) == {jnp.dtype(jnp.bfloat16)}
    assert products[-1] == jnp.float32


def test_bfloat16_agrees_with_float32():
    exact = apply(PARAMS, image(), jnp.float32(0.5))
    low = jax.jit(MODEL.clone(dtype=jnp.bfloat16).apply)(PARAMS, image(), jnp.float32(0.5))
    # bfloat16 rounds to 2^-9, and fewer than 30 roundings follow one another.
    assert 0 < np.abs(low - exact).max() < 30 * 2.0**-9 * np.abs(exact).max()


def test_output_is_zero_at_first():
    initial = initialize.init(MODEL, jax.random.key(0), SHAPE)
    np.testing.assert_array_equal(apply(initial, image(), jnp.float32(0.5)), np.zeros(SHAPE))


def test_a_block_is_the_identity_at_first():
    block = dit.TransformerBlock(heads=3, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    x, condition = rng.normal(size=(6, 24)), rng.normal(size=24)
    output, _ = jax.jit(block.init_with_output)(jax.random.key(0, impl="rbg"), x, condition)
    np.testing.assert_array_equal(output, x.astype(np.float32))


def test_output_depends_on_image_time_and_label():
    first = apply(PARAMS, image(), jnp.float32(0.2), jnp.int32(0))
    for arguments in (
        (image(2), jnp.float32(0.2), jnp.int32(0)),
        (image(), jnp.float32(0.7), jnp.int32(0)),
        (image(), jnp.float32(0.2), jnp.int32(1)),
    ):
        other = apply(PARAMS, *arguments)
        assert np.all(np.isfinite(other))
        assert np.max(np.abs(other - first)) > 1e-3 * np.max(np.abs(first))


def test_no_label_is_the_last_one():
    none = apply(PARAMS, image(), jnp.float32(0.2))
    last = apply(PARAMS, image(), jnp.float32(0.2), jnp.int32(3))
    np.testing.assert_allclose(none, last, atol=1e-6)


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def block_by_hand(params, x, condition, heads):
    """The block in numpy, float64: one query after another, one head after another."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    tokens, features = x.shape
    silu = condition / (1 + np.exp(-condition))
    modulation = p["Modulation_0"]["Dense_0"]
    vectors = (silu @ modulation["kernel"] + modulation["bias"]).reshape(6, features)
    h = layer_norm(x) * (1 + vectors[1]) + vectors[0]
    attention = p["MultiHeadDotProductAttention_0"]
    mixed = np.zeros_like(x)
    for head in range(heads):
        query, key, value = (
            h @ attention[part]["kernel"][:, head] + attention[part]["bias"][head]
            for part in ("query", "key", "value")
        )
        for i in range(tokens):
            weights = softmax(query[i] @ key.T / np.sqrt(features / heads))
            mixed[i] += (weights @ value) @ attention["out"]["kernel"][head]
    x = x + vectors[2] * (mixed + attention["out"]["bias"])
    h = layer_norm(x) * (1 + vectors[4]) + vectors[3]
    h = h @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    # GELU as tanh writes it: 0.5 h (1 + tanh(sqrt(2 / pi) (h + 0.044715 h^3))).
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return x + vectors[5] * (h @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"])


def test_a_block_is_what_numpy_computes():
    block = dit.TransformerBlock(heads=3, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    x, condition = rng.normal(size=(6, 24)), rng.normal(size=24)
    described_params = jax.eval_shape(block.init, jax.random.key(0), x, condition)
    params = perturbed(described_params, scale=0.3)
    output = jax.jit(block.apply)(params, x, condition)
    expected = block_by_hand(params, x, condition, heads=3)
    assert np.abs(expected - x).max() > 1
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (16, 2)])
def test_places(rows, columns):
    # sin and cos of y 10^(-4 j / (n - 1)), j = 0..n-1, then the same of x; n = features / 4.
    features, n = 16, 4
    found = dit.position_embedding(rows, columns, features)
    frequencies = 10.0 ** (-4 * np.arange(n) / (n - 1))
    for place in range(rows * columns):
        y, x = divmod(place, columns)
        waves = [wave(p * frequencies) for p in (y, x) for wave in (np.sin, np.cos)]
        np.testing.assert_allclose(found[place], np.concatenate(waves), atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3)])
def test_tokens_are_patches_and_come_back(patch, size):
    x = np.random.default_rng(0).normal(size=(*size, 3)).astype(np.float32)
    tokens = dit.to_tokens(jnp.asarray(x), patch)
    columns = -(-size[1] // patch)
    padded = np.pad(x, ((0, patch), (0, patch), (0, 0)), mode="edge")
    for place, token in enumerate(tokens):
        y, z = (patch * i for i in divmod(place, columns))
        np.testing.assert_array_equal(token, padded[y : y + patch, z : z + patch].ravel())
    assert len(tokens) == -(-size[0] // patch) * columns
    np.testing.assert_array_equal(dit.from_tokens(tokens, patch, *size), x)


def test_a_token_knows_its_place():
    # The same patches in another order: without places the answer would be in that order too.
    swapped = np.concatenate([image()[4:6], image()[2:4], image()[:2], image()[6:]])
    output = apply(PARAMS, image(), jnp.float32(0.2))
    other = apply(PARAMS, swapped, jnp.float32(0.2))
    back = np.concatenate([other[4:6], other[2:4], other[:2], other[6:]])
    assert np.abs(back - output).max() > 1e-3 * np.abs(output).max()


def test_gradient_reaches_every_parameter():
    weights = image(3)

    def loss(params, xt):
        return jnp.sum(weights * MODEL.apply(params, xt, jnp.float32(0.3), jnp.int32(1)))

    gradients, slope = jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, image())
    assert np.all(np.isfinite(slope))
    assert np.any(slope)
    for path, gradient in jax.tree.leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(gradient)), name
        # A bias of the keys adds the same to all logits of a query, which softmax ignores.
        if "key']['bias" not in name:
            assert np.max(np.abs(gradient)) > 1e-6, name


def test_batch_by_vmap_is_the_loop():
    images, ts, labels = np.stack([image(4), image(5)]), jnp.array([0.1, 0.9]), jnp.array([0, 2])
    batch = jax.jit(jax.vmap(MODEL.apply, in_axes=(None, 0, 0, 0)))(PARAMS, images, ts, labels)
    loop = [apply(PARAMS, *one) for one in zip(images, ts, labels, strict=True)]
    np.testing.assert_allclose(batch, np.stack(loop), atol=1e-5)


@pytest.mark.parametrize(("shape", "t_shape"), [((1, 7, 5, 3), ()), ((7, 5), ()), (SHAPE, (1,))])
def test_a_batch_or_a_vector_of_times_raises(shape, t_shape):
    with pytest.raises(AssertionError):
        jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(t_shape))


def test_a_width_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="width must be a multiple of 4 and of heads; got 30"):
        described(MODEL.clone(width=30), SHAPE)
