"""Oracles: scikit-learn's own arrays; the pixels that the test itself wrote to disk; numpy.

A data set of TFDS is written here record by record, which needs no TensorFlow; the real
MNIST is read where TFDS_DATA_DIR names a folder that holds it.
"""

import io
import itertools
import json
import os
import pathlib
import sys

import jax
import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image
from sklearn import datasets
from tensorflow_datasets.proto import tf_example_generated_pb2

from diffjax import data

RNG = np.random.default_rng(0)


def in_bytes(images):
    return np.round((np.asarray(images) + 1) * 127.5).astype(np.uint8)


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
        (np.zeros((1, 4, 4, 1), np.int32), "images must be uint8 or floating point; got int32"),
        (np.full((1, 4, 4, 1), 1.5), r"must lie in \[-1, 1\]; got \[1.5, 1.5\]"),
        (np.full((1, 4, 4, 1), -2.0), r"must lie in \[-1, 1\]; got \[-2, -2\]"),
        (np.full((1, 4, 4, 1), np.nan), r"must lie in \[-1, 1\]; got \[nan, nan\]"),
    ],
)
def test_from_arrays_raises(images, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(images)


# A folder


def write_images(folder, count, shape=(6, 6), suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    images = RNG.integers(0, 256, (count, *shape), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}{suffix}")
    return images.reshape(*images.shape[:3], -1)


def load_folder(path, split="train", **kwargs):
    return data.load("folder", split, directory=str(path), **kwargs)


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3)])
def test_folder_is_split_nine_to_one_by_name(tmp_path, shape):
    images = write_images(tmp_path, 20, shape)
    (tmp_path / "readme.txt").write_text("no image")
    train, test = load_folder(tmp_path), load_folder(tmp_path, "test")
    assert (train.size, test.size) == (18, 2)
    assert train.image_shape == images.shape[1:]
    np.testing.assert_array_equal(in_bytes(train.fetch_fn(range(18))["image"]), images[:18])
    np.testing.assert_array_equal(in_bytes(test.fetch_fn(range(2))["image"]), images[18:])


def test_folder_of_a_few_images_keeps_one_for_the_test(tmp_path):
    write_images(tmp_path, 2)
    assert [load_folder(tmp_path, split).size for split in data.SPLITS] == [1, 1]


def test_folder_with_the_splits_inside(tmp_path):
    train = write_images(tmp_path / "train" / "deeper", 3)
    test = write_images(tmp_path / "test", 2)
    for split, images in (("train", train), ("test", test)):
        batch = load_folder(tmp_path, split).fetch_fn(range(len(images)))
        np.testing.assert_array_equal(in_bytes(batch["image"]), images)


def test_folder_of_jpeg(tmp_path):
    gradient = np.tile(np.linspace(0, 255, 16, dtype=np.uint8), (16, 1))
    for i in range(2):
        Image.fromarray(gradient).save(tmp_path / f"{i}.JPG", quality=95)
    image = load_folder(tmp_path).fetch_fn([0])["image"][0]
    # JPEG loses a little.
    np.testing.assert_allclose(image[..., 0], gradient / 127.5 - 1, atol=0.05)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    # 65,535 = 255 * 257 is white; 257 k is the 8-bit k.
    levels = np.array([[0, 257], [257 * 100, 65535]], np.uint16)
    for i in range(2):
        Image.fromarray(levels).save(tmp_path / f"{i}.png")
    image = load_folder(tmp_path).fetch_fn([0])["image"][0]
    np.testing.assert_array_equal(in_bytes(image[..., 0]), [[0, 1], [100, 255]])


def test_color_among_gray_takes_the_first_images_kind(tmp_path):
    gray = np.full((4, 4), 100, np.uint8)
    Image.fromarray(np.stack([gray] * 3, -1)).save(tmp_path / "0.png")
    Image.fromarray(gray).save(tmp_path / "1.png")
    Image.fromarray(gray).save(tmp_path / "2.png")
    images = load_folder(tmp_path).fetch_fn([0, 1])["image"]
    assert images.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(in_bytes(images), 100)


