"""ILSVRC2012's tar archives as they are downloaded, read in place: nothing is unpacked."""

import io
import tarfile
from array import array
from itertools import pairwise
from pathlib import Path, PurePosixPath

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

    The images are those of the unpacked folders, in the same order and under the same names.
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


def list_train(archive: Path) -> TarMembers:
    """The images of an archive of archives, ``<wnid>.tar`` each.

    Raises:
        UserError: it is none, or damaged, or two images of a class have one name.
    """
    classes: dict[str, list[Member]] = {}
    ignored = 0
    for inner in members(archive):
        name = PurePosixPath(inner.name)
        if name.suffix != ".tar":
            ignored += 1
            continue
        files = list(members(archive, within=inner))
        images = sorted(member for member in files if is_image(member.name))
        ignored += len(files) - len(images)
        for one, other in pairwise(images):
            if one.name == other.name:
                raise UserError(
                    f"{archive}/{inner.name}: holds {one.name} twice; download it again"
                )
        if not images:
            raise UserError(f"{archive}/{inner.name}: holds no images; download it again")
        if name.stem in classes:
            raise UserError(f"{archive}: holds {inner.name} twice; download it again")
        classes[name.stem] = images
    if not classes:
        raise UserError(f"{archive}: holds no archives of classes (<wnid>.tar)")
    return _listed(archive, classes, ignored, with_class=True)


def list_val(archive: Path) -> TarMembers:
    """The images of an archive of files, with the labels of the devkit beside it.

    Raises:
        UserError: either is none, or damaged, or they do not belong together.
    """
    devkit = archive.with_name(DEVKIT)
    wnids, truth = read_devkit(devkit)
    found: dict[str, Member] = {}
    ignored = 0
    for member in members(archive):
        name = PurePosixPath(member.name).name
        if not is_image(name):
            ignored += 1
        elif name in found:
            raise UserError(f"{archive}: holds {name} twice; download it again")
        else:
            found[name] = member
    label_of = {f"ILSVRC2012_val_{i:08}.JPEG": wnid for i, wnid in enumerate(truth, 1)}
    check_all_labelled(archive, found.keys(), label_of.keys(), f"{devkit}")
    classes: dict[str, list[Member]] = {wnid: [] for wnid in wnids}
    for name in sorted(found):
        classes[label_of[name]].append(found[name])
    return _listed(archive, classes, ignored, with_class=False)


def _listed(
    archive: Path, classes: dict[str, list[Member]], ignored: int, with_class: bool
) -> TarMembers:
    """Class by class, as ImageFolder; ``with_class`` says that errors name the class's archive."""
    order = sorted(classes)
    images = [(label, member) for label, wnid in enumerate(order) for member in classes[wnid]]
    names = [f"{order[label]}/{PurePosixPath(member.name).name}" for label, member in images]
    return TarMembers(
        root=archive,
        classes=order,
        names=names,
        labels=array("i", (label for label, _ in images)),
        ignored=ignored,
        members=names if with_class else [member.name for _, member in images],
        archives=[archive],
        archive_of=bytes(len(images)),
        offsets=array("q", (member.offset for _, member in images)),
        sizes=array("q", (member.size for _, member in images)),
    )


def read_devkit(path: Path) -> tuple[list[str], list[str]]:
    """What ILSVRC2012's development kit says of the classes and of the validation images.

    ``meta.mat`` has the classes by their ILSVRC2012_ID, which is not the order of their wnids; those
    with children are no classes of the competition. ``ILSVRC2012_validation_ground_truth.txt`` has such
    an ID for each image (readme.txt of the kit).

    Returns:
        The wnids, sorted, and the wnid of each validation image.

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
        wnid_of = {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
        return sorted(wnid_of.values()), [wnid_of[int(line)] for line in truth.split()]
    except Exception as error:  # scipy's reader fails in many ways on what MATLAB did not write
        raise UserError(
            f"{path}: not ILSVRC2012's devkit ({type(error).__name__}: {error}); download it again"
        ) from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read(MOST_BYTES) if file else b""
