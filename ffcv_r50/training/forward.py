"""From the bytes of a batch to logits, as written or through torch.compile.

Normalising is part of it: compiled, the bytes are read and what the network computes in is written,
with no float32 image in between.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ffcv_r50.training.transforms.normalize import IMAGENET, Normalize, Statistics

RECOMPILE_LIMIT = 64
"""Variants of one function, which torch would otherwise stop at 8 of: a recipe may have five
resolutions, each in training and in evaluation and of each average."""


class Forward:
    """Runs a network on a batch.

    Args:
        device: of the images.
        statistics: of the images that the network was trained on.
    """

    def __init__(self, device: torch.device, statistics: Statistics = IMAGENET) -> None:
        self._normalize = Normalize(device, statistics)

    def __call__(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits [n, classes], in what the network computes in.

        Args:
            network: in training or in evaluation mode.
            images: [n, 3, height, width], uint8, or normalised already.
        """
        if images.dtype == torch.uint8:
            images = self._normalize.images(images)
        logits: Tensor = network(images)
        return logits


class CompiledForward(Forward):
    """The same, compiled as one graph for each shape of images when the first of them come.

    Sizes are constants in what is compiled: left to itself, torch makes them symbols at the second
    resolution, and what it then compiles is slower. A batch of another size at a resolution that is
    known (the last one of an evaluation) is not worth compiling and runs as written. So does everything
    where torch cannot compile the network, which a line says.

    Args:
        device: of the images.
        say: takes a line.
        backend: of torch.compile.
        statistics: as :class:`Forward` takes them.
        pieces: that the graph is cut into for training, with about as many parameters each. The
            backward pass of a piece gives its gradients at its end, so sums over the ranks
            (:mod:`ffcv_r50.training.reduction`) overlap with the pieces that follow.
    """

    def __init__(
        self,
        device: torch.device,
        say: Callable[[str], None],
        backend: str | Callable[..., Any] = "inductor",
        statistics: Statistics = IMAGENET,
        pieces: int = 1,
    ) -> None:
        super().__init__(device, statistics)
        # Only here: it takes a second to import, which every start would pay.
        from torch._dynamo import config, exc

        if pieces > 1:
            backend = _in_pieces(backend, pieces)
        config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
        self._cannot = exc.TorchDynamoException
        self._say = say
        self._compiled = torch.compile(
            super().__call__, dynamic=False, fullgraph=True, backend=backend
        )
        self._sizes: dict[tuple[bool, bool, int, int], int] = {}
        self._failed = False

    def __call__(self, network: nn.Module, images: Tensor) -> Tensor:
        """See :class:`Forward`."""
        if self._failed:
            return super().__call__(network, images)
        n, _, height, width = images.shape
        kind = network.training, torch.is_grad_enabled(), height, width
        if kind in self._sizes:
            run = self._compiled if self._sizes[kind] == n else super().__call__
            return run(network, images)
        began = time.perf_counter()
        try:
            # The backward pass is compiled here too, since no size is a symbol.
            logits = self._compiled(network, images)
        except self._cannot as error:
            self._failed = True
            first = next(iter(f"{error}".strip().splitlines()), "no reason given")
            self._say(
                f"training.compile: torch cannot compile this network ({type(error).__name__}: "
                f"{first}); it runs uncompiled"
            )
            return super().__call__(network, images)
        self._sizes[kind] = n
        mode = "training" if network.training else "evaluation"
        seconds = time.perf_counter() - began
        self._say(f"compiled {mode} for {n} images of {height} x {width} px in {seconds:.0f} s")
        return logits


def _in_pieces(backend: str | Callable[..., Any], pieces: int) -> Callable[..., Any]:
    """A backend that cuts a graph as torch does for DistributedDataParallel."""
    from torch._dynamo import lookup_backend
    from torch._dynamo.backends.distributed import DDPOptimizer

    compile_piece = lookup_backend(backend)

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        trained = [x for x in inputs if isinstance(x, nn.Parameter) and x.requires_grad]
        if not (trained and torch.is_grad_enabled()):
            return compile_piece(graph, inputs)
        size = sum(parameter.nbytes for parameter in trained) // pieces
        return DDPOptimizer(size, compile_piece, size).compile_fn(graph, inputs)

    return compile_graph
