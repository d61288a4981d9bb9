"""How good a restoration is, a pair of images at a time, and how good a generator is.

Images of the models are in [-1, 1]: pass them through `to_unit` first, which
also clips, since a metric of a picture should judge what can be shown.

Two sets of images are compared by the distribution of their features, [N, F] of
whatever network or projection the caller states: the flattened pixels are one. A
distance means nothing without the name of its feature space, and is not comparable
with one in another. These run on the host, in float64.

Depends on: jax, numpy, chex, dm_pix.
"""

import chex
import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def to_unit(x: Array) -> Array:
    """(x + 1) / 2, clipped to [0, 1]."""
    return jnp.clip((x + 1) / 2, 0, 1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255, rounded; what lies outside is clipped."""
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


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


def _features(features: np.ndarray, name: str, least: int) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < least:
        raise ValueError(f"{name} must be [N, F] with N >= {least}; got shape {features.shape}")
    if not np.all(np.isfinite(features)):
        raise ValueError(f"{name} must be finite; it holds NaN or infinity")
    return features


def gaussian(features_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean [F], covariance [F, F], divided by N - 1) of features, float64.

    >>> mean, covariance = gaussian([[0.0], [2.0], [4.0]])
    >>> mean.tolist(), covariance.tolist()
    ([2.0], [[4.0]])

    Raises:
      ValueError: if the features are not [N, F] with N of at least 2, or are not finite.
    """
    features_NF = _features(features_NF, "features_NF", 2)
    return features_NF.mean(axis=0), np.atleast_2d(np.cov(features_NF, rowvar=False))


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """|mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)), of two Gaussians; >= 0.

    The trace of the last root is the sum of the singular values of cov1^(1/2) cov2^(1/2),
    which is real and needs no regularization where a covariance is singular.

    See "GANs Trained by a Two Time-Scale Update Rule" by Heusel et al.
    (https://arxiv.org/abs/1706.08500).

    Args:
      mean1, mean2: [F].
      cov1, cov2: [F, F], symmetric positive semi-definite.
    Raises:
      ValueError: if the shapes do not fit.
    Note:
      The square of a distance, as the field quotes it. Estimated from N features it is
      biased upwards, the more the fewer: compare equal N only.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
    shapes = mean1.shape, cov1.shape, mean2.shape, cov2.shape
    if mean1.ndim != 1 or shapes != (mean1.shape, mean1.shape * 2) * 2:
        raise ValueError(
            f"mean1, cov1, mean2, cov2 must be [F], [F, F], [F], [F, F]; got shapes {shapes}"
        )
    overlap = np.linalg.svd(_root(cov1) @ _root(cov2), compute_uv=False).sum()
    distance = np.sum(np.square(mean1 - mean2)) + np.trace(cov1) + np.trace(cov2) - 2 * overlap
    return max(0.0, float(distance))


def _kernel_sum(features1: np.ndarray, features2: np.ndarray) -> float:
    """Sum over all pairs of (x . y / F + 1)^3, 1,024 rows at a time."""
    blocks = (features1[start : start + 1024] for start in range(0, len(features1), 1024))
    size = features1.shape[1]
    return float(sum(np.sum((block @ features2.T / size + 1) ** 3) for block in blocks))


def kernel_distance(features1: np.ndarray, features2: np.ndarray) -> float:
    """KID: the unbiased squared MMD under the kernel k(x, y) = (x . y / F + 1)^3.

      mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    See "Demystifying MMD GANs" by Binkowski et al. (https://arxiv.org/abs/1801.01401).

    Args:
      features1: [N, F], N > 1.
      features2: [M, F], M > 1.
    Returns:
      The distance, with mean 0 where the distributions agree, so it may be negative.
    Raises:
      ValueError: if the features are not such, differ in F, or are not finite.
    Note:
      All pairs count, in O(N M) time; the usual average over random subsets has the same
      mean and more variance.
    """
    features1 = _features(features1, "features1", 2)
    features2 = _features(features2, "features2", 2)
    if features1.shape[1] != features2.shape[1]:
        raise ValueError(
            "features1 and features2 must have one length;"
            f" got shapes {features1.shape} and {features2.shape}"
        )

    def within(features):
        count, size = features.shape
        diagonal = np.sum((np.sum(np.square(features), axis=1) / size + 1) ** 3)
        return (_kernel_sum(features, features) - diagonal) / (count * (count - 1))

    between = _kernel_sum(features1, features2) / (len(features1) * len(features2))
    return float(within(features1) + within(features2) - 2 * between)
