"""The Wiener restorer: the best linear one, what it leaves uncertain, and a network on top of it.

For x0 with mean mu and covariance S, and x_t = A x0 + sigma omega with omega white, no
affine function of x_t comes nearer to x0 in mean square (LMMSE) than

    L(x_t) = mu + S A' (A S A' + sigma^2 I)^-1 (x_t - A mu)
    P      = S - S A' (A S A' + sigma^2 I)^-1 A S,   e^2 = trace(P) / (H W C)

P is the covariance of x0 - L(x_t): large along what A destroyed, next to nothing along what
x_t still tells. S has (H W C)^2 entries, so it is taken as a Kronecker product, and A is one:

    S = S_rows (x) S_cols (x) S_colors,   A = alpha rows (x) cols (x) colors

Along each axis write S = B B', B = Q diag(sqrt(l)) with the eigenvectors Q of S, and decompose
A B = U diag(s) V'; then, over all modes,

    L(x_t)  = mu + B V [alpha s / (alpha^2 s^2 + sigma^2)] U' (x_t - A mu)
    e^2     = sum |B V|^2 [sigma^2 / (alpha^2 s^2 + sigma^2)] / (H W C)
    P^(1/2) = B V [sigma / sqrt(alpha^2 s^2 + sigma^2)] (Q V)'
    C^(-1/2) = (Q V) [1 / sqrt(alpha^2 s^2 + sigma^2)] U',   C = A S A' + sigma^2 I

with s the product of the three axes' values: small matrix products around one
division. Singular values, not eigenvalues of A S A', and a sum of what is lost, not a
difference, keep what a strong blur leaves of an image (s of 1e-4 and less) in float32.

What is optimal: L, P and e, if S is such a product and sigma is right. The covariance of
real images is one only roughly; L then is a good linear restorer rather than the best,
and P and e, true of the model, are a scale for the data and no measurement. To say how well L
does on images, restore them and compare.

**Preconditioning.** A network F may learn what is left:

    R(x_t, t) = L_t(x_t) + P_t^(1/2) F([C_t^(-1/2) (x_t - A_t mu), (L_t(x_t) - mu) / std(x0)], t)

It sees white inputs and answers a white target at every severity, starts at L_t where
its last layer starts at zero, and need not learn to amplify what a degradation made small.
Nor can it contradict what x_t still tells: along those directions P_t is next to nothing. A
walk back needs that. Algorithm 2 degrades each estimate again, so whatever an estimate gets
wrong of what was known stays in x_s; with one scale for all directions in the place of
P_t^(1/2), the errors of a deblurring grow from step to step. With Gaussian noise and white
data of mean 0, this is c_skip, c_out and c_in of EDM: section 5 of "Elucidating the Design
Space of Diffusion-Based Generative Models" by Karras et al. (https://arxiv.org/abs/2206.00364).

A degradation is known here as linear_fn(t) -> (alpha, sigma, rows, cols, colors): two scalars
and three matrices, each of which may be None, the identity.

Depends on: jax, numpy, chex.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
LinearFn = Callable[[Array], tuple[Any, Any, Any, Any, Any]]  # t -> alpha, sigma, 3 matrices


class Moments(NamedTuple):
    """Mean and centered second moments of a set of images; float64, mergeable."""

    # Never called as tuple.count.
    count: np.ndarray  # type: ignore[assignment]  # scalar
    mean: np.ndarray  # [H, W, C]
    rows: np.ndarray  # [H, H]: the sum of (x - mean) (x - mean)' over images, columns, channels
    cols: np.ndarray  # [W, W]
    colors: np.ndarray  # [C, C]


class Factor(NamedTuple):
    """A B = U diag(s) V' along one axis of n entries, B B' its covariance, A its matrix.

    A table of them has a leading axis.
    """

    analysis: Array  # U', [n, n]
    synthesis: Array  # B V, [n, n]
    singular: Array  # s, [n]
    rotation: Array  # (Q V)', [n, n], orthogonal


class Factors(NamedTuple):
    rows: Factor
    cols: Factor
    colors: Factor


def _scatter(deviations: np.ndarray, axis: int) -> np.ndarray:
    flat = np.moveaxis(deviations, axis, 0).reshape(deviations.shape[axis], -1)
    return flat @ flat.T


def measure(images_BHWC: np.ndarray) -> Moments:
    """The moments of one batch; `merge` adds batches up, in any order.

    >>> batches = np.ones((2, 3, 4, 4, 1)) * np.arange(2)[:, None, None, None, None]
    >>> merge(measure(batches[0]), measure(batches[1])).mean[0, 0].tolist()
    [0.5]

    Raises:
      ValueError: if the images are not [B, H, W, C] with B > 0.
    """
    images = np.asarray(images_BHWC, np.float64)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images_BHWC must have shape [B, H, W, C], B > 0; got {images.shape}")
    mean = images.mean(axis=0)
    deviations = images - mean
    return Moments(
        np.asarray(len(images), np.float64), mean, *(_scatter(deviations, i) for i in (1, 2, 3))
    )


def merge(first: Moments, second: Moments) -> Moments:
    """The moments of both sets together, without the cancellation of raw second moments.

    See "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" by Chan,
    Golub and LeVeque (Stanford STAN-CS-79-773, 1979), here for matrices.

    Raises:
      ValueError: if the images differ in shape.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"moments of images {first.mean.shape} and {second.mean.shape}: not one")
    count = first.count + second.count
    shift = second.mean - first.mean
    weight = first.count * second.count / count
    return Moments(
        count,
        first.mean + shift * (second.count / count),
        *(first[2 + i] + second[2 + i] + weight * _scatter(shift, i) for i in (0, 1, 2)),
    )


