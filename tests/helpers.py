"""What several test files share: noisy walks, chains of blurs, the best linear estimate."""

import numpy as np
from scipy import linalg, ndimage

from diffjax import samplers


def noise_process(schedule_fn, restore_fn, **fields):
    """R, and x_t = alpha(t) x0 + sigma(t) omega written out, omega inferred from it."""

    def degrade_fn(x0, t, omega):
        alpha, sigma = schedule_fn(t)
        return alpha * x0 + sigma * omega

    def infer_fn(xt, t, x0_hat, omega):
        alpha, sigma = schedule_fn(t)
        return (xt - alpha * x0_hat) / sigma

    return samplers.Process(restore_fn, degrade_fn, infer_fn, **fields)


def best_linear(mean, covariance, matrix, noise_covariance, xt):
    """Of x0 with these moments and x_t = matrix x0 + noise, float64 and nothing factored:

    (mu + S A' C^-1 (x_t - A mu), its error's covariance S - S A' C^-1 A S, C = A S A' + noise).
    """
    seen = matrix @ covariance @ matrix.T + noise_covariance
    gain = linalg.solve(seen, matrix @ covariance, assume_a="pos").T
    x0_hat = mean + gain @ (np.asarray(xt, np.float64).reshape(-1) - matrix @ mean)
    return x0_hat, covariance - gain @ matrix @ covariance, seen


def iterated_blur(image, stds, kernel_sizes, mode):
    """k convolutions along rows and columns, one after another, by scipy in float64."""
    for std, kernel_size in zip(stds, kernel_sizes, strict=True):
        offsets = np.arange(kernel_size) - kernel_size // 2
        kernel = np.exp(-(offsets**2) / (2 * std**2))
        for axis in (0, 1):
            image = ndimage.correlate1d(image, kernel / kernel.sum(), axis=axis, mode=mode)
    return image
