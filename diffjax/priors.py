"""Where x_T comes from when nothing is restored: the start of unconditional generation.

    x_T does not depend on x_0   (noise, a drawn color, another image): D(any x_0, 1, omega)
    x_T depends on x_0           (blur, lost resolution): drawn from a distribution fitted
                                 on the fully degraded training images, or from those images

Fully degraded images live in a space of few dimensions: the C channel means of a
blur to the mean, the 4 C numbers of a 2x2 picture. No family is a special case: the
space is found from the data, as their principal directions,

    x_T = mean + sum_i z_i basis_i + perturbation n,   z ~ sum_k w_k N(m_k, L_k L_k^T),

with z in units of the images' standard deviation along each direction and n ~ N(0, I).
Fitting runs on the host in float64; sampling is JAX, one image a call.

Depends on: jax, numpy, chex; scikit-learn inside `fit_mixture`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class MixturePrior(NamedTuple):
    """A Gaussian mixture of K components in the R directions where x_T varies."""

    mean: Array  # [H, W, C]: the mean image
    basis: Array  # [R, H, W, C]: orthogonal, each as long as the images' std along it
    weights: Array  # [K], summing to 1
    means: Array  # [K, R]
    cholesky: Array  # [K, R, R], lower triangular


class BankPrior(NamedTuple):
    """The fully degraded training images themselves, as Inverse Heat Dissipation draws x_T."""

    images: Array  # [N, H, W, C]


def fit_mixture(
    xT_NHWC: np.ndarray,
    *,
    components: int = 1,
    max_rank: int = 256,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> MixturePrior:
    """Fits a Gaussian mixture on fully degraded images, in the space where they live.

    See section 5 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392),
    where that space is the channel means of blurred images.

    Args:
      xT_NHWC: D(x0, 1) of the training images, [N, H, W, C] floating point.
      components: K, of full covariance; 1 is a Gaussian.
      max_rank: dimensions of the space at most; what varies less is left out.
      tolerance: a direction is kept if the images' std along it exceeds tolerance times the
        root mean square norm of an image; the default is a hundred roundings of float32.
      seed: of scikit-learn's expectation maximization, and of its search for the space.
    Returns:
      The prior, float32 arrays on the default device.
    Raises:
      ValueError: if there are fewer images than components or fewer than 2, if one is not
        finite, if they are not [N, H, W, C] floating point, or if they are all the same.
    Note:
      Each direction is scaled to unit variance first, so that the 1e-6 added to the
      diagonal of the covariances is relative: a thousandth of a standard deviation.
      The authors fit the channel means of clean images, which a circular blur keeps.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    xT_NHWC = np.asarray(xT_NHWC)
    if xT_NHWC.ndim != 4 or not np.issubdtype(xT_NHWC.dtype, np.floating):
        raise ValueError(
            "xT_NHWC must be [N, H, W, C], floating point;"
            f" got {xT_NHWC.dtype} of shape {xT_NHWC.shape}"
        )
    if components < 1 or max_rank < 1:
        raise ValueError(f"components and max_rank must be positive; got {components}, {max_rank}")
    if len(xT_NHWC) < max(2, components):
        raise ValueError(
            f"xT_NHWC must hold at least {max(2, components)} images to fit"
            f" {components} components; got {len(xT_NHWC)}"
        )
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(np.sum(xT_NHWC, dtype=np.float64))
    if not finite:
        raise ValueError("xT_NHWC must be finite; it holds NaN or infinity")
    rows = xT_NHWC.reshape(len(xT_NHWC), -1).astype(np.float64)
    least = tolerance * np.sqrt(np.mean(np.sum(np.square(rows), axis=1)))
    if not np.sqrt(np.sum(np.var(rows, axis=0))) > least:
        raise ValueError("xT_NHWC must vary; all its images are the same, so start from that one")
    pca = PCA(min(max_rank, *rows.shape), random_state=seed).fit(rows)
    stds = np.sqrt(pca.explained_variance_)
    kept = stds > least
    stds, directions = stds[kept], pca.components_[kept]
    latents = (rows - pca.mean_) @ directions.T
    mixture = GaussianMixture(components, reg_covar=1e-6, max_iter=1000, random_state=seed)
    mixture.fit(latents / stds)
    image_shape = xT_NHWC.shape[1:]
    return MixturePrior(
        mean=jnp.asarray(pca.mean_.reshape(image_shape), jnp.float32),
        basis=jnp.asarray((directions * stds[:, None]).reshape(-1, *image_shape), jnp.float32),
        weights=jnp.asarray(mixture.weights_, jnp.float32),
        means=jnp.asarray(mixture.means_, jnp.float32),
        cholesky=jnp.asarray(np.linalg.cholesky(mixture.covariances_), jnp.float32),
    )