def covariances(moments: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(S_rows, S_cols, S_colors), float64, from sums over n images: divided by n, not n - 1.

    A product determines its factors up to scale. Here S_rows and S_cols have a mean
    diagonal of 1 and S_colors is the covariance of a pixel's channels, averaged over the
    pixels, so that the trace of S is the variance of the images in all.

    Raises:
      ValueError: if all images are the same.
    """
    height, width, _ = moments.mean.shape
    total = np.trace(moments.rows)
    if not total > 0:
        raise ValueError("moments must be of images that differ; their variance is 0")
    return (
        moments.rows * (height / total),
        moments.cols * (width / total),
        moments.colors / (moments.count * height * width),
    )


def factor(covariance: np.ndarray, matrix: np.ndarray | None = None) -> Factor:
    """A B = U diag(s) V' of one axis, in float64; a table of matrices gives a table.

    Args:
      covariance: S along this axis, [n, n], positive semi-definite, of any rank.
      matrix: A along this axis, [..., n, n]; None is the identity.
    Raises:
      ValueError: if the sizes differ.
    """
    matrix = np.eye(len(covariance)) if matrix is None else np.asarray(matrix, np.float64)
    if matrix.shape[-2:] != covariance.shape:
        raise ValueError(f"matrix must be of size {covariance.shape}; got {matrix.shape[-2:]}")
    variances, basis = np.linalg.eigh(covariance)
    root = basis * np.sqrt(np.maximum(variances, 0))  # rounding makes a variance of 0 negative
    left, singular, right = np.linalg.svd(matrix @ root)
    parts: tuple[Any, ...] = (  # numpy's here, in float64; jax's once they stand in a restorer
        np.swapaxes(left, -1, -2),
        root @ np.swapaxes(right, -1, -2),
        singular,
        right @ basis.T,
    )
    return Factor(*parts)


# The second difference with ends that turn the image over, and with ends that meet. The
# eigenvectors of the one are the cosines of the DCT-II; of the other sine and cosine of each
# frequency in turn, whose variances are one. Any other stationary covariance shares them.
_ENDS = {"symmetric": (0, -1), "circular": (-1, 0)}


def _stationary_basis(size: int, ends: str) -> tuple[np.ndarray, np.ndarray]:
    """(the basis, [n, n], a vector a column; the number of each vector's frequency, [n])."""
    difference = 2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)
    for row, neighbor in zip((0, -1), _ENDS[ends], strict=True):
        difference[row, neighbor] -= 1
    index = np.arange(size)
    return np.linalg.eigh(difference)[1], index if ends == "symmetric" else (index + 1) // 2


def stationary_factor(covariance: np.ndarray, matrix: np.ndarray | None = None) -> Factor:
    """`factor` of S made stationary: of what S is between all pairs of pixels one distance apart.

    Such an S is diagonal in one basis Q, the DCT-II or the Fourier basis. So is the matrix of a
    blur with symmetric or circular ends, or of heat: A = Q diag(a_k) Q', and A B = Q diag(s) with
    s_n = a_n sqrt(l_n), l_n the variance of S along q_n (the mean of both of a frequency). Of a
    table of matrices s alone is a table: K n + 3 n^2 floats in place of 3 K n^2.

    Args:
      covariance, matrix: see `factor`.
    Raises:
      ValueError: if the matrices are diagonal in neither basis.
    """
    size = len(covariance)
    matrix = np.eye(size) if matrix is None else np.asarray(matrix, np.float64)
    for ends in _ENDS:
        basis, frequency = _stationary_basis(size, ends)
        spectral = basis.T @ matrix @ basis
        gains = np.diagonal(spectral, axis1=-2, axis2=-1)
        if np.allclose(spectral, gains[..., None] * np.eye(size), rtol=0, atol=1e-5):
            break
    else:
        raise ValueError(
            "a stationary covariance needs a degradation that is diagonal in the DCT-II or the "
            "Fourier basis: heat, or a blur with symmetric or circular ends"
        )
    each = np.einsum("in,ij,jn->n", basis, covariance, basis)
    variances = (np.bincount(frequency, each) / np.bincount(frequency))[frequency]
    root = np.sqrt(np.maximum(variances, 0))
    ahead = (1,) * (matrix.ndim - 2)  # the same for every matrix of a table
    turn, synthesis = (np.reshape(part, (*ahead, size, size)) for part in (basis.T, basis * root))
    parts: tuple[Any, ...] = (turn, synthesis, gains * root, turn)
    return Factor(*parts)


def multiply(
    x: Array, rows: Array | None = None, cols: Array | None = None, colors: Array | None = None
) -> Array:
    """rows on the rows, cols on the columns, colors on the channels of x, [H, W, C].

    None is the identity; at full precision, where an accelerator's default is not.
    """
    chex.assert_rank(x, 3)
    for matrix, product in zip(
        (rows, cols, colors), ("ih,hwc->iwc", "jw,hwc->hjc", "kc,hwc->hwk"), strict=True
    ):
        x = x if matrix is None else jnp.einsum(product, matrix, x, precision="highest")
    return x


def _outer(rows: Array, cols: Array, colors: Array) -> Array:
    return rows[:, None, None] * cols[None, :, None] * colors[None, None, :]


def posterior_mean(
    factors: Factors, mean: Array, mean_t: Array, xt: Array, alpha: Array, sigma: Array
) -> Array:
    """L(x_t) = mu + B V [alpha s / (alpha^2 s^2 + sigma^2)] U' (x_t - A mu).

    Args:
      factors: of the degradation's matrices at this severity, without alpha.
      mean: mu, [H, W, C].
      mean_t: A mu, [H, W, C], alpha included.
      xt: degraded image, [H, W, C].
      alpha: scalar.
      sigma: scalar, positive: the noise, and what rounding adds to it.
    Returns:
      x0_hat, [H, W, C].
    Raises:
      AssertionError: at trace time, if shapes differ.
    Note:
      L amplifies by up to 1 / (2 sigma) times the largest std of S: x_t rounded to float32
      (6e-8 of its largest value) wants a sigma of 1e-5 or more.
    """
    chex.assert_equal_shape([xt, mean, mean_t])
    chex.assert_rank([xt, alpha, sigma], [3, 0, 0])
    s = alpha * _outer(*(axis.singular for axis in factors))
    modes = multiply(xt - mean_t, *(axis.analysis for axis in factors))
    modes = modes * (s / (jnp.square(s) + jnp.square(sigma)))
    return mean + multiply(modes, *(axis.synthesis for axis in factors))


def posterior_error(factors: Factors, alpha: Array, sigma: Array) -> Array:
    """e: the root mean square of L(x_t) - x0 over x0 of covariance S; arguments as above."""
    chex.assert_rank([alpha, sigma], 0)
    s = alpha * _outer(*(axis.singular for axis in factors))
    power = _outer(*(jnp.sum(jnp.square(axis.synthesis), axis=0) for axis in factors))
    lost = jnp.square(sigma) / (jnp.square(s) + jnp.square(sigma))
    return jnp.sqrt(jnp.mean(power * lost))


def posterior_root(factors: Factors, alpha: Array, sigma: Array, z: Array) -> Array:
    """P^(1/2) z = B V [sigma / sqrt(alpha^2 s^2 + sigma^2)] (Q V)' z, P the posterior covariance.

    White noise z of variance 1 becomes noise of covariance P, and of root mean square e: what
    a guess may add to L(x_t) without contradicting x_t.

    Args:
      factors, alpha, sigma: as in `posterior_mean`.
      z: [H, W, C].
    Returns:
      [H, W, C].
    Note:
      Of the roots of P it is the one that is S^(1/2), symmetric, where x_t tells nothing, and
      sigma std / sqrt(alpha^2 std^2 + sigma^2) I where A = alpha I and S = std^2 I.
    """
    chex.assert_rank([z, alpha, sigma], [3, 0, 0])
    s = alpha * _outer(*(axis.singular for axis in factors))
    modes = multiply(z, *(axis.rotation for axis in factors))
    modes = modes * (sigma / jnp.sqrt(jnp.square(s) + jnp.square(sigma)))
    return multiply(modes, *(axis.synthesis for axis in factors))


def whiten(factors: Factors, alpha: Array, sigma: Array, x: Array) -> Array:
    """(Q V) [1 / sqrt(alpha^2 s^2 + sigma^2)] U' x: x_t - A mu as white noise of variance 1.

    Args:
      factors, alpha, sigma: as in `posterior_mean`.
      x: [H, W, C].
    Returns:
      [H, W, C].
    Note:
      x / sqrt(alpha^2 std^2 + sigma^2) where A = alpha I and S = std^2 I. Turned as
      `posterior_root` wants it: P^(1/2) times what this makes of x_t - A mu is L(x_t) - mu,
      but for a factor alpha s / sigma in each mode.
    """
    chex.assert_rank([x, alpha, sigma], [3, 0, 0])
    s = alpha * _outer(*(axis.singular for axis in factors))
    modes = multiply(x, *(axis.analysis for axis in factors))
    modes = modes / jnp.sqrt(jnp.square(s) + jnp.square(sigma))
    return multiply(modes, *(axis.rotation.T for axis in factors))


class WienerRestorer(NamedTuple):
    """L_t for every t: arrays alone, so that it goes wherever parameters go."""

    mean: Array  # mu, [H, W, C]
    std: Array  # scalar, std(x0)
    floor: Array  # scalar
    factors: Factors  # a leading axis of levels + 1, or of 1 where t changes nothing


def fit(
    linear_fn: LinearFn,
    moments: Moments,
    *,
    levels: int | None = None,
    floor: float = 1e-5,
    stationary: bool = False,
) -> WienerRestorer:
    """L_t of a linear degradation on data of these moments; computed in float64.

    Args:
      linear_fn: D, of which omega is white noise of mean 0 and variance 1, or nothing. Where
        omega is made of another image, L_t is biased.
      moments: of the training images, from `measure` and `merge`.
      levels: how many severities its matrices are tabulated at, k = round(t levels): T for
        a D in T steps. Where D's matrices are continuous in t, L_t is that of the nearest
        level, so t should be drawn on them. alpha and sigma are taken at t itself: None
        where D has no matrices.
      floor: how uncertain x_t itself is, in the units of [-1, 1]; added to sigma in
        quadrature. Rounding to float32 asks for 1e-5, files of 8 bits for 3e-3: L_t turns
        their rounding into noise otherwise.
      stationary: see `stationary_factor`: a coarser model of the data, for images so large
        that the tables are.
    Returns:
      Float32 tables, for a blur of 3 (H^2 + W^2) floats a level; stationary: H + W a level, and
      3 (H^2 + W^2) once.
    Raises:
      ValueError: if an argument is invalid, the message names it; or see `stationary_factor`.
    """
    if not 0 < floor < np.inf:
        raise ValueError(f"floor must be positive and finite; got {floor}")
    if levels is not None and levels <= 0:
        raise ValueError(f"levels must be positive or None; got {levels}")
    ts = jnp.zeros(1) if levels is None else jnp.arange(levels + 1) / levels
    _, _, *matrices = jax.jit(jax.vmap(linear_fn))(ts)
    if levels is None and any(matrix is not None for matrix in matrices):
        raise ValueError("levels must be given: the matrices of this degradation change with t")
    along_image = stationary_factor if stationary else factor
    factors = Factors(
        *(
            create(covariance, np.eye(len(covariance))[None] if matrix is None else matrix)
            for create, covariance, matrix in zip(
                (along_image, along_image, factor), covariances(moments), matrices, strict=True
            )
        )
    )
    std = np.sqrt(np.mean(np.diag(covariances(moments)[2])))
    fields = (moments.mean, std, floor, factors)
    return WienerRestorer(*jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), fields))


