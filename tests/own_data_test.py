"""Data of the user's own: arrays in files, and functions.

Oracles: the arrays that the test itself made, scaled by hand.
"""

import os

import numpy as np
import pytest
from images_test import alarm as alarm

from diffjax import data

RNG = np.random.default_rng(0)


# Arrays

IMAGES = {
    np.uint8: RNG.integers(0, 256, (7, 4, 5, 3), np.uint8),
    np.uint16: RNG.integers(0, 65536, (7, 4, 5, 3), np.uint16),
    np.float32: RNG.uniform(-1, 1, (7, 4, 5, 3)).astype(np.float32),
}
SCALE_FN = {  # by hand: black is -1, white is 1
    np.uint8: lambda x: x / 255 * 2 - 1,
    np.uint16: lambda x: x / 65535 * 2 - 1,
    np.float32: lambda x: x,
}
LABELS = np.array([3, 0, 1, 2, 0, 4, 1])


def load_arrays(path, split="train", **kwargs):
    return data.load("arrays", split, directory=str(path), **kwargs)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", IMAGES)
def test_arrays(tmp_path, dtype, order):
    stored = IMAGES[dtype].astype(np.dtype(dtype).newbyteorder(order))
    np.save(tmp_path / "train.npy", stored[:5])
    np.save(tmp_path / "test.npy", stored[5:])
    for split, part in (("train", slice(0, 5)), ("test", slice(5, 7))):
        source = load_arrays(tmp_path, split)
        assert (source.image_shape, source.num_classes) == ((4, 5, 3), None)
        found = source.fetch_fn(range(source.size))["image"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, SCALE_FN[dtype](IMAGES[dtype][part]), rtol=0, atol=1e-6)


def test_arrays_with_labels(tmp_path):
    images = IMAGES[np.uint8]
    np.savez(tmp_path / "train.npz", image=images[:5], label=LABELS[:5])
    np.savez(tmp_path / "test.npz", image=images[5:], label=LABELS[5:].astype(np.uint8))
    for split, part in (("train", slice(0, 5)), ("test", slice(5, 7))):
        source = load_arrays(tmp_path, split)
        assert source.num_classes == 5  # label 4 is in the test split alone
        label = source.fetch_fn(range(source.size))["label"]
        assert label.dtype == np.int32
        np.testing.assert_array_equal(label, LABELS[part])
    assert load_arrays(tmp_path, limit=2).size == 2


