"""Ten losses and more that are not ours, as people write them: check_loss's verdict on each.

None imports training.py, and none uses diffjax to degrade: schedules, betas and blurs are
numpy's and jax.numpy's. The broken ones each repeat a mistake of which a public thread tells;
the code is written anew.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.auditing.loss_laws import LawError, check_loss
from diffjax.degradations.blur import gaussian_blur
from diffjax.degradations.noise import gaussian_noise

SHAPE = (8, 8, 3)
KEY = jax.random.key(1)
T = 1000


@pytest.fixture(autouse=True)
def broadcast_silently():
    """As in anybody's session; this project's tests raise where ranks differ."""
    with jax.numpy_rank_promotion("allow"):
        yield


def over(values_B):
    return values_B.reshape(-1, 1, 1, 1)


# Five that are right.

BETAS = np.linspace(1e-4, 0.02, T)
ALPHAS_BAR = jnp.asarray(np.cumprod(1 - BETAS), jnp.float32)
DDPM = gaussian_noise(SHAPE, schedule="tabulated", table=schedules.beta_table(BETAS))


def ddpm(network_fn, key, x0):
    """Integer steps 0..T-1, a table of betas, the noise predicted."""
    key_t, key_noise = jax.random.split(key)
    step = jax.random.randint(key_t, (x0.shape[0],), 0, T)
    noise = jax.random.normal(key_noise, x0.shape)
    bar = over(ALPHAS_BAR[step])
    xt = jnp.sqrt(bar) * x0 + jnp.sqrt(1 - bar) * noise
    return jnp.mean(jnp.square(noise - network_fn(xt, step)))


EXPLODING = gaussian_noise(SHAPE, schedule="karras")


def edm_weight(sigma, sigma_data=0.5):
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def edm(network_fn, key, x0):
    """ln sigma ~ N(-1.2, 1.2^2); the network is EDM's D(y + n; sigma)."""
    key_sigma, key_noise = jax.random.split(key)
    sigma = jnp.exp(-1.2 + 1.2 * jax.random.normal(key_sigma, (x0.shape[0],)))
    noise = over(sigma) * jax.random.normal(key_noise, x0.shape)
    return jnp.mean(over(edm_weight(sigma)) * (network_fn(x0 + noise, sigma) - x0) ** 2)


def quarter_circle(t):
    alpha = jnp.where(t == 0, 1.0, jnp.maximum(jnp.cos(jnp.pi * t / 2), 0))
    return alpha, jnp.where(t == 0, 0.0, jnp.sin(jnp.pi * t / 2))


CIRCLE = gaussian_noise(SHAPE, schedule=quarter_circle)


def v_prediction(network_fn, key, x0):
    key_t, key_noise = jax.random.split(key)
    angle = jax.random.uniform(key_t, (x0.shape[0],)) * jnp.pi / 2
    noise = jax.random.normal(key_noise, x0.shape)
    alpha, sigma = over(jnp.cos(angle)), over(jnp.sin(angle))
    v = alpha * noise - sigma * x0
    return ((network_fn(alpha * x0 + sigma * noise, angle * 2 / jnp.pi) - v) ** 2).mean()


STRAIGHT = gaussian_noise(SHAPE, schedule="flow")


def flow_matching(network_fn, key, x0):
    """Logit-normal t, the velocity of the straight line from data to noise."""
    key_t, key_noise = jax.random.split(key)
    t = jax.nn.sigmoid(jax.random.normal(key_t, (x0.shape[0],)))
    noise = jax.random.normal(key_noise, x0.shape)
    xt = x0 + over(t) * (noise - x0)
    return jnp.mean(jnp.mean((network_fn(xt, t) - (noise - x0)) ** 2, axis=(1, 2, 3)))


def blur_matrices(size, std, steps, reach=2):
    """Periodic blur by a truncated Gaussian, once to `steps` times; numpy."""
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * std**2))
    one = np.zeros((size, size))
    for offset, tap in zip(range(-reach, reach + 1), kernel / kernel.sum(), strict=True):
        one += tap * np.roll(np.eye(size), offset, axis=1)
    return np.stack([np.linalg.matrix_power(one, k) for k in range(1, steps + 1)])


BLURS = jnp.asarray(blur_matrices(8, 0.7, 20), jnp.float32)
BLUR = gaussian_blur(SHAPE, stds=[0.7] * 20, kernel_size=5, boundary="circular")


