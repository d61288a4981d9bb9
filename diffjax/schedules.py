"""Schedules: how severity t in [0, 1] becomes a strength. Plain functions, one line each.

    noise        (t, **numbers) -> (alpha, sigma) of x_t = alpha x0 + sigma omega
    widths       (t, **numbers) -> std in pixels; or one std a step, float64 [T]

Every noise schedule starts at (1, 0) exactly, since D(x0, 0) = x0, even where the
published one starts a little above it. Between, sigma comes from a formula of its own
rather than sqrt(1 - alpha^2), which loses all digits where alpha is near 1, and the
other way round. Where sigma grows like sqrt(t), its derivative at t = 0 is 0 here.

The numbers of a schedule may be arrays: they can be swept, or learned.

Depends on: jax, numpy.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Numbers = Array | float

DDPM_STEPS = 1000  # what DDPM's betas, and the clipping of the cosine schedule's, refer to


def safe_sqrt(x: Numbers) -> Array:
    """sqrt(x) where x > 0, else 0, with derivative 0 there."""
    positive = jnp.asarray(x) > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _start(t: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """(alpha, sigma), but (1, 0) at t = 0."""
    return jnp.where(t == 0, 1.0, alpha), jnp.where(t == 0, 0.0, sigma)


def linear(t: Array, *, beta_min: Numbers = 1e-4, beta_max: Numbers = 0.02) -> tuple[Array, Array]:
    """DDPM's: alpha^2 = prod_{i < n} (1 - beta_i), n = 1000 t, beta_i equally spaced.

    In closed form and for any real n: the sum of log(1 - beta_i) is n times the mean of
    log(1 - beta) from beta_min - d/2 to beta_min + (n - 1/2) d, d the spacing, which three
    Gauss-Legendre nodes give. At t = k/1000 it is the table of the k-th cumulative product,
    within 2e-8 in log alpha^2 and float32 rounding.

    See section 4 of "Denoising Diffusion Probabilistic Models" by Ho et al.
    (https://arxiv.org/abs/2006.11239).

    Args:
      t: severity, scalar in [0, 1].
      beta_min, beta_max: the first and the last of 1000 betas. A schedule of T steps that
        scales its betas by 1000 / T is this one within O(beta^2); `beta_table` is it exactly.
    Returns:
      (alpha, sigma), alpha^2 + sigma^2 = 1; alpha(1)^2 = 4.04e-5.
    """
    n = DDPM_STEPS * t
    spacing = (beta_max - beta_min) / (DDPM_STEPS - 1)
    middle, half = beta_min + (n - 1) / 2 * spacing, n / 2 * spacing
    node = 0.6**0.5 * half
    mean = (
        5 * jnp.log1p(-(middle - node)) + 8 * jnp.log1p(-middle) + 5 * jnp.log1p(-(middle + node))
    ) / 18
    return jnp.exp(n * mean / 2), safe_sqrt(-jnp.expm1(n * mean))


def cosine(t: Array, *, offset: Numbers = 0.008, beta_max: Numbers = 0.999) -> tuple[Array, Array]:
    """alpha = cos((t + s)/(1 + s) pi/2) / cos(s/(1 + s) pi/2), s the offset.

    See Equation 17 of "Improved Denoising Diffusion Probabilistic Models" by Nichol and
    Dhariwal (https://arxiv.org/abs/2102.09672).

    Args:
      t: severity, scalar in [0, 1].
      offset: s.
      beta_max: the largest beta of 1000 steps; only the last one reaches it, so that alpha
        ends at 4.9e-5 rather than 0. 1 lets it end at 0.
    Returns:
      (alpha, sigma), alpha^2 + sigma^2 = 1.
    Note:
      The table of T steps with the same bound ends higher the fewer the steps: it is
      `beta_table(cosine_betas(T))`.
    """
    unit = jnp.pi / 2 / (1 + offset)
    first = jnp.cos(offset * unit)
    last = safe_sqrt(1.0 - beta_max) * jnp.sin(unit / DDPM_STEPS) / first
    alpha = jnp.maximum(jnp.sin((1 - t) * unit) / first, last)
    # cos^2 b - cos^2 a = sin(a - b) sin(a + b)
    variance = jnp.sin(t * unit) * jnp.sin((t + 2 * offset) * unit) / jnp.square(first)
    return _start(t, alpha, safe_sqrt(jnp.minimum(variance, 1 - jnp.square(last))))


def sigmoid(
    t: Array,
    *,
    start: Numbers = -3.0,
    end: Numbers = 3.0,
    temperature: Numbers = 1.0,
    alpha_bar_min: Numbers = 1e-9,
) -> tuple[Array, Array]:
    """alpha^2 = (S(e) - S(s + t(e - s))) / (S(e) - S(s)), S(x) = 1/(1 + exp(-x / temperature)).

    See "Scalable Adaptive Computation for Iterative Generation" by Jabri et al.
    (https://arxiv.org/abs/2212.11972).

    Args:
      t: severity, scalar in [0, 1].
      start, end: s and e.
      temperature: larger is closer to a straight line.
      alpha_bar_min: the least alpha^2, reached at t = 1; 0 lets it end at 0.
    Returns:
      (alpha, sigma), alpha^2 + sigma^2 = 1.
    """
    # S(x) - S(y) = sinh((x - y)/2) / (2 cosh(x/2) cosh(y/2)), with no cancellation.
    s, e = start / temperature / 2, end / temperature / 2
    common = jnp.cosh(s + t * (e - s)) * jnp.sinh(e - s)
    alpha_bar = jnp.sinh((1 - t) * (e - s)) * jnp.cosh(s) / common
    variance = jnp.sinh(t * (e - s)) * jnp.cosh(e) / common
    return _start(
        t,
        safe_sqrt(jnp.maximum(alpha_bar, alpha_bar_min)),
        safe_sqrt(jnp.minimum(variance, 1.0 - alpha_bar_min)),
    )


def shifted_cosine(
    t: Array,
    *,
    image_size: Numbers = 1.0,
    noise_size: Numbers = 1.0,
    logsnr_min: Numbers = -15.0,
    logsnr_max: Numbers = 15.0,
) -> tuple[Array, Array]:
    """log SNR = -2 ln tan(a) + 2 ln(noise_size / image_size), a linear in t.

    See section 3.1 of "simple diffusion: End-to-end diffusion for high resolution images" by
    Hoogeboom et al. (https://arxiv.org/abs/2301.11093).

    Args:
      t: severity, scalar in [0, 1].
      image_size: d, the side of the images; with equal sizes nothing is shifted.
      noise_size: the side of the images for which the cosine alone is right, 32 or 64.
      logsnr_min, logsnr_max: log SNR at t = 1 and t = 0 before the shift; may be infinite.
    Returns:
      (alpha, sigma), alpha^2 + sigma^2 = 1.
    Note:
      The published schedule has log SNR = logsnr_max at t = 0; here that is the limit as
      t falls to 0, where (alpha, sigma) jumps to (1, 0).
    """
    # a runs from low to pi/2 - high: sin(a) and cos(a) are both sines of what is small.
    low, high = (jnp.arctan(jnp.exp(x / 2)) for x in (jnp.negative(logsnr_max), logsnr_min))
    span = jnp.pi / 2 - low - high
    signal = jnp.sin(high + (1 - t) * span) * (noise_size / image_size)
    noise = jnp.sin(low + t * span)
    norm = jnp.hypot(signal, noise)
    return _start(t, signal / norm, noise / norm)


def flow(t: Array) -> tuple[Array, Array]:
    """(1 - t, t): the straight line of flow matching and rectified flow.

    See "Flow Straight and Fast" by Liu et al. (https://arxiv.org/abs/2209.03003).
    """
    return 1 - t, t


def log_spaced(t: Array, *, sigma_min: Numbers, sigma_max: Numbers) -> Array:
    """sigma_min (sigma_max / sigma_min)^t, but 0 at t = 0; scalar."""
    return jnp.where(t == 0, 0.0, sigma_min * jnp.power(sigma_max / sigma_min, t))


def variance_exploding(
    t: Array, *, sigma_min: Numbers = 0.01, sigma_max: Numbers = 50.0
) -> tuple[Array, Array]:
    """alpha = 1, sigma log-spaced from sigma_min to sigma_max.

    See "Score-Based Generative Modeling through Stochastic Differential Equations" by Song
    et al. (https://arxiv.org/abs/2011.13456).

    Note: sigma_min is the limit as t falls to 0, where sigma jumps to 0.
    """
    return jnp.ones_like(t), log_spaced(t, sigma_min=sigma_min, sigma_max=sigma_max)


def karras(
    t: Array, *, sigma_min: Numbers = 0.002, sigma_max: Numbers = 80.0, rho: Numbers = 7.0
) -> tuple[Array, Array]:
    """alpha = 1, sigma = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    See Equation 5 of "Elucidating the Design Space of Diffusion-Based Generative Models" by
    Karras et al. (https://arxiv.org/abs/2206.00364).

    Note:
      EDM's list of N levels, with 0 appended, has sigma_min one step above 0: here it is
      the limit as t falls to 0, where sigma jumps to 0. `samplers.karras_grid` gives EDM's levels.
    """
    low, high = (jnp.power(x, 1 / rho) for x in (sigma_min, sigma_max))
    sigma = jnp.power(low + t * (high - low), rho)
    return _start(t, jnp.ones_like(t), sigma)


def tabulated(t: Array, *, table: Array) -> tuple[Array, Array]:
    """(alpha, sigma) from a table such as `beta_table`'s, on the circle between its rows.

    Args:
      t: severity, scalar in [0, 1].
      table: [T + 1, 2], row k being (alpha, sigma) at t = k/T; alpha^2 + sigma^2 = 1.
    Returns:
      (alpha, sigma), alpha^2 + sigma^2 = 1: two rows mixed linearly, then normalized.
    Raises:
      ValueError: if the table is not [T + 1, 2], with T > 0.
    """
    if jnp.ndim(table) != 2 or table.shape[0] < 2 or table.shape[1] != 2:
        raise ValueError(f"table must be [T + 1, 2]; got shape {jnp.shape(table)}")
    steps = table.shape[0] - 1
    k = jnp.clip(jnp.floor(t * steps).astype(jnp.int32), 0, steps - 1)
    above = t * steps - k
    alpha, sigma = (1 - above) * table[k] + above * table[k + 1]
    norm = jnp.hypot(alpha, sigma)
    return alpha / norm, sigma / norm


SCHEDULES: dict[str, Callable[..., tuple[Array, Array]]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "shifted_cosine": shifted_cosine,
    "flow": flow,
    "variance_exploding": variance_exploding,
    "karras": karras,
    "tabulated": tabulated,
}


def cosine_betas(steps: int, *, offset: float = 0.008, beta_max: float = 0.999) -> np.ndarray:
    """beta_k = min(1 - f(k/T) / f((k-1)/T), beta_max), f = cos^2((t + s)/(1 + s) pi/2); [T].

    See Equation 17 of "Improved Denoising Diffusion Probabilistic Models" by Nichol and
    Dhariwal (https://arxiv.org/abs/2102.09672). Cold Diffusion's hot models and its
    animorphosis use it too.
    """
    t = np.arange(steps + 1) / steps
    f = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], beta_max)


def beta_table(betas: Sequence[float]) -> np.ndarray:
    """Rows (alpha, sigma) of alpha_k^2 = prod_{i <= k} (1 - beta_i), k = 0..T; float64 [T + 1, 2].

    >>> beta_table([0.36, 1.0]).round(12).tolist()
    [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]

    Raises:
      ValueError: if the betas are not a vector of numbers in [0, 1].
    """
    beta_T = np.asarray(betas, np.float64)
    if beta_T.ndim != 1 or not len(beta_T) or not np.all((beta_T >= 0) & (beta_T <= 1)):
        raise ValueError(f"betas must be a vector of numbers in [0, 1]; got {beta_T}")
    with np.errstate(divide="ignore"):  # beta = 1: alpha = 0
        log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-beta_T))])
    return np.stack([np.exp(log_alpha_bar / 2), np.sqrt(np.abs(np.expm1(log_alpha_bar)))], axis=-1)


def zero_terminal(
    schedule_fn: Callable[..., tuple[Array, Array]], t: Array, **numbers: Numbers
) -> tuple[Array, Array]:
    """Any schedule on the circle, made to end at alpha = 0: (alpha - alpha(1)) / (1 - alpha(1)).

    Algorithm 1 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" by Lin et al.
    (https://arxiv.org/abs/2305.08891) in continuous time: its fixed first step is t = 0.

    Args:
      schedule_fn: with alpha^2 + sigma^2 = 1.
      t: severity, scalar in [0, 1].
      **numbers: the schedule's.
    Returns:
      (alpha, sigma), alpha^2 + sigma^2 = 1, (0, 1) at t = 1 exactly.
    """
    alpha, sigma = schedule_fn(t, **numbers)
    last, _ = schedule_fn(jnp.ones_like(t), **numbers)
    scaled = jnp.where(t == 1, 0.0, (alpha - last) / (1 - last))
    # 1 - scaled = (1 - alpha) / (1 - last), and 1 - alpha = sigma^2 / (1 + alpha)
    lost = jnp.where(t == 1, 1.0, jnp.square(sigma) / ((1 + alpha) * (1 - last)))
    return scaled, safe_sqrt(lost * (1 + scaled))


def invert(schedule_fn: Callable[[Array], tuple[Array, Array]], ratio: Numbers) -> Array:
    """The t at which sigma / alpha has a value: the inverse of a schedule, by bisection.

    >>> print(f"{invert(flow, 3.0):.6f}")
    0.750000

    Args:
      schedule_fn: t -> (alpha, sigma), its numbers bound; sigma / alpha must not fall.
      ratio: values of sigma / alpha, not negative, any shape; EDM's sigma.
    Returns:
      t in [0, 1], float32, the shape of ratio; 1 where the schedule does not reach the value.
    """
    ratio = jnp.asarray(ratio, jnp.float32)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        alpha, sigma = jnp.vectorize(schedule_fn)(middle)
        below = sigma < ratio * alpha
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    bounds = (jnp.zeros_like(ratio), jnp.ones_like(ratio))
    return jax.lax.fori_loop(0, 40, halve, bounds)[1]


def linear_stds(steps: int, *, start: float, slope: float = 0.0) -> np.ndarray:
    """std_i = start + slope i, i = 0..T-1, in pixels; float64 [T].

    Cold Diffusion's "Constant" (slope 0), "Incremental" (slope = start) and
    "Special_6_routine" (start 0.35, slope 0.01).
    """
    return start + slope * np.arange(steps)


def exponential_stds(steps: int, *, rate: float) -> np.ndarray:
    """std_i = exp(rate i), i = 0..T-1, in pixels; float64 [T]. Cold Diffusion's "Exponential"."""
    return np.exp(rate * np.arange(steps))


def blur_increments(steps: int, *, first: float, last: float) -> np.ndarray:
    """std_i of step i such that the std of all steps up to i is log-spaced; float64 [T].

      sum_{j <= i} std_j^2 = total_i^2,   total_1 = first, ..., total_T = last, log-spaced

    Repeated blurs of these stds lose one frequency after another, evenly over the steps: what a
    degradation that is to generate asks for. Where the last step goes to the mean, no frequency
    may be left to jump: take last = 1.2 N for N pixels.

    >>> blur_increments(2, first=3.0, last=5.0).tolist()
    [3.0, 4.0]

    Args:
      steps: T, at least 2.
      first, last: the total std of the first step and of all of them, in pixels.
    Raises:
      ValueError: if steps is below 2, or 0 < first < last does not hold.
    Note:
      The totals are met by `gaussian_blur` with kernel_size=None. A sampled kernel of less than
      half a pixel hardly blurs: of 50 steps from 0.3 to 12, 16 stay below 0.3 pixels.
    """
    if steps < 2 or not 0 < first < last < np.inf:
        raise ValueError(f"want steps >= 2 and 0 < first < last; got {steps}, {first}, {last}")
    total = np.geomspace(first, last, steps)
    return np.sqrt(np.diff(np.square(total), prepend=0.0))


def heat_stds(levels: int, *, sigma_min: float, sigma_max: float) -> np.ndarray:
    """sigma_1 = sigma_min, ..., sigma_K = sigma_max, log-spaced, in pixels; float64 [K].

    See "Generative Modelling With Inverse Heat Dissipation" by Rissanen et al.
    (https://arxiv.org/abs/2206.13397). They are cumulative: not one kernel's std a step.
    """
    return np.geomspace(sigma_min, sigma_max, levels)


def sine_squared(t: Array, *, maximum: Numbers) -> Array:
    """maximum sin^2(pi t / 2): the blur of "Blurring Diffusion Models" by Hoogeboom and
    Salimans (https://arxiv.org/abs/2209.05557), in pixels.
    """
    return maximum * jnp.square(jnp.sin(jnp.pi / 2 * t))
