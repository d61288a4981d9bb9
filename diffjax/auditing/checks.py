"""The audit's verdicts: each holds one number against one limit, and says what it means.

Numbers in, a `Check` out: `measurements` and `step_trial` take the numbers, `conclude` finds
the likeliest cause among the checks, `audit.audit` brings them together. Every threshold
stands beside its reason.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffjax.auditing import step_trial


class Check(NamedTuple):
    name: str
    status: str  # "pass", "warn" or "fail"
    value: float  # the number behind it
    limit: str  # where it would fail
    advice: str  # one sentence
    symptom: bool = False  # a failure says that something is wrong, and not what
    follows: str | None = None  # the check whose failure explains that of this one


def _named(ts: np.ndarray, chosen: np.ndarray) -> str:
    return "t = " + ", ".join(f"{t:.2f}" for t in np.asarray(ts)[np.asarray(chosen)])


def _log_ratios(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """ln(numerator / denominator) at each severity; where there is nothing to lose, a
    denominator of 0, it is left out.
    """
    used = np.asarray(denominator) > 0
    tiny, huge = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    logs = [np.log(np.clip(values[used], tiny, huge)) for values in (numerator, denominator)]
    return logs[0] - logs[1] if used.any() else np.zeros(1)


def _median_ratio(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Of severities: neither the scale of one nor a region that went wrong decides."""
    return math.exp(np.median(_log_ratios(numerator, denominator)))


# The declared reading of an optimal output is the best by the definition of an optimum, so
# the limit is 1; healthy runs are far below. Between the two an output says little.
TARGET_FAIL, TARGET_WARN = 1.0, 0.95
ALIKE = 0.5  # of a kind's square: an output that near to it is called by its name
SILENCED = 0.05  # of the target's variance: an output of less says next to nothing
SAME = 1e-3  # of the variance of xt: an output that near to xt is xt


def check_target(seen: Mapping[str, Any], declared: str) -> Check:
    """Is the output what it was declared to be? By reading it as each kind in turn.

    Each reading turns the same output into some x0_hat. That of an optimal network, read as
    what it is, is E[x0 | xt]: no function of xt comes nearer to x0, and every other reading
    is one. To compare the output itself with each candidate would be unfair: v at a mild
    severity is mostly unpredictable, and its best prediction lies nearer to -x0.

    value: the error of the declared reading over that of its best rival, the median over
    severities. "xt" is no reading, and is recognized by its distance.
    """
    errors = {name: values.mean(axis=1) for name, values in seen["reading"].items()}
    zeros = {name: values.mean(axis=1) for name, values in seen["zero_reading"].items()}
    declared = declared if declared in errors else "x0"
    rivals = [name for name in errors if name != declared]
    ratios = [_median_ratio(errors[declared], errors[name]) for name in rivals]
    value, rival = max(zip(ratios, rivals, strict=True))
    check = functools.partial(Check, "target", value=value, limit=f">= {TARGET_FAIL:g}")
    variance = seen["xt_square"].mean(axis=1)
    apart = seen["xt_target"].mean(axis=1) > 0.1 * variance
    distance = seen["xt_error"].mean(axis=1)
    if apart.any() and np.median(distance[apart] / variance[apart]) < SAME:
        return check("fail", advice="your output is xt: the network returns its input")
    # |output - c|^2 / |c|^2, for an error in the output and in x0_hat differ by one factor.
    alike = _median_ratio(errors[rival], zeros[rival]) < ALIKE
    if value >= TARGET_FAIL and alike:
        return check(
            "fail", advice=f"your output is {rival}, not {declared}: see the loss's target"
        )
    if value >= TARGET_FAIL:
        advice = f"your output is not {declared}, nor any other kind: see below"
        spread, due = (
            (seen[f"{name}_square"] - seen[name] ** 2).mean(axis=1) for name in ("output", "target")
        )
        if _median_ratio(spread, due) < SILENCED:
            advice = (
                "your output hardly depends on xt, as the mean of all targets would: is each "
                "compared with its own, or [B] against [B, 1]?"
            )
        return check("fail", advice=advice, symptom=True)
    if value > TARGET_WARN:
        return check(
            "warn", advice=f"read as {rival} the output is as good as as {declared}: train on"
        )
    return check("pass", advice=f"the output is {declared}")


