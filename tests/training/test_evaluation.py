"""Metrics against a brute-force loop in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from ffcv_r50.data.loader import Batch
from ffcv_r50.logs.metrics import Metrics
from ffcv_r50.training.evaluation import evaluate
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.transforms.normalize import Normalize

CPU = torch.device("cpu")
SIZES = (4, 4, 3)


def batches(classes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randint(256, (n, 6, 6, 3), dtype=torch.uint8, generator=generator),
            torch.randint(classes, (n,), generator=generator),
            torch.arange(n),
        )
        for n in SIZES
    ]


def run(model: nn.Module, classes: int, tta: str, num_samples: int = sum(SIZES)) -> Metrics:
    return evaluate(
        model,
        batches(classes),
        num_samples=num_samples,
        device=CPU,
        precision=Precision("fp32", CPU),
        tta=tta,
    )


def network(classes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(108, classes))


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize("classes", [3, 8])
def test_metrics_are_those_of_a_plain_loop(classes: int, tta: str) -> None:
    model = network(classes)
    linear = model[2]
    assert isinstance(linear, nn.Linear)
    weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))
    loss = top_1 = top_5 = 0.0
    for batch in batches(classes):
        for image, label in zip(batch.images.numpy(), batch.labels.numpy(), strict=True):
            x = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            views = [x] if tta == "none" else [x, x[:, ::-1]]
            logits = np.mean([weight @ v.transpose(2, 0, 1).ravel() + bias for v in views], axis=0)
            loss += np.log(np.exp(logits).sum()) - logits[label]
            rank = (logits > logits[label]).sum()
            top_1 += rank < 1
            top_5 += rank < 5
    n = sum(SIZES)
    metrics = run(model, classes, tta)
    assert metrics.loss == pytest.approx(loss / n, rel=1e-5)
    assert metrics.top_1 == pytest.approx(100 * top_1 / n)
    assert metrics.top_5 == pytest.approx(100 * top_5 / n)
    assert metrics.count == n


def test_a_sample_that_was_not_evaluated_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="evaluated 11 samples of a validation set of 12"):
        run(network(3), 3, "none", num_samples=12)


def test_normalisation_is_torchvisions() -> None:
    image = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    from torchvision.transforms.v2 import functional

    expected = functional.normalize(image / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(Normalize(CPU).images(image), expected)
