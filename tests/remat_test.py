"""Recomputed activations: the same numbers, and less that is kept for the gradient."""

import chex
import jax
import jax.numpy as jnp
import pytest

from diffjax.models import dit, initialize, unet

NETWORKS = {
    "unet": (unet.UNet, {"width": 8, "multipliers": (1,), "blocks": 1}),
    "dit": (dit.DiT, {"width": 16, "depth": 2, "heads": 2}),
}


@pytest.mark.parametrize("name", ["dit", pytest.param("unet", marks=pytest.mark.soak)])
def test_the_same_gradient_from_less_memory(name):
    model_class, settings = NETWORKS[name]
    images = jax.random.normal(jax.random.key(1), (32, 8, 8, 1))
    found = []
    for remat in (False, True):
        model = model_class(channels=1, remat=remat, **settings)
        params = initialize.init(model, jax.random.key(0), images.shape[1:])
        # Layers that start at zero would hide what lies before them.
        params = jax.tree.map(lambda leaf: leaf + 0.1, params)

        def loss(params, images, model=model):
            outputs = jax.vmap(lambda x: model.apply(params, x, jnp.float32(0.5)))(images)
            return jnp.mean(jnp.square(outputs - images))

        # What the way back needs of the way there; arguments included.
        residuals = jax.eval_shape(
            lambda params, loss=loss: jax.vjp(loss, params, images)[1], params
        )
        kept = sum(leaf.size for leaf in jax.tree.leaves(residuals))
        found.append((params, jax.jit(jax.grad(loss))(params, images), kept))
    (params, grads, kept), (same_params, same_grads, kept_less) = found
    chex.assert_trees_all_equal(same_params, params)
    chex.assert_trees_all_close(same_grads, grads, rtol=1e-4, atol=1e-6)
    assert kept_less < kept / 2