# Losses here are of the same images and realizations: they differ by what t does, not by
# chance, and a network without t gives the same floats. A thousandth is no use made of t.
BLIND = 1e-3
# A wrong t that is better than the true one by a twentieth is what the network was trained on.
MISTOLD = 0.95
# A network that has learned to look past t, whose t was that of another example, loses nothing.
UNUSED = 1.02


def check_time(seen: Mapping[str, Any], told: Mapping[str, np.ndarray], beaten: bool) -> Check:
    """Does the network use t, and on the right scale? By telling it another.

    Only what the network is told changes: D, the target and the preconditioning keep t.

    Args:
      seen: from `measurements.measure`.
      told: the loss at each severity, the network told what `measurements.wrong_times` names;
        "shuffled" at least.
      beaten: whether `check_floor` fails: the Wiener restorer, which knows t, is better.

    value: the loss with t shuffled over that with the true one, the median over
    severities; 1 exactly where the network never sees t.
    """
    loss_K, zero_K = (seen[name].mean(axis=1) for name in ("loss", "zero_loss"))
    ratios = {name: _median_ratio(losses, loss_K) for name, losses in told.items()}
    differs = [
        np.abs(_log_ratios(told[name], loss_K)).max()
        for name in ("shuffled", "held at its mean")
        if name in told
    ]
    value = ratios.pop("shuffled")
    # Also of a network that is wrong at some severities only a mean t may get the better.
    ratios.pop("held at its mean", None)
    best = min(ratios, key=ratios.__getitem__, default=None)
    check = functools.partial(Check, "time", value=value)
    limit = f"within {BLIND:g} of 1"
    if max(differs) < BLIND:
        advice = "the network ignores t: is it passed on to it at all?"
        return check("fail", limit=limit, advice=advice)
    # Better than an output of 0, too: whatever is wrong, a smaller output is less so.
    if best is not None and ratios[best] < MISTOLD and _median_ratio(told[best], zero_K) < MISTOLD:
        how = "t runs another way" if best == "1 - t" else "t is fed at another scale"
        advice = (
            f"{how} than in training: told '{best}' the network's loss is {ratios[best]:.2g} times "
            "as large"
        )
        return Check("time", "fail", ratios[best], f"< {MISTOLD:g} for another t", advice)
    if value < UNUSED and beaten:
        advice = "t says nothing to the network, and what knows t beats it: is each told its own t?"
        return check(
            "fail", limit=f"< {UNUSED:g}, and below the floor", advice=advice, symptom=True
        )
    if value < UNUSED:
        advice = "t hardly matters: fine if the severity can be read off xt"
        return check("warn", limit=limit, advice=advice)
    return check("pass", limit=limit, advice="the network uses t")


# An optimal output under l2 has slope 1, one under l1 nearly so; half and twice are no
# rounding of that. Judged where a tenth of the target's variance is explained: below, the
# slope of a network that is still learning is mostly chance.
SLOPE_FAIL, SLOPE_WARN, EXPLAINED = 2.0, 1.25, 0.1
# Var E[noise | xt] <= 1 and E noise = 0, whatever the network.
NOISE_VARIANCE, NOISE_MEAN = 1.25, 0.2


def check_calibration(seen: Mapping[str, Any], ts: np.ndarray, declared: str) -> Check:
    """Regression of the true target on the predicted one, per severity.

    value: the slope that is furthest from 1, among severities where the correlation says
    anything; the correlation itself where none does.
    """
    means = {name: seen[name].mean(axis=1) for name in ("output", "target", "product")}
    squares = {name: seen[f"{name}_square"].mean(axis=1) for name in ("output", "target")}
    variance, total = (squares[name] - means[name] ** 2 for name in ("output", "target"))
    covariance = means["product"] - means["output"] * means["target"]
    used = (variance > 1e-12) & (total > 1e-12)
    correlation = np.where(used, covariance, 0) / np.sqrt(np.where(used, variance * total, 1))
    slope = np.where(used, covariance, 0) / np.where(used, variance, 1)
    against = correlation < -(EXPLAINED**0.5)
    if against.any():
        advice = f"the output runs against its target at {_named(ts, against)}: look for a sign"
        return Check(
            "calibration", "fail", float(correlation.min()), "correlation < -0.32", advice, True
        )
    judged = correlation**2 > EXPLAINED
    if not judged.any():
        advice = "the output says nothing about its target at any severity"
        return Check(
            "calibration", "fail", float(correlation.max()), "correlation < 0.32", advice, True
        )
    for word, values, most in (
        ("variance", variance, NOISE_VARIANCE),
        ("mean", np.abs(means["output"]), NOISE_MEAN),
    ):
        if declared == "noise" and values.max() > most:
            advice = f"the predicted noise has too large a {word} at {_named(ts, values > most)}"
            return Check(
                "calibration", "fail", float(values.max()), f"{word} > {most:g}", advice, True
            )
    off = np.where(judged, np.abs(np.log(np.where(judged, slope, 1))), 0)
    value, worst = float(slope[np.argmax(off)]), off.max()
    wrong = off > math.log(SLOPE_WARN)
    status = "fail" if worst > math.log(SLOPE_FAIL) else "warn" if wrong.any() else "pass"
    advice = "the target grows by as much as the output says"
    if wrong.any():
        advice = f"the output is {'too small' if value > 1 else 'too large'} at {_named(ts, wrong)}"
    limit = f"outside [{1 / SLOPE_FAIL:g}, {SLOPE_FAIL:g}]"
    return Check("calibration", status, value, limit, advice, True)


