"""Oracle: diffjax's own networks, on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import dit, unet

torch = pytest.importorskip("torch", reason="PyTorch, which diffjax does not need, is absent")
from experiments.lib import torch_twins  # noqa: E402

SMALL = unet.UNet(channels=2, width=16, multipliers=(1, 2), blocks=1)
TRANSFORMER = dit.DiT(channels=2, patch=2, width=24, depth=2, heads=3)
PAIRS = {
    "unet": (SMALL, torch_twins.UNet),
    "attention, labels": (SMALL.clone(attention=(0, 1), num_classes=3), torch_twins.UNet),
    "patches": (SMALL.clone(patch=2, multipliers=(1, 2, 1)), torch_twins.UNet),
    "patches, detail": (SMALL.clone(patch=3, detail=8, multipliers=(1,)), torch_twins.UNet),
    "dit": (TRANSFORMER, torch_twins.DiT),
    "dit, labels": (TRANSFORMER.clone(num_classes=3), torch_twins.DiT),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("size", [(8, 12), (7, 5)])
def test_a_twin_answers_the_same(name, size):
    model, twin = PAIRS[name]
    rng = np.random.default_rng(0)
    shape = (3, *size, 3)
    xt, t = rng.uniform(-1, 1, shape).astype(np.float32), np.float32([0.0, 0.3, 1.0])
    label = None if model.num_classes is None else np.array([0, 2, 3])
    described = jax.eval_shape(model.init, jax.random.key(0), xt[0], jnp.zeros(()))
    params = jax.tree.map(
        lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32), described
    )

    apply = jax.jit(jax.vmap(model.apply, in_axes=(None, 0, 0, None if label is None else 0)))
    weights = rng.normal(size=(3, *size, 2)).astype(np.float32)
    expected, pull = jax.vjp(lambda xt: apply(params, xt, t, label), xt)
    (slope,) = pull(weights)

    xt_torch = torch.from_numpy(xt).permute(0, 3, 1, 2).requires_grad_()
    label_torch = None if label is None else torch.from_numpy(label)
    output = twin(model, params)(xt_torch, torch.from_numpy(t), label_torch)
    (output.permute(0, 2, 3, 1) * torch.from_numpy(weights)).sum().backward()
    found, slope_torch = (x.permute(0, 2, 3, 1).numpy() for x in (output.detach(), xt_torch.grad))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(slope_torch, slope, atol=1e-4 * np.abs(slope).max())


def test_a_twin_holds_as_many_numbers():
    for model, twin in PAIRS.values():
        described = jax.eval_shape(
            model.init, jax.random.key(0), jnp.zeros((8, 8, 3)), jnp.zeros(())
        )
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), described)
        held = sum(parameter.numel() for parameter in twin(model, params).parameters())
        assert held == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_step_lowers_the_loss():
    rng = np.random.default_rng(0)
    described = jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((8, 8, 2)), jnp.zeros(()))
    params = jax.tree.map(
        lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32), described
    )
    step = torch_twins.create_train_step(torch_twins.UNet(SMALL, params), compiled=False)
    x0 = rng.uniform(-1, 1, (4, 8, 8, 2)).astype(np.float32)
    losses = [step(x0, 0.5 * x0, np.full(4, 0.5, np.float32)) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
