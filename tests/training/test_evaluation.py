"""Metrics against a brute-force loop in float64."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from ffcv_r50.data.loader import Batch
from ffcv_r50.logs.metrics import Metrics
from ffcv_r50.training.evaluation import evaluate
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.predictions import Predictions
from ffcv_r50.training.transforms.normalize import Normalize

CPU = torch.device("cpu")
SIZES = (4, 4, 3)


def batches(classes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randint(256, (n, 6, 6, 3), dtype=torch.uint8, generator=generator),
            torch.randint(classes, (n,), generator=generator),
            torch.arange(first, first + n),
        )
        for first, n in zip((0, 4, 8), SIZES, strict=True)
    ]


def run(
    model: nn.Module,
    classes: int,
    tta: str,
    num_samples: int = sum(SIZES),
    predictions: Predictions | None = None,
) -> Metrics:
    return evaluate(
        model,
        batches(classes),
        num_samples=num_samples,
        device=CPU,
        precision=Precision("fp32", CPU),
        tta=tta,
        predictions=predictions,
    )


def plain_logits(model: nn.Sequential, tta: str, classes: int) -> npt.NDArray[np.float64]:
    """[n, classes], image by image in float64."""
    linear = model[2]
    assert isinstance(linear, nn.Linear)
    weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))
    rows = []
    for batch in batches(classes):
        for image in batch.images.numpy():
            x = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            views = [x] if tta == "none" else [x, x[:, ::-1]]
            rows.append(
                np.mean([weight @ v.transpose(2, 0, 1).ravel() + bias for v in views], axis=0)
            )
    return np.array(rows)


def network(classes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(108, classes))


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize("classes", [3, 8])
def test_metrics_are_those_of_a_plain_loop(classes: int, tta: str) -> None:
    model = network(classes)
    labels = torch.cat([batch.labels for batch in batches(classes)]).numpy()
    loss = top_1 = top_5 = 0.0
    for logits, label in zip(plain_logits(model, tta, classes), labels, strict=True):
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


@pytest.mark.parametrize("classes", [3, 8])
def test_predictions_are_those_of_a_plain_loop(classes: int) -> None:
    model = network(classes)
    predictions = Predictions(sum(SIZES), CPU)
    metrics = run(model, classes, "flip", predictions=predictions)
    labels = torch.cat([batch.labels for batch in batches(classes)]).numpy()
    found = predictions.arrays(labels, classes)
    assert found["index"].tolist() == list(range(sum(SIZES)))
    assert found["target"].tolist() == labels.tolist()
    for number, logits in enumerate(plain_logits(model, "flip", classes)):
        shares = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-shares)[:5]
        assert found["classes"][number].tolist() == order.tolist()
        np.testing.assert_allclose(found["probabilities"][number], shares[order], rtol=1e-4)
        assert found["loss"][number] == pytest.approx(-np.log(shares[labels[number]]), rel=1e-4)
    assert metrics.top_1 == 100 * (found["classes"][:, 0] == labels).mean()
    assert metrics.loss == pytest.approx(found["loss"].mean(), rel=1e-5)


def test_a_sample_that_was_not_evaluated_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="evaluated 11 samples of a validation set of 12"):
        run(network(3), 3, "none", num_samples=12)


def test_normalisation_is_torchvisions() -> None:
    image = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    from torchvision.transforms.v2 import functional

    expected = functional.normalize(image / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(Normalize(CPU).images(image), expected)