def test_image_size_resizes_the_shorter_side_and_cuts_the_center(tmp_path):
    # Columns 0..2 and 9..11 black, a white square of 6 in the middle: what remains is white.
    wide = np.zeros((6, 12), np.uint8)
    wide[:, 3:9] = 255
    Image.fromarray(wide).save(tmp_path / "0.png")
    Image.fromarray(wide.T).save(tmp_path / "1.png")
    Image.fromarray(np.full((6, 6), 255, np.uint8)).save(tmp_path / "2.png")
    Image.fromarray(wide).save(tmp_path / "3.png")
    source = load_folder(tmp_path, image_size=6)
    np.testing.assert_array_equal(source.fetch_fn(range(3))["image"], np.ones((3, 6, 6, 1)))
    # Half the size: the same by averaging, but for the pixels that the antialiasing reaches.
    half = load_folder(tmp_path, image_size=3).fetch_fn(range(3))["image"]
    assert half.shape == (3, 3, 3, 1)
    np.testing.assert_array_equal(half[:, 1, 1], np.ones((3, 1)))


def test_images_of_different_sizes_raise(tmp_path):
    write_images(tmp_path, 3)
    Image.fromarray(np.zeros((6, 7), np.uint8)).save(tmp_path / "000b.png")
    with pytest.raises(ValueError, match=r"000b.png is uint8\[6, 7, 1\].*set data.image_size"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, image_size=6).size == 3


@pytest.mark.parametrize("directory", [None, "", "/nowhere/at/all"])
def test_no_folder_raises(directory):
    with pytest.raises(ValueError, match=r"data.directory .* is no folder"):
        data.load("folder", "train", directory=directory)


def test_folder_without_images_raises(tmp_path):
    with pytest.raises(ValueError, match="holds no train images"):
        load_folder(tmp_path)


def test_large_folders_are_read_when_asked_for(tmp_path, monkeypatch):
    images = write_images(tmp_path, 10)
    monkeypatch.setattr(data, "_IN_MEMORY_BYTES", 0)
    source = load_folder(tmp_path)
    (tmp_path / "000.png").unlink()
    np.testing.assert_array_equal(in_bytes(source.fetch_fn([3, 1])["image"]), images[[3, 1]])
    with pytest.raises(FileNotFoundError):
        source.fetch_fn([0])


# TensorFlow Datasets


def write_tfds(directory, name, splits, features):
    """What `tfds build --file_format=array_record` leaves, for {split: [{feature: value}]}."""
    root = directory / name / "1.0.0"
    root.mkdir(parents=True)
    package = "tensorflow_datasets.core.features"
    description = {
        "pythonClassName": f"{package}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (root / "features.json").write_text(json.dumps(description))
    shards = []
    for split, examples in splits.items():
        path = root / f"{name}-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for values in examples:
            example = tf_example_generated_pb2.Example()
            for key, value in values.items():
                feature = example.features.feature[key]
                kind = feature.bytes_list if isinstance(value, bytes) else feature.int64_list
                kind.value.append(value)
            writer.write(example.SerializeToString())
        writer.close()
        shards.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(path.stat().st_size),
                "shardLengths": [str(len(examples))],
            }
        )
    info = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "splits": shards}
    (root / "dataset_info.json").write_text(json.dumps(info))


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    return file.getvalue()


CLASS_LABEL = {
    "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
    "classLabel": {"numClasses": "7"},
}


def image_feature(*shape):
    return {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "image": {"dtype": "uint8", "shape": {"dimensions": [str(size) for size in shape]}},
    }


@pytest.fixture
def little(tmp_path):
    images = RNG.integers(0, 256, (7, 6, 6, 1), dtype=np.uint8)
    examples = [{"image": png(image), "label": i % 5} for i, image in enumerate(images)]
    features = {"image": image_feature(6, 6, 1), "label": CLASS_LABEL}
    write_tfds(tmp_path, "little", {"train": examples[:5], "test": examples[5:]}, features)
    return tmp_path, images


