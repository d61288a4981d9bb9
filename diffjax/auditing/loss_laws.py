"""The laws of a loss, for one of your own: in seconds, without training.

    check_loss(loss_fn, degradation, key, (H, W, C), prediction="noise") -> {law: error}

tries `LAWS` one after another and raises LawError at the first that fails: its name, the
numbers, and one likely cause. Nothing is asked of loss_fn but

    loss_fn(network_fn, key, x0_BHWC) -> scalar,    network_fn(xt_BHWC, t_B) -> output_BHWC

so the loss may be anybody's. network_fn stands in the place of R(x_t, t), preconditioner
included; check_loss hands in an oracle that knows x0, see `oracle`. Whatever else your
loss takes, an adapter gives it:

    # as optax does: an unreduced loss, params, a key for each step
    def adapted(network_fn, key, x0):
        return loss_fn(None, lambda params, xt, t: network_fn(xt, t), x0, key).mean()

    # as diffusers does: a scheduler, steps 0..T-1 (t_scale=range(T))
    def adapted(network_fn, key, x0):
        key_t, key_noise = jax.random.split(key)
        t = jax.random.randint(key_t, (len(x0),), 0, T)
        noise = jax.random.normal(key_noise, x0.shape)
        return jnp.mean((network_fn(add_noise(x0, noise, t), t) - noise) ** 2)

    # as score_sde does: get_loss_fn(model, ...)(key, params, states, batch) -> (loss, states)
    def adapted(network_fn, key, x0):
        model = types.SimpleNamespace(apply=lambda variables, xt, t: network_fn(xt, t))
        return get_loss_fn(model)(key, None, None, {"image": x0})[0]

    # one example at a time
    def adapted(network_fn, key, x0):
        one_fn = lambda xt, t: network_fn(xt[None], t[None])[0]
        keys = jax.random.split(key, len(x0))
        return jnp.mean(jax.vmap(lambda key, x0: loss_fn(one_fn, key, x0))(keys, x0))

What it cannot see: a loss right for a D that is not yours; the images, and how often which
severity is drawn; a term that does not pass through the network.

Depends on: jax, numpy, diffjax.degradations, diffjax.losses, the oracle.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import losses, predictions
from diffjax.auditing import loss_trial, oracle, severities
from diffjax.auditing.loss_trial import ERROR, Trial, unweighted
from diffjax.degradations.base import Degradation, has_coefficients, require
from diffjax.degradations.laws import LawError

Array = jax.Array

BINS = 10  # of severity, for weights that vanish
LOSSES = MappingProxyType({"l2": losses.l2, "l1": losses.l1})


class Finding(NamedTuple):
    """One comparison; the law holds where error <= limit."""

    what: str
    error: float
    limit: float
    cause: str | Callable[[], str]


def _one_call(trial: Trial) -> Iterator[Finding]:
    calls = float(trial.keyed[0].calls)
    cause = (
        "the answer is detached, or the network is not called"
        if calls == 0
        else "the loss has several terms: check one at a time"
    )
    yield Finding(
        f"{calls:g} calls of the network in the gradient, not 1", abs(calls - 1), 0, cause
    )
    bad = sum(not np.isfinite(one.loss) for one in [trial.exact, *trial.keyed])
    cause = "a weight or a target divides by zero at one end of the severities"
    yield Finding(f"{bad} of {len(trial.keyed) + 1} losses are not finite", bad, 0, cause)


def _scale_of_t(trial: Trial) -> Iterator[Finding]:
    told, scale = trial.records.told_n, trial.scale
    low, high = {
        "unit": (0.0, 1.0),
        "steps": (scale.first, scale.first + (scale.levels or 1) - 1),
        "sigma": (0.0, np.inf),
    }[scale.name]
    outside = max(low - np.min(told), np.max(told) - high, 0.0)
    # k / T times T is k but for rounding.
    whole = np.allclose(told, np.round(told), rtol=0, atol=1e-5 * max(1.0, float(np.max(told))))
    if scale.name == "unit" and whole:
        cause = "steps are told: declare t_scale=range(T)"
    elif scale.name == "steps" and whole:
        cause = "steps are counted from 1 instead of 0, or from 0 instead of 1: see t_scale"
    elif scale.levels is not None and outside < 1.01 / scale.levels:
        cause = "off by one: the told t goes one step beyond the end"
    elif np.min(told) < 0:
        cause = "a logarithm is told, such as EDM's ln(sigma) / 4"
    else:
        cause = "the network is told t on another scale: declare t_scale"
    what = f"told t from {np.min(told):.4g} to {np.max(told):.4g}, not within [{low:g}, {high:g}]"
    yield Finding(what, np.nan_to_num(outside, nan=np.inf), 1e-6 * max(1.0, abs(low)), cause)
    if scale.name == "steps":
        parts = float(np.max(np.abs(told - np.round(told))))
        cause = "the network is told t / T: declare t_scale='unit' with levels=T"
        yield Finding("told steps that are no integers", parts, 1e-3, cause)


def _told(trial: Trial) -> Iterator[Finding]:
    records = trial.records
    what = f"{len(records.told_n)} images against D(x0, t) at the told t"
    yield Finding(what, severities.misfit(records), 1, functools.partial(severities.cause, records))
    if trial.nature == "noise":
        for k, labels in severities.off_by_one(records).items():
            where = "later" if k > 0 else "earlier"
            what = f"log likelihood of one step {where} than told, over that of the told t"
            cause = f"off by one: x_t is one step {where} than the told t"
            yield Finding(what, severities.gain(records, labels), 30, cause)


def _omegas(trial: Trial, fold: int) -> np.ndarray | None:
    """The noise in the images of one batch, [B, HWC] of unit length; None without noise."""
    if trial.nature != "noise":
        return None
    seen = trial.keyed[fold]
    clean, std = severities.expected(trial.records, seen.told_B)
    omega = seen.xt_BHWC.reshape(len(clean), -1) - clean
    clear = std > 1e-3
    return omega[clear] / np.linalg.norm(omega[clear], axis=1, keepdims=True)


def _own(trial: Trial) -> Iterator[Finding]:
    if trial.scale.levels != 1:
        same = min(np.ptp(one.told_B) for one in trial.keyed) == 0
        cause = "t is drawn once a batch: draw it with shape (B,)"
        yield Finding("batches in which all examples have one t", float(same), 0, cause)
    omega = _omegas(trial, 0)
    if omega is not None:
        alike = float(np.median(np.abs(omega[1:] @ omega[0])))
        cause = "the noise is drawn once a batch: draw it with the shape of the batch"
        yield Finding("correlation of two examples' noise", alike, 0.9, cause)


def _keys(trial: Trial) -> Iterator[Finding]:
    first, second = trial.keyed[:2]
    again = trial.ask(error=ERROR)
    error = float(np.max(np.abs(again.xt_BHWC - first.xt_BHWC)))
    yield Finding("two x_t of one key", error, 0, "randomness that is not the key's")
    if trial.scale.levels != 1:
        same = float(np.array_equal(first.told_B, second.told_B))
        cause = "t does not depend on the key: a fixed key, or numpy's random numbers"
        yield Finding("the same t at two keys", same, 0, cause)
    omega, other = _omegas(trial, 0), _omegas(trial, 1)
    if omega is not None and other is not None:
        count = min(len(omega), len(other))
        alike = float(np.median(np.abs(np.sum(omega[:count] * other[:count], 1))))
        cause = "the noise does not depend on the key: a fixed key, or numpy's random numbers"
        yield Finding("correlation of the noise at two keys", alike, 0.9, cause)


def _target_cause(trial: Trial) -> str:
    """What the loss compares with, if the declared answer does not make it vanish."""
    found = {
        name: trial.relative(kind=kind, sign=sign)
        for kind in trial.kinds
        for sign, name in ((1.0, kind), (-1.0, f"minus {kind}"))
    }
    own = found.pop(trial.prediction)
    wanted = min(found, key=found.__getitem__)
    if found[wanted] < min(1e-3, own):
        return f"the loss wants {wanted}, not {trial.prediction}"
    if trial.scale.levels is not None and trial.scale.name != "sigma":
        step = 1 if trial.scale.name == "steps" else 1 / trial.scale.levels
        for shift, where in ((step, "later"), (-step, "earlier")):
            if trial.relative(target_shift=shift) < 0.1 * own:
                return f"off by one: the target is of one step {where} than the told t"
            if trial.relative(solve_shift=shift, target_shift=shift) < 0.1 * own:
                return f"off by one: x_t is one step {where} than the told t"
    if has_coefficients(trial.degradation) and own > 1:
        return "the noise in the target is not that in x_t: drawn twice"
    return "the target is made at another t, by another schedule, or of another example"


def _is_square(trial: Trial) -> bool:
    """Whether the declared loss is a square near 0."""
    if trial.unreduced_fn is None:
        return False
    return trial.unreduced(1e-3)[0] > 3 * trial.unreduced(5e-4)[0]


def _exact(trial: Trial) -> Iterator[Finding]:
    what = f"loss {trial.exact.loss:.3g} of the exact {trial.prediction}, relative to that of zeros"
    limit = 1e-6 if _is_square(trial) else 1e-3
    relative = loss_trial.ratio_of(trial.exact.loss, trial.nothing)
    yield Finding(what, relative, limit, functools.partial(_target_cause, trial))


def _others(trial: Trial) -> Iterator[Finding]:
    cause = "the loss is near 0 whatever the network answers: weights of 0, or a target made of it"
    yield Finding("an answer of zeros costs nothing", float(not trial.nothing > 0), 0, cause)
    for kind in trial.kinds:
        for sign in (1.0, -1.0):
            if (kind, sign) == (trial.prediction, 1.0):
                continue
            seen = trial.ask(kind=kind, sign=sign)
            found = loss_trial.ratio_of(seen.loss, trial.nothing)
            name = kind if sign > 0 else f"minus {kind}"
            # Two answers may be one, as flow and edm are for some D: then there is no law.
            if np.max(np.abs(seen.answer_BHWC - trial.exact.answer_BHWC)) > 0.1:
                what = f"{name} costs {found:.3g} of what zeros cost, too little: 1e-3 over it"
                yield Finding(what, loss_trial.ratio_of(1e-3, found), 1, cause)


def _own_target(trial: Trial) -> Iterator[Finding]:
    images = trial.images((trial.size, *trial.shape))
    relative = loss_trial.ratio_of(
        trial.ask(images=images).loss, trial.ask(images=images, sign=0.0).loss
    )
    what = "loss of each example's exact answer where images differ, relative to that of zeros"
    cause = "answers are compared with other examples' targets: [B] against [B, 1], or a shuffle"
    yield Finding(what, relative, 1e-6 if _is_square(trial) else 1e-3, cause)


def _growth(trial: Trial) -> Iterator[Finding]:
    one, two = float(trial.keyed[0].loss), float(trial.ask(error=2 * ERROR).loss)
    minus = float(trial.ask(error=-ERROR).loss)
    cause = "the error is not squared, nor its size taken"
    what = f"loss {one:.4g} of an error of {ERROR}, {minus:.4g} of {-ERROR}: not positive"
    yield Finding(what, float(not min(one, minus) > 0), 0, cause)
    if trial.unreduced_fn is None:
        what = f"loss {one:.4g} of an error of {ERROR}, {two:.4g} of {2 * ERROR}: no growth"
        yield Finding(what, loss_trial.ratio_of(one, two), 0.999, "the loss saturates")
        return
    eight = float(trial.ask(error=8 * ERROR).loss)
    for factor, name, larger in ((2, "twice", two), (8, "eight times", eight)):
        due = trial.unreduced(factor * ERROR)[0] / trial.unreduced(ERROR)[0]
        found = loss_trial.ratio_of(larger, one)
        cause = "another loss than declared, such as Huber's"
        if abs(found / factor**2 - 1) < 0.02:
            cause = "the loss is l2: declare loss='l2'"
        elif abs(found / factor - 1) < 0.02:
            cause = "the loss is l1, or a root is taken of a mean of squares"
        what = f"{name} the error costs {found:.4g} times as much, not {due:.4g}"
        yield Finding(what, abs(found / due - 1), 0.02, cause)


def _constant(trial: Trial) -> Iterator[Finding]:
    if trial.weight_fn is None or trial.unreduced_fn is None:
        return
    for seen in trial.keyed[:2]:
        weight = trial.declared(seen.told_B)
        value, slope = trial.unreduced(ERROR)
        due = float(np.mean(weight) * value)
        rounding = np.mean(np.abs(weight * slope) * np.minimum(seen.rounding_B, ERROR)) / due
        what = f"an error of {ERROR} costs {seen.loss:.4g}, not {due:.4g}"
        error = abs(loss_trial.ratio_of(seen.loss, due) - 1)
        yield Finding(
            what, error, 2e-3 + rounding, functools.partial(loss_trial.weight_cause, trial)
        )


def _weight_law(trial: Trial) -> Iterator[Finding]:
    found, told = np.concatenate(trial.weights), trial.records.told_n
    t = np.concatenate([one.t_B for one in trial.keyed])
    bad = int(np.sum(~np.isfinite(np.concatenate([one.gradient_BHWC for one in trial.keyed]))))
    cause = "the weight divides by zero at one end of the severities"
    yield Finding(f"{bad} slopes that are not finite", bad, 0, cause)
    least = float(np.nanmin(found))
    cause = "a weight below 0 rewards errors: a sign, or a logarithm"
    yield Finding(f"least weight {least:.3g}", max(0.0, -least), 0, cause)
    declared = None if trial.weight_fn is None else trial.declared(told)
    bins = np.clip((t * BINS).astype(int), 0, BINS - 1)
    for k in range(BINS):
        inside = (bins == k) & np.isfinite(found)
        due = declared is None or np.any(declared[inside] != 0)
        empty = np.sum(inside) >= 8 and not np.any(found[inside]) and due
        what = f"every weight is 0 for severities from {k / BINS:g} to {(k + 1) / BINS:g}"
        yield Finding(what, float(empty), 0, "the weighting leaves out a range of severities")
    if declared is None:
        alike = float(loss_trial.mixed(trial.weights))
        yield Finding("one weight for a whole batch", alike, 0, loss_trial.MIXED)
    elif trial.unreduced_fn is not None:
        error = np.abs(found / declared - 1)
        error = np.where((found == 0) & (declared == 0), 0, error)
        why = functools.partial(loss_trial.weight_cause, trial)
        yield Finding("weights against weight_fn", float(np.nanmax(error)), 0.02, why)


def _gradient(trial: Trial) -> Iterator[Finding]:
    signs = np.sign(np.random.default_rng(0).uniform(-1, 1, (trial.size, *trial.shape)))
    seen, plain = trial.ask(error=ERROR * signs), trial.keyed[0]
    clear = seen.rounding_B < 0.01 * ERROR
    found, constant = (one.gradient_BHWC[clear].astype(np.float64) for one in (seen, plain))
    weight = np.sum(constant, (1, 2, 3), keepdims=True) / np.prod(trial.shape)
    if trial.unreduced_fn is None:
        wrong = float(np.mean(found * signs[clear] < 0))
        cause = "the gradient leads away from the target"
        yield Finding("share of slopes against the error's sign", wrong, 0, cause)
        return
    value = trial.unreduced(ERROR)[0]
    size = np.max(np.abs(weight)) + 1e-30
    what = "slopes of a constant error, relative to the largest, against w l'(0.5) / (B H W C)"
    cause = "pixels or channels count unequally"
    yield Finding(what, float(np.max(np.abs(constant - weight)) / size), 0.02, cause)
    cause = "a mean is taken before the loss, so that errors of both signs cancel"
    what = f"errors of {ERROR} of both signs cost {seen.loss:.4g}, of one sign {plain.loss:.4g}"
    yield Finding(what, abs(loss_trial.ratio_of(seen.loss, plain.loss) - 1), 0.02, cause)
    what = "slopes of errors of both signs, relative to the largest, against the closed form"
    error = float(np.max(np.abs(found - weight * signs[clear])) / size)
    yield Finding(what, error, 0.02, "a mean, a clipping or a normalization inside the loss")
    whole = np.nanmean(trial.weights[0]) * value
    if np.all(clear):
        what = f"loss {plain.loss:.4g}, but {whole:.4g} by its gradient"
        cause = "what is reported is not what is minimized: a detached factor"
        yield Finding(what, abs(loss_trial.ratio_of(plain.loss, whole) - 1), 0.02, cause)


def _size_law(trial: Trial) -> Iterator[Finding]:
    what, ratio, limit, cause = loss_trial.resized_ratio(trial)
    error = float(np.nan_to_num(abs(np.log(ratio)), nan=np.inf))
    yield Finding(what, error, limit, cause or "a fixed size in the loss's mean")


def _dtype(trial: Trial) -> Iterator[Finding]:
    seen = trial.exact.dtypes
    if trial.dtype != jnp.float32:
        images = trial.images((trial.size, *trial.shape)).astype(trial.dtype)
        seen = oracle.observe.eval_shape(*trial.arguments(images=images), scale=trial.scale).dtypes
    xt, loss = (empty.dtype for empty in seen)
    cause = "a table, a time or noise of another dtype meets the images: cast it to theirs"
    what = f"images of {jnp.dtype(trial.dtype)} became x_t of {xt}"
    yield Finding(what, float(xt != trial.dtype), 0, cause)
    cause = "the mean is taken in low precision: cast the errors to float32 before it"
    what = f"the loss has dtype {loss}"
    yield Finding(what, float(jnp.promote_types(loss, jnp.float32) != loss), 0, cause)


LAWS: Mapping[str, Callable[[Trial], Iterator[Finding]]] = MappingProxyType(
    {
        "one call": _one_call,
        "t on its scale": _scale_of_t,
        "t told": _told,
        "own t and noise": _own,
        "keys": _keys,
        "zero for the exact answer": _exact,
        "not zero for another": _others,
        "own target": _own_target,
        "growth with the error": _growth,
        "constant error": _constant,
        "weights": _weight_law,
        "gradient": _gradient,
        "batch and image size": _size_law,
        "dtype kept": _dtype,
    }
)


def _try_law(law: str, trial: Trial) -> list[float]:
    errors = []
    with np.errstate(all="ignore"):  # 0 / 0 of a broken loss is a finding, not a warning
        for what, error, limit, cause in LAWS[law](trial):
            if not error <= limit:
                likely = cause if isinstance(cause, str) else cause()
                raise LawError(
                    f"{law}: {what}: {error:.3g}, but at most {limit:.3g}; likely: {likely}"
                )
            errors.append(float(error))
    return errors


def _scale(t_scale: str | range, levels: int | None, degradation: Degradation) -> oracle.Scale:
    if isinstance(t_scale, range):
        require(
            t_scale.step == 1 and len(t_scale) > 0,
            f"t_scale must count steps one by one, as range(1000); got {t_scale}",
        )
        require(levels in (None, len(t_scale)), f"levels must be len(t_scale); got {levels}")
        return oracle.Scale("steps", t_scale.start, len(t_scale))
    require(
        t_scale in ("unit", "sigma"), f"t_scale must be 'unit', 'sigma' or a range; got {t_scale!r}"
    )
    require(
        t_scale == "unit" or has_coefficients(degradation),
        "t_scale='sigma' needs a D of the form alpha x0 + sigma omega",
    )
    return oracle.Scale(t_scale, 0, levels)


def check_loss(
    loss_fn: Callable[..., Array],
    degradation: Degradation,
    key: Array,
    shape: Sequence[int],
    *,
    prediction: str,
    loss: str | Callable[[Array, Array], Array] | None = "l2",
    weight_fn: Callable[[Array], Array] | None = unweighted,
    t_scale: str | range = "unit",
    levels: int | None = None,
    dtype: Any = jnp.float32,
) -> dict[str, float]:
    """Checks every law that a loss must meet by itself, on oracles, without training.

    - The network is called once, its answer reaches the loss, and the loss is finite.
    - The t that the network is told is on its scale, is each example's own, and is the t
      that its x_t was degraded with. Another key draws another t and other noise.
    - The exact answer costs 0. An answer of another kind does not.
    - An error of 0.5 costs mean w(t) l(0.5): 0.25 for l2, 0.5 for l1; the weights are w(t),
      finite, not negative and not zero over a range; the gradient is w l'(0.5) / (B H W C).
    - Neither the number of examples nor of pixels changes it. The dtype is kept.

    >>> from diffjax.degradations import base, noise
    >>> noising = noise.gaussian_noise((6, 6, 1))
    >>> def loss_fn(network_fn, key, x0):
    ...     key_t, key_omega = jax.random.split(key)
    ...     t, omega = jax.random.uniform(key_t, (len(x0),)), jax.random.normal(key_omega, x0.shape)
    ...     xt = jax.vmap(base.degrade, (None, 0, 0, 0))(noising, x0, t, omega)
    ...     return jnp.mean((network_fn(xt, t) - omega) ** 2)
    >>> report = check_loss(loss_fn, noising, jax.random.key(0), (6, 6, 1), prediction="noise")
    >>> list(report) == list(LAWS)
    True

    Args:
      loss_fn: (network_fn, key, x0_BHWC) -> scalar, with network_fn (xt_BHWC, t_B) ->
        output_BHWC; traceable. A jax.tree_util.Partial is not traced again for other leaves.
      degradation: the D that the loss degrades by.
      key: typed PRNG key.
      shape: (H, W, C) of the images.
      prediction: what the network answers, a key of `predictions.DIRECTIONS`. A D that is no
        alpha x0 + sigma omega has "x0", and "previous": D(x0, s) itself.
      loss: "l2", "l1", or an elementwise function of (answer, target); None: undeclared, and
        the laws that need it are left out.
      weight_fn: told t -> weight of the answer's error, scalars; None: undeclared.
      t_scale: what the network is told. "unit": t in [0, 1]; range(T), range(1, T + 1): the
        step, mildest first; "sigma": sigma / alpha.
      levels: T, where severities are k / T; "previous" needs it. A range knows it.
      dtype: of the images, for the law of dtypes.
    Returns:
      The largest error of each law, in its own units; those that do not apply are missing.
    Raises:
      LawError: at the first law that fails: its name, the numbers, and a likely cause.
      ValueError: naming the argument that cannot be.
    Note:
      The weight read off the gradient takes the loss to be a mean over examples and values.
    """
    require(len(shape) == 3, f"shape must be (H, W, C); got {tuple(shape)}")
    require(
        prediction in predictions.DIRECTIONS,
        f"prediction must be one of {', '.join(predictions.DIRECTIONS)}; got {prediction!r}",
    )
    require(
        loss is None or callable(loss) or loss in LOSSES,
        f"loss must be one of {', '.join(LOSSES)}, a function or None; got {loss!r}",
    )
    scale = _scale(t_scale, levels, degradation)
    kinds = oracle.answers(degradation, scale)
    require(
        prediction in kinds,
        f"prediction {prediction!r} needs "
        + ("levels" if prediction == "previous" else "a D of the form alpha x0 + sigma omega"),
    )
    partial = jax.tree_util.Partial
    height, width, channels = (int(n) for n in shape)
    trial = Trial(
        loss_fn=loss_fn if isinstance(loss_fn, partial) else partial(loss_fn),
        degradation=degradation,
        key=key,
        shape=(height, width, channels),
        prediction=prediction,
        unreduced_fn=LOSSES[loss] if isinstance(loss, str) else loss,
        weight_fn=weight_fn,
        scale=scale,
        dtype=dtype,
    )
    errors = {law: _try_law(law, trial) for law in LAWS}
    return {law: max(found) for law, found in errors.items() if found}
