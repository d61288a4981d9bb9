"""Data sets of encoded images: folders of files, and those of TensorFlow Datasets.

Oracles: the pixels that the test itself wrote to disk; `diffjax.images.read`, tested by itself.
A data set of TFDS is written here record by record, which needs no TensorFlow; the real MNIST
is read where TFDS_DATA_DIR names a folder that holds it.
"""

import io
import json
import os
import pathlib
import sys

import numpy as np
import pytest
from array_record.python import array_record_module
from images_test import BAD_FILES, good_pictures
from images_test import alarm as alarm
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2

from diffjax import data, images

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("DIFFJAX_CACHE", "")


def in_bytes(images):
    return np.round((np.asarray(images) + 1) * 127.5).astype(np.uint8)


# A folder: its splits


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image.reshape(*image.shape[:2], -1)


def write_images(folder, count, shape=(6, 6), suffix=".png"):
    drawn = RNG.integers(0, 256, (count, *shape), dtype=np.uint8)
    return np.stack([put(folder / f"{i:03}{suffix}", image) for i, image in enumerate(drawn)])


def load_folder(path, split="train", **kwargs):
    return data.load("folder", split, directory=str(path), **kwargs)


def held(source):
    return in_bytes(source.fetch_fn(range(source.size))["image"])


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3)])
def test_folder_is_split_nine_to_one_by_name(tmp_path, shape):
    written = write_images(tmp_path, 20, shape)
    (tmp_path / "readme.txt").write_text("no image")
    train, test = load_folder(tmp_path), load_folder(tmp_path, "test")
    assert train.image_shape == written.shape[1:]
    np.testing.assert_array_equal(held(train), written[:18])
    np.testing.assert_array_equal(held(test), written[18:])


def test_folder_of_a_few_images_keeps_one_for_the_test(tmp_path):
    write_images(tmp_path, 2)
    assert [load_folder(tmp_path, split).size for split in data.SPLITS] == [1, 1]


@pytest.mark.parametrize(
    ("train_name", "test_name"),
    [("train", "test"), ("train", "val"), ("Train", "Validation"), ("training", "testing")],
)
def test_folder_with_the_splits_inside(tmp_path, train_name, test_name):
    train = write_images(tmp_path / train_name / "deeper", 3)
    test = write_images(tmp_path / test_name, 2)
    np.testing.assert_array_equal(held(load_folder(tmp_path)), train)
    np.testing.assert_array_equal(held(load_folder(tmp_path, "test")), test)


def test_what_is_held_out_is_never_trained_on(tmp_path):
    train = write_images(tmp_path / "cats", 3)
    val, test = write_images(tmp_path / "val", 2), write_images(tmp_path / "test", 2)
    # Without train/, all that is not held out; test/ before val/.
    np.testing.assert_array_equal(held(load_folder(tmp_path)), train)
    np.testing.assert_array_equal(held(load_folder(tmp_path, "test")), test)
    for path in (tmp_path / "test").iterdir():
        path.unlink()
    (tmp_path / "test").rmdir()
    np.testing.assert_array_equal(held(load_folder(tmp_path)), train)
    np.testing.assert_array_equal(held(load_folder(tmp_path, "test")), val)


def test_classes_may_be_links(tmp_path):
    cats = write_images(tmp_path / "elsewhere" / "cats", 2)
    dogs = write_images(tmp_path / "data" / "train" / "dogs", 2)
    test = write_images(tmp_path / "data" / "test", 1)
    (tmp_path / "data" / "train" / "cats").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "data" / "train" / "loop").symlink_to(tmp_path / "data")
    np.testing.assert_array_equal(
        held(load_folder(tmp_path / "data")), np.concatenate([cats, dogs])
    )
    np.testing.assert_array_equal(held(load_folder(tmp_path / "data", "test")), test)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_images(tmp_path / "photos", 3)
    assert load_folder("~/photos").size == 2


@pytest.mark.parametrize("directory", [None, "", "/nowhere/at/all"])
def test_no_folder_raises(directory):
    with pytest.raises(ValueError, match=r"data.directory .* is no folder"):
        data.load("folder", "train", directory=directory)


