"""What the laws of a loss are tried on: its answers to oracles, each computed once.

`Trial` asks the loss; the functions below it read the weights off what came back, and say
in words why they are not those that are due.

Depends on: jax, numpy, diffjax.degradations, the oracle.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from diffjax.auditing import oracle, severities
from diffjax.degradations.base import Degradation
from diffjax.degradations.laws import LawError

Array = jax.Array

ERROR = 0.5  # added to the exact answer: l2 makes 0.25 of it, l1 0.5
VALUES = 2**20  # pixels looked at, over all keys


def unweighted(t: Array) -> Array:
    """w(t) = 1."""
    return jnp.ones_like(t)


@functools.partial(jax.jit, static_argnums=0, compiler_options=oracle.QUICK)
def _unreduced(unreduced_fn, error):
    return jax.value_and_grad(unreduced_fn)(error, jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class Trial:
    """What the laws are tried on; every answer of the loss is computed once, when needed."""

    loss_fn: Callable[..., Array]  # a jax.tree_util.Partial
    degradation: Degradation
    key: Array
    shape: tuple[int, int, int]
    prediction: str
    unreduced_fn: Callable[[Array, Array], Array] | None
    weight_fn: Callable[[Array], Array] | None
    scale: oracle.Scale
    dtype: Any

    @functools.cached_property
    def kinds(self) -> list[str]:
        return oracle.answers(self.degradation, self.scale)

    @functools.cached_property
    def size(self) -> int:
        """B: none of the image's own sizes, so that a sum over it is told from theirs."""
        height, width, channels = self.shape
        own = {height, width, channels, height * width, height * width * channels}
        fitting = max(6, min(48, VALUES // (4 * height * width * channels)))
        return next(size for size in range(fitting, fitting - 6, -1) if size not in own)

    @functools.cached_property
    def x0(self) -> np.ndarray:
        return self.images(self.shape)

    def images(self, shape: Sequence[int]) -> np.ndarray:
        """Random in [-1, 1]; numpy's, which need not be compiled for each shape."""
        generator = np.random.default_rng(np.asarray(jax.random.key_data(self.key)))
        return generator.uniform(-1, 1, shape).astype(np.float32)

    @functools.cached_property
    def nature(self) -> str:
        return severities.nature(self.degradation, self.x0)

    def arguments(
        self,
        fold: int = 0,
        kind: str | None = None,
        sign: float = 1.0,
        error: Any = 0.0,
        solve_shift: float = 0.0,
        target_shift: float = 0.0,
        images: np.ndarray | None = None,
    ) -> tuple[Any, ...]:
        """Of `oracle.observe`: the key of that number, an oracle that answers so."""
        if images is None:
            images = np.broadcast_to(self.x0, (self.size, *self.shape))
        question = oracle.Question(
            np.int32(self.kinds.index(kind or self.prediction)),
            np.float32(sign),
            np.broadcast_to(np.asarray(error, np.float32), images.shape),
            np.float32(solve_shift),
            np.float32(target_shift),
        )
        key = jax.random.fold_in(self.key, fold)
        return self.loss_fn, self.degradation, key, images, question

    def ask(self, *args: Any, **answer: Any) -> oracle.Observation:
        """What the loss makes of it, in numpy; see `arguments`."""
        try:
            seen = oracle.observe(*self.arguments(*args, **answer), scale=self.scale)
        except oracle.CallError as failure:
            raise LawError(f"one call: {failure}; likely: an axis too many or too few") from failure
        except Exception as failure:  # whatever a foreign loss raises
            line = str(failure).partition("\n")[0]
            raise LawError(
                f"one call: raised {type(failure).__name__}: {line}; likely: the loss cannot be "
                "traced by jax.jit and jax.grad, or calls network_fn with a part of the batch"
            ) from failure
        return jax.device_get(seen)

    @functools.cached_property
    def keyed(self) -> list[oracle.Observation]:
        """The exact answer plus ERROR, at several keys."""
        count = min(24, max(4, VALUES // (self.size * int(np.prod(self.shape)))))
        return [self.ask(fold, error=ERROR) for fold in range(count)]

    @functools.cached_property
    def exact(self) -> oracle.Observation:
        return self.ask()

    @functools.cached_property
    def nothing(self) -> float:
        """The loss of an answer of zeros: what other losses are relative to."""
        return float(self.ask(sign=0.0).loss)

    def relative(self, **answer: Any) -> float:
        """The loss of an answer, relative to that of zeros; inf where it is no number."""
        return ratio_of(self.ask(**answer).loss, self.nothing)

    @functools.cached_property
    def records(self) -> severities.Records:
        return severities.Records(
            self.degradation,
            self.scale,
            self.nature,
            self.x0,
            np.concatenate([one.xt_BHWC for one in self.keyed]),
            np.concatenate([one.told_B for one in self.keyed]),
            self.size,
        )

    def unreduced(self, error: float) -> tuple[float, float]:
        """(l, dl/d error) of an error, for the loss that is declared."""
        value, slope = _unreduced(self.unreduced_fn, np.float32(error))
        return float(value), float(slope)

    def declared(self, told: ArrayLike) -> np.ndarray:
        """The declared weight at each told t, float64."""
        assert self.weight_fn is not None, "of an undeclared weight nothing is known"
        return np.asarray(jax.vmap(self.weight_fn)(jnp.asarray(told, jnp.float32)), np.float64)

    @functools.cached_property
    def weights(self) -> list[np.ndarray]:
        """w of each example, read off the gradient; [B] for each key, nan where rounding hides
        it. In units of its own where no loss is declared.
        """
        slope = 1.0 if self.unreduced_fn is None else self.unreduced(ERROR)[1]
        return [weights_of(one, slope) for one in self.keyed]


def ratio_of(part: Array | float, whole: Array | float) -> float:
    """|part / whole|; 0 for 0 / 0, inf where it is no number."""
    if part == 0:
        return 0.0
    return float(np.nan_to_num(np.abs(np.divide(part, whole)), nan=np.inf))


def weights_of(seen: oracle.Observation, slope: float) -> np.ndarray:
    gradient = np.sum(np.asarray(seen.gradient_BHWC, np.float64), (1, 2, 3))
    weight = gradient * len(gradient) / slope
    return np.where(seen.rounding_B < 0.01 * ERROR, weight, np.nan)


FACTORS = {
    "B": "a sum over the examples where a mean belongs",
    "HWC": "a sum over pixels and channels where a mean belongs",
    "BHWC": "a sum over everything where a mean belongs",
    "HW": "a sum over pixels where a mean belongs",
    "C": "a sum over channels where a mean belongs",
    "1/B": "the mean over the examples is taken twice",
    "1/HWC": "the mean over pixels is taken twice",
    "1/2": "a factor 1/2, as in optax.l2_loss",
    "2": "a factor 2",
}


def _factor_cause(ratio: float, sizes: Mapping[str, float]) -> str | None:
    """What makes a loss so many times too large; sizes by the names of FACTORS."""
    for name, text in FACTORS.items():
        if name in sizes and sizes[name] != 1 and abs(ratio / sizes[name] - 1) < 0.02:
            return text
    return None


def _sizes_of(size: int, shape: Sequence[int]) -> dict[str, float]:
    height, width, channels = shape
    values = {"B": size, "HWC": height * width * channels, "HW": height * width, "C": channels}
    values["BHWC"] = size * values["HWC"]
    return values | {"1/B": 1 / size, "1/HWC": 1 / values["HWC"]}


def mixed(weights: list[np.ndarray]) -> bool:
    """Whether all examples of a batch have one weight, and another batch another."""
    spreads = [np.nanstd(w) / (abs(np.nanmean(w)) + 1e-30) for w in weights]
    means = [np.nanmean(w) for w in weights]
    return max(spreads) < 1e-3 and np.std(means) > 1e-2 * abs(np.mean(means))


MIXED = "the weights are averaged over the batch before they meet the losses: [B] against [B, 1]"


def weight_cause(trial: Trial) -> str:
    """Why the weights are not those declared."""
    if mixed(trial.weights):
        return MIXED
    found = np.concatenate(trial.weights)
    told = trial.records.told_n
    ratio = found / trial.declared(told)
    middle = float(np.nanmedian(ratio))
    if np.nanmax(np.abs(ratio / middle - 1)) < 0.02:
        sizes = _sizes_of(trial.size, trial.shape) | {"1/2": 0.5, "2": 2.0}
        named = _factor_cause(middle, sizes)
        if named is None and (grows := resized_ratio(trial)[-1]):
            named = f"{grows}, and a factor: {middle:.4g} in all"
        return named or f"a factor {middle:.4g}: declare it in weight_fn"
    worst = int(np.nanargmax(np.abs(np.log(np.abs(ratio) + 1e-30))))
    text = f"at t = {told[worst]:.4g} the weight is {found[worst]:.4g}"
    if trial.weight_fn is unweighted:
        return f"the loss is weighted ({text}): declare weight_fn, or None"
    return f"another weighting than weight_fn: {text}, not {found[worst] / ratio[worst]:.4g}"


def _resized(trial: Trial) -> tuple[tuple[int, ...], list[oracle.Observation]]:
    """More images of another size, where D and the loss take it; else of the same size."""
    height, width, channels = trial.shape
    other = (height + 2 + height // 8, width + 1 + width // 8, channels)
    for shape in (other, trial.shape):
        images = np.broadcast_to(trial.images(shape), (trial.size * 3 // 2, *shape))
        try:
            return images.shape, [trial.ask(k, error=ERROR, images=images) for k in range(4)]
        except LawError:  # of what a foreign loss raises for images of another size
            if shape == trial.shape:
                raise
    raise AssertionError


def resized_ratio(trial: Trial) -> tuple[str, float, float, str | None]:
    """(what, how many times more images of another size weigh, the limit of its logarithm,
    why they do).
    """
    (size, *shape), others = _resized(trial)
    slope = 1.0 if trial.unreduced_fn is None else trial.unreduced(ERROR)[1]
    found = np.concatenate([weights_of(one, slope) for one in others])
    told = np.concatenate([one.told_B for one in others])
    # Against those of the first size, as a function of t: what is drawn differs.
    first, weights = trial.records.told_n, np.concatenate(trial.weights)
    limit = 0.15
    if trial.weight_fn is not None:
        found, weights = found / trial.declared(told), weights / trial.declared(first)
        limit = 0.02
    clear = weights > 0
    order = np.argsort(first[clear])
    logs = np.interp(told, first[clear][order], np.log(weights[clear][order]))
    ratio = float(np.exp(np.nanmedian(np.log(found) - logs)))
    old, new = _sizes_of(trial.size, trial.shape), _sizes_of(size, shape)
    cause = _factor_cause(ratio, {name: new[name] / old[name] for name in new})
    what = (
        f"{size} images {tuple(shape)} weigh {ratio:.3g} times what {trial.size} images "
        f"{trial.shape} do"
    )
    return what, ratio, limit, cause
