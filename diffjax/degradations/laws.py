"""The laws that every degradation meets, for one of your own.

    check_degradation(degradation, key, (H, W, C)) -> {law: largest error}

tries `LAWS` one after another and raises LawError at the first that fails, with its
name and the numbers. Samplers, losses and training are written once against D; a
degradation that meets the laws works with all of them.
"""

import copy
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffjax import samplers
from diffjax.degradations.base import Degradation, degrade, draw, infer, require

Array = jax.Array


class LawError(AssertionError):
    """A degradation breaks a law; the message is the law, then the numbers."""


class Trial(NamedTuple):
    """What the laws are tried on: S severities, with an image and a key for each."""

    degradation: Degradation
    keys_S: Array
    x0_SHWC: Array  # random in [-1, 1]
    t_S: Array  # increasing, from 0 to 1
    tolerance: float

    def rows(self):
        return zip(self.keys_S, self.x0_SHWC, self.t_S, strict=True)


class Finding(NamedTuple):
    """One comparison; the law holds where error <= limit."""

    what: str
    t: Array | float
    error: float
    limit: float


def _replay(degradation, omega, x0, t):
    """(xt, D(x0, t, infer(xt, t, x0, omega)))."""
    xt = degrade(degradation, x0, t, omega)
    return xt, degrade(degradation, x0, t, infer(degradation, xt, t, x0, omega))


def _draw_and_replay(degradation, key, x0, t):
    omega = draw(degradation, key, x0)
    return omega, _replay(degradation, omega, x0, t)


def _numbers(leaf):
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf, np.float64)


def _error(actual: Any, expected: Any) -> float:
    """max |actual - expected| / max(1, max |expected|), the worst of all leaves; inf for NaN."""
    chex.assert_trees_all_equal_structs(actual, expected)
    worst = 0.0
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = _numbers(a), _numbers(b)
        chex.assert_equal_shape([a, b])
        error = np.max(np.abs(a - b), initial=0) / np.max(np.abs(b), initial=1)
        worst = max(worst, float(np.nan_to_num(error, nan=np.inf)))
    return worst


def _unstack(tree, count):
    tree = jax.tree.map(_numbers, tree)
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]


def _shape(trial: Trial) -> Iterator[Finding]:
    for key, x0, t in trial.rows():
        xt = degrade(trial.degradation, x0, t, draw(trial.degradation, key, x0))
        what = f"x0 {x0.shape} became xt {xt.shape}"
        yield Finding(what, t, float(xt.shape != x0.shape), 0)


def _dtype(trial: Trial) -> Iterator[Finding]:
    for dtype in (jnp.float32, jnp.bfloat16):
        x0 = trial.x0_SHWC[-1].astype(dtype)
        row = (trial.degradation, trial.keys_S[-1], x0, trial.t_S[-1])
        xt, _ = jax.eval_shape(_draw_and_replay, *row)[1]
        what = f"x0 {x0.dtype} became xt {xt.dtype}"
        yield Finding(what, trial.t_S[-1], float(xt.dtype != dtype), 0)


def _identity(trial: Trial) -> Iterator[Finding]:
    for key, x0, _ in trial.rows():
        omega = draw(trial.degradation, key, x0)
        for t in (0, jnp.float32(0)):
            xt = degrade(trial.degradation, x0, t, omega)
            yield Finding("D(x0, 0, omega) against x0", t, _error(xt, x0), 0)


def _finite_values(trial: Trial) -> Iterator[Finding]:
    for key, x0, t in trial.rows():
        for kind, image in (("random", x0), ("constant", jnp.zeros_like(x0))):
            xt = degrade(trial.degradation, image, t, draw(trial.degradation, key, image))
            bad = int(np.sum(~np.isfinite(xt)))
            yield Finding(f"values of a {kind} image, of {x0.size}, that are not", t, bad, 0)


def _one_key_one_omega(trial: Trial) -> Iterator[Finding]:
    for key, x0, t in trial.rows():
        first, second = (draw(trial.degradation, key, x0) for _ in range(2))
        yield Finding("a second draw against the first", t, _error(second, first), 0)


def _one_omega_one_image(trial: Trial) -> Iterator[Finding]:
    for key, x0, t in trial.rows():
        omega = draw(trial.degradation, key, x0)
        first, second = (degrade(trial.degradation, x0, t, omega) for _ in range(2))
        yield Finding("a second xt against the first", t, _error(second, first), 0)


def _inferred_omega(trial: Trial) -> Iterator[Finding]:
    for key, x0, t in trial.rows():
        xt, replayed = _replay(trial.degradation, draw(trial.degradation, key, x0), x0, t)
        what = "D(x0, t, infer(xt, t, x0, omega)) against xt"
        yield Finding(what, t, _error(replayed, xt), trial.tolerance)