@pytest.mark.parametrize("split", data.SPLITS)
def test_folder_without_images_raises(tmp_path, split):
    with pytest.raises(ValueError, match="holds no train images"):
        load_folder(tmp_path, split)
    write_images(tmp_path / "train", 2)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="holds no test images"):
        load_folder(tmp_path, split)


# A folder: what it holds


@pytest.mark.parametrize("name", good_pictures())
def test_folders_and_files_to_restore_are_read_alike(tmp_path, name):
    content, *_ = good_pictures()[name]
    for i in range(2):
        (tmp_path / f"{i}{pathlib.Path(name).suffix}").write_bytes(content)
    (path, _) = sorted(tmp_path.iterdir())
    np.testing.assert_array_equal(load_folder(tmp_path).fetch_fn([0])["image"], images.read(path))


@pytest.mark.parametrize("gray_at", [0, 1, 2])
def test_one_gray_file_among_color_files(tmp_path, gray_at):
    gray = np.full((4, 4), 100, np.uint8)
    for i in range(3):  # the last is held out
        put(tmp_path / f"{i}.png", gray if i == gray_at else np.stack([gray] * 3, axis=-1))
    for split, count in (("train", 2), ("test", 1)):
        source = load_folder(tmp_path, split)
        assert source.image_shape == (4, 4, 3)
        np.testing.assert_array_equal(held(source), np.full((count, 4, 4, 3), 100))


