"""The reader of image files.

Oracles: the pixels that the test itself wrote, by Pillow or byte by byte; Pillow's
exif_transpose; Porter and Duff's "over", by hand.
"""

import io
import os
import signal
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from diffjax import images

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (8, 8), np.uint8)
COLOR = RNG.integers(0, 256, (8, 8, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (8, 8, 1), np.uint8)
SIXTEEN = np.array([[0, 1, 257], [32767, 32768, 65535]], np.uint16)
SMOOTH = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 4 + 60
NOISE = RNG.integers(0, 256, (64, 64), np.uint8)
WIDE = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


def in_model_range(bytes_):
    return np.asarray(bytes_, np.float64) / 127.5 - 1


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(array, **options):
    return saved(Image.fromarray(array), "PNG", **options)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def over_white(color, alpha):
    share = np.asarray(alpha, np.float64) / 255
    return share * in_model_range(color) + (1 - share)


def tiff(pixels, bits, photometric):
    """A gray TIFF of rows of `pixels` (bytes), written by hand: Pillow would not write these."""
    height, width = 2, 2
    entries = [
        *((256, width), (257, height), (258, bits), (259, 1), (262, photometric)),
        *((273, 8), (277, 1), (278, height), (279, len(pixels))),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    for tag, value in entries:
        directory += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return head + pixels + directory + struct.pack("<I", 0)


def bomb(width, height):
    """A PNG that says it has that many pixels."""

    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def good_pictures():
    """name -> (bytes, the pixels [H, W, C] in [-1, 1], tolerance, the reader's dtype)"""
    palette = Image.fromarray(GRAY % 4).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 250, 0, 0])
    table = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [250, 0, 0]])
    indices = np.asarray(palette)
    cmyk = Image.merge("CMYK", [Image.fromarray(SMOOTH)] * 3 + [Image.new("L", (16, 16), 0)])
    inverted = 255 - np.repeat(SMOOTH[..., None], 3, axis=-1)
    gray, color = in_model_range(GRAY)[..., None], in_model_range(COLOR)
    wide = SIXTEEN[..., None] / 32767.5 - 1
    first, second = Image.fromarray(GRAY), Image.fromarray(255 - GRAY)
    exact, jpeg = 1e-6, 4 / 127.5  # JPEG loses a little: 4 of 255
    return {
        "gray.png": (png(GRAY), gray, exact, "uint8"),
        "color.png": (png(COLOR), color, exact, "uint8"),
        "sixteen.png": (png(SIXTEEN), wide, exact, "uint16"),
        "sixteen.tif": (saved(Image.fromarray(SIXTEEN), "TIFF"), wide, exact, "uint16"),
        "sixteen.pgm": (
            b"P5 3 2 65535\n" + SIXTEEN.astype(">u2").tobytes(), wide, exact, "uint16"
        ),
        "sixteen_key.png": (
            png(SIXTEEN, transparency=257), np.where(SIXTEEN[..., None] == 257, 1, wide), exact,
            "uint16",
        ),
        "palette.png": (saved(palette, "PNG"), in_model_range(table[indices]), exact, "uint8"),
        "palette_key.png": (
            saved(palette, "PNG", transparency=3),
            np.where(indices[..., None] == 3, 1, in_model_range(table[indices])),
            exact,
            "float32",
        ),
        "alpha.png": (
            png(np.concatenate([COLOR, ALPHA], axis=-1)), over_white(COLOR, ALPHA), exact,
            "float32",
        ),
        "gray_alpha.png": (
            png(np.concatenate([GRAY[..., None], ALPHA], axis=-1)),
            over_white(GRAY[..., None], ALPHA), exact, "float32",
        ),
        "bits.png": (
            saved(Image.fromarray(GRAY > 127), "PNG"),
            np.where(GRAY > 127, 1.0, -1.0)[..., None], exact, "uint8",
        ),
        "animation.gif": (
            saved(first, "GIF", save_all=True, append_images=[second]),
            gray.repeat(3, axis=-1), exact, "uint8",
        ),
        "turned.png": (
            png(WIDE, exif=oriented(6)), np.rot90(in_model_range(WIDE), -1)[..., None], exact,
            "uint8",
        ),
        "gray.jpg": (
            saved(Image.fromarray(SMOOTH), "JPEG", quality=95),
            in_model_range(SMOOTH)[..., None], jpeg, "uint8",
        ),
        "cmyk.jpg": (saved(cmyk, "JPEG", quality=95), in_model_range(inverted), jpeg, "uint8"),
    }  # fmt: skip


