from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from kft.data.table import Splits, Table
from kft.errors import DataError
from kft.recipe import Data
from kft.tasks import images, targets
from kft.tasks.task import Encoding

DATA = Data(source="x")
RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(file: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(file)
    return file


def table(root: Path, files: list[str | None], labels: list[str] | None = None, column: str = "image") -> Table:
    cells = {column: pa.array(files, pa.string()), "label": labels or ["a"] * len(files)}
    return Table(pa.table(cells), "images.csv", list(range(2, len(files) + 2)), root=root)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff"])
def test_a_colour_image_is_read_as_it_is_and_a_grey_one_in_three_equal_channels(tmp_path: Path, ending: str) -> None:
    colour, grey = pixels(5, 7, 3), pixels(5, 7)
    read = images.read(save(tmp_path / f"colour.{ending}", colour), 3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, colour)
    read = images.read(save(tmp_path / f"grey.{ending}", grey), 3)
    np.testing.assert_array_equal(read, np.stack([grey] * 3, axis=-1))


def test_one_channel_is_grey_by_the_weights_of_television(tmp_path: Path) -> None:
    colour, grey = pixels(5, 7, 3), pixels(5, 7)
    np.testing.assert_array_equal(images.read(save(tmp_path / "grey.png", grey), 1)[..., 0], grey)
    read = images.read(save(tmp_path / "colour.png", colour), 1)
    assert read.shape == (5, 7, 1)
    expected = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    assert np.abs(read[..., 0] - expected).max() <= 1


def test_transparency_is_left_out(tmp_path: Path) -> None:
    clear = np.dstack([pixels(4, 4, 3), np.zeros((4, 4), np.uint8)])
    np.testing.assert_array_equal(images.read(save(tmp_path / "clear.png", clear), 3), clear[..., :3])


def broken(file: Path, how: str) -> Path:
    save(file, pixels(40, 40, 3))
    content = file.read_bytes()
    if how == "cut off":
        file.write_bytes(content[: len(content) // 2])
    elif how == "another kind":
        file.write_text("<html>not found</html>")
    elif how == "empty":
        file.write_bytes(b"")
    else:  # the length of the second chunk, which makes Pillow raise a SyntaxError
        start = content.index(b"IDAT")
        body = zlib.compress(b"short")
        file.write_bytes(content[: start - 4] + len(body).to_bytes(4, "big") + b"IDAT" + body + b"\x00" * 60)
    return file


@pytest.mark.parametrize("how", ["cut off", "another kind", "empty", "wrong chunk"])
def test_a_broken_image_is_named(tmp_path: Path, how: str) -> None:
    file = broken(tmp_path / "broken.png", how)
    with pytest.raises(DataError) as caught:
        images.read(file, 3)
    message = str(caught.value)
    assert message.startswith(f"Cannot read the image '{file}': ") and "\n" not in message


def test_images_of_one_size_stay_bytes_and_come_with_their_labels(tmp_path: Path) -> None:
    arrays = [pixels(6, 8, 3) for _ in range(3)]
    names = [save(tmp_path / f"{number}.png", array).name for number, array in enumerate(arrays)]
    found = table(tmp_path, list(names), ["b", "a", "b"])
    target = targets.study(Splits(found), DATA, "labels")
    encoded = images.encode(found, Encoding(DATA), target)
    stored, labels = encoded.inputs["images"], encoded.targets
    assert isinstance(stored, np.ndarray) and isinstance(labels, np.ndarray)
    assert stored.dtype == np.uint8 and labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(stored, np.stack(arrays))
    grey = images.encode(found, Encoding(DATA, channels=1), None)
    assert len(grey) == 3 and grey.inputs["images"].shape == (3, 6, 8, 1) and grey.targets is None  # type: ignore[union-attr]


def test_several_labels_of_an_image(tmp_path: Path) -> None:
    save(tmp_path / "one.png", pixels(4, 4, 3))
    options = Data(source="x", label_separator="|")
    found = table(tmp_path, ["one.png", "one.png"], ["a|b", "b"])
    target = targets.study(Splits(found), options, "labels")
    encoded = images.encode(found, Encoding(options), target)
    assert encoded.targets.tolist() == [[1, 1], [0, 1]]  # type: ignore[union-attr]


def test_a_missing_file_is_named_with_its_line_and_where_its_path_counts_from(tmp_path: Path) -> None:
    save(tmp_path / "one.png", pixels(4, 4, 3))
    with pytest.raises(DataError) as caught:
        images.files(table(tmp_path, ["one.png", "two.png"]), ["image"])
    message = str(caught.value)
    assert message.startswith(f"images.csv line 3: no image at '{tmp_path / 'two.png'}'.")
    assert f"counts from '{tmp_path}'" in message


@pytest.mark.parametrize("cell", [None, "", "  "])
def test_a_row_without_a_file_name_is_refused(tmp_path: Path, cell: str | None) -> None:
    with pytest.raises(DataError, match="images.csv line 2: no image in column 'image'"):
        images.files(table(tmp_path, [cell]), ["image"])


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no image at"):
        images.files(table(tmp_path, ["folder"]), ["image"])


@pytest.mark.parametrize("column", images.USUAL)
def test_the_column_of_files_goes_by_a_usual_name_or_the_recipes(tmp_path: Path, column: str) -> None:
    assert images.columns(table(tmp_path, ["x"], column=column), DATA) == [column]


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.inputs: name the column of image files. images.csv has: photo, label"):
        images.columns(table(tmp_path, ["x"], column="photo"), DATA)
    with pytest.raises(DataError, match="Unknown column 'imag' .* Did you mean 'image'"):
        images.columns(table(tmp_path, ["x"]), Data(source="x", inputs=["imag"]))
    with pytest.raises(DataError, match="one column of images, received 2"):
        images.columns(table(tmp_path, ["x"]), Data(source="x", inputs=["image", "label"]))