def _transformations(trial: Trial) -> Iterator[Finding]:
    degradation = trial.degradation
    eager = [_draw_and_replay(degradation, *row) for row in trial.rows()]
    rows = (trial.keys_S, trial.x0_SHWC, trial.t_S)
    axes = (None, 0, 0, 0)
    mapped = jax.jit(jax.vmap(_draw_and_replay, in_axes=axes))(degradation, *rows)
    yield from _agree("vmap", _unstack(mapped, len(eager)), eager, trial)

    # Random numbers are slow to compile: once is enough, and below omega is given.
    jitted = jax.jit(_replay)
    operands = [(omega, x0, t) for (omega, _), (_, x0, t) in zip(eager, trial.rows(), strict=True)]
    images = [replayed for _, replayed in eager]
    yield from _agree("jit", [jitted(degradation, *one) for one in operands], images, trial)
    devices = min(jax.local_device_count(), len(eager))
    if devices > 1:
        # Fewer devices than severities see the last ones: the first is the identity.
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *operands[-devices:])
        # One argument: with several, pmap takes in_axes to be one a leaf if the counts agree.
        spread = jax.pmap(lambda operands: _replay(*operands), in_axes=(axes,))
        mapped = spread((degradation, *stacked))
        yield from _agree("pmap", _unstack(mapped, devices), images, trial)


def _agree(name, seen, eager, trial):
    for actual, expected, t in zip(seen[::-1], eager[::-1], trial.t_S[::-1], strict=False):
        yield Finding(f"{name} against eager", t, _error(actual, expected), trial.tolerance)


def _one_trace(trial: Trial) -> Iterator[Finding]:
    traces = []

    @jax.jit
    def counted(degradation, key, x0, t):
        traces.append(t)
        return _draw_and_replay(degradation, key, x0, t)

    for row in trial.rows():
        # A copy stands for a second construction: other arrays, equal in structure. What is
        # static in it must compare equal, which a partial or a fresh object does not.
        counted.trace(copy.deepcopy(trial.degradation), *row)
    yield Finding("traces too many for copies of D", trial.t_S[-1], len(traces) - 1, 0)


def _finite_gradient(trial: Trial) -> Iterator[Finding]:
    @jax.jit
    @jax.grad
    def slope_fn(x0, degradation, omega, t):
        return jnp.sum(degrade(degradation, x0, t, omega))

    for key, x0, t in trial.rows():
        for kind, image in (("random", x0), ("constant", jnp.zeros_like(x0))):
            omega = draw(trial.degradation, key, image)
            slope = slope_fn(image, trial.degradation, omega, t)
            what = f"slopes of sum(xt) in a {kind} image, of {slope.size}, that are not"
            yield Finding(what, t, int(np.sum(~np.isfinite(slope))), 0)


def _exact_restorer(trial: Trial) -> Iterator[Finding]:
    degradation, key, x0 = trial.degradation, trial.keys_S[-1], trial.x0_SHWC[-1]
    ts, omega = trial.t_S[::-1], draw(trial.degradation, trial.keys_S[-1], trial.x0_SHWC[-1])
    along = np.stack([degrade(degradation, x0, t, omega) for t in ts])
    algorithms = {"Algorithm 1": samplers.naive, "Algorithm 2": samplers.improved}

    @jax.jit
    def walk(degradation, x0, xT, omega):
        process = samplers.Process(
            lambda xt, t: x0, *(functools.partial(fn, degradation) for fn in (degrade, infer))
        )
        return {
            name: samplers.sample(sampler, process, key, xT, ts, omega, keep_every=1)[1].xt
            for name, sampler in algorithms.items()
        }

    for name, xts in jax.device_get(walk(degradation, x0, along[0], omega)).items():
        for xt, expected, t in zip(xts, along, trial.t_S[::-1], strict=True):
            yield Finding(f"{name} against D(x0, t)", t, _error(xt, expected), trial.tolerance)


def _linear_map(trial: Trial) -> Iterator[Finding]:
    degradation = trial.degradation
    if degradation.linear_fn is None:
        return
    linear_fn = jax.jit(degradation.linear_fn)
    products = ("ih,hwc->iwc", "jw,hwc->hjc", "dc,hwc->hwd")
    for key, x0, t in trial.rows():
        omega = draw(degradation, key, x0)
        alpha, sigma, *factors = linear_fn(degradation.params, t)
        expected = _numbers(x0)
        for matrix, product in zip(factors, products, strict=True):
            if matrix is not None:
                expected = np.einsum(product, _numbers(matrix), expected)
        expected = _numbers(alpha) * expected
        if np.any(_numbers(sigma)):
            chex.assert_shape(omega, x0.shape)
            expected = expected + _numbers(sigma) * _numbers(omega)
        error = _error(degrade(degradation, x0, t, omega), expected)
        yield Finding("D(x0, t, omega) against its LinearMap", t, error, trial.tolerance)


