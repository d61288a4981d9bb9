"""A U-Net with a time embedding: the restorer R(xt, t) or any predictor F(xt, t).

The module sees one example, [H, W, C], and a scalar t in [0, 1]; `jax.vmap`
over `apply` makes a batch, at the same cost. Any H and W: odd sizes round up on
the way down and are cropped on the way up.

With `patch` = p the network works on fewer, fatter pixels: the image is cut into
p x p patches, [H, W, C] -> [H/p, W/p, p p C] (space to depth), and put together again
at the end. On a CPU this is where the time goes: convolutions of few channels over
many pixels wait for memory.

Depends on: jax, flax, chex.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def time_embedding(t: Array, features: int) -> Array:
    """[sin(1000 t w_j), cos(1000 t w_j)], w_j from 1 down to 1e-4 geometrically; [features].

    See section 3.5 of "Attention Is All You Need" by Vaswani et al.
    (https://arxiv.org/abs/1706.03762) and appendix B of "Denoising Diffusion
    Probabilistic Models" by Ho et al. (https://arxiv.org/abs/2006.11239), whose 1000
    integer steps are our t in [0, 1].
    """
    frequencies = jnp.exp(-math.log(1e4) * jnp.linspace(0, 1, features // 2))
    angles = 1e3 * t * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


def space_to_depth(x: Array, patch: int) -> Array:
    """[H, W, C] -> [ceil(H / p), ceil(W / p), p p C]: each p x p patch becomes one pixel.

    An H or W that p does not divide is padded at its end with the last row or column.
    """
    height, width, channels = x.shape
    x = jnp.pad(x, ((0, -height % patch), (0, -width % patch), (0, 0)), mode="edge")
    rows, columns = x.shape[0] // patch, x.shape[1] // patch
    x = x.reshape(rows, patch, columns, patch, channels).swapaxes(1, 2)
    return x.reshape(rows, columns, patch * patch * channels)


def depth_to_space(x: Array, patch: int, height: int, width: int) -> Array:
    """The way back: [ceil(H / p), ceil(W / p), p p C] -> [H, W, C], the padding cropped."""
    rows, columns, _ = x.shape
    x = x.reshape(rows, columns, patch, patch, -1).swapaxes(1, 2)
    return x.reshape(rows * patch, columns * patch, -1)[:height, :width]


def _norm(dtype):
    # A single example has no batch axis, so the reduction must name all three.
    return nn.GroupNorm(num_groups=8, reduction_axes=(-3, -2, -1), dtype=dtype)


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3, norm scaled and shifted by the time, SiLU, 3x3 (zero at first); plus x."""

    features: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype)(nn.silu(_norm(self.dtype)(x)))
        scale, shift = jnp.split(nn.Dense(2 * self.features, dtype=self.dtype)(nn.silu(time)), 2)
        h = nn.silu(_norm(self.dtype)(h) * (1 + scale[None, None]) + shift[None, None])
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros)(h)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype)(x)
        return x + h


class SelfAttention(nn.Module):
    """Dot-product attention over all pixels, residual, zero at first."""

    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width, features = x.shape
        pixels = _norm(self.dtype)(x).reshape(height * width, features)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=max(1, features // 64),
            dtype=self.dtype,
            out_kernel_init=nn.initializers.zeros,
        )
        return x + attention(pixels).reshape(x.shape)


class UNet(nn.Module):
    """Residual U-Net; the output has `channels` channels and starts at zero.

    Attributes:
      channels: channels of the output.
      width: features at the finest level; a multiple of 8.
      multipliers: features of each level over width; one halving between two levels.
      blocks: residual blocks a level, on the way down and again on the way up.
      attention: levels (0 is the finest) whose blocks are followed by self-attention.
      num_classes: of the labels; None: the network takes none.
      patch: side of the patches that are the network's pixels; 1: the image's own.
      detail: features of a last layer at full resolution, which sees xt as well as the
        patches put together, for edges that patches blur; 0: there is none.
      dtype: of the computation; parameters and output are float32.
      remat: compute what is inside a residual block anew for its gradient, not keep it.
    """

    channels: int
    width: int = 64
    multipliers: Sequence[int] = (1, 2, 2)
    blocks: int = 2
    attention: Sequence[int] = ()
    num_classes: int | None = None
    patch: int = 1
    detail: int = 0
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, xt: Array, t: Array, label: Array | None = None) -> Array:
        """xt: [H, W, C'], t: scalar in [0, 1] -> [H, W, channels], float32.

        label: integer scalar in 0..num_classes; num_classes itself, as None, says "no label".
        """
        chex.assert_rank([xt, t], [3, 0])

        residual_block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        names = (f"ResidualBlock_{i}" for i in itertools.count())  # the same with remat

        def block(x, level):
            features = self.width * self.multipliers[level]
            x = residual_block(features, self.dtype, name=next(names))(x, time)
            return SelfAttention(self.dtype)(x) if level in self.attention else x

        time = nn.Dense(4 * self.width, dtype=self.dtype)(time_embedding(t, self.width))
        time = nn.Dense(4 * self.width, dtype=self.dtype)(nn.silu(time))
        if self.num_classes is not None:
            known = self.num_classes if label is None else label
            classes = nn.Embed(self.num_classes + 1, 4 * self.width, dtype=self.dtype)
            time = time + classes(jnp.asarray(known, jnp.int32))
        levels = range(len(self.multipliers))

        xt = xt.astype(self.dtype)
        x = nn.Conv(self.width, (3, 3), dtype=self.dtype)(space_to_depth(xt, self.patch))
        skips = []
        for level in levels:
            if level > 0:
                x = nn.Conv(x.shape[-1], (3, 3), strides=2, dtype=self.dtype)(x)
            for _ in range(self.blocks):
                x = block(x, level)
                skips.append(x)
        x = block(x, levels[-1])
        for level in reversed(levels):
            for _ in range(self.blocks):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), level)
            if level > 0:
                height, width = skips[-1].shape[:2]
                x = jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)[:height, :width]
                x = nn.Conv(skips[-1].shape[-1], (3, 3), dtype=self.dtype)(x)
        x = nn.silu(_norm(self.dtype)(x))
        last = functools.partial(nn.Conv, dtype=jnp.float32, kernel_init=nn.initializers.zeros)
        if self.detail == 0:
            x = last(self.patch**2 * self.channels, (3, 3))(x)
            return depth_to_space(x, self.patch, *xt.shape[:2])
        x = nn.Conv(self.patch**2 * self.detail, (3, 3), dtype=self.dtype)(x)
        x = depth_to_space(x, self.patch, *xt.shape[:2])
        x = nn.silu(x + nn.Conv(self.detail, (3, 3), dtype=self.dtype)(xt))
        return last(self.channels, (3, 3))(x)
