"""What `benchmark` compares with: the chain of convolutions, and others' steps and loops.

Packages that diffjax does not need are imported where they are used.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def on_threads(call: Callable) -> dict[int, Callable]:
    """The call with PyTorch on one thread, and on as many as there are CPUs."""
    import torch

    def threaded(threads):
        torch.set_num_threads(threads)
        return call()

    return {n: functools.partial(threaded, n) for n in {1, len(os.sched_getaffinity(0))}}


def convolve(x_BHWC, kernel):
    """One square kernel [h, w] on every channel, circular. The channels are taken for images: on
    a CPU that is faster than a convolution in groups.
    """
    batch, height, width, channels = x_BHWC.shape
    planes = jnp.moveaxis(x_BHWC, 3, 1).reshape(-1, height, width, 1)
    pads = ((0, 0), *((n // 2, n // 2) for n in kernel.shape), (0, 0))
    planes = jax.lax.conv_general_dilated(
        jnp.pad(planes, pads, mode="wrap"),
        kernel[:, :, None, None],
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jnp.moveaxis(planes.reshape(batch, channels, height, width), 1, 3)


def convolve_separably(x_BHWC, taps):
    """The same, the kernel being the outer square of taps [n]: 2 n shifted images, added."""
    for axis in (1, 2):
        shifted = (jnp.roll(x_BHWC, len(taps) // 2 - j, axis) for j in range(len(taps)))
        x_BHWC = sum(tap * image for tap, image in zip(taps, shifted, strict=True))
    return x_BHWC


@functools.partial(jax.jit, static_argnums=0)
def chain_jax(convolve_fn, kernels, x0_BHWC, k_B):
    """k convolutions of each image, in max(k) of the batch."""

    def body(i, x_BHWC):
        return jnp.where((i < k_B)[:, None, None, None], convolve_fn(x_BHWC, kernels[i]), x_BHWC)

    return jax.lax.fori_loop(0, jnp.max(k_B), body, x0_BHWC)


def chain_torch(kernels_TNN, x0_BHWC, k_B):
    """As Cold Diffusion's code does it: the whole batch convolved max(k) times, every state
    kept, each image's own one picked.
    """
    import torch

    with torch.no_grad():
        states = [torch.from_numpy(np.moveaxis(x0_BHWC, 3, 1).copy())]
        channels, pad = states[0].shape[1], (kernels_TNN.shape[-1] // 2,) * 4
        for kernel in torch.from_numpy(kernels_TNN[: k_B.max()]):
            padded = torch.nn.functional.pad(states[-1], pad, mode="circular")
            weight = kernel.expand(channels, 1, *kernel.shape)
            states.append(torch.nn.functional.conv2d(padded, weight, groups=channels))
        picked = torch.stack(states)[torch.from_numpy(k_B.astype(np.int64)), range(len(k_B))]
    return np.moveaxis(picked.numpy(), 1, 3)


def twin_steps(model, params, x0_BHWC, xt_BHWC, t_B) -> dict[str, Callable]:
    """A training step of the network's twin, eager on one thread and on all, and compiled."""
    from experiments.lib import torch_twins

    def step(*, compiled):
        net = getattr(torch_twins, type(model).__name__)(model, jax.device_get(params))
        step = torch_twins.create_train_step(net, compiled=compiled)
        return on_threads(functools.partial(step, x0_BHWC, xt_BHWC, t_B))

    eager, compiled = step(compiled=False), step(compiled=True)
    calls = {f"PyTorch, {n} threads": call for n, call in eager.items()}
    most = max(compiled)  # compiled anew for each number, so one must do
    return calls | {f"torch.compile, {most} threads": compiled[most]}


def ddpm_steps(batch_size: int) -> dict[int, Callable]:
    """The training step of denoising-diffusion-pytorch, on its own network of 16 features."""
    import torch
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    diffusion = GaussianDiffusion(Unet(16, dim_mults=(1, 2, 4, 4), channels=1), image_size=32)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-3)
    images = torch.rand(batch_size, 1, 32, 32)

    def step():
        optimizer.zero_grad()
        loss = diffusion(images)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return on_threads(step)


def ddim_diffusers(xT_BCHW, steps: int) -> Callable:
    """The loop of diffusers' DDIM, halving in the network's place."""
    import diffusers
    import torch

    scheduler = diffusers.DDIMScheduler(num_train_timesteps=1000)
    xT = torch.from_numpy(np.ascontiguousarray(xT_BCHW))

    def loop():
        scheduler.set_timesteps(steps)
        x = xT
        for t in scheduler.timesteps:
            x = scheduler.step(0.5 * x, t, x).prev_sample
        return x.numpy()

    return loop