class _AtSeverity(NamedTuple):
    """A_t and L_t at one t."""

    factors: Factors
    alpha: Array
    sigma: Array  # floor included
    mean: Array  # A_t mu, [H, W, C]


def _at_severity(restorer: WienerRestorer, linear_fn: LinearFn, t: Array) -> _AtSeverity:
    chex.assert_rank(t, 0)
    alpha, sigma, *matrices = linear_fn(t)
    alpha = jnp.asarray(alpha, jnp.float32)

    def nearest(table):
        k = jnp.clip(jnp.round(t * (len(table) - 1)), 0, len(table) - 1).astype(jnp.int32)
        return table[k]

    return _AtSeverity(
        factors=jax.tree.map(nearest, restorer.factors),
        alpha=alpha,
        sigma=jnp.hypot(sigma, restorer.floor),
        mean=alpha * multiply(restorer.mean, *matrices),
    )


def _estimate(restorer: WienerRestorer, at: _AtSeverity, xt: Array, t: Array) -> Array:
    x0_hat = posterior_mean(at.factors, restorer.mean, at.mean, xt, at.alpha, at.sigma)
    return jnp.where(t == 0, xt, x0_hat)


def estimate(
    restorer: WienerRestorer, linear_fn: LinearFn, xt: Array, t: Array
) -> tuple[Array, Array]:
    """(L_t(x_t), e_t); (x_t, 0) at t = 0.

    Args:
      restorer: from `fit`, of this degradation.
      linear_fn: D.
      xt: degraded image, [H, W, C], range [-1, 1].
      t: severity, scalar in [0, 1].
    Returns:
      x0_hat, [H, W, C], and the scalar root mean square of x0_hat - x0 under the model
      of the data: a scale, not a measurement, see above.
    Raises:
      AssertionError: at trace time, if xt has not the size of the data fitted.
    """
    at = _at_severity(restorer, linear_fn, t)
    error = posterior_error(at.factors, at.alpha, at.sigma)
    return _estimate(restorer, at, xt, t), jnp.where(t == 0, 0, error)


