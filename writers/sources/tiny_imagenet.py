"""Tiny ImageNet (Stanford's CS231n) as its archive unpacks."""

from pathlib import Path

from ffcv_r50.errors import UserError
from writers.sources import SOURCES, SourceOptions
from writers.sources.files import Files, labelled, read_text
from writers.sources.image_folder import ImageFolder, list_images

ANNOTATIONS = "val/val_annotations.txt"


@SOURCES.register("tiny_imagenet")
class TinyImageNetOptions(SourceOptions):
    """Tiny ImageNet as its archive unpacks: train/<wnid>/images, val/val_annotations.txt."""

    @classmethod
    def recognises(cls, data_dir: Path, split: str) -> bool:
        """The folder with ``wnids.txt``; ``val`` only as it was unpacked, not sorted into folders."""
        images = data_dir / ("train" if split == "train" else "val/images")
        return (data_dir / "wnids.txt").is_file() and images.is_dir()

    def build(self, data_dir: str, split: str) -> ImageFolder | Files:
        """List the class folders of ``train``, or the files of ``val``."""
        folder = Path(data_dir).expanduser()
        if split == "val":
            return list_val(folder)
        if not (folder / split).is_dir():
            raise UserError(f"cfg.data_dir: there is no folder {folder / split}; check the path")
        return list_images(folder / split)


def list_val(folder: Path) -> Files:
    """The images of ``val/images`` with the labels of ``val_annotations.txt``: file, wnid and box, with
    tabs between.

    Raises:
        UserError: no such files, or they do not belong together.
    """
    classes = sorted(read_text(folder / "wnids.txt").split())  # as the folders of train
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    annotations = folder / ANNOTATIONS
    labels: dict[str, int] = {}
    for number, line in enumerate(read_text(annotations).splitlines(), 1):
        words = line.split("\t")
        if len(words) < 2:
            raise UserError(
                f"{annotations}, line {number}: is not 'file<tab>wnid'; unpack it again"
            )
        if words[1] not in numbers:
            raise UserError(f"{annotations}, line {number}: {words[1]} is not in wnids.txt")
        if words[0] in labels:
            raise UserError(f"{annotations}, line {number}: {words[0]} is there twice")
        labels[words[0]] = numbers[words[1]]
    return labelled(folder / "val" / "images", labels, classes, annotations)
