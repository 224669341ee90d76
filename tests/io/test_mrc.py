"""MRC files: all modes and byte orders are read, what is written is valid MRC2014."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from project_copy import REFERENCE

from relion_pseudosubtomo.errors import InputError, OutputError
from relion_pseudosubtomo.io import mrc
from relion_pseudosubtomo.model import FrameImage

MODES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def values_of(dtype, shape=(3, 4, 6)):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def write_raw(path, mode=2, order="<", shape=(3, 4, 6), **fields):
    """Write a file with the given header fields, unlike any library would."""
    header = np.zeros((), mrc.HEADER_DTYPE.newbyteorder(order))
    header["nz"], header["ny"], header["nx"] = shape
    header["mx"], header["my"], header["mz"] = shape[2], shape[1], shape[0]
    header["mode"] = mode
    header["cella"] = tuple(2.5 * n for n in shape[::-1])
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)
    for name, value in fields.items():
        header[name] = value
    extended = bytes(max(0, fields.get("nsymbt", 0)))
    data = values_of(MODES.get(mode, np.float32), shape).astype(
        np.dtype(MODES.get(mode, np.float32)).newbyteorder(order)
    )
    path.write_bytes(header.tobytes() + extended + data.tobytes())
    return str(path)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extended", [0, 172])
def test_every_mode_and_byte_order(tmp_path, mode, order, extended):
    path = write_raw(tmp_path / "a.mrc", mode, order, nsymbt=extended)
    header = mrc.read_header(path)
    assert (header.nx, header.ny, header.nz, header.mode) == (6, 4, 3, mode)
    assert header.dtype == np.dtype(MODES[mode]).newbyteorder(order)
    assert header.data_offset == 1024 + extended
    assert header.voxel_size == pytest.approx(2.5)
    assert header.file_size == Path(path).stat().st_size
    for index, expected in enumerate(values_of(MODES[mode])):
        image = mrc.map_image(header, index)
        np.testing.assert_array_equal(image, expected)
        assert not image.flags.writeable
    np.testing.assert_array_equal(mrc.read_volume(path), values_of(MODES[mode]))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "fields", [{"machst": 0}, {"map": b""}, {"ispg": 401}, {"mz": 1}, {"mx": 0}]
)
def test_sloppy_headers_are_read(tmp_path, order, fields):
    header = mrc.read_header(write_raw(tmp_path / "a.st", 1, order, **fields))
    assert (header.nx, header.ny, header.nz, header.dtype.itemsize) == (6, 4, 3, 2)
    assert header.voxel_size == (0 if "mx" in fields else pytest.approx(2.5))


def test_machine_stamp_decides_where_both_orders_make_sense(tmp_path):
    shape = (1, 256, 65536)
    assert mrc.read_header(write_raw(tmp_path / "a", 0, ">", shape)).nx == 65536
    assert mrc.read_header(write_raw(tmp_path / "b", 0, "<", shape)).nx == 65536


BAD_FIELDS = {
    "mode": ({"mode": 4}, "MRC mode of .*a.mrc: expected one of 0, 1, 2, 6, 12, found 4"),
    "no columns": ({"nx": 0}, "makes no sense: expected sizes .* found 0 x 4 x 3"),
    "negative": ({"ny": -4}, "makes no sense: .* found 6 x -4 x 3"),
    "huge": ({"nz": 2**30}, "makes no sense: .* found 6 x 4 x 1073741824"),
    "extended header": ({"nsymbt": -1}, "makes no sense: .* -1 bytes of extended header"),
    "truncated": ({"nz": 4}, "truncated .6 x 4 x 4 .*: expected 1408 bytes, found 1312"),
    "other file": ({"nx": 0x20202020, "map": b"text"}, "a.mrc is no MRC file: expected 'MAP '"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_bad_header_is_explained(tmp_path, fields, message):
    path = write_raw(tmp_path / "a.mrc", **fields)
    with pytest.raises(InputError, match=message):
        mrc.read_header(path)


def test_file_that_is_too_short_for_a_header(tmp_path):
    (tmp_path / "a.mrc").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="expected a header of 1024 bytes, found 100"):
        mrc.read_header(str(tmp_path / "a.mrc"))


def test_text_file_is_no_mrc_file(tmp_path):
    (tmp_path / "a.mrc").write_text("This is some text.\n" * 100)
    with pytest.raises(InputError, match="is no MRC file"):
        mrc.read_header(str(tmp_path / "a.mrc"))


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(InputError, match=r"a\.mrc cannot be read: No such file") as caught:
        mrc.read_header(str(tmp_path / "a.mrc"))
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        mrc.read_header(str(tmp_path))


def test_headers_of_many_files(tmp_path):
    good = [write_raw(tmp_path / f"{i}.mrc", shape=(1, 2, i + 1)) for i in range(20)]
    missing = str(tmp_path / "missing.mrc")
    headers = mrc.read_headers([*good, missing, good[0]])
    assert list(headers) == [*good, missing]
    assert [headers[path].nx for path in good] == list(range(1, 21))
    assert isinstance(headers[missing], InputError)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a.mrc", "a.mrc"),
        ("a.st:mrc", "a.st"),
        ("a.st:mrcs", "a.st"),
        ("x[10.00]A/a.mrcs", "x[10.00]A/a.mrcs"),
    ],
)
def test_image_path(text, path):
    assert mrc.image_path(text) == path


def test_series_maps_each_image(tmp_path):
    paths = [write_raw(tmp_path / "a", 1), write_raw(tmp_path / "b", 6, ">")]
    frames = tuple(FrameImage(paths[i], j) for i, j in ((1, 2), (0, 0), (1, 0)))
    images = mrc.map_series(frames)
    for image, (_, j) in zip(images, ((1, 2), (0, 0), (1, 0)), strict=True):
        np.testing.assert_array_equal(image, values_of(int)[j])


def test_series_without_the_image(tmp_path):
    path = write_raw(tmp_path / "a")
    with pytest.raises(InputError, match=r"image 4 of .*a: expected 1 to 3, found 4"):
        mrc.map_series((FrameImage(path, 0), FrameImage(path, 3)))
    with pytest.raises(InputError, match="image 0 of"):
        mrc.map_image(mrc.read_header(path), -1)


def test_reference_images_are_read_as_by_mrcfile():
    for path in sorted((REFERENCE / "frames").glob("*/TS_01*"))[::5]:
        with mrcfile.open(path, permissive=True) as file:
            expected = file.data.reshape(-1, *file.data.shape[-2:])
        np.testing.assert_array_equal(mrc.read_volume(str(path)), expected)


def noise(shape, scale=1.0, mean=0.0):
    return (np.random.default_rng(1).normal(size=shape) * scale + mean).astype(np.float32)


@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("is_stack", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        noise((8, 8, 8)),
        noise((4, 24, 24), 300),
        noise((5, 16, 9), 1e-4),
        noise((40, 40, 40), 1e-5, mean=1e-6),
        noise((16, 16, 16), 1, mean=2000),
        noise((1, 12, 12)),
        np.zeros((4, 4, 3), np.float32),
        np.full((4, 4, 4), 7.5, np.float32),
        noise((4, 6, 8)).transpose(2, 1, 0),
    ],
    ids=[
        "volume",
        "large",
        "small",
        "near zero",
        "far mean",
        "one",
        "zeros",
        "constant",
        "strided",
    ],
)
def test_written_files_are_valid(tmp_path, data, is_stack, float16):
    path = tmp_path / "a.mrc"
    n_bytes, n_clipped = mrc.write_mrc(
        path, data, voxel_size=2.5, is_stack=is_stack, float16=float16
    )
    assert mrcfile.validate(path)
    stored = data.astype(np.float16 if float16 else np.float32)
    with mrcfile.open(path) as file:
        np.testing.assert_array_equal(file.data.reshape(data.shape), stored)
        assert file.header.mode == (12 if float16 else 2)
        assert (file.header.ispg, file.header.mz) == ((0, 1) if is_stack else (1, len(data)))
        assert file.voxel_size.x == pytest.approx(2.5)
        assert file.header.dmin == stored.min()
        assert file.header.dmax == stored.max()
        assert file.header.dmean == pytest.approx(stored.mean(dtype=np.float64), rel=1e-6)
        if file.header.rms >= 0:
            assert file.header.rms == pytest.approx(data.std(dtype=np.float64), rel=2e-3)
        else:
            assert float16
    assert n_bytes == path.stat().st_size == 1024 + stored.nbytes
    assert n_clipped == 0
    assert list(tmp_path.iterdir()) == [path]


def test_deviation_is_always_stated_in_float32(tmp_path):
    mrc.write_mrc(tmp_path / "a", noise((64, 64, 64), 50), voxel_size=1, is_stack=False,
                  float16=False)  # fmt: skip
    with mrcfile.open(tmp_path / "a") as file:
        assert file.header.rms == pytest.approx(50, rel=0.01)


def test_values_beyond_float16_are_clipped_and_counted(tmp_path):
    data = noise((2, 4, 4))
    data[0, 0] = [65504, 65519, -70000, np.inf]
    data[1, 0, 0] = -np.inf
    _, n_clipped = mrc.write_mrc(tmp_path / "a", data, voxel_size=1, is_stack=True, float16=True)
    assert n_clipped == 4
    written = mrc.read_volume(str(tmp_path / "a"))
    assert list(written[0, 0]) == [65504, 65504, -65504, 65504]
    assert np.isfinite(written).all()


def test_equal_data_make_equal_bytes(tmp_path):
    for name in ("a", "b"):
        mrc.write_mrc(
            tmp_path / name, noise((4, 4, 4)), voxel_size=1, is_stack=False, float16=False
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_short_writes_are_continued(tmp_path, monkeypatch):
    whole = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: whole(fd, [bytes(parts[0][:700])]))
    data = noise((3, 16, 16))
    mrc.write_mrc(tmp_path / "a", data, voxel_size=1, is_stack=False, float16=False)
    np.testing.assert_array_equal(mrc.read_volume(str(tmp_path / "a")), data)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(descriptor, parts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", fail)
    with pytest.raises(OutputError, match=r"a\.mrc could not be written: No space left"):
        mrc.write_mrc(
            tmp_path / "a.mrc", noise((2, 2, 2)), voxel_size=1, is_stack=False, float16=False
        )
    assert list(tmp_path.iterdir()) == []


def test_view_survives_removal_of_the_file(tmp_path):
    path = shutil.copy(REFERENCE / "frames" / "plain" / "TS_01_000.mrc", tmp_path / "a.mrc")
    image = mrc.map_image(mrc.read_header(str(path)), 0)
    Path(path).unlink()
    assert np.isfinite(image).all()