@pytest.mark.parametrize("name", good_pictures())
def test_pictures(name, tmp_path):
    content, pixels, tolerance, dtype = good_pictures()[name]
    path = tmp_path / name
    path.write_bytes(content)
    found = images.read(path)
    assert found.dtype == np.float32
    assert found.shape == (1, *pixels.shape)
    np.testing.assert_allclose(found[0], pixels, rtol=0, atol=tolerance)
    # The header said what would come.
    assert images.read_picture(path).dtype == dtype
    assert images.header(path) == (*pixels.shape, dtype)


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(kind, orientation, tmp_path):
    path = tmp_path / f"photo.{kind}"
    photo = Image.fromarray(RNG.integers(0, 256, (5, 9, 3), np.uint8))
    photo.save(path, exif=oriented(orientation))
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert expected.shape == ((5, 9, 3) if orientation < 5 else (9, 5, 3))
    np.testing.assert_array_equal(images.read_picture(path), expected)
    assert images.header(path)[:2] == expected.shape[:2]
    # As stored, where nobody needs the orientation.
    assert sorted(images.header(path, upright=False)[:2]) == [5, 9]


def good_arrays():
    small = RNG.uniform(-1, 1, (8, 8)).astype(np.float32)
    wide = SIXTEEN[..., None] / 32767.5 - 1
    return {
        "flat.npy": (npy(small), small[..., None], 0),
        "bytes.npy": (npy(COLOR), in_model_range(COLOR), 1e-6),
        "sixteen.npy": (npy(SIXTEEN), wide, 1e-6),
        "big_endian.npy": (npy(SIXTEEN.astype(">u2")), wide, 1e-6),
    }


@pytest.mark.parametrize("name", good_arrays())
def test_arrays(name, tmp_path):
    content, pixels, tolerance = good_arrays()[name]
    (tmp_path / name).write_bytes(content)
    found = images.read(tmp_path / name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pixels[None], rtol=0, atol=tolerance)


def test_a_stack_is_many_images(tmp_path):
    stack = RNG.uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    (tmp_path / "stack.npy").write_bytes(npy(stack))
    np.testing.assert_array_equal(images.read(tmp_path / "stack.npy"), stack)


