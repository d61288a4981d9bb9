"""A plain transformer over patches, DiT: the restorer R(xt, t) or any predictor F(xt, t).

The image is cut into p x p patches; each is one token, to which its place is added;
every block is

    x <- x + gate_1 * attention(norm(x) (1 + scale_1) + shift_1)
    x <- x + gate_2 * MLP(norm(x) (1 + scale_2) + shift_2)

with gates, scales and shifts made from t and the label by a layer that starts at zero: every
block starts as the identity (adaLN-Zero). Nearly all of its work is in matrix products, which
suits TPUs and GPUs.

The module sees one example, [H, W, C], and a scalar t in [0, 1]; `jax.vmap` over
`apply` makes a batch, at the same cost.

See "Scalable Diffusion Models with Transformers" by Peebles and Xie
(https://arxiv.org/abs/2212.09748), figure 3. Here its kernels start as flax's do.

Depends on: jax, flax, chex.
"""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def sinusoids(x: Array, features: int) -> Array:
    """[sin(x w_j), cos(x w_j)], w_j from 1 down to 1e-4 geometrically; x scalar; [features].

    See section 3.5 of "Attention Is All You Need" by Vaswani et al.
    (https://arxiv.org/abs/1706.03762).
    """
    frequencies = jnp.exp(-math.log(1e4) * jnp.linspace(0, 1, features // 2))
    return jnp.concatenate([jnp.sin(x * frequencies), jnp.cos(x * frequencies)])


def position_embedding(rows: int, columns: int, features: int) -> Array:
    """The sinusoids of the row, then those of the column, half of the features each.

    [rows * columns, features], row by row.
    """
    along = jax.vmap(functools.partial(sinusoids, features=features // 2))
    row, column = along(jnp.arange(rows)), along(jnp.arange(columns))
    return jnp.concatenate([jnp.repeat(row, columns, axis=0), jnp.tile(column, (rows, 1))], axis=1)


def to_tokens(x: Array, patch: int) -> Array:
    """[H, W, C] -> [ceil(H / p) ceil(W / p), p p C]: each p x p patch becomes one token.

    An H or W that p does not divide is padded at its end with the last row or column.
    """
    height, width, channels = x.shape
    x = jnp.pad(x, ((0, -height % patch), (0, -width % patch), (0, 0)), mode="edge")
    x = x.reshape(x.shape[0] // patch, patch, x.shape[1] // patch, patch, channels)
    return x.swapaxes(1, 2).reshape(-1, patch * patch * channels)


def from_tokens(x: Array, patch: int, height: int, width: int) -> Array:
    """The way back: [ceil(H / p) ceil(W / p), p p C] -> [H, W, C], the padding cropped."""
    rows, columns = -(-height // patch), -(-width // patch)
    x = x.reshape(rows, columns, patch, patch, -1).swapaxes(1, 2)
    return x.reshape(rows * patch, columns * patch, -1)[:height, :width]


class Modulation(nn.Module):
    """`count` vectors [1, features] made from the condition; all zero at first."""

    count: int
    features: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, condition: Array) -> list[Array]:
        layer = nn.Dense(
            self.count * self.features, dtype=self.dtype, kernel_init=nn.initializers.zeros
        )
        return jnp.split(layer(nn.silu(condition))[None], self.count, axis=1)


def _modulated_norm(x, shift, scale, dtype):
    return nn.LayerNorm(use_bias=False, use_scale=False, dtype=dtype)(x) * (1 + scale) + shift


class TransformerBlock(nn.Module):
    """Attention over all tokens, then an MLP on each; gated, both closed at first."""

    heads: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """x: [N, features], condition: [features] -> [N, features]."""
        features = x.shape[-1]
        vectors = Modulation(6, features, self.dtype)(condition)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = vectors
        attention = nn.MultiHeadDotProductAttention(num_heads=self.heads, dtype=self.dtype)
        x = x + gate_1 * attention(_modulated_norm(x, shift_1, scale_1, self.dtype))
        h = nn.Dense(4 * features, dtype=self.dtype)(
            _modulated_norm(x, shift_2, scale_2, self.dtype)
        )
        return x + gate_2 * nn.Dense(features, dtype=self.dtype)(nn.gelu(h))


class DiT(nn.Module):
    """Diffusion transformer; the output has `channels` channels and starts at zero.

    The defaults are the paper's DiT-S/2. Memory and time of the attention grow with the square
    of the number of tokens, H W / patch^2.

    Attributes:
      channels: channels of the output.
      patch: side of a patch, in pixels.
      width: features of a token; a multiple of 4 and of heads.
      depth: blocks.
      heads: of the attention.
      num_classes: of the labels; None: the network takes none.
      dtype: of the computation; parameters and output are float32.
      remat: compute what is inside a block anew for its gradient, not keep it.
    """

    channels: int
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    num_classes: int | None = None
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, xt: Array, t: Array, label: Array | None = None) -> Array:
        """xt: [H, W, C'], t: scalar in [0, 1] -> [H, W, channels], float32.

        label: integer scalar in 0..num_classes; num_classes itself, as None, says "no label".
        """
        chex.assert_rank([xt, t], [3, 0])
        if self.width % math.lcm(4, self.heads):
            raise ValueError(
                f"width must be a multiple of 4 and of heads; got {self.width}, {self.heads} heads"
            )
        height, width = xt.shape[:2]

        # The paper's 1000 integer steps are our t in [0, 1].
        condition = nn.Dense(self.width, dtype=self.dtype)(sinusoids(1e3 * t, 256))
        condition = nn.Dense(self.width, dtype=self.dtype)(nn.silu(condition))
        if self.num_classes is not None:
            known = self.num_classes if label is None else label
            classes = nn.Embed(self.num_classes + 1, self.width, dtype=self.dtype)
            condition = condition + classes(jnp.asarray(known, jnp.int32))

        x = nn.Dense(self.width, dtype=self.dtype)(to_tokens(xt, self.patch))
        grid = -(-height // self.patch), -(-width // self.patch)
        x = x + position_embedding(*grid, self.width).astype(self.dtype)
        block = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        for i in range(self.depth):
            name = f"TransformerBlock_{i}"  # the same with remat
            x = block(self.heads, self.dtype, name=name)(x, condition)
        shift, scale = Modulation(2, self.width, self.dtype)(condition)
        x = _modulated_norm(x, shift, scale, self.dtype)
        last = nn.Dense(
            self.patch**2 * self.channels, dtype=jnp.float32, kernel_init=nn.initializers.zeros
        )
        return from_tokens(last(x), self.patch, height, width)