def cold_l1(network_fn, key, x0):
    """Cold Diffusion: steps 1..T, the clean image predicted, L1."""
    step = jax.random.randint(key, (x0.shape[0],), 1, 21)
    blur = BLURS[step - 1]
    xt = jnp.einsum("bij,bjkc,blk->bilc", blur, x0, blur)
    return jnp.mean(jnp.abs(x0 - network_fn(xt, step)))


STEPS = {"prediction": "noise", "t_scale": range(T)}
RIGHT = [
    (ddpm, DDPM, STEPS),
    (edm, EXPLODING, {"prediction": "x0", "weight_fn": edm_weight, "t_scale": "sigma"}),
    (v_prediction, CIRCLE, {"prediction": "v"}),
    (flow_matching, STRAIGHT, {"prediction": "flow"}),
    (cold_l1, BLUR, {"prediction": "x0", "loss": "l1", "t_scale": range(1, 21)}),
]


@pytest.mark.parametrize(
    ("loss_fn", "degradation", "settings"), RIGHT, ids=[row[0].__name__ for row in RIGHT]
)
def test_a_right_loss_passes(loss_fn, degradation, settings):
    check_loss(loss_fn, degradation, KEY, SHAPE, **settings)


@pytest.mark.parametrize("shape", [(4, 4, 1), (32, 32, 3)], ids=str)
def test_small_and_large_images(shape):
    noise = gaussian_noise(shape, schedule="flow")
    check_loss(flow_matching, noise, KEY, shape, prediction="flow")


# Those that are broken.


def against_the_noisy_image(network_fn, key, x0):
    """irom-princeton/dppo, issue 14: the network restores x0 and is compared with x_noisy.

    https://github.com/irom-princeton/dppo/issues/14, confirmed and fixed there.
    """
    key_t, key_noise = jax.random.split(key)
    step = jax.random.randint(key_t, (x0.shape[0],), 0, T)
    bar = over(ALPHAS_BAR[step])
    xt = jnp.sqrt(bar) * x0 + jnp.sqrt(1 - bar) * jax.random.normal(key_noise, x0.shape)
    return jnp.mean((network_fn(xt, step) - xt) ** 2)


def snr_of(t):
    return (jnp.cos(jnp.pi * t / 2) / jnp.sin(jnp.pi * t / 2)) ** 2


def sigmoid_weight(t):
    return 1 / (1 + jnp.minimum(snr_of(t), 1e6))


def weights_of_the_batch(network_fn, key, x0):
    """bayesflow-org/bayesflow, issue 787: weights [B, 1, ...] meet errors [B, ...] that have
    lost an axis, and what is minimized is mean(w) mean(error).

    https://github.com/bayesflow-org/bayesflow/issues/787
    """
    key_t, key_noise = jax.random.split(key)
    t = jax.random.uniform(key_t, (x0.shape[0],))
    noise = jax.random.normal(key_noise, x0.shape)
    alpha, sigma = (over(number) for number in quarter_circle(t))
    error = (network_fn(alpha * x0 + sigma * noise, t) - noise) ** 2
    return jnp.mean(sigmoid_weight(over(t)) * jnp.mean(error, axis=-1))


def forgotten_root(network_fn, key, x0):
    """Ryota-Kawamura/How-Diffusion-Models-Work, issue 1: (1 - alpha_bar) noise, not its root.

    https://github.com/Ryota-Kawamura/How-Diffusion-Models-Work/issues/1
    """
    key_t, key_noise = jax.random.split(key)
    step = jax.random.randint(key_t, (x0.shape[0],), 0, T)
    noise = jax.random.normal(key_noise, x0.shape)
    bar = over(ALPHAS_BAR[step])
    return jnp.mean((network_fn(jnp.sqrt(bar) * x0 + (1 - bar) * noise, step) - noise) ** 2)


def min_snr(t, gamma=5.0):
    return jnp.minimum(snr_of(t), gamma) / snr_of(t)


