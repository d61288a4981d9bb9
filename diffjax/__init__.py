"""Diffusion models of any degradation, hot and cold, as pure functions in JAX."""

from diffjax.cold import gaussian_blur as gaussian_blur
from diffjax.degradations import Degradation as Degradation
from diffjax.degradations import degrade as degrade
from diffjax.degradations import draw as draw
from diffjax.degradations import infer as infer
from diffjax.losses import l1_loss as l1_loss
from diffjax.losses import l2_loss as l2_loss
from diffjax.samplers import sample as sample
from diffjax.training import TrainState as TrainState
from diffjax.training import train_step as train_step
