"""Diffusion models of any degradation, hot and cold, as pure functions in JAX."""

from diffjax import losses, predictions, priors, samplers, schedules, time_sampling, wiener
from diffjax.auditing.audit import audit
from diffjax.auditing.generation_laws import check_generation
from diffjax.auditing.loss_laws import check_loss
from diffjax.degradations.base import (
    Degradation,
    LinearMap,
    coefficients,
    compose,
    degrade,
    draw,
    infer,
)
from diffjax.degradations.blur import downsample, gaussian_blur
from diffjax.degradations.color import decolor
from diffjax.degradations.heat import blurring_noise, heat
from diffjax.degradations.laws import check_degradation
from diffjax.degradations.mask import fade, mask
from diffjax.degradations.noise import animorph, bridge, gaussian_noise
from diffjax.degradations.snow import snow
from diffjax.losses import l1_loss, l2_loss
from diffjax.restorers import Objective, Problem, process
from diffjax.samplers import Process, sample
from diffjax.training import TrainState, create_state, train_step

__version__ = "0.1.0"

__all__ = [
    "Degradation",
    "LinearMap",
    "Objective",
    "Problem",
    "Process",
    "TrainState",
    "animorph",
    "audit",
    "blurring_noise",
    "bridge",
    "check_degradation",
    "check_generation",
    "check_loss",
    "coefficients",
    "compose",
    "create_state",
    "decolor",
    "degrade",
    "downsample",
    "draw",
    "fade",
    "gaussian_blur",
    "gaussian_noise",
    "heat",
    "infer",
    "l1_loss",
    "l2_loss",
    "losses",
    "mask",
    "predictions",
    "priors",
    "process",
    "sample",
    "samplers",
    "schedules",
    "snow",
    "time_sampling",
    "train_step",
    "wiener",
]