def max_for_min_snr(network_fn, key, x0):
    """lucidrains/recurrent-interface-network-pytorch, issue 11: the maximum of SNR and gamma
    where Min-SNR has the minimum; the author says he made it in other repositories too.

    https://github.com/lucidrains/recurrent-interface-network-pytorch/issues/11
    """
    key_t, key_noise = jax.random.split(key)
    t = jax.random.uniform(key_t, (x0.shape[0],), minval=0.01, maxval=0.99)
    noise = jax.random.normal(key_noise, x0.shape)
    alpha, sigma = (over(number) for number in quarter_circle(t))
    error = (network_fn(alpha * x0 + sigma * noise, t) - noise) ** 2
    return jnp.mean(over(jnp.maximum(snr_of(t), 5.0) / snr_of(t)) * error)


def sum_over_a_thousand(network_fn, key, x0):
    """zoubohao/DenoisingDiffusionProbabilityModel-ddpm-, issues 10 and 12: the losses are summed
    over the batch and all pixels, and divided by 1000.

    https://github.com/zoubohao/DenoisingDiffusionProbabilityModel-ddpm-/issues/10
    """
    key_t, key_noise = jax.random.split(key)
    step = jax.random.randint(key_t, (x0.shape[0],), 0, T)
    noise = jax.random.normal(key_noise, x0.shape)
    bar = over(ALPHAS_BAR[step])
    xt = jnp.sqrt(bar) * x0 + jnp.sqrt(1 - bar) * noise
    return jnp.sum((network_fn(xt, step) - noise) ** 2) / 1000


def always_told_zero(network_fn, key, x0):
    """huggingface/diffusion-models-class, issue 64: the loop of the first unit's notebook calls
    net(noisy_x, 0) whatever the amount of noise; asked about there.

    https://github.com/huggingface/diffusion-models-class/issues/64
    """
    key_t, key_noise = jax.random.split(key)
    amount = over(jax.random.uniform(key_t, (x0.shape[0],)))
    xt = x0 * (1 - amount) + jax.random.normal(key_noise, x0.shape) * amount
    return jnp.mean((network_fn(xt, jnp.zeros(x0.shape[0])) - x0) ** 2)


def uniform_noise(network_fn, key, x0):
    """acids-ircam/diffusion_models, issue 8: rand where randn is meant.

    https://github.com/acids-ircam/diffusion_models/issues/8
    """
    key_t, key_noise = jax.random.split(key)
    step = jax.random.randint(key_t, (x0.shape[0],), 0, T)
    noise = jax.random.uniform(key_noise, x0.shape)
    bar = over(ALPHAS_BAR[step])
    xt = jnp.sqrt(bar) * x0 + jnp.sqrt(1 - bar) * noise
    return jnp.mean((network_fn(xt, step) - noise) ** 2)


BROKEN = [
    (
        *(against_the_noisy_image, DDPM, STEPS | {"prediction": "x0"}),
        *("zero for the exact answer", "the loss wants x_t, not x0"),
    ),
    (
        *(weights_of_the_batch, CIRCLE, {"prediction": "noise", "weight_fn": sigmoid_weight}),
        *("weights", r"\[B\] against \[B, 1\]"),
    ),
    (forgotten_root, DDPM, STEPS, "t told", r"sigma\^2 stands where sigma belongs"),
    (
        *(max_for_min_snr, CIRCLE, {"prediction": "noise", "weight_fn": min_snr}),
        *("constant error", "another weighting than weight_fn"),
    ),
    # 48 images of 8 x 8 x 3, summed and divided by 1000: 9.216 times the mean.
    (sum_over_a_thousand, DDPM, STEPS, "constant error", "a sum over everything.*9.216"),
    (
        *(always_told_zero, STRAIGHT, {"prediction": "x0"}),
        *("t told", "every example is told t = 0"),
    ),
    # U(0, 1) has mean 1/2 and std 1/sqrt(12) = 0.289.
    (uniform_noise, DDPM, STEPS, "t told", r"mean 0\.50 and std 0\.29, not N\(0, 1\)"),
]


@pytest.mark.parametrize(
    ("loss_fn", "degradation", "settings", "law", "cause"),
    BROKEN,
    ids=[row[0].__name__ for row in BROKEN],
)
def test_a_broken_loss_is_refused_with_its_cause(loss_fn, degradation, settings, law, cause):
    with pytest.raises(LawError, match=f"^{re.escape(law)}: .*likely: .*{cause}"):
        check_loss(loss_fn, degradation, KEY, SHAPE, **settings)
