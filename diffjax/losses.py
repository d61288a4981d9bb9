"""Losses: unreduced, elementwise, with no factor 1/2 anywhere; weightings by severity.

The caller takes the mean, so that per-example and per-severity values are never
lost. Predictions and targets must agree in shape and dtype: a mismatch raises,
because a silent broadcast of [B] against [B, 1] is a loss that falls and means
nothing.

`l1`, `l2`, `huber` and `pseudo_huber` are for those who fork or compose; `l1_loss` and
`l2_loss`, at the bottom of the file, are the first two jitted.

A weighting (alpha, sigma) -> w multiplies the squared error of x0_hat, where
x_t = alpha x0 + sigma omega. A network that predicts something else errs by
`factor` times as much, so its loss is

    w(alpha, sigma) / factor(alpha, sigma) * |prediction - target|^2,

with the factor of `predictions.x0_error_factor`: the same weighting is then the same
objective, whatever is predicted. For l1 the factor's square root takes its place.
Every weighting is a function of SNR = (alpha / sigma)^2 alone. Where it diverges,
at sigma = 0, it is taken at sigma = FLOOR, as the factor is, so that the quotient
has its limit.

Depends on: jax, chex.
"""

import math

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

FLOOR = 1e-9  # alpha and sigma below it count as this; its fourth power is still a float32


def l2(predictions: Array, targets: Array) -> Array:
    """Squared error (prediction - target)^2, elementwise and without the factor 1/2.

    >>> noise = jnp.array([1.5, -0.8, 0.7, -0.2])
    >>> print(f"{jnp.mean(l2(noise + 0.5, noise)):.6f}")
    0.250000

    Args:
      predictions: any shape, float.
      targets: shape and dtype of predictions.
    Returns:
      Elementwise loss, shape and dtype of predictions.
    Raises:
      AssertionError: at trace time, if shapes or dtypes differ.
    """
    chex.assert_equal_shape([predictions, targets])
    chex.assert_trees_all_equal_dtypes(predictions, targets)
    return jnp.square(predictions - targets)


def l1(predictions: Array, targets: Array) -> Array:
    """Absolute error |prediction - target|, elementwise; Cold Diffusion's loss.

    >>> noise = jnp.array([1.5, -0.8, 0.7, -0.2])
    >>> print(f"{jnp.mean(l1(noise + 0.5, noise)):.6f}")
    0.500000

    See section 3.1 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      predictions: any shape, float.
      targets: shape and dtype of predictions.
    Returns:
      Elementwise loss, shape and dtype of predictions.
    Raises:
      AssertionError: at trace time, if shapes or dtypes differ.
    """
    chex.assert_equal_shape([predictions, targets])
    chex.assert_trees_all_equal_dtypes(predictions, targets)
    return jnp.abs(predictions - targets)


def huber(predictions: Array, targets: Array, *, delta: float) -> Array:
    """d^2 where |d| <= delta, delta (2 |d| - delta) beyond, d = prediction - target.

    >>> huber(jnp.array([0.5, 3.0]), jnp.zeros(2), delta=1.0).tolist()
    [0.25, 5.0]

    Twice the textbook's, which has 1/2 d^2: near 0 it is `l2`, and for delta -> 0 it
    is 2 delta `l1`.

    Args:
      predictions: any shape, float.
      targets: shape and dtype of predictions.
      delta: where the parabola becomes a line, positive, in the target's units.
    Returns:
      Elementwise loss, shape and dtype of predictions.
    Raises:
      AssertionError: at trace time, if shapes or dtypes differ.
      ValueError: if delta is not positive.
    """
    chex.assert_equal_shape([predictions, targets])
    chex.assert_trees_all_equal_dtypes(predictions, targets)
    if not delta > 0:
        raise ValueError(f"delta must be positive; got {delta}")
    distance = jnp.abs(predictions - targets)
    parabola = jnp.minimum(distance, delta)
    return parabola * (2 * distance - parabola)


def pseudo_huber(predictions: Array, targets: Array, *, c: float) -> Array:
    """sqrt(d^2 + c^2) - c, d = prediction - target: d^2 / (2 c) near 0, |d| - c far away.

    >>> pseudo_huber(jnp.array([0.0, 4.0]), jnp.zeros(2), c=3.0).tolist()
    [0.0, 2.0]

    See section 3.3 of "Improved Techniques for Training Consistency Models" by Song and
    Dhariwal (https://arxiv.org/abs/2310.14189).

    Args:
      predictions: any shape, float.
      targets: shape and dtype of predictions.
      c: where the parabola becomes a line, positive, in the target's units.
    Returns:
      Elementwise loss, shape and dtype of predictions.
    Raises:
      AssertionError: at trace time, if shapes or dtypes differ.
      ValueError: if c is not positive.
    Note:
      Elementwise, as all losses here; the paper takes |d| over the whole image, where c
      grows with the square root of the image's size.
    """
    chex.assert_equal_shape([predictions, targets])
    chex.assert_trees_all_equal_dtypes(predictions, targets)
    if not c > 0:
        raise ValueError(f"c must be positive; got {c}")
    square = jnp.square(predictions - targets)
    return square / (jnp.sqrt(square + c * c) + c)  # no difference of near equals