def sample_mixture(prior: MixturePrior, key: Array, perturbation: Array | float) -> Array:
    """x_T = mean + sum_i z_i basis_i + perturbation n, one image.

    See section 5 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      prior: from `fit_mixture`.
      key: typed PRNG key.
      perturbation: std of the noise that takes x_T off the space it lives in, in units of
        images in [-1, 1]. 0 keeps the symmetry, and with it the poorer samples; the
        authors' code breaks it with 0.002 in these units.
    Returns:
      [H, W, C], neither clipped nor in a range of its own.
    """
    chex.assert_rank(tuple(prior), (3, 4, 1, 2, 3))
    chex.assert_rank(perturbation, 0)
    key_component, key_latent, key_noise = jax.random.split(key, 3)
    component = jax.random.categorical(key_component, jnp.log(prior.weights))
    latent = jax.random.normal(key_latent, prior.means.shape[1:])
    latent = prior.means[component] + jnp.matmul(
        prior.cholesky[component], latent, precision="highest"
    )
    xT = prior.mean + jnp.einsum("r,rhwc->hwc", latent, prior.basis, precision="highest")
    return xT + perturbation * jax.random.normal(key_noise, xT.shape, xT.dtype)


def sample_bank(prior: BankPrior, key: Array, delta: Array | float) -> Array:
    """x_T = one of the bank's images, each as likely, plus delta n with n ~ N(0, I).

    See "Generative Modelling With Inverse Heat Dissipation" by Rissanen et al.
    (https://arxiv.org/abs/2206.13397).

    Args:
      prior: the bank, [N, H, W, C] with N > 0.
      key: typed PRNG key.
      delta: std of the noise in units of the bank's images; 0 for none.
    Returns:
      [H, W, C].
    Note:
      The authors' images are in [0, 1]: their delta is twice as large in [-1, 1].
    """
    chex.assert_rank([prior.images, delta], [4, 0])
    chex.assert_axis_dimension_gteq(prior.images, 0, 1)
    key_index, key_noise = jax.random.split(key)
    image = prior.images[jax.random.randint(key_index, (), 0, prior.images.shape[0])]
    return image + delta * jax.random.normal(key_noise, image.shape, image.dtype)


def depends_on_x0(
    degrade_fn: Callable[[Array, Array, Any], Array],
    x0_BHWC: Array,
    omega: Any,
    *,
    tolerance: float = 0.02,
) -> bool:
    """Whether D(x0, 1, omega) varies with x0: if so x_T needs a fitted prior or a bank.

    Args:
      degrade_fn: D(x0, t, omega) -> xt, of one example.
      x0_BHWC: some different clean images, at least 2.
      omega: one realization, shared by them all.
      tolerance: x_T counts as fixed while the root mean square of its deviations from the
        batch's mean is at most this times that of x_T or of x0, the larger: 0.02 passes
        what DDPM's linear schedule (0.6 %) or a std of 80 (1.3 %) leaves of x0.
    Raises:
      ValueError: if x0_BHWC holds fewer than 2 images.
    """
    if x0_BHWC.ndim != 4 or len(x0_BHWC) < 2:
        raise ValueError(f"x0_BHWC must be [B, H, W, C] with B > 1; got shape {x0_BHWC.shape}")

    @jax.jit
    def varies(x0_BHWC):
        xT_BHWC = jax.vmap(lambda x0: degrade_fn(x0, jnp.float32(1), omega))(x0_BHWC)
        scale = jnp.maximum(jnp.mean(jnp.square(xT_BHWC)), jnp.mean(jnp.square(x0_BHWC)))
        return jnp.mean(jnp.var(xT_BHWC, axis=0)) > tolerance**2 * scale

    return bool(varies(x0_BHWC))
