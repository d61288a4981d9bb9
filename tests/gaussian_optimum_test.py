"""On Gaussian data every prediction under every weighting has the same, known optimum.

Oracle: for x0 ~ N(mu, S) and x_t = alpha x0 + sigma omega, the least mean squared error is

    trace(S - alpha^2 S (alpha^2 S + sigma^2 I)^-1 S) / d,

and an affine map of x_t attains it. The training set is moment-matched: the mean and
covariance of (x0, omega) over it are exactly (mu, 0) and diag(S, I), so the optimum over the
set is that of the law, with no sampling error. The affine map of each severity is found by
Newton's method on the weighted loss itself; as it is quadratic, a few steps suffice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import losses, predictions

DIMENSION = 3
MU = np.array([0.5, -0.2, 0.1])
S = np.array([[0.5, 0.3, 0.0], [0.3, 0.4, -0.1], [0.0, -0.1, 0.05]])
# (alpha, sigma, alpha_s, sigma_s): variance-preserving from mild to strong, the flow's middle,
# a variance-exploding one; x_s is milder than x_t.
LEVELS = np.array(
    [
        [0.995, np.sqrt(1 - 0.995**2), 1.0, 0.05],
        [0.8, 0.6, 0.96, 0.28],
        [0.2, np.sqrt(1 - 0.2**2), 0.6, 0.8],
        [0.5, 0.5, 0.7, 0.3],
        [1.0, 2.0, 1.0, 0.5],
    ]
)


def optimal_error(alpha, sigma):
    gain = np.linalg.solve(alpha**2 * S + sigma**2 * np.eye(DIMENSION), alpha * S)
    return np.trace(S - alpha * S @ gain) / DIMENSION


def training_set(size=256):
    """x0 and omega, [size, 3], whose joint sample mean and covariance are exact."""
    z = np.random.default_rng(0).normal(size=(size, 2 * DIMENSION))
    z -= z.mean(axis=0)
    z = np.linalg.solve(np.linalg.cholesky(z.T @ z / size), z.T).T
    x0 = MU + z[:, :DIMENSION] @ np.linalg.cholesky(S).T
    return jnp.asarray(x0, jnp.float32), jnp.asarray(z[:, DIMENSION:], jnp.float32)


def sigmoid_weight(alpha, sigma):
    return losses.sigmoid_weight(alpha, sigma, bias=-1.0)


WEIGHTINGS = losses.WEIGHTINGS | {"sigmoid": sigmoid_weight}


@pytest.mark.parametrize("kind", predictions.DIRECTIONS)
def test_every_prediction_and_weighting_reaches_the_optimum(kind):
    x0_N, omega_N = training_set()

    def fit(alpha, sigma, alpha_s, sigma_s, weight):
        """(the weighted loss of the best affine map, the error of its x0_hat) at one severity."""
        extras = {"alpha_s": alpha_s, "sigma_s": sigma_s}
        factor = predictions.x0_error_factor(kind, alpha, sigma, **extras)

        def network(params, xt):
            return params[:, :DIMENSION] @ xt + params[:, DIMENSION]

        def loss(params, x0, omega):
            output = network(params, alpha * x0 + sigma * omega)
            target = predictions.target(kind, x0, omega, alpha, sigma, **extras)
            return weight / factor * jnp.mean(losses.l2(output, target))

        def objective(flat):
            params = flat.reshape(DIMENSION, DIMENSION + 1)
            return jnp.mean(jax.vmap(loss, in_axes=(None, 0, 0))(params, x0_N, omega_N))

        def error(params, x0, omega):
            xt = alpha * x0 + sigma * omega
            x0_hat = predictions.to_x0(kind, network(params, xt), xt, alpha, sigma, **extras)
            return jnp.mean(losses.l2(x0_hat, x0))

        start = jnp.zeros(DIMENSION * (DIMENSION + 1))
        hessian = jax.hessian(objective)(start)
        flat = jax.lax.fori_loop(  # the first step solves it, the others take away its rounding
            0, 3, lambda _, flat: flat - jnp.linalg.solve(hessian, jax.grad(objective)(flat)), start
        )
        params = flat.reshape(DIMENSION, DIMENSION + 1)
        errors = jax.vmap(error, in_axes=(None, 0, 0))(params, x0_N, omega_N)
        return objective(flat), jnp.mean(errors)

    levels = jnp.asarray(LEVELS, jnp.float32).T
    names = list(WEIGHTINGS)
    weights = jnp.stack([jax.vmap(WEIGHTINGS[name])(*levels[:2]) for name in names])
    fit_levels = jax.vmap(fit)  # over severities, then over weightings
    found = jax.jit(jax.vmap(fit_levels, in_axes=(None, None, None, None, 0)))(*levels, weights)

    optimum = np.array([optimal_error(alpha, sigma) for alpha, sigma, *_ in LEVELS])
    for name, weight, weighted, error in zip(names, weights, *found, strict=True):
        np.testing.assert_allclose(error, optimum, rtol=0.02, err_msg=name)
        np.testing.assert_allclose(weighted, weight * optimum, rtol=0.02, err_msg=name)


def test_the_closed_form_against_regression():
    # numpy.linalg.lstsq of x0 on (x_t, 1) over the same set, in float64.
    x0, omega = (np.asarray(x, np.float64) for x in training_set())
    for alpha, sigma, *_ in LEVELS:
        inputs = np.column_stack([alpha * x0 + sigma * omega, np.ones(len(x0))])
        residual = x0 - inputs @ np.linalg.lstsq(inputs, x0)[0]
        np.testing.assert_allclose(np.mean(residual**2), optimal_error(alpha, sigma), rtol=1e-4)