# A network loses to a baseline if it does so beyond three standard errors. It fails if that is
# by a tenth and more than a hundredth of the target's variance: a noise prediction near t = 1
# or an x0 near t = 0 misses a hundredth in a healthy run, where the best linear map misses less.
FLOOR_FAIL, FLOOR_STAKE = 1.1, 0.01


def check_floor(seen: Mapping[str, Any], ts: np.ndarray) -> Check:
    """Is the network better than no network? Per severity, in the error of x0_hat.

    Against the Wiener restorer, and where D has none against the better of an output
    of zero and of xt itself.

    value: the network's error over the baseline's where that is largest, among severities
    where more than a hundredth of the target's variance is at stake; else 1 at most.
    """
    error = seen["x0_error"]
    if "Wiener" in error:
        base, name = error["Wiener"], "the Wiener restorer"
    else:
        trivial = np.stack([error["zero"], error["identity"]])
        best = trivial.mean(axis=2).argmin(axis=0)
        base, name = trivial[best, np.arange(len(ts))], "doing nothing"
    loss = error["network"] - base
    mean, network = loss.mean(axis=1), error["network"].mean(axis=1)
    behind = mean > 3 * loss.std(axis=1) / math.sqrt(loss.shape[1])
    variance = seen["target_square"].mean(axis=1) - seen["target"].mean(axis=1) ** 2
    # The same share of the network's error, in the units of what it is trained to answer.
    stake = mean / np.maximum(network, 1e-30) * seen["error"].mean(axis=1) > FLOOR_STAKE * variance
    ratio = network / np.maximum(base.mean(axis=1), 1e-30)
    value = float(np.where(stake | (ratio <= 1), ratio, 1).max())
    check = functools.partial(Check, "floor", value=value, limit=f"> {FLOOR_FAIL:g}", symptom=True)
    broken = (behind & stake & (ratio > FLOOR_FAIL)) | ~np.isfinite(network)
    if broken.any():
        at = _named(ts, broken)
        why, count = "a bug, or far too little training", broken.sum()
        if 1 < count < len(ts) and (broken[:count].all() or broken[-count:].all()):
            why = "nothing is learned there alone: look at the weight by time"
        return check("fail", advice=f"worse than {name} at {at}: {why}")
    if behind.any():
        at = _named(ts, behind)
        return check("warn", advice=f"a little worse than {name} at {at}: train on, precondition")
    return check("pass", advice=f"no worse than {name} at any severity")


# A severity is silent with less than a fiftieth of an even share; it matters unless x0_hat is
# within a hundredth of the variance there already. Half of those that matter fail.
SILENT, SOLVED, SILENT_FAIL = 0.02, 0.01, 0.4


def check_weight(shares_K: np.ndarray, seen: Mapping[str, Any], ts: np.ndarray) -> Check:
    """Which severities does the gradient come from?

    Args:
      shares_K: from `measurements.gradient_shares`.

    value: the share of severities that have something to learn and give no gradient.
    """
    variance = seen["x0_variance"].mean()
    matters = seen["x0_error"]["network"].mean(axis=1) > SOLVED * variance
    silent = matters & (shares_K < SILENT / len(ts))
    value = float(silent.sum() / max(matters.sum(), 1))
    check = functools.partial(Check, "weight", value=value, limit=f">= {SILENT_FAIL:g}")
    if not np.sum(shares_K) > 0:
        return check("fail", value=1.0, advice="no severity gives any gradient")
    if not silent.any():
        return check("pass", advice="every severity with an error is learned from")
    advice = f"next to no gradient comes from {_named(ts, silent)}: look at the weights by time"
    return check("fail" if value >= SILENT_FAIL else "warn", advice=advice)


