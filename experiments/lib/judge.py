"""How good a set of generated images is: against the training images, and beside the held-out ones.

Two feature spaces: the pixels, in [0, 1], and the last hidden layer of a small classifier of the
data set, trained once and kept in the user's cache. How sure that classifier is of an image says
whether it can be read; the distance to the nearest training image, whether it was learned by
heart.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from diffjax import cache, data, metrics

COMPARED = 10_000  # images of a set, at most: the kernel distance takes their square
SURE = 0.9
GRID = 64  # images of the picture grid.png
_BATCH, _STEPS = 128, 1500


class Classifier(nn.Module):
    """Two convolutions, a hidden layer of 128 features, one logit a class."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: [N, H, W, C] -> logits [N, num_classes], features [N, 128]."""
        for width in (32, 64):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
        features = nn.relu(nn.Dense(128)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(features), features


class Judge(NamedTuple):
    """A trained classifier, and its accuracy on held-out images."""

    params: Any
    num_classes: int
    accuracy: float


@functools.partial(jax.jit, static_argnames="num_classes")
def _read(params, x, *, num_classes):
    logits, features = Classifier(num_classes).apply(params, x)
    return jax.nn.softmax(logits), features


def read(judge: Judge, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities [N, K], features [N, 128]) of images [N, H, W, C] in [-1, 1]."""
    parts = [
        jax.device_get(_read(judge.params, part, num_classes=judge.num_classes))
        for part in np.array_split(images, max(1, -(-len(images) // 1024)))
    ]
    probabilities, features = (np.concatenate(part) for part in zip(*parts, strict=True))
    return probabilities, features


def fit_judge(train: data.Source, test: data.Source) -> Judge | None:
    """The classifier of a data set, kept in the cache; None where there are no labels."""
    if train.num_classes is None:
        return None
    model = Classifier(train.num_classes)
    shape = (1, *train.image_shape)
    wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    expected = [(leaf.shape, np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(wanted)]
    state = [data.fingerprint(train), _STEPS, _BATCH]
    leaves = cache.cached(
        ("classifier", *train.image_shape), state, expected, lambda: _train(model, train)
    )
    params = jax.tree.unflatten(jax.tree.structure(wanted), [jnp.asarray(leaf) for leaf in leaves])
    judge = Judge(params, train.num_classes, 0.0)
    held = test.fetch_fn(range(min(test.size, COMPARED)))
    probabilities, _ = read(judge, held["image"])
    accuracy = float(np.mean(probabilities.argmax(axis=1) == held["label"]))
    return judge._replace(accuracy=accuracy)


def _train(model: Classifier, train: data.Source) -> list[np.ndarray]:
    params = model.init(jax.random.key(0), jnp.zeros((1, *train.image_shape)))
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, _STEPS))

    @jax.jit
    def step(params, state, image, label):
        def loss_fn(params):
            logits, _ = model.apply(params, image)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return jnp.mean(losses)

        updates, state = optimizer.update(jax.grad(loss_fn)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    batches = data.batches(train, batch_size=_BATCH, seed=0, shared=False)
    for _ in tqdm.trange(_STEPS, desc="classifier", leave=False):
        batch = next(batches)
        params, state = step(params, state, batch["image"], batch["label"])
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def as_pixels(images: np.ndarray) -> np.ndarray:
    """[N, H, W, C] in [-1, 1] as [N, H W C] in [0, 1]."""
    return np.asarray(metrics.to_unit(images)).reshape(len(images), -1)


def nearest(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The distance of each image to the nearest of a reference set, pixels in [0, 1]; [N]."""
    one, other = as_pixels(images), as_pixels(reference)
    square = np.sum(other**2, axis=1)
    found = [
        np.sum(block**2, axis=1) + np.min(square - 2 * block @ other.T, axis=1)
        for block in np.array_split(one, max(1, len(one) // 256))
    ]
    return np.sqrt(np.maximum(np.concatenate(found), 0))


def distances(features: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    gaussians = [*metrics.gaussian(features), *metrics.gaussian(reference)]
    return {
        "frechet": float(metrics.frechet_distance(*gaussians)),
        "kernel": float(metrics.kernel_distance(features, reference)),
    }


def judge_images(images: np.ndarray, reference: np.ndarray, judge: Judge | None) -> dict[str, Any]:
    """What is said of one set of images [N, H, W, C] in [-1, 1], against training images.

    Returns:
      "images": N; "pixels" and "classifier": {"frechet", "kernel"}; "sure": the share of images
      that the classifier is more than 0.9 sure of, and "sure of the grid", the share of the
      first 64; "nearest": the median and the least distance
      to a training image. Without a judge: no "classifier", no "sure".
    """
    pixels = [as_pixels(x) for x in (images, reference)]
    distance = nearest(images, reference)
    found: dict[str, Any] = {
        "images": len(images),
        "pixels": distances(*pixels),
        "nearest": {"median": float(np.median(distance)), "least": float(distance.min())},
    }
    if judge is not None:
        (probabilities, features), (_, others) = (read(judge, x) for x in (images, reference))
        found["classifier"] = distances(features, others)
        sure = probabilities.max(axis=1) > SURE
        found["sure"], found["sure of the grid"] = float(np.mean(sure)), float(np.mean(sure[:GRID]))
    return found