def _snr(alpha: Array, sigma: Array) -> Array:
    chex.assert_rank([alpha, sigma], 0)
    return jnp.square(jnp.maximum(alpha, FLOOR) / jnp.maximum(sigma, FLOOR))


def uniform_weight(alpha: Array, sigma: Array) -> Array:
    """w = 1: every severity counts alike in the error of x0_hat."""
    return jnp.ones_like(_snr(alpha, sigma))


def snr_weight(alpha: Array, sigma: Array) -> Array:
    """w = SNR, which is 1 on the noise: DDPM's simple loss. Diverges at sigma = 0.

    See Equation 14 of "Denoising Diffusion Probabilistic Models" by Ho et al.
    (https://arxiv.org/abs/2006.11239).
    """
    return _snr(alpha, sigma)


def truncated_snr_weight(alpha: Array, sigma: Array) -> Array:
    """w = max(SNR, 1). Diverges at sigma = 0.

    See section 4 of "Progressive Distillation for Fast Sampling of Diffusion Models" by
    Salimans and Ho (https://arxiv.org/abs/2202.00512).
    """
    return jnp.maximum(_snr(alpha, sigma), 1)


def min_snr_weight(alpha: Array, sigma: Array, *, gamma: float = 5.0) -> Array:
    """w = min(SNR, gamma): the noisy severities as in `snr_weight`, the others alike.

    See "Efficient Diffusion Training via Min-SNR Weighting Strategy" by Hang et al.
    (https://arxiv.org/abs/2303.09556).
    """
    return jnp.minimum(_snr(alpha, sigma), gamma)


def soft_min_snr_weight(alpha: Array, sigma: Array, *, gamma: float = 5.0) -> Array:
    """w = gamma SNR / (SNR + gamma), half the harmonic mean of SNR and gamma.

    See "Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion
    Transformers" by Crowson et al. (https://arxiv.org/abs/2401.11605).
    """
    snr = _snr(alpha, sigma)
    return gamma * (snr / (snr + gamma))


def sigmoid_weight(alpha: Array, sigma: Array, *, bias: float = 2.0) -> Array:
    """w = e^bias sigmoid(ln SNR - bias), which is sigmoid(bias - ln SNR) on the noise.

    See "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation" by
    Kingma and Gao (https://arxiv.org/abs/2303.00848), and "Simpler Diffusion (SiD2)" by
    Hoogeboom et al. (https://arxiv.org/abs/2410.19324).

    Note:
      `soft_min_snr_weight` with gamma = e^bias, by another name. The papers' loss has one
      factor more, -d(ln SNR)/dt, which makes it independent of the schedule; (alpha, sigma)
      does not know it, so it is the caller's to multiply by.
    """
    return soft_min_snr_weight(alpha, sigma, gamma=math.exp(bias))


def p2_weight(alpha: Array, sigma: Array, *, k: float = 1.0, gamma: float = 1.0) -> Array:
    """w = SNR / (k + SNR)^gamma, which is 1 / (k + SNR)^gamma on the noise.

    Diverges at sigma = 0 if gamma < 1; with k = gamma = 1 it is 1 on v, where
    alpha^2 + sigma^2 = 1.

    See "Perception Prioritized Training of Diffusion Models" by Choi et al.
    (https://arxiv.org/abs/2204.00227).
    """
    snr = _snr(alpha, sigma)
    return snr / (k + snr) ** gamma


def edm_weight(alpha: Array, sigma: Array, *, sigma_data: float = 0.5) -> Array:
    """w = SNR + 1 / sigma_data^2, which is 1 on EDM's F. Diverges at sigma = 0.

    See Table 1 of "Elucidating the Design Space of Diffusion-Based Generative Models" by
    Karras et al. (https://arxiv.org/abs/2206.00364), where it reads
    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, with alpha = 1.
    """
    return _snr(alpha, sigma) + 1 / sigma_data**2


WEIGHTINGS = {
    "uniform": uniform_weight,
    "snr": snr_weight,
    "truncated_snr": truncated_snr_weight,
    "min_snr": min_snr_weight,
    "soft_min_snr": soft_min_snr_weight,
    "sigmoid": sigmoid_weight,
    "p2": p2_weight,
    "edm": edm_weight,
}

LOSSES = {"l1": l1, "l2": l2, "huber": huber, "pseudo_huber": pseudo_huber}

l1_loss = jax.jit(l1)
l2_loss = jax.jit(l2)