def precondition(
    network_fn: Callable[[Array, Array], Array],
    restorer: WienerRestorer,
    linear_fn: LinearFn,
    xt: Array,
    t: Array,
) -> Array:
    """R = L_t(x_t) + P_t^(1/2) F([C_t^(-1/2) (x_t - A_t mu), (L_t(x_t) - mu) / std(x0)], t).

    Args:
      network_fn: F, ([H, W, 2 C], t) -> [H, W, C].
      restorer, linear_fn, xt, t: see `estimate`.
    Returns:
      x0_hat, [H, W, C]; xt at t = 0.
    Raises:
      AssertionError: at trace time, if xt or the network's answer has another shape.
    Note:
      x_t is centered, which EDM, of data with mean 0, does not do: a strong blur leaves the
      mean and little else, and C_t^(-1/2) would enlarge it too.
    """
    at = _at_severity(restorer, linear_fn, t)
    x0_hat = _estimate(restorer, at, xt, t)
    inputs = (
        whiten(at.factors, at.alpha, at.sigma, xt - at.mean),
        (x0_hat - restorer.mean) / restorer.std,
    )
    output = network_fn(jnp.concatenate(inputs, axis=-1), t)
    chex.assert_equal_shape([output, xt])
    left = posterior_root(at.factors, at.alpha, at.sigma, output)
    return x0_hat + jnp.where(t == 0, 0, left)