def _severity_in_range(trial: Trial) -> Iterator[Finding]:
    x0 = trial.x0_SHWC[0]
    omega = draw(trial.degradation, trial.keys_S[0], x0)
    for t in (-0.01, 1.01, float("nan")):
        raised = False
        try:
            degrade(trial.degradation, x0, t, omega)
        except ValueError:
            raised = True
        yield Finding("no ValueError", t, float(not raised), 0)


LAWS: Mapping[str, Callable[[Trial], Iterator[Finding]]] = MappingProxyType(
    {
        "shape kept": _shape,
        "identity at t=0": _identity,
        "finite values": _finite_values,
        "one key, one omega": _one_key_one_omega,
        "one omega, one image": _one_omega_one_image,
        "inferred omega": _inferred_omega,
        "jit = eager = vmap = pmap": _transformations,
        "dtype kept": _dtype,
        "one trace": _one_trace,
        "finite gradient": _finite_gradient,
        "exact restorer": _exact_restorer,
        "linear map": _linear_map,
        "severity in [0, 1]": _severity_in_range,
    }
)


def _try_law(law: str, trial: Trial) -> list[float]:
    errors = []
    try:
        for what, t, error, limit in LAWS[law](trial):
            if not error <= limit:
                raise LawError(
                    f"{law}: {what} at t={float(t):.4g}: {error:.3g}, but at most {limit:.3g};"
                    f" images {trial.x0_SHWC.shape[1:]}"
                )
            errors.append(float(error))
    except LawError:
        raise
    except Exception as failure:
        raise LawError(f"{law}: raised {type(failure).__name__}: {failure}") from failure
    return errors


def check_degradation(
    degradation: Degradation,
    key: Array,
    shape: Sequence[int],
    *,
    severities: Sequence[float] = (0.0, 0.03, 0.25, 0.5, 0.77, 1.0),
    tolerance: float = 1e-4,
) -> dict[str, float]:
    """Checks every law that a degradation must meet by itself.

    - Shape and dtype are those of x0, in float32 and in bfloat16; D(x0, 0) = x0, bit for
      bit; values and the gradient in x0 are finite, for a constant image as well.
    - The same key draws the same omega, and the same omega gives the same xt, bit for bit;
      D(x0, t, infer(xt, t, x0, omega)) = xt.
    - jit = eager = vmap, and pmap where there are devices; copies of D share one trace.
    - A restorer that knows x0 takes Algorithms 1 and 2 back to it along x_s = D(x0, s).
    - Where linear_fn is given, its LinearMap is D.
    - A Python number t outside [0, 1] raises ValueError.

    >>> from diffjax.degradations.blur import gaussian_blur
    >>> blur = gaussian_blur((6, 6, 1), stds=[0.5, 1.0], kernel_size=3)
    >>> report = check_degradation(blur, jax.random.key(0), (6, 6, 1))
    >>> max(report.values()) < 1e-4
    True

    Args:
      degradation: D.
      key: typed PRNG key; images and realizations are drawn from it.
      shape: (H, W, C) of the images that D takes.
      severities: increasing, from 0 to 1: where the laws are tried.
      tolerance: of errors relative to the largest value, or to 1 where that is less.
    Returns:
      The largest error of each law, 0 for one that holds exactly; "linear map" is
      missing where D has no linear_fn.
    Raises:
      LawError: at the first law that fails: its name, then the numbers.
      ValueError: if shape or severities are invalid.
    """
    require(len(shape) == 3, f"shape must be (H, W, C); got {tuple(shape)}")
    increasing = all(a < b for a, b in itertools.pairwise(severities))
    require(
        len(severities) > 1 and increasing and severities[0] == 0 and severities[-1] == 1,
        f"severities must increase from 0 to 1; got {tuple(severities)}",
    )
    key_image, key_omega = jax.random.split(key)
    trial = Trial(
        degradation,
        jax.random.split(key_omega, len(severities)),
        jax.random.uniform(key_image, (len(severities), *shape), minval=-1, maxval=1),
        jnp.asarray(severities, jnp.float32),
        tolerance,
    )
    errors = {law: _try_law(law, trial) for law in LAWS}
    return {law: max(found) for law, found in errors.items() if found}
