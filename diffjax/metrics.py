"""How good a restoration is: one pair of images at a time, values in [0, 1].

Images of the models are in [-1, 1]: pass them through `to_unit` first, which
also clips, since a metric of a picture should judge what can be shown.

Depends on: jax, chex, dm_pix.
"""

import chex
import dm_pix
import jax.numpy as jnp

Array = chex.Array


def to_unit(x: Array) -> Array:
    """(x + 1) / 2, clipped to [0, 1]."""
    return jnp.clip((x + 1) / 2, 0, 1)


def mse(image: Array, reference: Array) -> Array:
    """Mean squared error of one image, scalar; the square of its RMSE.

    Args:
      image: [H, W, C] in [0, 1].
      reference: shape of image.
    Note:
      The RMSE of a data set, as Cold Diffusion reports it, is the square root of
      the mean of these over the images, not the mean of their square roots.
    """
    chex.assert_equal_shape([image, reference])
    return jnp.mean(jnp.square(image - reference))


def psnr(image: Array, reference: Array) -> Array:
    """Peak signal-to-noise ratio -10 log10(mse) in decibels, scalar; inf for equal images."""
    chex.assert_equal_shape([image, reference])
    return dm_pix.psnr(image, reference)


def ssim(image: Array, reference: Array) -> Array:
    """Structural similarity with an 11-tap Gaussian window of std 1.5, scalar in [-1, 1].

    See "Image Quality Assessment: From Error Visibility to Structural Similarity"
    by Wang et al. (IEEE TIP 13(4), 2004).

    Args:
      image: [H, W, C] in [0, 1].
      reference: shape of image.
    Note:
      Only windows that lie inside the image count. An image with a side below 11
      pixels gets the largest odd window that fits, so its SSIM compares with that of
      images of the same size only.
    """
    chex.assert_equal_shape([image, reference])
    side = min(image.shape[:2])
    return dm_pix.ssim(image, reference, filter_size=min(11, side - 1 + side % 2))