def test_one_file_of_sixteen_bits_or_alpha_leaves_the_others_as_they_are(tmp_path):
    levels = RNG.integers(0, 256, (4, 4), np.uint8)
    put(tmp_path / "0.png", levels)
    put(tmp_path / "1.png", levels.astype(np.uint16) * 257)  # 65,535 = 255 * 257
    put(tmp_path / "2.png", np.stack([levels, np.full_like(levels, 255)], axis=-1))
    put(tmp_path / "3.png", levels)
    found = load_folder(tmp_path).fetch_fn(range(3))["image"][..., 0]
    np.testing.assert_allclose(found, np.stack([levels / 127.5 - 1] * 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize("odd", ["train/b.png", "test/b.png"])
def test_another_size_in_either_split_is_found_at_once(tmp_path, split, odd):
    for name in ("train/a.png", "train/c.png", "test/a.png"):
        put(tmp_path / name, np.zeros((6, 6), np.uint8))
    put(tmp_path / odd, np.zeros((6, 7), np.uint8))
    with pytest.raises(ValueError, match=f"{odd} is 6x7, .*train/a.png is 6x6: set data.image"):
        load_folder(tmp_path, split)
    assert load_folder(tmp_path, split, image_size=6).image_shape == (6, 6, 1)


def test_hidden_files_and_formats_that_cannot_be_read_are_no_images(tmp_path):
    written = write_images(tmp_path, 3)
    (tmp_path / "._000.png").write_bytes(b"what a Macintosh leaves")
    (tmp_path / ".thumbnails").mkdir()
    put(tmp_path / ".thumbnails" / "000.png", np.zeros((2, 2), np.uint8))
    Image.fromarray(written[0, ..., 0]).save(tmp_path / "000.pdf")
    np.testing.assert_array_equal(held(load_folder(tmp_path)), written[:2])


@pytest.mark.parametrize("name", [name for name in BAD_FILES if not name.endswith(".npy")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    put(tmp_path / "a.png", np.zeros((64, 64), np.uint8))
    put(tmp_path / "z.png", np.zeros((64, 64), np.uint8))
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path / name}: [^\n]+$") as caught:
        load_folder(tmp_path, image_size=64)
    assert message in str(caught.value)


def test_a_pipe_and_a_broken_link_are_named(tmp_path, alarm):
    write_images(tmp_path / "a", 3)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    with pytest.raises(ValueError, match=r"a/pipe.png: it is no regular file"):
        load_folder(tmp_path / "a")
    write_images(tmp_path / "b", 3)
    (tmp_path / "b" / "lost.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"b/lost.png: No such file"):
        load_folder(tmp_path / "b")


def test_large_folders_are_read_when_asked_for(tmp_path, monkeypatch):
    written = write_images(tmp_path, 10)
    monkeypatch.setattr(data, "_IN_MEMORY_BYTES", 0)
    source = load_folder(tmp_path)
    np.testing.assert_array_equal(in_bytes(source.fetch_fn([3, 1])["image"]), written[[3, 1]])
    # What happens to a file later is told with its name.
    (tmp_path / "000.png").unlink()
    put(tmp_path / "001.png", np.zeros((6, 7), np.uint8))
    put(tmp_path / "002.png", np.zeros((6, 6, 3), np.uint8))
    put(tmp_path / "003.png", np.zeros((6, 6), np.uint16))
    (tmp_path / "004.png").write_bytes((tmp_path / "004.png").read_bytes()[:60])
    for index, message in enumerate(
        ("No such file", r"is uint8\[6, 7, 1\] now", r"is uint8\[6, 6, 3\] now", "is uint16", "")
    ):
        with pytest.raises(ValueError, match=f"00{index}.png.*{message}"):
            source.fetch_fn([5, index])


def test_image_size_resizes_the_shorter_side_and_cuts_the_center(tmp_path):
    # Columns 0..2 and 9..11 black, a white square of 6 in the middle: what remains is white.
    wide = np.zeros((6, 12), np.uint8)
    wide[:, 3:9] = 255
    put(tmp_path / "0.png", wide)
    put(tmp_path / "1.png", wide.T)
    put(tmp_path / "2.png", np.full((6, 6), 255, np.uint8))
    put(tmp_path / "3.png", wide)
    source = load_folder(tmp_path, image_size=6)
    np.testing.assert_array_equal(source.fetch_fn(range(3))["image"], np.ones((3, 6, 6, 1)))
    # Half the size: the same by averaging, but for the pixels that the antialiasing reaches.
    half = load_folder(tmp_path, image_size=3).fetch_fn(range(3))["image"]
    assert half.shape == (3, 3, 3, 1)
    np.testing.assert_array_equal(half[:, 1, 1], np.ones((3, 1)))


def test_the_limit_is_of_the_training_split(tmp_path):
    written = write_images(tmp_path, 20)
    np.testing.assert_array_equal(held(load_folder(tmp_path, limit=5)), written[:5])
    assert load_folder(tmp_path, limit=100).size == 18
    assert load_folder(tmp_path, "test", limit=1).size == 2


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


def test_tfds_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"data.name 'mnist' needs tensorflow-datasets: pip inst"):
        data.load("mnist", "train")


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


@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize("odd", data.SPLITS)
def test_tfds_of_many_sizes_in_color(tmp_path, split, odd):
    drawn = [RNG.integers(0, 256, (6, width, 3), dtype=np.uint8) for width in (6, 6, 9)]
    examples = [{"image": png(image)} for image in drawn]
    splits = {"train": examples[:2], "test": examples[:2]}
    features = {"image": image_feature(-1, -1, 3)}
    write_tfds(tmp_path / "alike", "mixed", splits, features)
    source = data.load("mixed", split, directory=str(tmp_path / "alike"))
    assert source.num_classes is None
    np.testing.assert_array_equal(held(source), drawn[:2])
    # Another size in either split is found before either is used.
    write_tfds(tmp_path / "odd", "mixed", splits | {odd: examples}, features)
    with pytest.raises(ValueError, match=rf"mixed\[2\] of {odd} is 6x9, .*set data.image_size"):
        data.load("mixed", split, directory=str(tmp_path / "odd"))
    source = data.load("mixed", odd, directory=str(tmp_path / "odd"), image_size=6)
    np.testing.assert_array_equal(held(source)[:2], drawn[:2])


def test_tfds_with_a_limit(little):
    directory, drawn = little
    source = data.load("little", "train", directory=str(directory), limit=3)
    np.testing.assert_array_equal(held(source), drawn[:3])
    assert data.load("little", "test", directory=str(directory), limit=1).size == 2


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
    with pytest.raises(
        ValueError, match="'nosuchset' is neither digits, folder, arrays nor a TFDS name"
    ):
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
