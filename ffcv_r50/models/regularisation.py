"""How much of a network is left out at random in training: stochastic depth and dropout."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth


def set_stochastic_depth(network: nn.Module, probability: float) -> bool:
    """Leave out residual branches of single images, deeper ones more often, up to ``probability``.

    ResNets, which torchvision builds without, get it as timm's have it: none in the first block, then
    linearly more (Huang et al. 2016, arXiv:1603.09382). Networks that have it keep their proportions.

    Args:
        network: changed in place; names and numbers of parameters stay.
        probability: of the branch that is left out most often.

    Returns:
        Whether the network has such branches.
    """
    blocks = [block for block in network.modules() if type(block) in (BasicBlock, Bottleneck)]
    for number, block in enumerate(blocks):
        share = number / max(1, len(blocks) - 1)
        block.branch = StochasticDepth(probability * share, "row")
        block.__class__ = DeepBottleneck if type(block) is Bottleneck else DeepBasicBlock
    layers = [layer for layer in network.modules() if isinstance(layer, StochasticDepth)]
    if not blocks:
        highest = max((layer.p for layer in layers), default=0.0)
        for layer in layers:
            layer.p *= probability / highest if highest else 0.0
    return bool(layers)


def set_dropout(network: nn.Module, probability: float) -> bool:
    """Give every dropout of a network this probability.

    Returns:
        Whether the network has dropout.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Dropout)]
    for layer in layers:
        layer.p = probability
    return bool(layers)


class DeepBasicBlock(BasicBlock):
    """torchvision's, with its residual branch in :attr:`branch`."""

    branch: StochasticDepth

    def forward(self, x: Tensor) -> Tensor:
        """The shortcut, and the branch where it is not left out."""
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        joined: Tensor = self.relu(self.branch(out) + shortcut)
        return joined


class DeepBottleneck(Bottleneck):
    """torchvision's, with its residual branch in :attr:`branch`."""

    branch: StochasticDepth

    def forward(self, x: Tensor) -> Tensor:
        """The shortcut, and the branch where it is not left out."""
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        joined: Tensor = self.relu(self.branch(out) + shortcut)
        return joined
