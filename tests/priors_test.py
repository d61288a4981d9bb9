"""Oracles: the spaces by construction, numpy.linalg.svd, closed-form moments of a mixture.

Statistical tests are at five standard errors of the sample size they state.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from diffjax import priors

SIZE = 8

sample_batch = jax.jit(jax.vmap(priors.sample_mixture, in_axes=(None, 0, None)))


def constant_images(rng, count, channels):
    """What a blur to the mean leaves: C numbers an image."""
    return np.broadcast_to(
        rng.normal(0.1, 0.3, (count, 1, 1, channels)), (count, SIZE, SIZE, channels)
    )


def block_images(rng, count, channels):
    """What super-resolution from 2x2 leaves: 4 C numbers an image."""
    return np.kron(
        rng.normal(0, 0.3, (count, 2, 2, channels)), np.ones((1, SIZE // 2, SIZE // 2, 1))
    )


def colored_images(rng, count, channels):
    """What fading to a drawn color leaves, under a fixed mask that does not reach 0 everywhere."""
    mask = np.linspace(0.5, 1, SIZE * SIZE).reshape(1, SIZE, SIZE, 1)
    return mask * rng.uniform(-0.5, 0.5, (count, 1, 1, channels))


def gray_images(rng, count, channels):
    """What lost color leaves: as many numbers an image as pixels."""
    return np.repeat(rng.normal(0, 0.3, (count, SIZE, SIZE, 1)), channels, axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("make", "rank"),
    [
        (constant_images, lambda channels: channels),
        (block_images, lambda channels: 4 * channels),
        (colored_images, lambda channels: channels),
        (gray_images, lambda channels: SIZE * SIZE),
    ],
)
def test_space_is_found_from_float32_images(make, rank, channels):
    images = make(np.random.default_rng(0), 600, channels).astype(np.float32)
    # What arithmetic in float32 adds, twice over.
    images = images * (1 + 2**-23 * np.random.default_rng(1).normal(size=images.shape))
    prior = priors.fit_mixture(images.astype(np.float32))
    assert prior.basis.shape == (rank(channels), SIZE, SIZE, channels)
    assert {leaf.dtype for leaf in prior} == {jnp.dtype("float32")}


@pytest.mark.parametrize("max_rank", [64, 20])
def test_directions_are_those_of_the_singular_value_decomposition(max_rank):
    # Variances fall by 4 from one direction to the next, up to 12.
    rng = np.random.default_rng(2)
    directions, _ = np.linalg.qr(rng.normal(size=(SIZE * SIZE * 3, 12)))
    images = rng.normal(size=(700, 12)) * 2.0 ** -np.arange(12) @ directions.T + 0.2
    prior = jax.device_get(
        priors.fit_mixture(images.reshape(700, SIZE, SIZE, 3), max_rank=max_rank, tolerance=1e-6)
    )
    _, singular, rows = np.linalg.svd(images - images.mean(axis=0), full_matrices=False)
    basis = prior.basis.reshape(12, -1)
    stds = np.linalg.norm(basis, axis=1)
    np.testing.assert_allclose(prior.mean.ravel(), images.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(stds, singular[:12] / np.sqrt(699), rtol=1e-5)
    np.testing.assert_allclose(np.abs(basis @ rows[:12].T), np.diag(stds), atol=1e-5)


def test_no_more_than_max_rank_directions_are_kept():
    # The third channel varies most: its four blocks are kept, and next to nothing beside them.
    images = block_images(np.random.default_rng(3), 400, 3) * np.array([1.0, 2.0, 4.0])
    prior = priors.fit_mixture(images, max_rank=4)
    assert prior.basis.shape[0] == 4
    kept = np.sum(np.square(prior.basis), axis=(0, 1, 2))
    np.testing.assert_allclose(kept[2], np.var(images[..., 2], axis=0).sum(), rtol=0.02)
    assert np.all(kept[:2] < 0.02 * kept[2])


def test_known_mixture_of_colors_is_recovered():
    # 3 colors, std 0.05 about each, 6,000 images: five standard errors of a mean are below
    # 5 * 0.05 / sqrt(6000 * 0.2) = 0.0073, of a weight below 5 * sqrt(0.25 / 6000) = 0.033,
    # of an entry of a covariance below 5 * sqrt(2) * 0.05^2 / sqrt(6000 * 0.2) = 5.2e-4.
    rng = np.random.default_rng(4)
    weights = np.array([0.2, 0.3, 0.5])
    colors = np.array([[-0.6, 0.1, 0.4], [0.5, 0.5, -0.3], [0.0, -0.5, 0.0]])
    factor = 0.05 * np.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.0, 0.3, 0.9]])
    labels = rng.choice(3, 6000, p=weights)
    drawn = colors[labels] + rng.normal(size=(6000, 3)) @ factor.T
    images = np.broadcast_to(drawn[:, None, None], (6000, 4, 4, 3)).astype(np.float32)
    prior = jax.device_get(priors.fit_mixture(images, components=3, seed=5))
    basis = prior.basis[:, 0, 0]
    means = prior.mean[0, 0] + prior.means @ basis
    order = [np.argmin(np.linalg.norm(means - color, axis=1)) for color in colors]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(means[order], colors, atol=0.0073)
    np.testing.assert_allclose(prior.weights[order], weights, atol=0.033)
    for k in order:
        root = basis.T @ prior.cholesky[k]
        np.testing.assert_allclose(root @ root.T, factor @ factor.T, atol=5.2e-4)


def test_one_gaussian_has_the_moments_of_the_images():
    images = block_images(np.random.default_rng(6), 500, 1)
    prior = jax.device_get(priors.fit_mixture(images))
    rows = images.reshape(500, -1)
    basis = prior.basis.reshape(4, -1)
    np.testing.assert_allclose(prior.mean.ravel(), rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(prior.means, np.zeros((1, 4)), atol=1e-6)
    root = basis.T @ prior.cholesky[0]
    expected = np.cov(rows, rowvar=False, bias=True)
    np.testing.assert_allclose(root @ root.T, expected, atol=1e-6)


def test_the_same_seed_gives_the_same_prior():
    images = constant_images(np.random.default_rng(7), 200, 3)
    chex.assert_trees_all_equal(
        priors.fit_mixture(images, components=2, seed=3),
        priors.fit_mixture(images, components=2, seed=3),
    )


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((4, 4, 1)), {}, r"must be \[N, H, W, C\], floating point; got float64 of shape"),
        (np.zeros((5, 4, 4, 1), np.uint8), {}, "floating point; got uint8"),
        (np.zeros((1, 4, 4, 1)), {}, "at least 2 images to fit 1 components; got 1"),
        (np.eye(16).reshape(16, 4, 4, 1)[:3], {"components": 4}, "at least 4 images"),
        (np.zeros((5, 4, 4, 1)), {"components": 0}, "components and max_rank must be positive"),
        (np.zeros((5, 4, 4, 1)), {"max_rank": 0}, "components and max_rank must be positive"),
        (np.full((5, 4, 4, 1), np.nan), {}, "must be finite"),
        (np.array([np.inf, -np.inf]).reshape(2, 1, 1, 1), {}, "must be finite"),
        (np.full((5, 4, 4, 1), 0.3, np.float32), {}, "must vary"),
        (np.zeros((5, 4, 4, 1)), {}, "must vary"),
    ],
)
def test_images_that_cannot_be_fitted_raise(images, options, message):
    with pytest.raises(ValueError, match=message):
        priors.fit_mixture(images, **options)


def known_prior():
    """Two Gaussians in two directions of 2x2x1 images that are not orthonormal on purpose."""
    return priors.MixturePrior(
        mean=jnp.array([0.1, -0.2, 0.3, 0.0]).reshape(2, 2, 1),
        basis=jnp.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.5, -0.5, 1.0]]).reshape(2, 2, 2, 1),
        weights=jnp.array([0.25, 0.75]),
        means=jnp.array([[1.0, -1.0], [-0.5, 0.5]]),
        cholesky=jnp.array([[[0.5, 0.0], [0.2, 0.3]], [[0.1, 0.0], [-0.3, 0.6]]]),
    )


def moments(prior):
    """Mean and covariance of the mixture in closed form, over the flattened pixels; float64."""
    mean, basis, weights, means, cholesky = (np.asarray(leaf, np.float64) for leaf in prior)
    basis = basis.reshape(len(basis), -1)
    center = weights @ means
    covariance = sum(
        w * (root @ root.T + np.outer(m - center, m - center))
        for w, m, root in zip(weights, means, cholesky, strict=True)
    )
    return mean.ravel() + center @ basis, basis.T @ covariance @ basis


@pytest.mark.parametrize("perturbation", [0.0, 0.4])
def test_samples_have_the_moments_of_the_mixture(perturbation):
    count = 40_000
    keys = jax.random.split(jax.random.key(8), count)
    samples = np.asarray(sample_batch(known_prior(), keys, perturbation), np.float64)
    assert samples.shape == (count, 2, 2, 1)
    samples = samples.reshape(count, 4)
    mean, covariance = moments(known_prior())
    covariance = covariance + perturbation**2 * np.eye(4)
    error = np.sqrt(np.diag(covariance) / count)
    assert np.all(np.abs(samples.mean(axis=0) - mean) < 5 * error + 1e-6)
    products = np.einsum("ni,nj->nij", samples - mean, samples - mean)
    error = products.std(axis=0) / np.sqrt(count)
    assert np.all(np.abs(products.mean(axis=0) - covariance) < 5 * error + 1e-6)


def test_samples_without_perturbation_lie_in_the_space():
    prior = known_prior()
    keys = jax.random.split(jax.random.key(9), 100)
    basis = np.asarray(prior.basis).reshape(2, 4)
    outside = np.eye(4) - np.linalg.pinv(basis) @ basis
    for perturbation, largest in [(0.0, 1e-6), (0.002, 0.01)]:
        samples = sample_batch(prior, keys, perturbation)
        residual = (np.asarray(samples) - np.asarray(prior.mean)).reshape(100, 4) @ outside
        assert np.abs(residual).max() < largest
    # Two dimensions are outside: their mean square is 0.002^2 within 5 sqrt(2 / 200) of itself.
    assert abs(np.sum(residual**2) / 200 / 0.002**2 - 1) < 0.5


def test_perturbation_is_white_noise_on_the_unperturbed_sample():
    prior = priors.MixturePrior(
        mean=jnp.zeros((64, 64, 3)),
        basis=jnp.ones((1, 64, 64, 3)),
        weights=jnp.ones(1),
        means=jnp.zeros((1, 1)),
        cholesky=jnp.ones((1, 1, 1)),
    )
    sample = jax.jit(priors.sample_mixture)
    key = jax.random.key(10)
    flat = sample(prior, key, 0.0)
    noise = np.asarray(sample(prior, key, 0.25) - flat) / 0.25
    # n = 12,288: five standard errors are 5 / sqrt(n) = 0.045 and 5 sqrt(2 / n) = 0.064.
    assert abs(noise.mean()) < 0.045
    assert abs(noise.var() - 1) < 0.064
    assert abs(np.mean(noise[1:] * noise[:-1])) < 0.05
    assert np.ptp(flat) == 0


def test_a_batch_is_its_images_one_by_one():
    keys = jax.random.split(jax.random.key(15), 3)
    batch = sample_batch(known_prior(), keys, 0.1)
    for key, xT in zip(keys, batch, strict=True):
        np.testing.assert_allclose(priors.sample_mixture(known_prior(), key, 0.1), xT, atol=1e-6)


def test_one_trace_for_every_prior_key_and_perturbation():
    chex.clear_trace_counter()
    sample = jax.jit(chex.assert_max_traces(n=1)(priors.sample_mixture))
    prior = known_prior()
    for seed, scale in enumerate([0.0, 0.002, 0.5]):
        other = jax.tree.map(lambda leaf, scale=scale: leaf * (1 + scale), prior)
        sample(other, jax.random.key(seed), jnp.float32(scale))


def test_priors_survive_a_checkpoint(tmp_path):
    fitted = priors.fit_mixture(block_images(np.random.default_rng(11), 100, 1), components=2)
    bank = priors.BankPrior(jnp.arange(8.0).reshape(2, 2, 2, 1))
    with ocp.StandardCheckpointer() as checkpointer:
        for name, prior in [("mixture", fitted), ("bank", bank)]:
            checkpointer.save(tmp_path / name, prior)
            checkpointer.wait_until_finished()
            template = jax.tree.map(jnp.zeros_like, prior)
            restored = checkpointer.restore(tmp_path / name, template)
            assert type(restored) is type(prior)
            chex.assert_trees_all_equal(restored, prior)


def test_bank_draws_every_image_as_often():
    # 5 images, 5,000 draws: 1,000 each within five standard errors, 5 sqrt(5000 * 0.16) = 141.
    prior = priors.BankPrior(jnp.arange(5 * 2 * 3 * 1.0).reshape(5, 2, 3, 1))
    keys = jax.random.split(jax.random.key(12), 5000)
    sample = jax.jit(jax.vmap(priors.sample_bank, in_axes=(None, 0, None)))
    images, counts = np.unique(np.asarray(sample(prior, keys, 0.0)), axis=0, return_counts=True)
    np.testing.assert_array_equal(images, prior.images)
    assert np.all(np.abs(counts - 1000) < 141)
    noise = np.asarray(sample(prior, keys, 0.5) - sample(prior, keys, 0.0))
    # n = 30,000: five standard errors of the variance 1/4 are 5 * sqrt(2 / n) / 4 = 0.0102.
    assert abs(noise.var() - 0.25) < 0.0102
    assert abs(noise.mean()) < 5 * 0.5 / np.sqrt(noise.size)


def test_arrays_of_another_rank_raise():
    key = jax.random.key(0)
    with pytest.raises(AssertionError):
        priors.sample_mixture(known_prior()._replace(weights=jnp.ones((2, 1))), key, 0.0)
    with pytest.raises(AssertionError):
        priors.sample_mixture(known_prior(), key, jnp.zeros(2))
    with pytest.raises(AssertionError):
        priors.sample_bank(priors.BankPrior(jnp.zeros((2, 2, 1))), key, 0.0)
    with pytest.raises(AssertionError):
        priors.sample_bank(priors.BankPrior(jnp.zeros((0, 2, 2, 1))), key, 0.0)


@pytest.mark.parametrize(
    ("degrade_fn", "expected"),
    [
        (lambda x0, t, omega: (1 - t) * x0 + t * omega, False),  # fades to a drawn image
        (lambda x0, t, omega: (1 - t) * x0, False),  # fades to black
        (lambda x0, t, omega: (1 - 0.99 * t) * x0 + t * omega, False),  # noise, all but 1 %
        (lambda x0, t, omega: x0 + 80 * t * omega, False),  # noise that explodes
        (lambda x0, t, omega: (1 - t) * x0 + t * jnp.mean(x0), True),  # blurs to the mean
        (lambda x0, t, omega: (1 - 0.9 * t) * x0 + t * omega, True),  # noise, all but 10 %
    ],
)
def test_whether_the_degraded_image_depends_on_the_clean_one(degrade_fn, expected):
    rng = np.random.default_rng(13)
    level = rng.uniform(-0.5, 0.5, (6, 1, 1, 1))
    x0_BHWC = jnp.asarray(level + rng.uniform(-0.5, 0.5, (6, SIZE, SIZE, 1)), jnp.float32)
    omega = jnp.asarray(rng.normal(size=(SIZE, SIZE, 1)), jnp.float32)
    assert priors.depends_on_x0(degrade_fn, x0_BHWC, omega) is expected


def test_dependence_needs_two_images():
    with pytest.raises(ValueError, match="B > 1; got shape"):
        priors.depends_on_x0(lambda x0, t, omega: x0, jnp.zeros((1, 2, 2, 1)), None)
