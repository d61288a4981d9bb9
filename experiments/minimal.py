"""A whole experiment on the library alone: an own degradation, an own network, a walk back.

python -m experiments.minimal

Writes nothing; prints the RMSE of held-out digits, degraded and restored.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import diffjax
from diffjax import samplers, training


def smear(params, x0, t, omega):
    """D: every row of pixels mixed with its own mean over three, x_t = (1 - t) x0 + t K x0."""
    xt = (1 - t) * x0 + t * jnp.einsum("ij,hjc->hic", params, x0)
    return xt.astype(x0.dtype)


def init(key, width=256):
    """A perceptron of one row, 8 pixels, and t."""
    sizes = [(10, width), (width, width), (width, 8)]
    keys = jax.random.split(key, len(sizes))
    return [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, sizes, strict=True)]


def apply(params, xt, t, label):
    """R(xt, t) = xt + what is missing."""
    h = jnp.concatenate([xt[..., 0], jnp.tile(jnp.stack([t, 1 - t]), (8, 1))], axis=1)
    for weights in params[:-1]:
        h = jax.nn.silu(h @ weights)
    return xt + (h @ params[-1])[..., None]


def main(steps=2000):
    images = jnp.asarray(load_digits().images[..., None] / 8 - 1, jnp.float32)
    train, test = images[:1437], images[1437:]
    shifts = sum(jnp.roll(jnp.eye(8), shift, axis=1) for shift in (-1, 0, 1)) / 3
    degradation = diffjax.Degradation(shifts, apply_fn=smear)
    diffjax.check_degradation(degradation, jax.random.key(0), (8, 8, 1))

    objective, problem = diffjax.Objective(apply), diffjax.Problem(degradation)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = diffjax.create_state(init(jax.random.key(0)), optimizer)
    settings = {"objective": objective, "optimizer": optimizer, "ema_decay": 0.99}
    step = jax.jit(functools.partial(training.train_step, **settings))
    for i in range(steps):
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), i), (64,), 0, len(train))
        batch = {"image": train[rows], "position": jnp.arange(64)}
        state, _ = step(state, batch, jax.random.key(2), problem)

    process = diffjax.process(degradation, lambda xt, t: apply(state.ema_params, xt, t, None))
    xT = jax.vmap(lambda x0: diffjax.degrade(degradation, x0, 1.0))(test)
    ts = samplers.uniform_grid(10)
    walk = functools.partial(diffjax.sample, samplers.improved, process, jax.random.key(3))
    restored = jax.jit(jax.vmap(lambda xt: walk(xt, ts)))(xT)
    before, after = (float(jnp.sqrt(jnp.mean((x - test) ** 2))) / 2 for x in (xT, restored))
    print(f"held-out RMSE, images in [0, 1]: degraded {before:.3f}, Algorithm 2 {after:.3f}")
    return before, after


if __name__ == "__main__":
    main()
