"""Digits, arrays in memory, and batches.

Oracles: scikit-learn's own arrays; the arrays that the test itself made; numpy; grain's
shuffled MapDataset.
"""

import itertools

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from diffjax import data

RNG = np.random.default_rng(0)


# Digits


def test_digits_are_scikit_learns():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (train.size, test.size) == (1437, 360)
    assert train.image_shape == test.image_shape == (8, 8, 1)
    assert train.num_classes == 10
    digits = datasets.load_digits()
    for source, part in ((train, slice(0, 1437)), (test, slice(1437, None))):
        batch = source.fetch_fn(range(source.size))
        assert batch["image"].dtype == np.float32
        assert batch["label"].dtype == np.int32
        # Their pixels are 0..16.
        np.testing.assert_allclose(
            batch["image"][..., 0], digits.images[part] / 8 - 1, rtol=0, atol=1e-6
        )
        np.testing.assert_array_equal(batch["label"], digits.target[part])


def test_digits_of_another_size():
    source = data.load("digits", "test", image_size=16)
    images = source.fetch_fn(range(8))["image"]
    assert images.shape == (8, 16, 16, 1)
    assert images.min() >= -1
    assert images.max() <= 1
    # Enlarged or not, an image has the same mean up to its border and 8-bit rounding.
    small = data.load("digits", "test").fetch_fn(range(8))["image"]
    np.testing.assert_allclose(images.mean((1, 2, 3)), small.mean((1, 2, 3)), atol=0.05)


def test_unknown_split_raises():
    with pytest.raises(ValueError, match="split must be one of train, test; got 'valid'"):
        data.load("digits", "valid")


# In memory


def test_from_arrays_maps_bytes_onto_the_models_range():
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    source = data.from_arrays(images, [2, 0, 5])
    batch = source.fetch_fn([2, 0, 1])
    # x / 127.5 - 1
    np.testing.assert_allclose(batch["image"].ravel(), [1, -1, -0.6], atol=1e-6)
    np.testing.assert_array_equal(batch["label"], [5, 2, 0])
    assert source.num_classes == 6


