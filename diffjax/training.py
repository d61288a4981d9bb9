"""One pure training step, the same on one device and on a pod.

The state is a NamedTuple; the step is a function of (state, batch, key,
degradation) and of static functions. Randomness is fold_in(key, step), then
fold_in(.., global example index): never the device's index, so the same run on
another topology sees the same severities and realisations.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from diffjax.degradations import Degradation, degrade, draw

Array = chex.Array


class TrainState(NamedTuple):
    step: Array  # int32 scalar: steps done
    params: Any
    ema_params: Any
    opt_state: optax.OptState


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the average starts at the parameters themselves."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def create_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    clip_norm: float | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Adam; gradients clipped to a global norm, averaged over `accumulate` batches."""
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    optimizer = optax.chain(clip, optax.adam(learning_rate))
    if accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, every_k_schedule=accumulate).gradient_transformation()


def draw_severity(key: Array, levels: int | None = None) -> Array:
    """t ~ U(0, 1], scalar; with levels, uniform on {1/levels, 2/levels, ..., 1}.

    A degradation tabulated in T steps wants levels = T: rounding a continuous t
    to the table would train the last step, where sampling starts, half as often.
    """
    t = 1 - jax.random.uniform(key)
    return t if levels is None else jnp.ceil(t * levels) / levels


def example_loss(
    network_fn: Callable[[Any, Array, Array], Array],
    params: Any,
    key: Array,
    x0: Array,
    degradation: Degradation,
    *,
    loss_fn: Callable[[Array, Array], Array],
    levels: int | None = None,
) -> Array:
    """mean |R(D(x0, t, omega), t) - x0| for one example, t and omega drawn from the key.

    See Equation 2 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      network_fn: (params, xt, t) -> x0_hat, one example.
      params: of the network.
      key: this example's key.
      x0: clean image, [H, W, C], range [-1, 1].
      degradation: D.
      loss_fn: unreduced elementwise loss, such as `losses.l1`.
      levels: see `draw_severity`.
    Returns:
      Scalar.
    """
    key_t, key_omega = jax.random.split(key)
    t = draw_severity(key_t, levels)
    xt = degrade(degradation, x0, t, draw(degradation, key_omega, x0))
    return jnp.mean(loss_fn(network_fn(params, xt, t), x0))


def train_step(
    state: TrainState,
    batch: Mapping[str, Array],
    key: Array,
    degradation: Degradation,
    *,
    network_fn: Callable[[Any, Array, Array], Array],
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[[Array, Array], Array],
    ema_decay: float,
    levels: int | None = None,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step on this device's share of the batch.

    Args:
      state: replicated over the devices.
      batch: "image" [B, H, W, C] in [-1, 1], and "position" [B] int32: each example's
        index in the global batch.
      key: the run's key, the same at every step and on every device.
      degradation: D.
      network_fn, loss_fn, levels: see `example_loss`.
      optimizer: an optax transformation.
      ema_decay: d of ema <- d' ema + (1 - d') params with d' = min(d, (1 + n)/(10 + n))
        at step n, so that a short run is not averaged with its initialisation.
      axis_name: the mapped axis to average gradients over; None on one device.
    Returns:
      The next state, and scalars "loss" and "grad_norm", averaged over the axis.
    """
    key = jax.random.fold_in(key, state.step)
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch["position"])

    def batch_loss(params):
        def one(key, x0):
            return example_loss(
                network_fn, params, key, x0, degradation, loss_fn=loss_fn, levels=levels
            )

        return jnp.mean(jax.vmap(one)(keys_B, batch["image"]))

    loss, grads = jax.value_and_grad(batch_loss)(state.params)
    if axis_name is not None:
        loss, grads = jax.lax.pmean((loss, grads), axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    state = TrainState(
        step=state.step + 1,
        params=params,
        ema_params=optax.incremental_update(params, state.ema_params, 1 - decay),
        opt_state=opt_state,
    )
    return state, {"loss": loss, "grad_norm": optax.global_norm(grads)}