def test_tfds(little):
    directory, images = little
    for split, part in (("train", slice(0, 5)), ("test", slice(5, 7))):
        source = data.load("little", split, directory=str(directory))
        assert source.num_classes == 7
        assert source.image_shape == (6, 6, 1)
        batch = source.fetch_fn(range(source.size))
        np.testing.assert_array_equal(in_bytes(batch["image"]), images[part])
        np.testing.assert_array_equal(batch["label"], np.arange(7)[part] % 5)
        assert batch["label"].dtype == np.int32
    assert "tensorflow" not in sys.modules


def test_tfds_too_large_for_the_memory(little, monkeypatch):
    directory, images = little
    monkeypatch.setattr(data, "_IN_MEMORY_BYTES", 0)
    batch = data.load("little", "train", directory=str(directory)).fetch_fn([4, 2])
    np.testing.assert_array_equal(in_bytes(batch["image"]), images[[4, 2]])
    np.testing.assert_array_equal(batch["label"], [4, 2])


def test_tfds_resized(little):
    directory, _ = little
    source = data.load("little", "train", directory=str(directory), image_size=4)
    assert source.fetch_fn([0, 1])["image"].shape == (2, 4, 4, 1)


def test_tfds_of_many_sizes_in_color(tmp_path):
    images = [RNG.integers(0, 256, (6, width, 3), dtype=np.uint8) for width in (6, 6, 9)]
    examples = [{"image": png(image)} for image in images]
    splits = {"train": examples, "test": examples[:2]}
    write_tfds(tmp_path, "mixed", splits, {"image": image_feature(-1, -1, 3)})
    test = data.load("mixed", "test", directory=str(tmp_path))
    assert test.num_classes is None
    np.testing.assert_array_equal(in_bytes(test.fetch_fn([1])["image"][0]), images[1])
    with pytest.raises(ValueError, match=r"mixed\[2\] is uint8\[6, 9, 3\].*set data.image_size"):
        data.load("mixed", "train", directory=str(tmp_path))
    assert data.load("mixed", "train", directory=str(tmp_path), image_size=6).size == 3


def test_tfds_without_images_raises(tmp_path):
    write_tfds(tmp_path, "blind", {"train": [{"label": 1}]}, {"label": CLASS_LABEL})
    with pytest.raises(ValueError, match=r"data.name 'blind' has no 'image' feature.*label"):
        data.load("blind", "train", directory=str(tmp_path))


def test_tfds_without_the_split_raises(tmp_path):
    write_tfds(tmp_path, "half", {"train": [{"label": 1}]}, {"label": CLASS_LABEL})
    with pytest.raises(ValueError, match=r"data\.name 'half', 'test' cannot be read"):
        data.load("half", "test", directory=str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_tfds_that_is_not_prepared_says_how(tmp_path, name):
    with pytest.raises(ValueError, match=f"'{name}' is not prepared in {tmp_path}: prepare it"):
        data.load(name, "train", directory=str(tmp_path))
    with pytest.raises(ValueError, match=f"make prepare DATASET={name}"):
        data.load(name, "train", directory=str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variable", ["HOME", "TFDS_DATA_DIR"])
def test_tfds_that_is_not_where_it_is_by_default_says_where(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=f"'mnist' is not prepared in {tmp_path}.*: prepare it"):
        data.load("mnist", "train")


def test_unknown_name_raises(tmp_path):
    with pytest.raises(ValueError, match="'nosuchset' is neither digits, folder nor a TFDS name"):
        data.load("nosuchset", "train", directory=str(tmp_path))


def test_mnist_where_it_is_prepared():
    directory = pathlib.Path(os.environ.get("TFDS_DATA_DIR", ""))
    if "TFDS_DATA_DIR" not in os.environ or not (directory / "mnist").is_dir():
        pytest.skip("TFDS_DATA_DIR names no folder with a prepared mnist")
    source = data.load("mnist", "test", directory=str(directory))
    # MNIST's test split has 10,000 images, 980 of them zeros and 1,135 ones.
    assert (source.size, source.image_shape, source.num_classes) == (10_000, (28, 28, 1), 10)
    counts = np.bincount(source.fetch_fn(range(10_000))["label"])
    np.testing.assert_array_equal(counts[:2], [980, 1135])


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
