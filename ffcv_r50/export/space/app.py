"""A page to try the network beside this file on photos.

``pip install -r requirements.txt && python app.py`` starts it, and so does a Space of the Hugging Face
hub. ``model.json`` says what the network is given and what its classes are called; ``model.onnx``
normalises its images itself. Photos in a folder ``examples`` are offered to click on.
"""

import json
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError

TOP = 5
"""Classes shown."""
MOST_BYTES = 32_000_000
MOST_PIXELS = 64_000_000
"""Of a photo."""


class Classifier:
    """A network with what it needs to be asked about photos.

    Args:
        folder: holds ``model.onnx`` and ``model.json``.
    """

    def __init__(self, folder: Path) -> None:
        said = json.loads((folder / "model.json").read_text("utf-8"))
        self.arch, self.classes = said["arch"], said["classes"]
        self._resolution, self._crop_ratio = said["resolution"], said["crop_ratio"]
        self._mirrors = said["tta"] == "flip"
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
        )

    def top(self, photo: Image.Image) -> dict[str, float]:
        """The likeliest classes of a photo, by name, and their probabilities."""
        shares = self.probabilities(self.crop(photo))
        best = np.argsort(-shares, kind="stable")[:TOP]
        return {self.classes[number]: float(shares[number]) for number in best}

    def crop(self, photo: Image.Image) -> npt.NDArray[np.uint8]:
        """What the network's evaluation sees of a photo: uint8 [resolution, resolution, 3].

        The central square of ``crop_ratio`` of the shorter side, resized (bilinear, anti-aliased).
        """
        side = max(1, int(self._crop_ratio * min(photo.size)))
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        square = photo.crop((left, top, left + side, top + side))
        size = (self._resolution, self._resolution)
        return np.asarray(square.resize(size, Image.Resampling.BILINEAR))

    def probabilities(self, crop: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """What the network makes of a crop, where it was evaluated so together with its mirror image.

        Returns:
            float64 [classes].
        """
        views = np.stack([crop, crop[:, ::-1]] if self._mirrors else [crop])
        [logits] = self._session.run(["logits"], {"images": views})
        mean = logits.mean(0, dtype=np.float64)
        shares: npt.NDArray[np.float64] = np.exp(mean - mean.max())
        return shares / shares.sum()


def read(path: str) -> Image.Image:
    """A photo, upright and in RGB.

    Raises:
        gr.Error: a sentence for the person who chose it.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise gr.Error(
                    f"The photo is too large, it has {image.width:,} x {image.height:,} pixels. "
                    f"Choose one of at most {MOST_PIXELS / 1e6:.0f} megapixels.",
                    print_exception=False,
                )
            upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # Pillow would turn nearly all of it white
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return upright.convert("RGB")
    except gr.Error:
        raise
    except UnidentifiedImageError as error:
        sentence = "This is not an image. Choose a JPEG, PNG, WebP, GIF or BMP file."
        raise gr.Error(sentence, print_exception=False) from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        sentence = "The image is damaged, or too large. Choose another."
        raise gr.Error(sentence, print_exception=False) from error


def page(folder: Path) -> gr.Interface:
    """The page about the network in a folder."""
    classifier = Classifier(folder)
    photo = gr.Image(label="Photo", type="filepath")
    # gradio's own opens the file, and shows what went wrong there as "Error".
    photo.preprocess = path_of
    return gr.Interface(
        lambda path: classifier.top(read(path)) if path else None,
        photo,
        gr.Label(label="What the network sees"),
        title=classifier.arch,
        description=f"The likeliest of its {len(classifier.classes):,} classes.",
        api_name="classify",
        examples=sorted(str(path) for path in folder.glob("examples/*")) or None,
        live=True,
        flagging_mode="never",
        analytics_enabled=False,
    )


def path_of(upload: Any) -> str | None:
    """The file that was uploaded; None where the photo was taken away."""
    return upload.path if upload else None


if __name__ == "__main__":
    page(Path(__file__).parent).launch(max_file_size=MOST_BYTES)
