"""The settings of the writer, named as in ffcv-imagenet."""

from typing import Annotated, Any, Literal

from ffcv_r50.errors import InvalidSetting
from ffcv_r50.registry import Options, Range
from writers import shards
from writers.sources import SOURCES

Count = Annotated[int, Range(at_least=1)]


class Writing(Options):
    """One ``.beton`` file: which images, from where, stored how."""

    dataset: str | None = None
    """The kind of source, a name of those in `writers/sources/`; null looks at `data_dir` and says what
    it recognises. `imagenet` is any tree `data_dir/<class>/<image>`, as torchvision's ImageFolder reads
    it; the others: docs/sources.md."""
    split: Literal["train", "val"] = "train"
    """The part of `data_dir` to take, where `data_dir` is not one part alone."""
    data_dir: str
    """The folder of the classes, or the one that holds `train` and `val`; or the folder or file of
    another kind of source."""
    classes: str | None = None
    """A text file with a class a line: only their images are taken, and labels follow its order. Lines
    that begin with `#` are remarks."""
    write_path: str
    """The `.beton` file to write. Its class names, counts and settings go to `<write_path>.json`."""
    write_mode: Literal["raw", "jpg", "smart", "proportion", "keep"] = "jpg"
    """How images are stored: `raw` pixels (large, nothing to decode), `jpg`, `proportion`
    (`compress_probability` of them as JPEG), `smart` (each as JPEG only where that is
    `smart_threshold` times smaller), or `keep`: JPEGs that need not be shrunk or turned keep their
    pixels to the last bit and only get restart markers, all other images are stored as with `jpg`."""
    max_resolution: Annotated[int, Range(at_least=0, at_most=65500)] = 500
    """Longest side in pixels; larger images are shrunk by area averaging. 0 keeps all sizes."""
    compress_probability: Annotated[float, Range(at_least=0, at_most=1)] | None = None
    """Share of images stored as JPEG with `write_mode=proportion`, where null stands for 0.5. Which
    ones follows from `seed` and the image's path."""
    smart_threshold: Annotated[float, Range(at_least=0)] | None = None
    """With `write_mode=smart`, an image is stored as JPEG where its raw pixels take at least this
    many times the bytes; null stands for 4. (In stock FFCV it is a number of raw bytes, and unset
    means all raw.)"""
    jpeg_quality: Annotated[int, Range(at_least=1, at_most=100)] = 90
    """Quality of the JPEGs that are encoded, which are baseline, 4:2:0, with restart markers."""
    subset: Annotated[int, Range(at_least=-1)] = -1
    """Number of images to take; -1 takes all. They are drawn over all classes by `seed`, and a
    smaller subset is part of a larger one. (ffcv-imagenet takes the first ones, which are all of
    one class.)"""
    shuffle: bool = False
    """Store the images in a random order, which follows from `seed` and their names, instead of class
    by class. Training with `data.order=quasi_random` then sees all classes in each step."""
    index_field: bool = False
    """Store with each image its place (from 0) in the source's order, before classes, subset and order are
    chosen, as a third field `index`, an int: in an image folder its place in torchvision's ImageFolder."""
    shard: str | None = None
    """Write a part alone: `3/16` is the third of sixteen, which `python -m writers.merge` joins."""
    on_error: Literal["stop", "skip"] = "stop"
    """An image that cannot be read or stored ends the writing (`stop`), or is left out and listed in
    `<write_path>.json` (`skip`)."""
    exif_rotate: bool = False
    """Turn images upright as their EXIF orientation says. torchvision does not."""
    seed: Annotated[int, Range(at_least=0, below=2**32)] = 0
    """Decides which images are stored raw, which are in a subset, and the order of `shuffle`."""
    num_workers: Annotated[int, Range(at_least=0)] = 0
    """Processes that read and encode; 0 takes one a core. Has no effect on the file."""
    chunk_size: Count = 16
    """Images a process is given at a time. Has no effect on the file."""

    def model_post_init(self, _context: Any) -> None:
        """Refuse what is not there or has no effect, and fill in what null stands for."""
        if self.dataset is not None:
            try:
                SOURCES[self.dataset]
            except KeyError as error:
                raise InvalidSetting("cfg.dataset", error.args[0]) from error
        if self.shard is not None and shards.shard_numbers(self.shard) is None:
            raise InvalidSetting("cfg.shard", f"'{self.shard}' is no part; write 1/16 to 16/16")
        for name, mode, default in (
            ("compress_probability", "proportion", 0.5),
            ("smart_threshold", "smart", 4.0),
        ):
            if self.write_mode == mode and getattr(self, name) is None:
                object.__setattr__(self, name, default)
            elif self.write_mode != mode and getattr(self, name) is not None:
                raise InvalidSetting(
                    f"cfg.{name}",
                    f"has no effect with write_mode={self.write_mode}; "
                    f"add --cfg.write_mode={mode}, or leave it out",
                )


class Config(Options):
    """The one section, so that flags read as in ffcv-imagenet: ``--cfg.split=train``."""

    cfg: Writing