def check_scale(images_NHWC: np.ndarray) -> Check:
    """Are the images in [-1, 1], as every degradation here takes them?

    value: the largest absolute value; 8-bit levels reach 255, standardized data 3.
    """
    images = np.asarray(images_NHWC, np.float64)
    low, high, mean, std = images.min(), images.max(), images.mean(), images.std()
    value = float(max(abs(low), abs(high)))
    check = functools.partial(Check, "scale", value=value, limit="> 1.01")
    found = f"[{low:.3g}, {high:.3g}], mean {mean:.3g}, std {std:.3g}"
    if not np.isfinite(images).all():
        return check("fail", advice="the images hold numbers that are not finite")
    if value > 1.01:
        return check("fail", advice=f"the images lie in {found}: bring them to [-1, 1]")
    if low >= 0 or std < 0.05:
        why = "they may be in [0, 1], and D assumes [-1, 1]" if low >= 0 else "they hardly differ"
        return check("warn", advice=f"the images lie in {found}: {why}")
    return check("pass", advice=f"the images lie in {found}")


def check_step(done: step_trial.Overfitted) -> Check:
    """Does the training step move the parameters?

    value: the share of their arrays that changed in some hundred steps.
    """
    check = functools.partial(Check, "step", value=done.moved, limit="0")
    if done.moved == 0:
        advice = "the step moves no parameter: see the learning rate, the gradient"
        return check("fail", advice=advice)
    if done.moved < 1:
        still = f"{round(100 * (1 - done.moved))}%"
        return check("warn", advice=f"{still} of the parameters' arrays did not move")
    return check("pass", advice="the step moves every array of the parameters")


# Any network with gradients memorizes a handful of images; a factor of 1.5 leaves room for what
# no network can know, as the noise on a mildly noisy image.
OVERFIT_FAIL, OVERFIT_WARN = 1.5, 2.0