def test_from_arrays_without_labels():
    images = np.zeros((2, 4, 5, 3))
    source = data.from_arrays(images)
    assert source.num_classes is None
    assert source.image_shape == (4, 5, 3)
    batch = source.fetch_fn([0])
    assert set(batch) == {"image"}
    assert batch["image"].dtype == np.float32


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 4, 1)), r"images must have shape \[N, H, W, C\]"),
        (np.zeros((0, 4, 4, 1)), r"N > 0; got \(0, 4, 4, 1\)"),
        (np.zeros((1, 4, 0, 1)), r"images must have shape \[N, H, W, C\]"),
        (np.zeros((1, 4, 4, 1), np.int32), "must be uint8, uint16 or floating point; got int32"),
        (np.zeros((1, 4, 4, 1), bool), "must be uint8, uint16 or floating point; got bool"),
        (np.zeros((1, 4, 4, 1), complex), "must be uint8, uint16 or floating point; got complex"),
        (np.full((1, 4, 4, 1), 1.5), r"must lie in \[-1, 1\]; got \[1.5, 1.5\]"),
        (np.full((1, 4, 4, 1), -2.0), r"must lie in \[-1, 1\]; got \[-2, -2\]"),
        (np.full((1, 4, 4, 1), np.nan), r"must lie in \[-1, 1\]; got \[nan, nan\]"),
    ],
)
def test_from_arrays_raises(images, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels must have shape \[3\], as images; got \(2,\)"),
        ([[0], [1], [2]], r"labels must have shape \[3\], as images; got \(3, 1\)"),
        ([0, -1, 2], r"labels must count from 0; got \[-1, 2\]"),
        ([0, 1, 2**31], "labels must count from 0"),
        ([0.0, 1.0, 2.0], "labels must be integers; got float64"),
        ([True, False, True], "labels must be integers; got bool"),
    ],
)
def test_labels_raise(labels, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(np.zeros((3, 4, 4, 1)), np.array(labels))


@pytest.mark.parametrize(("field", "value"), [("limit", 0), ("limit", 1.5), ("image_size", -8)])
def test_sizes_that_are_no_counts_raise(field, value):
    with pytest.raises(ValueError, match=rf"data.{field} must be a positive integer.*{value}"):
        data.load("digits", "train", **{field: value})


def test_the_limit_is_of_the_training_split():
    train = data.load("digits", "train", limit=10)
    assert (train.size, train.num_classes) == (10, 10)
    full = data.load("digits", "train")
    np.testing.assert_array_equal(
        train.fetch_fn(range(10))["image"], full.fetch_fn(range(10))["image"]
    )
    assert data.load("digits", "test", limit=10).size == 360
    seen = np.concatenate([batch["label"] for batch in take(5, train, batch_size=4, seed=0)])
    np.testing.assert_array_equal(
        np.bincount(seen, minlength=10), 2 * np.bincount(digits_labels(10), minlength=10)
    )


def digits_labels(count):
    return datasets.load_digits().target[:count]


# Provenance


def test_fingerprints_tell_data_apart():
    images, labels = RNG.integers(0, 256, (100, 4, 4, 1), np.uint8), np.arange(100) % 3
    first = data.fingerprint(data.from_arrays(images, labels))
    assert first.startswith("100x4x4x1-")
    # However it is stored.
    floats = images.astype(np.float32) / np.float32(127.5) - 1
    assert data.fingerprint(data.from_arrays(floats, labels.astype(np.int64))) == first
    other = images.copy()
    other[0, 0, 0] ^= 1
    for source in (
        data.from_arrays(other, labels),
        data.from_arrays(images, (labels + 1) % 3),
        data.from_arrays(images),
        data.from_arrays(images[:99], labels[:99]),
        data.from_arrays(images.reshape(100, 2, 8, 1), labels),
    ):
        assert data.fingerprint(source) != first


def test_wide_types_and_strict_promotion_do_not_matter():
    def mine(split, directory=None, image_size=None):
        return jnp.linspace(-1, 1, 48).reshape(3, 4, 4, 1), jnp.arange(3)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        assert mine("train")[0].dtype == np.float64
        for name in ("digits", mine):
            source = data.load(name, "train")
            (batch,) = take(1, source, batch_size=2, seed=0)
            kinds = {name: value.dtype for name, value in batch.items()}
            assert kinds == {"image": np.float32, "label": np.int32, "position": np.int32}
        wide = data.fingerprint(data.load("digits", "train"))
    assert data.fingerprint(data.load("digits", "train")) == wide


# Batches


def numbered(size):
    """A source whose image i holds i / size."""
    return data.from_arrays(np.arange(size).reshape(size, 1, 1, 1) / size, np.arange(size))


def take(count, source, **kwargs):
    return list(itertools.islice(data.batches(source, **kwargs), count))


def labels(batches):
    return np.stack([batch["label"] for batch in batches])


def test_batches_carry_images_labels_and_positions():
    for batch in take(3, numbered(10), batch_size=4, seed=0):
        np.testing.assert_allclose(batch["image"].ravel(), batch["label"] / 10, atol=1e-7)
        np.testing.assert_array_equal(batch["position"], [0, 1, 2, 3])
        assert batch["position"].dtype == np.int32


def test_batches_are_a_pure_function_of_the_step():
    # 10 / 4: the epochs end in the middle of batches.
    through = labels(take(12, numbered(10), batch_size=4, seed=3))
    for start in (1, 2, 5, 7):
        resumed = labels(take(5, numbered(10), batch_size=4, seed=3, start=start))
        np.testing.assert_array_equal(resumed, through[start : start + 5])
    again = labels(take(12, numbered(10), batch_size=4, seed=3))
    np.testing.assert_array_equal(again, through)
    assert np.any(labels(take(12, numbered(10), batch_size=4, seed=4)) != through)


def test_every_epoch_is_a_new_order_of_all_examples():
    epochs = labels(take(15, numbered(12), batch_size=4, seed=0)).reshape(5, 12)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(12))
    assert len({tuple(epoch) for epoch in epochs}) == 5


@pytest.mark.parametrize("size", [1, 2, 10, 1437])
def test_the_order_is_grains(size):
    shuffled = grain.MapDataset.range(size).shuffle(7).repeat()
    found = labels(take(6, numbered(size), batch_size=5, seed=7, start=3)).ravel()
    np.testing.assert_array_equal(found, [shuffled[i] for i in range(15, 45)])


def test_a_batch_is_fetched_at_once():
    asked = []

    def fetch(indices):
        asked.append(np.asarray(indices).shape)
        return {"image": np.zeros((len(indices), 1, 1, 1), np.float32)}

    take(2, data.Source(10, (1, 1, 1), None, fetch), batch_size=4, seed=0)
    assert set(asked) == {(4,)}


def test_what_fails_later_ends_the_batches_with_its_name():
    def fetch(indices):
        raise ValueError("/photos/3.png: it was changed")

    with pytest.raises(ValueError, match=r"/photos/3.png: it was changed"):
        take(1, data.Source(10, (1, 1, 1), None, fetch), batch_size=4, seed=0)


def test_a_batch_larger_than_the_data_set():
    (batch,) = take(1, numbered(3), batch_size=6, seed=0)
    np.testing.assert_array_equal(np.bincount(batch["label"]), [2, 2, 2])


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_share_the_batch_that_one_host_would_see(monkeypatch, hosts):
    kwargs = {"batch_size": 6, "seed": 1, "start": 1}
    expected = take(6, numbered(10), **kwargs)
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    shares = []
    for host in range(hosts):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        shares.append(take(6, numbered(10), **kwargs))
    for batch, *parts in zip(expected, *shares, strict=True):
        assert all(len(part["label"]) == 6 // hosts for part in parts)
        position = np.concatenate([part["position"] for part in parts])
        np.testing.assert_array_equal(np.sort(position), np.arange(6))
        label = np.concatenate([part["label"] for part in parts])
        np.testing.assert_array_equal(label[np.argsort(position)], batch["label"])