# name -> (bytes, what is said of it)
BAD_FILES = {
    "truncated.png": (png(NOISE)[:900], "truncated"),
    "truncated.jpg": (saved(Image.fromarray(NOISE), "JPEG")[:-900], "truncated"),
    "empty.png": (b"", "cannot identify"),
    "text.png": (b"I am no picture.\n", "cannot identify"),
    "bomb.png": (bomb(50_000, 50_000), "more than 178,956,970 pixels"),
    "text.npy": (b"I am no array.\n", ""),
    "nan.npy": (npy(np.array([[0.0, np.nan]])), "not finite"),
    "huge.npy": (npy(np.array([[0.0, 1e300]])), "not finite"),
    "zero.npy": (npy(np.zeros((0, 8, 8, 1))), "no pixels"),
    "line.npy": (npy(np.zeros(8)), "[H, W]"),
    "integers.npy": (npy(np.zeros((8, 8), np.int64)), "int64"),
    "objects.npy": (npy(np.array([None])), "allow_pickle"),
    "float.tif": (saved(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "mode F"),
    "integers.tif": (saved(Image.fromarray(np.zeros((8, 8), np.int32)), "TIFF"), "mode I)"),
    "lab.tif": (saved(Image.new("LAB", (8, 8)), "TIFF"), "mode LAB"),
    "twelve.tif": (tiff(bytes(6), 12, 1), "from 0, black, to 65535"),
    "white_first.tif": (tiff(bytes(8), 16, 0), "from 0, black, to 65535"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_cannot_be_read(name, tmp_path):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        images.read(tmp_path / name)
    assert message in str(caught.value)


def test_the_tiff_written_by_hand_is_one(tmp_path):
    path = tmp_path / "hand.tif"
    path.write_bytes(tiff(np.array([0, 1, 2, 65535], "<u2").tobytes(), 16, 1))
    np.testing.assert_array_equal(images.read_picture(path)[..., 0], [[0, 1], [2, 65535]])


@pytest.fixture
def alarm():
    """Ends a test that waits for ever."""

    def ring(number, frame):
        raise TimeoutError("it waited for ever")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["pipe.png", "pipe.npy", "pipe.npz"])
def test_a_pipe_is_not_waited_for(name, tmp_path, alarm):
    path = tmp_path / name
    os.mkfifo(path)
    assert not images.is_named_as_image(path)
    read_fn = images.read_arrays if name.endswith("npz") else images.read
    with pytest.raises(ValueError, match="it is no regular file"):
        read_fn(path)
    if name.endswith("png"):
        with pytest.raises(ValueError, match="it is no regular file"):
            images.header(path)


# Finding


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_find_knows_names(tmp_path):
    wanted = [put(tmp_path / name) for name in ("B.PNG", "a.jpg", "deep/er/c.tiff")]
    # Pillow writes PDF and PALM and cannot read them; it knows HDF5 by its first bytes alone.
    others = ("x.pdf", "x.palm", "x.h5", "x.eps", "x.txt", "x.npy", ".hidden.png", "._a.jpg")
    for name in (*others, ".folder/d.png", "deep/.folder/d.png"):
        put(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    assert images.find(tmp_path) == wanted


def test_find_below_a_hidden_folder(tmp_path):
    path = put(tmp_path / ".mine" / "a.png")
    assert images.find(tmp_path / ".mine") == [path]


def test_find_follows_links_to_folders_once(tmp_path):
    put(tmp_path / "elsewhere/cats/1.png")
    put(tmp_path / "beside.png")
    root = tmp_path / "data"
    put(root / "dogs/2.png")
    (root / "cats").symlink_to(tmp_path / "elsewhere/cats")
    (root / "file.png").symlink_to(tmp_path / "beside.png")
    # Loops, into itself and to what holds it; and a folder that is there already.
    (root / "dogs/again").symlink_to(root)
    (root / "dogs/up").symlink_to(tmp_path)
    (root / "zebras").symlink_to(root / "dogs")
    assert images.find(root) == [root / "cats/1.png", root / "dogs/2.png", root / "file.png"]


def test_find_skips(tmp_path):
    path = put(tmp_path / "a/1.png")
    put(tmp_path / "b/2.png")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    assert images.find(tmp_path, skip=(tmp_path / "b",)) == [path]


# Sizes


def test_cover_keeps_the_middle():
    # A ramp along the longer side, halved: the mean of pairs, but at the ends of the filter.
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None], (24, 8, 1)) / 24
    small = images.cover(ramp, 4, 4)
    assert small.shape == (4, 4, 1)
    pairs = ramp.reshape(12, 2, 8, 1).mean(axis=1)[4:8, :4]
    np.testing.assert_allclose(small, pairs, atol=1e-6)
    assert images.cover(ramp, 24, 8) is ramp


def test_cover_of_bytes_is_pillows():
    wide = RNG.integers(0, 256, (10, 16, 3), np.uint8)
    resized = Image.fromarray(wide).resize((8, 5), Image.Resampling.BILINEAR)
    found = images.cover(wide, 5, 5)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(resized)[:, 1:6])


def test_cover_of_sixteen_bits_stays_fine():
    # The mean of 100 and 101 has no place in 16 bits.
    pixels = np.full((4, 4, 1), 100, np.uint16)
    pixels[:, ::2] = 101
    found = images.cover(pixels, 2, 2)
    assert found.dtype == np.float32
    # The triangle of two pixels to each side weighs both kinds alike, but at the border.
    np.testing.assert_allclose(found.mean(), 100.5 / 32767.5 - 1, atol=1e-7)
