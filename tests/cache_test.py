"""The cache of decoded arrays.

Oracles: the arrays that the test itself made, and how often they were asked for.
"""

import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from encoded_test import held, load_folder, put, write_images
from encoded_test import little as little

from diffjax import cache, data, images

PLACE = ("my/data set", "train", 8)
EXPECTED = [((3, 2), np.dtype(np.uint8)), ((3,), np.dtype(np.int32))]
ARRAYS = [np.arange(6, dtype=np.uint8).reshape(3, 2), np.arange(3, dtype=np.int32)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "deeper"
    monkeypatch.setenv("DIFFJAX_CACHE", str(folder))
    return folder


class Maker:
    """Makes ARRAYS and counts how often."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return ARRAYS


def get(maker, place=PLACE, state=(1,)):
    found = cache.cached(place, state, EXPECTED, maker)
    for array, expected in zip(found, ARRAYS, strict=True):
        assert array.dtype == expected.dtype
        assert type(array) is np.ndarray
        np.testing.assert_array_equal(array, expected)
    return found


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_made_is_made_once(folder):
    maker = Maker()
    get(maker)
    kept = get(maker)
    assert maker.count == 1
    assert all(isinstance(array.base, np.memmap) for array in kept)
    assert len(names(folder)) == 2
    assert all(name.startswith("my_data_set-") for name in names(folder))


def test_another_state_replaces_and_another_place_does_not(folder):
    maker = Maker()
    get(maker)
    first = names(folder)
    get(maker, state=(2,))
    assert maker.count == 2
    assert len(names(folder)) == 2
    assert not set(first) & set(names(folder))
    get(maker, place=(*PLACE, 1), state=(2,))
    assert maker.count == 3
    assert len(names(folder)) == 4
    get(maker, state=(2,))
    assert maker.count == 3


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def other_kind(path):
    np.save(path, np.zeros((3, 3), np.uint8))


def pickled(path):
    np.save(path, np.array([{}]), allow_pickle=True)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "break_fn",
    [
        truncate,
        other_kind,
        pickled,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"nonsense"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_broken_entry_is_made_again(folder, break_fn, which):
    maker = Maker()
    get(maker)
    break_fn(folder / names(folder)[which])
    get(maker)
    assert maker.count == 2


def test_a_folder_that_cannot_be_written_does_no_harm(folder, tmp_path, monkeypatch):
    maker = Maker()
    folder.parent.mkdir()
    folder.write_text("a file")
    get(maker)
    get(maker)
    assert maker.count == 2
    assert folder.read_text() == "a file"

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("DIFFJAX_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(os, "fsync", full)
    get(maker)
    assert names(tmp_path / "full") == []


def test_what_a_killed_process_left_behind_goes(folder, monkeypatch):
    maker = Maker()
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", lambda path: None)  # a killed process removes nothing
        patched.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError("killed")))
        get(maker)
    (left,) = names(folder)
    assert left.endswith(".tmp")
    get(maker)
    assert left not in names(folder)
    assert len(names(folder)) == 2
    get(maker)
    assert maker.count == 2


def test_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DIFFJAX_CACHE", "~/mine")
    assert cache.folder() == tmp_path / "mine"
    monkeypatch.setenv("DIFFJAX_CACHE", "")
    assert cache.folder() is None
    monkeypatch.delenv("DIFFJAX_CACHE")
    assert cache.folder() == tmp_path / "xdg" / "diffjax"
    # The specification of XDG: a relative path is to be ignored.
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.folder() == tmp_path / ".cache" / "diffjax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == tmp_path / ".cache" / "diffjax"


def test_nothing_is_kept_where_it_is_off(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFJAX_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    maker = Maker()
    get(maker)
    get(maker)
    assert maker.count == 2
    assert not (tmp_path / "xdg").exists()


# Data sets


@pytest.fixture
def decoded(monkeypatch):
    """The pictures that were decoded, and whose headers were read."""
    seen = []

    def tell(name, fn):
        def told(path, **options):
            seen.append((name, pathlib.Path(path).name))
            return fn(path, **options)

        monkeypatch.setattr(images, name, told)

    tell("read_picture", images.read_picture)
    tell("header", images.header)
    return seen


def test_a_folder_is_decoded_once(tmp_path, decoded):
    root = tmp_path / "photos"
    written = write_images(root, 20)
    for _ in range(2):
        np.testing.assert_array_equal(held(load_folder(root)), written[:18])
    assert len(decoded) == 20 + 18
    # The other split needs no more headers; another size, and a limit, are other data.
    decoded.clear()
    np.testing.assert_array_equal(held(load_folder(root, "test")), written[18:])
    assert [name for name, _ in decoded] == ["read_picture"] * 2
    assert load_folder(root, image_size=3).image_shape == (3, 3, 1)
    np.testing.assert_array_equal(held(load_folder(root, limit=4)), written[:4])
    decoded.clear()
    np.testing.assert_array_equal(held(load_folder(root)), written[:18])
    assert decoded == []


@pytest.mark.parametrize("how", ["content", "time", "new", "gone", "renamed"])
def test_a_folder_that_changed_is_decoded_anew(tmp_path, how):
    root = tmp_path / "photos"
    write_images(root, 20)
    load_folder(root)
    path = root / "003.png"
    if how == "content":
        put(path, np.full((6, 6), 7, np.uint8))
    elif how == "time":  # as many bytes as before
        facts, content = path.stat(), (root / "004.png").read_bytes()
        path.write_bytes(content[: facts.st_size].ljust(facts.st_size, b"\0"))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    elif how == "new":
        put(root / "0035.png", np.full((6, 6), 7, np.uint8))
    elif how == "gone":
        path.unlink()
    else:
        path.rename(root / "a.png")
    expected = np.stack([images.read(p)[0] for p in sorted(root.iterdir())])
    found = load_folder(root)
    np.testing.assert_array_equal(
        found.fetch_fn(range(found.size))["image"], expected[: found.size]
    )


def test_tfds_is_decoded_once(little, folder):
    directory, written = little
    first = data.load("little", "train", directory=str(directory))
    assert len(names(folder)) == 2
    for name in names(folder):  # what is read next time is what was kept
        if name.endswith("-0.npy"):
            np.save(folder / name, 255 - np.load(folder / name))
    again = data.load("little", "train", directory=str(directory))
    np.testing.assert_array_equal(held(first), written[:5])
    np.testing.assert_array_equal(held(again), 255 - written[:5])
    np.testing.assert_array_equal(again.fetch_fn(range(5))["label"], np.arange(5))
    assert again.num_classes == 7


def test_mock_data_is_never_kept(folder):
    with tfds.testing.mock_data(num_examples=3):
        assert data.load("mnist", "test").size == 3
    assert not folder.exists()


def test_mock_data_is_never_kept_for_the_real(folder):
    directory = pathlib.Path(os.environ.get("TFDS_DATA_DIR", ""))
    if "TFDS_DATA_DIR" not in os.environ or not (directory / "mnist").is_dir():
        pytest.skip("TFDS_DATA_DIR names no folder with a prepared mnist")
    # This mock shows the files of the data set, and other examples.
    with tfds.testing.mock_data(num_examples=3, data_dir=str(directory)):
        assert data.load("mnist", "test").size == 3
    assert not folder.exists()


def test_digits_are_read_once(monkeypatch):
    first = data.load("digits", "train").fetch_fn(range(5))
    monkeypatch.setattr("sklearn.datasets.load_digits", None)
    again = data.load("digits", "train").fetch_fn(range(5))
    for name in ("image", "label"):
        np.testing.assert_array_equal(first[name], again[name])
    assert data.load("digits", "test").size == 360
