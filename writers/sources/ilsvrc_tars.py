"""ILSVRC2012's tar archives as they are downloaded, read in place: nothing is unpacked."""

import contextlib
import io
import tarfile
from array import array
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ffcv_r50.errors import UserError
from writers.sources import SOURCES, SourceOptions
from writers.sources.files import check_all_labelled, has_folders, is_image
from writers.sources.image_folder import SPLITS
from writers.sources.tar_members import Member, TarMembers, members

IMAGES = "ILSVRC2012_img_{}.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
MOST_BYTES = 64 << 20
"""Of a file in the devkit; the largest that is read has 300 kB."""


@SOURCES.register("ilsvrc_tars")
class IlsvrcTarsOptions(SourceOptions):
    """ILSVRC2012's tar archives as they are downloaded (`val` also needs the devkit's).

    The images are those of the unpacked folders, in the same order and under the same names. For
    `train`, `data_dir` may be any archive of archives `<wnid>.tar`, as ImageNet-21k's is.
    """

    @classmethod
    def recognises(cls, data_dir: Path, split: str) -> bool:
        """An archive, or a folder of them in which this split is not unpacked."""
        archives = [IMAGES.format(name) for name in SPLITS]
        if data_dir.is_file():
            return data_dir.name in archives
        unpacked = (data_dir / split).is_dir() and has_folders(data_dir / split)
        return any((data_dir / name).is_file() for name in archives) and not unpacked

    def build(self, data_dir: str, split: str) -> TarMembers:
        """List the split's archive."""
        path = Path(data_dir).expanduser()
        archive = path / IMAGES.format(split) if path.is_dir() else path
        for other in SPLITS:
            if other != split and archive.name == IMAGES.format(other):
                raise UserError(
                    f"cfg.data_dir: {archive} is the split '{other}', not '{split}'; "
                    f"pass --cfg.split={other}"
                )
        if not archive.is_file():
            raise UserError(f"cfg.data_dir: there is no file {archive}; check the path")
        return list_train(archive) if split == "train" else list_val(archive)

    def words(self, data_dir: str) -> Mapping[str, str]:
        """By the devkit, where it is there and can be read, or as any source."""
        path = Path(data_dir).expanduser()
        with contextlib.suppress(UserError):
            return read_devkit((path if path.is_dir() else path.parent) / DEVKIT).words
        return super().words(data_dir)


class _Images:
    """The images of one archive, class by class, in ImageFolder's order."""

    def __init__(self, archive: Path, classes: list[str]) -> None:
        self.archive, self.classes = archive, classes
        self.names: list[str] = []
        self.labels, self.offsets, self.sizes = array("i"), array("q"), array("q")

    def add(self, label: int, images: list[Member]) -> None:
        """Add the images of a class, sorted."""
        for image in images:
            self.names.append(f"{self.classes[label]}/{PurePosixPath(image.name).name}")
            self.labels.append(label)
            self.offsets.append(image.offset)
            self.sizes.append(image.size)

    def source(self, members: list[str], ignored: int) -> TarMembers:
        """All of them, and what errors call each."""
        return TarMembers(
            root=self.archive,
            classes=self.classes,
            names=self.names,
            labels=self.labels,
            ignored=ignored,
            members=members,
            archives=[self.archive],
            archive_of=bytes(len(self.names)),
            offsets=self.offsets,
            sizes=self.sizes,
        )


def list_train(archive: Path) -> TarMembers:
    """The images of an archive of archives, ``<wnid>.tar`` each.

    Raises:
        UserError: it is none, or damaged, or two images of a class have one name.
    """
    outer = list(members(archive))
    inner = sorted(member for member in outer if member.name.endswith(".tar"))
    if not inner:
        raise UserError(f"{archive}: holds no archives of classes (<wnid>.tar)")
    _refuse_repeated(str(archive), inner)
    found = _Images(archive, [PurePosixPath(member.name).stem for member in inner])
    ignored = len(outer) - len(inner)
    for label, member in enumerate(inner):
        files = list(members(archive, within=member))
        images = sorted(file for file in files if is_image(file.name))
        if not images:
            raise UserError(f"{archive}/{member.name}: holds no images; download it again")
        _refuse_repeated(f"{archive}/{member.name}", images)
        found.add(label, images)
        ignored += len(files) - len(images)
    return found.source(found.names, ignored)


def list_val(archive: Path) -> TarMembers:
    """The images of an archive of files, with the labels of the devkit beside it.

    Raises:
        UserError: either is none, or damaged, or they do not belong together.
    """
    devkit = archive.with_name(DEVKIT)
    wnids, truth, _ = read_devkit(devkit)
    files = list(members(archive))
    images = sorted(file for file in files if is_image(file.name))
    _refuse_repeated(str(archive), images)
    wnid_of = {f"ILSVRC2012_val_{i:08}.JPEG": wnid for i, wnid in enumerate(truth, 1)}
    names = {PurePosixPath(image.name).name for image in images}
    check_all_labelled(archive, names, wnid_of.keys(), str(devkit))
    of_class: dict[str, list[Member]] = {wnid: [] for wnid in wnids}
    for image in images:
        of_class[wnid_of[PurePosixPath(image.name).name]].append(image)
    found = _Images(archive, wnids)
    for label, wnid in enumerate(wnids):
        found.add(label, of_class[wnid])
    in_order = [image.name for wnid in wnids for image in of_class[wnid]]
    return found.source(in_order, len(files) - len(images))


def _refuse_repeated(archive: str, sorted_members: list[Member]) -> None:
    for one, other in pairwise(sorted_members):
        if one.name == other.name:
            raise UserError(f"{archive}: holds {one.name} twice; download it again")


class Devkit(NamedTuple):
    """What ILSVRC2012's development kit says of the classes and of the validation images."""

    wnids: list[str]
    """Sorted."""
    truth: list[str]
    """The wnid of each validation image."""
    words: dict[str, str]
    """What each wnid means."""


def read_devkit(path: Path) -> Devkit:
    """Read the development kit.

    ``meta.mat`` has the classes by their ILSVRC2012_ID, which is not the order of their wnids; those
    with children are no classes of the competition. ``ILSVRC2012_validation_ground_truth.txt`` has such
    an ID for each image (readme.txt of the kit).

    Raises:
        UserError: it is missing, or no such kit, or scipy is not installed.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: is not there; it says the labels of the validation images, download it from "
            "image-net.org into this folder"
        )
    try:
        from scipy.io import loadmat  # an extra: only this reads MATLAB's format
    except ImportError as error:
        raise UserError(
            f"{path}: reading it needs scipy: pip install 'ffcv_r50[ilsvrc]'"
        ) from error
    meta, truth = b"", b""
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                if member.name.endswith("/data/meta.mat"):
                    meta = _content(tar, member)
                elif member.name.endswith("/data/ILSVRC2012_validation_ground_truth.txt"):
                    truth = _content(tar, member)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a whole .tar.gz ({error}); download it again") from error
    if not meta or not truth:
        raise UserError(f"{path}: has no data/meta.mat or no ground truth; download it again")
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        leaves = [synset for synset in synsets if int(synset["num_children"]) == 0]
        wnid_of = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in leaves}
        return Devkit(
            sorted(wnid_of.values()),
            [wnid_of[int(line)] for line in truth.split()],
            {str(synset["WNID"]): str(synset["words"]) for synset in leaves},
        )
    except Exception as error:  # scipy's reader fails in many ways on what MATLAB did not write
        raise UserError(
            f"{path}: not ILSVRC2012's devkit ({type(error).__name__}: {error}); download it again"
        ) from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read(MOST_BYTES) if file else b""