def check_overfit(start: float, after: float, done: step_trial.Overfitted) -> Check:
    """Can the training step learn a handful of images by heart?

    Judged by the objective's own loss, and not by what the step reports.

    Args:
      start: the weighted loss on these images at first, or of an output of 0 if that is
        less: some networks start worse than with nothing.
      after: the weighted loss at last.

    value: start over after.
    """
    value = start / max(after, 1e-30)
    value = value if math.isfinite(value) else 0.0
    check = functools.partial(Check, "overfit", value=value, limit=f"< {OVERFIT_FAIL:g}")
    tenth = max(1, len(done.reported) // 10)
    reported = done.reported[:tenth].mean() / max(done.reported[-tenth:].mean(), 1e-30)
    if value >= OVERFIT_WARN:
        return check("pass", advice="a few images are learned by heart")
    if reported > OVERFIT_WARN * max(value, 1):
        advice = (
            f"the step's own loss fell {reported:.3g} times and the objective's {value:.3g}: it "
            "minimizes something else, reduced over a wrong axis or of another target"
        )
        return check("warn" if value >= OVERFIT_FAIL else "fail", advice=advice)
    advice = "a few images cannot be learned: look at the learning rate, the model, the target"
    return check("warn" if value >= OVERFIT_FAIL else "fail", advice=advice, symptom=True)


# Of the same batch and key: what does not depend on a change gives the same floats but for
# their rounding.
DEPENDS = 1e-3
# Of means: a fifth either way is no other loss. A known factor is recognized within a tenth.
DIFFERS, KNOWN = 1.25, 1.1
# ln 2 within this, and seen so often at least.
DOUBLED, RETURNS = 0.4, 8


def check_loss(probe: step_trial.Probe, reported: np.ndarray) -> Check:
    """Is the loss that a step reports the mean of the objective's over the batch?

    Args:
      probe: from `step_trial.probe`.
      reported: losses of consecutive steps, from `step_trial.overfit`.

    value: the reported loss over the one that is due, for the same images.
    """
    weighted = probe.due["weighted"]
    value = float(probe.reported.mean() / max(weighted.mean(), 1e-30))
    spread = [
        np.std(x) / math.sqrt(len(x)) / max(x.mean(), 1e-30) for x in (probe.reported, weighted)
    ]
    chance = 3 * math.hypot(*spread)
    limit = f"outside [{1 / DIFFERS:g}, {DIFFERS:g}]"
    check = functools.partial(Check, "loss", value=value, limit=limit)
    if probe.coupled > DEPENDS:
        advice = (
            "what an example costs depends on the others in its batch: [B] against [B, 1], or a "
            "sum over the batch before the square"
        )
        return check("fail", value=probe.coupled, limit=f"coupled by > {DEPENDS:g}", advice=advice)
    period = _period(reported)
    if period is not None:
        advice = f"every {period} steps one costs twice: is an epoch's last batch counted twice?"
        return check("fail", advice=advice)
    off = abs(math.log(max(value, 1e-30)))
    if off < max(math.log(DIFFERS), chance):
        return check("pass", advice="the step reports the mean of the objective's loss")
    named = {
        "a sum over the batch where a mean belongs": probe.batch_size,
        "a sum over the pixels where a mean belongs": probe.image_size,
        "a sum over everything where a mean belongs": probe.batch_size * probe.image_size,
        "a mean of a mean over the batch": 1 / probe.batch_size,
        "a mean of a mean over the pixels": 1 / probe.image_size,
    }
    loss = probe.due.get("loss")
    if loss is not None:
        weight = weighted / np.maximum(loss, 1e-30)
        named |= {
            "the weight is missing": loss.mean() / weighted.mean(),
            "the weight is applied twice": (weight * weighted).mean() / weighted.mean(),
            "a weight [B, 1] times a loss [B]": weight.mean() * loss.mean() / weighted.mean(),
        }
    for word, factor in named.items():
        apart = abs(math.log(max(value, 1e-30) / max(factor, 1e-30)))
        if apart < max(math.log(KNOWN), chance) and apart < off / 2:
            return check("fail", advice=f"the step reports {value:.3g} times the loss: {word}")
    advice = f"the step reports {value:.3g} times the loss that is due: another target or weight"
    if min(abs(value - 2), abs(value - 0.5)) < 0.1 * value:
        return check("warn", advice=f"{advice}, or a factor of convention")
    return check("fail", advice=advice, symptom=True)


def _period(loss_S: np.ndarray) -> int | None:
    """After how many steps a loss is twice its neighbors', time and again; or None."""
    log_S = np.log(np.maximum(loss_S, 1e-30))
    window = np.lib.stride_tricks.sliding_window_view(np.pad(log_S, 5, "reflect"), 11)
    log_S = log_S - np.median(window, axis=1)
    found = []
    for period in range(2, len(log_S) // RETURNS + 1):
        for phase in range(period):
            there = log_S[phase::period]
            found.append((there.mean() * math.sqrt(len(there)), there.mean(), period))
    best, rise, period = max(found, default=(0, 0, 0))
    # Of some thousand periods and phases none reaches six standard errors by chance.
    doubled = best > 6 * log_S.std() and abs(rise - math.log(2)) < DOUBLED
    return period if doubled else None


# An average of parameters that still improve lags behind them; half as much loss again is no lag.
AVERAGE_FAIL, AVERAGE_WARN = 1.5, 1.1


def check_average(
    params_loss: float,
    ema_loss: float,
    moved: bool | None = None,
    trained_on: float | None = None,
) -> Check:
    """Is the running average of the parameters updated, and any good?

    Args:
      params_loss, ema_loss: the weighted loss of each on the held-out images.
      moved: whether the average changed in some steps of training; None: not tried.
      trained_on: `step_trial.Probe.averaged`, by how much it decides what a step reports.

    value: its loss over theirs.
    """
    value = float(ema_loss / max(params_loss, 1e-30))
    check = functools.partial(Check, "average", value=value, limit=f"> {AVERAGE_FAIL:g}")
    if trained_on is not None and trained_on > DEPENDS:
        advice = "the step takes its loss at ema_params: train params, and only average them"
        return check("fail", value=trained_on, limit=f"> {DEPENDS:g}", advice=advice)
    if moved is False:
        return check("fail", advice="ema_params never change: the average is not updated")
    if not value <= AVERAGE_FAIL:
        return check("fail", advice="far worse than the parameters: is the average updated?")
    if value > AVERAGE_WARN:
        return check("warn", advice="the average lags behind the parameters: lower its decay")
    return check("pass", advice="the average follows the parameters")


# A change counts beyond three standard errors of the fitted slope. Divergence is a rise by a
# twentieth within a tenth of the run, or an end half as high again as the best stretch.
RISE, ABOVE_BEST, FALL, LEARNED = 0.05, 0.4, 0.02, 0.02
LINES = 20  # of history, at least


def check_convergence(history: Sequence[Mapping[str, Any]]) -> Check:
    """Where does the loss stand: on a plateau, still falling, diverging?

    A straight line is fitted to ln(loss) over the last tenth of the history, ten lines at
    least.

    Args:
      history: "step" and "loss", one mapping for each line of metrics.jsonl.

    value: the change of ln(loss) over that tenth.
    """
    steps = np.array([line["step"] for line in history], np.float64)
    loss = np.array([line["loss"] for line in history], np.float64)
    check = functools.partial(
        Check, "convergence", value=math.nan, limit=f"> {RISE:g}", symptom=True
    )
    if not np.isfinite(loss).all() or (loss <= 0).any():
        return check("fail", advice="the loss is not positive everywhere: lower the learning rate")
    if len(history) < LINES:
        return check("warn", advice=f"{len(history)} lines of history are too few: log more often")
    last = max(10, len(history) // 10)
    x = (steps[-last:] - steps[-last:].mean()) / np.ptp(steps[-last:])
    y = np.log(loss)
    value = float(x @ y[-last:] / (x @ x))
    check = functools.partial(check, value=value)
    residual = y[-last:] - y[-last:].mean() - value * x
    chance = 3 * math.sqrt(residual @ residual / (last - 2) / (x @ x))
    smooth = np.convolve(y, np.ones(last) / last, "valid")
    if (value > max(chance, RISE)) or smooth[-1] > smooth.min() + ABOVE_BEST:
        return check("fail", advice="the loss diverges: lower the learning rate, clip the gradient")
    first = y[: max(1, last // 5)]
    fell = first.mean() - smooth[-1]
    if fell < LEARNED:
        return check("fail", advice="the loss never fell: nothing was learned")
    if fell < 3 * residual.std() * math.sqrt(1 / len(first) + 1 / last):
        return check("warn", advice="the loss fell no more than by chance")
    if value < -max(chance, FALL):
        return check("warn", advice="the loss is still falling: train longer")
    return check("pass", advice="the loss has reached a plateau")


# A run is young while its loss has fallen by more than this since a sixteenth of its steps, over
# four doublings: one that is nearly done gains less than a tenth by each.
YOUNG = 0.4
# From the cause to what follows from it.
ORDER = (
    "scale", "step", "target", "weight", "time", "floor", "loss", "average", "overfit",
    "calibration", "convergence",
)  # fmt: skip


def still_falls(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run is young, see YOUNG; its end is the median of a tenth of the lines."""
    loss = np.array([line["loss"] for line in history], np.float64)
    start = max(1, round(len(loss) / 16))
    width = max(1, start // 3)
    early = np.median(loss[start - width : start + width])
    return bool(np.median(loss[-max(1, len(loss) // 10) :]) < (1 - YOUNG) * early)


def conclude(checks: Sequence[Check], young: bool) -> tuple[str, str, list[Check]]:
    """What a list of checks comes to.

    The first failure, in the order of `ORDER`, that is no symptom is the likeliest cause, and
    failing symptoms follow from it. Of symptoms alone the first stands for the others; in a young
    run they say nothing yet.

    Args:
      young: see `still_falls`.
    Returns:
      ("healthy", "fail" or "too early", one line, the checks: failures first, in that order).
    """
    ordered = sorted(checks, key=lambda check: ORDER.index(check.name))
    failed = [check for check in ordered if check.status == "fail"]
    rest = [check for check in ordered if check.status != "fail"]
    causes = [check for check in failed if not check.symptom]
    if not failed:
        settled = any(one.name == "convergence" and one.status == "pass" for one in checks)
        more = ", and the loss still falls: train longer" if young and not settled else ""
        return "healthy", f"healthy: no check fails{more}", ordered
    if young and not causes:
        names = ", ".join(check.name for check in failed)
        line = f"too early to tell: the loss still falls; train longer, then see {names}"
        return "too early", line, failed + rest
    first, *others = sorted(failed, key=lambda check: check.symptom)
    others = [one._replace(follows=first.name if one.symptom else None) for one in others]
    return "fail", f"{first.name}: {first.advice}", [first, *others, *rest]