@pytest.mark.parametrize("dtype", IMAGES)
def test_arrays_of_another_size(tmp_path, dtype):
    # Constant images stay constant, whatever the size.
    for split in data.SPLITS:
        np.save(tmp_path / f"{split}.npy", np.full((2, 4, 6, 2), dtype(0.75), dtype))
    found = load_arrays(tmp_path, image_size=8).fetch_fn([0, 1])["image"]
    expected = SCALE_FN[dtype](np.full((2, 8, 8, 2), dtype(0.75)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


GOOD = np.zeros((3, 4, 4, 1), np.float32)
PICKLED = np.array([{"a": 1}], dtype=object)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds neither train.npy nor train.npz: it must hold one of them"),
        ({"train.npy": GOOD}, "holds neither test.npy nor test.npz"),
        ({"train.npy": GOOD, "train.npz": {"image": GOOD}}, "holds both train.npy and train.npz"),
        ({"train.npy": PICKLED}, r"train.npy: .*allow_pickle=False"),
        ({"train.npz": {"image": PICKLED}}, r"train.npz: .*allow_pickle=False"),
        ({"train.npz": {"image": GOOD, "label": PICKLED}}, r"train.npz: .*allow_pickle=False"),
        ({"train.npz": {"images": GOOD}}, r"train.npz: it must hold image.*\['images'\]"),
        ({"train.npy": b"nonsense"}, "train.npy: "),
        ({"train.npz": b"nonsense"}, "train.npz: "),
        ({"train.npz": b"PK\x03\x04nonsense"}, "train.npz: "),
        ({"train.npy": GOOD[0]}, r"train.npy: images must have shape \[N, H, W, C\]"),
        ({"train.npy": GOOD.astype(int)}, "train.npy: images must be uint8, uint16 or floating"),
        ({"train.npy": GOOD.astype("U3")}, "train.npy: images must be uint8, uint16 or floating"),
        ({"train.npy": GOOD + 255}, r"train.npy: .*must lie in \[-1, 1\]; got \[255, 255\]"),
        ({"train.npy": GOOD * np.nan}, r"train.npy: .*must lie in \[-1, 1\]"),
        ({"train.npz": {"image": GOOD, "label": [0, 1]}}, r"train.npz: labels must have shape"),
        ({"train.npz": {"image": GOOD, "label": [0, -1, 1]}}, "train.npz: labels must count"),
        ({"train.npz": {"image": GOOD, "label": [0.5, 1, 1]}}, "train.npz: labels must be integ"),
        ({"train.npy": GOOD, "test.npy": GOOD[:, 1:]}, r"train images are \[4, 4, 1\], test"),
        (
            {"train.npy": GOOD, "test.npz": {"image": GOOD, "label": [0, 1, 2]}},
            "only one of train and test has labels",
        ),
    ],
)
@pytest.mark.parametrize("split", data.SPLITS)
def test_arrays_raise(tmp_path, files, message, split):
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif isinstance(content, dict):
            np.savez(tmp_path / name, **content)
        else:
            np.save(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_arrays(tmp_path, split)
    assert "\n" not in str(caught.value)


def test_arrays_in_no_folder_raise():
    with pytest.raises(ValueError, match=r"is no folder: name one that holds train.npy and test"):
        data.load("arrays", "train")


def test_a_pipe_named_npy_is_not_waited_for(tmp_path, alarm):
    os.mkfifo(tmp_path / "train.npy")
    with pytest.raises(ValueError, match=r"train.npy: it is no regular file"):
        load_arrays(tmp_path)


def test_large_arrays_stay_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_IN_MEMORY_BYTES", 0)
    for split in data.SPLITS:
        np.save(tmp_path / f"{split}.npy", IMAGES[np.uint8])
    mapped = []
    monkeypatch.setattr(
        np,
        "load",
        lambda *a, load_fn=np.load, **k: mapped.append(k["mmap_mode"]) or load_fn(*a, **k),
    )
    found = load_arrays(tmp_path).fetch_fn([6, 2])["image"]
    assert mapped == ["r", "r"]
    expected = SCALE_FN[np.uint8](IMAGES[np.uint8][[6, 2]])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


# Functions of the user


def squares(split, directory=None, image_size=None):
    del directory
    size = image_size or 4
    return np.full((3 if split == "train" else 2, size, size, 1), 51, np.uint8)


def test_a_function_of_images():
    for split, count in (("train", 3), ("test", 2)):
        source = data.load(squares, split)
        assert (source.size, source.image_shape, source.num_classes) == (count, (4, 4, 1), None)
        # 51 / 127.5 - 1
        np.testing.assert_allclose(source.fetch_fn([1])["image"], np.full((1, 4, 4, 1), -0.6))
    assert data.load(squares, "train", image_size=6).image_shape == (6, 6, 1)
    assert data.load(squares, "train", limit=2).size == 2


def test_a_function_gets_what_the_config_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []

    def mine(split, directory=None, image_size=None):
        asked.append((split, directory, image_size))
        return squares(split, image_size=image_size), [0, 5, 1] if split == "train" else [0, 1]

    for split in data.SPLITS:
        source = data.load(mine, split, directory="~/mine", image_size=8)
        assert source.num_classes == 6  # label 5 is in the training split alone
    assert asked[:2] == [(split, str(tmp_path / "mine"), 8) for split in data.SPLITS]


def test_a_function_of_a_source():
    digits = {split: data.load("digits", split) for split in data.SPLITS}
    source = data.load(lambda split, **_: digits[split], "test")
    np.testing.assert_array_equal(
        source.fetch_fn([3, 9])["label"], digits["test"].fetch_fn([3, 9])["label"]
    )
    assert source.size == 360


def broken_source(**changes):
    return data.from_arrays(GOOD, [0, 1, 2])._replace(**changes)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"images, \(images, labels\) or a Source are wanted; got NoneType"),
        ({"image": GOOD}, "got dict"),
        ([GOOD, [0, 1, 2]], "got list"),
        ((GOOD, [0, 1, 2], 3), "got tuple"),
        (GOOD[0], r"images must have shape \[N, H, W, C\]"),
        (GOOD + 2, r"must lie in \[-1, 1\]"),
        ((GOOD, [0, 1]), "labels must have shape"),
        (broken_source(size=0), "must have a size > 0; got 0"),
        (broken_source(image_shape=(4, 4)), "not enough values to unpack"),
        (
            broken_source(image_shape=(4, 5, 1)),
            r"float32\[1, 4, 5, 1\]; it is float32\[1, 4, 4, 1\]",
        ),
        (broken_source(num_classes=None), r"must give \['image'\]; it gives \['image', 'label'\]"),
        (broken_source(fetch_fn=lambda i: {"image": GOOD[i], "label": [-1]}), "must count from 0"),
        (broken_source(fetch_fn=lambda i: {"image": GOOD[i] - 3, "label": [0]}), "must lie in"),
        (broken_source(fetch_fn=lambda i: 1 / 0), "ZeroDivisionError: division by zero"),
    ],
)
def test_functions_raise(returned, message):
    def mine(split, directory=None, image_size=None):
        return returned

    with pytest.raises(
        ValueError, match=rf"data.name own_data_test:.*mine failed for 'tr.*{message}"
    ):
        data.load(mine, "test")


def test_functions_that_do_not_agree_with_the_config_raise():
    def mine(split, directory=None, image_size=None):
        raise RuntimeError("no disk\nat all")

    with pytest.raises(ValueError, match=r"mine failed for 'train': RuntimeError: no disk$"):
        data.load(mine, "train")
    with pytest.raises(ValueError, match=r"lambda> failed.*TypeError: .*unexpected keyword"):
        data.load(lambda split: squares(split), "train")
    with pytest.raises(
        ValueError, match=r"returned images of \[4, 4, 1\] where data.image_size is 8"
    ):
        data.load(lambda split, **_: squares(split), "train", image_size=8)
    with pytest.raises(ValueError, match=r"train images are \[4, 4, 1\], test images \[6, 6, 1\]"):
        data.load(lambda split, **_: squares(split, image_size=4 + 2 * (split == "test")), "train")
