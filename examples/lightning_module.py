"""Lightning's trainer with our loader: it asks for loaders in each process, and keeps their state.

pip install lightning
python examples/lightning_module.py train.beton val.beton --epochs=16
"""

import argparse
import sys
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import ffcv_r50


class Data(lightning.LightningDataModule):
    """Our loaders: made where the process knows its rank. uint8 until Lightning has moved the batch.

    Lightning moves batches to the device, and puts the loader's ``state_dict`` into its checkpoints.
    """

    def __init__(self, train: str, val: str, batch_size: int, resolution: int) -> None:
        super().__init__()
        self.train_set, self.val_set = ffcv_r50.Dataset(train), ffcv_r50.Dataset(val)
        self.batch_size, self.resolution = batch_size, resolution

    def train_dataloader(self) -> ffcv_r50.TrainLoader:
        """Batches of ``batch_size`` over all processes; each ``iter()`` is the next epoch."""
        return ffcv_r50.TrainLoader(
            self.train_set,
            batch_size=self.batch_size,
            resolution=self.resolution,
            dtype=torch.float32,
        )

    def val_dataloader(self) -> ffcv_r50.EvalLoader:
        """Each sample once."""
        return ffcv_r50.EvalLoader(
            self.val_set,
            batch_size=self.batch_size,
            resolution=self.resolution,
            dtype=torch.float32,
        )


class Classifier(lightning.LightningModule):
    """A ResNet-18."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = resnet18(num_classes=num_classes)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        loss: Tensor = self.loss(self.network(images), labels)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Log the top-1, weighted by the sizes of the batches."""
        images, labels = batch
        hits = (self.network(images).argmax(1) == labels).float().mean()
        self.log("top_1", hits, batch_size=len(labels), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, as in the other examples."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-5)


def main(argv: list[str], **trainer: Any) -> float:
    """Train, and return the share of validation images that are classified correctly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=256, help="of all processes together")
    parser.add_argument("--resolution", type=int, default=176)
    args = parser.parse_args(argv)
    data = Data(args.train, args.val, args.batch_size, args.resolution)
    fit = lightning.Trainer(max_epochs=args.epochs, **trainer)
    fit.fit(Classifier(data.train_set.num_classes), data)
    return float(fit.callback_metrics["top_1"])


if __name__ == "__main__":
    print(f"top-1: {main(sys.argv[1:]):.2%}")
