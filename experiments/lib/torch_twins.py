"""diffjax's networks once more in PyTorch, for `benchmark` to compare with.

The same operations on the same weights give the same output; the memory is laid out as PyTorch
likes it best, channels last, and q, k and v are one product. Batches: xt [B, C, H, W], t [B].
A twin is built from the flax module and its parameters.

Depends on: torch, numpy.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def _set(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(weight)))
        layer.bias.copy_(torch.from_numpy(np.array(bias)))
    return layer


def _conv(p):
    height, width, inputs, outputs = p["kernel"].shape
    layer = nn.Conv2d(inputs, outputs, (height, width), padding=(height // 2, width // 2))
    return _set(layer, np.transpose(p["kernel"], (3, 2, 0, 1)), p["bias"])


def _dense(*ps, inputs=1):
    """One layer for one or several of flax, side by side; `inputs` of a kernel's axes are summed
    over."""
    kernels = [np.reshape(p["kernel"], (math.prod(p["kernel"].shape[:inputs]), -1)) for p in ps]
    kernel, bias = (
        np.concatenate(kernels, axis=1),
        np.concatenate([np.ravel(p["bias"]) for p in ps]),
    )
    return _set(nn.Linear(*kernel.shape), kernel.T, bias)


def _group_norm(p):
    return _set(nn.GroupNorm(8, len(p["scale"]), eps=1e-6), p["scale"], p["bias"])


def _embedding(p):
    return nn.Embedding.from_pretrained(torch.from_numpy(np.array(p["embedding"])), freeze=False)


def _numbered(build, params, name):
    """build of params[name_0], params[name_1], ..., in the order flax has called them."""
    count = sum(key.rsplit("_", 1)[0] == name for key in params)
    return nn.ModuleList(build(params[f"{name}_{i}"]) for i in range(count))


def _sinusoids(x, features):
    """[N] -> [N, features], as flax's twin has them."""
    frequencies = torch.exp(-math.log(1e4) * torch.linspace(0, 1, features // 2))
    angles = x[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Condition(nn.Module):
    """The embedding of time and label: [B] -> [B, features]."""

    def __init__(self, params, model, features):
        super().__init__()
        self.first, self.second = _dense(params["Dense_0"]), _dense(params["Dense_1"])
        self.classes = _embedding(params["Embed_0"]) if "Embed_0" in params else None
        self.num_classes, self.features = model.num_classes, features

    def forward(self, t, label):
        x = self.second(functional.silu(self.first(_sinusoids(1e3 * t, self.features))))
        if self.classes is not None:
            none = torch.full(t.shape, self.num_classes)
            x = x + self.classes(none if label is None else label)
        return x


class _Attention(nn.Module):
    def __init__(self, p, heads):
        super().__init__()
        self.qkv, self.out = _dense(p["query"], p["key"], p["value"]), _dense(p["out"], inputs=2)
        self.heads = heads

    def forward(self, x):
        batch, tokens, features = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = functional.scaled_dot_product_attention(*qkv.unbind(0))
        return self.out(x.transpose(1, 2).reshape(batch, tokens, features))


def _to_patches(x, patch):
    """[B, C, H, W] -> [B, ceil(H / p), ceil(W / p), p p C]."""
    height, width = x.shape[2:]
    if height % patch or width % patch:
        x = functional.pad(x, (0, -width % patch, 0, -height % patch), mode="replicate")
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, height // patch, width // patch, -1)


def _from_patches(x, patch, height, width):
    """The way back, cropped: -> [B, C, H, W]."""
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows, columns, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, -1, rows * patch, columns * patch)[:, :, :height, :width]


class _ResidualBlock(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.norms = _numbered(_group_norm, p, "GroupNorm")
        self.convs, self.dense = _numbered(_conv, p, "Conv"), _dense(p["Dense_0"])

    def forward(self, x, time):
        h = self.convs[0](functional.silu(self.norms[0](x)))
        scale, shift = self.dense(functional.silu(time))[:, :, None, None].chunk(2, dim=1)
        h = self.convs[1](functional.silu(self.norms[1](h) * (1 + scale) + shift))
        return h + (self.convs[2](x) if len(self.convs) == 3 else x)


class _SelfAttention(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.norm = _group_norm(p["GroupNorm_0"])
        heads = p["MultiHeadDotProductAttention_0"]["query"]["kernel"].shape[1]
        self.attention = _Attention(p["MultiHeadDotProductAttention_0"], heads)

    def forward(self, x):
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(pixels).transpose(1, 2).reshape(x.shape)


def _halve(conv, x):
    """A convolution of stride 2, padded as XLA pads: on an even axis at the end only."""
    height, width = x.shape[2:]
    x = functional.pad(x, (width % 2, 1, height % 2, 1))
    return functional.conv2d(x, conv.weight, conv.bias, stride=2)


class UNet(nn.Module):
    """The twin of `diffjax.models.unet.UNet`."""

    def __init__(self, model, params):
        super().__init__()
        params = params["params"]
        self.model = model
        self.condition = _Condition(params, model, model.width)
        self.convs = _numbered(_conv, params, "Conv")
        self.blocks = _numbered(_ResidualBlock, params, "ResidualBlock")
        self.attentions = _numbered(_SelfAttention, params, "SelfAttention")
        self.norm = _group_norm(params["GroupNorm_0"])
        self.to(memory_format=torch.channels_last)

    def forward(self, xt, t, label=None):
        model, size = self.model, xt.shape[2:]
        convs, blocks, attentions = iter(self.convs), iter(self.blocks), iter(self.attentions)
        time = self.condition(t, label)

        def block(x, level):
            x = next(blocks)(x, time)
            return next(attentions)(x) if level in model.attention else x

        x = next(convs)(_to_patches(xt, model.patch).permute(0, 3, 1, 2))
        skips, levels = [], range(len(model.multipliers))
        for level in levels:
            if level > 0:
                x = _halve(next(convs), x)
            for _ in range(model.blocks):
                x = block(x, level)
                skips.append(x)
        x = block(x, levels[-1])
        for level in reversed(levels):
            for _ in range(model.blocks):
                x = block(torch.cat([x, skips.pop()], dim=1), level)
            if level > 0:
                height, width = skips[-1].shape[2:]
                x = functional.interpolate(x, scale_factor=2)[:, :, :height, :width]
                x = next(convs)(x)
        x = next(convs)(functional.silu(self.norm(x)))
        x = _from_patches(x.permute(0, 2, 3, 1), model.patch, *size)
        if model.detail == 0:
            return x
        x = functional.silu(x + next(convs)(xt))
        return next(convs)(x)


class _TransformerBlock(nn.Module):
    def __init__(self, p, heads):
        super().__init__()
        self.modulation = _dense(p["Modulation_0"]["Dense_0"])
        self.attention = _Attention(p["MultiHeadDotProductAttention_0"], heads)
        self.first, self.second = _dense(p["Dense_0"]), _dense(p["Dense_1"])

    def forward(self, x, condition):
        vectors = self.modulation(functional.silu(condition))[:, None].chunk(6, dim=2)
        x = x + vectors[2] * self.attention(_modulated_norm(x, *vectors[:2]))
        h = self.first(_modulated_norm(x, *vectors[3:5]))
        return x + vectors[5] * self.second(functional.gelu(h, approximate="tanh"))


def _modulated_norm(x, shift, scale):
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiT(nn.Module):
    """The twin of `diffjax.models.dit.DiT`."""

    def __init__(self, model, params):
        super().__init__()
        params = params["params"]
        self.model = model
        self.condition = _Condition(params, model, 256)
        self.first, self.last = _dense(params["Dense_2"]), _dense(params["Dense_3"])
        self.modulation = _dense(params["Modulation_0"]["Dense_0"])
        self.blocks = _numbered(
            lambda p: _TransformerBlock(p, model.heads), params, "TransformerBlock"
        )

    def forward(self, xt, t, label=None):
        model, size = self.model, xt.shape[2:]
        condition = self.condition(t, label)
        x = self.first(_to_patches(xt, model.patch))
        rows, columns = x.shape[1:3]
        y = _sinusoids(torch.arange(rows), model.width // 2)[:, None].expand(-1, columns, -1)
        z = _sinusoids(torch.arange(columns), model.width // 2)[None].expand(rows, -1, -1)
        x = (x + torch.cat([y, z], dim=2)).flatten(1, 2)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(functional.silu(condition))[:, None].chunk(2, dim=2)
        x = self.last(_modulated_norm(x, shift, scale))
        return _from_patches(x.reshape(len(x), rows, columns, -1), model.patch, *size)


def create_train_step(net: nn.Module, *, compiled: bool):
    """step(x0, xt, t) -> loss: L1, gradient clipped to norm 1, Adam, and the average of the
    parameters; arguments in numpy, channels last."""
    ema = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    forward = torch.compile(net) if compiled else net

    def step(x0, xt, t):
        # A transposed view of [B, H, W, C] is an image whose channels are last in memory.
        x0, xt = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (x0, xt))
        optimizer.zero_grad(set_to_none=True)
        loss = functional.l1_loss(forward(xt, torch.from_numpy(t)), x0)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, list(net.parameters()), 0.005)
        return float(loss.detach())

    return step
