import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder

from ffcv_r50.errors import UserError
from writers import digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    digits.export(folder)
    return folder


def test_every_scan_is_in_one_split_under_its_digit(folder: Path) -> None:
    labels = load_digits(return_X_y=True)[1]
    found: list[int] = []
    for name, share in (("train", 0.8), ("val", 0.2)):
        dataset = ImageFolder(str(folder / name))
        assert dataset.classes == list("0123456789")
        for digit in range(10):
            assert dataset.targets.count(digit) == pytest.approx(
                share * (labels == digit).sum(), abs=1
            )
        for path, label in dataset.samples:
            index = int(Path(path).stem.removeprefix("digit_"))
            assert labels[index] == label
            found.append(index)
    assert sorted(found) == list(range(1797))
    assert sorted(p.name for p in folder.iterdir()) == ["train", "val"]


def test_images_are_the_scans(folder: Path) -> None:
    scans = load_digits(return_X_y=True)[0]
    for path in sorted(folder.glob("val/*/*.JPEG"))[::20]:
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (32, 32))
            small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), float)
        scan = scans[int(path.stem.removeprefix("digit_"))].reshape(8, 8) * 255 / 16
        assert np.corrcoef(small.ravel(), scan.ravel())[0, 1] > 0.98


def test_the_split_is_fixed() -> None:
    is_val = digits.split(load_digits(return_X_y=True)[1])
    assert np.flatnonzero(is_val)[:12].tolist() == [0, 1, 3, 4, 8, 10, 12, 15, 17, 21, 23, 25]
    assert is_val.sum() == 359


def test_a_second_export_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = state()
    digits.export(folder)
    assert state() == before
    assert "train: 1,438 images of 10 digits" in capsys.readouterr().out


def test_an_export_that_was_killed_is_done_again(folder: Path, tmp_path: Path) -> None:
    left = tmp_path / ".val.abc.tmp" / "3"
    left.mkdir(parents=True)
    (left / "digit_0003.JPEG").touch()
    digits.export(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train", "val"]
    for path in folder.glob("*/*/*.JPEG"):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_a_split_appears_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    save = Image.Image.save

    def fail(*args: object, **options: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 100:
            raise OSError("disk full")
        save(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        digits.export(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"train: holds something else than the digits; remove it$"):
        digits.export(tmp_path)
    assert (tmp_path / "train" / "mine.txt").exists()


@pytest.mark.parametrize("words", [[], ["a", "b"], ["--help"]])
def test_usage(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["digits", *words])
    with pytest.raises(UserError, match=r"^write: python -m writers.digits FOLDER$"):
        digits.main()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = subprocess.run(
        [sys.executable, "-m", "writers.digits", str(tmp_path / "file" / "x")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {tmp_path}/file/x: cannot be written (Not a directory); name another\n"
    )
