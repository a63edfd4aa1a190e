"""Parts of a network that train at rates of their own, or not at all."""

import difflib
import itertools
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ffcv_r50.errors import InvalidSetting
from ffcv_r50.keyframes import Varying

SETTING = "training.lr_multipliers"


class Parts:
    """What the learning rate is multiplied by in each part of a network, at each time.

    It is ``multiplier * layer_decay ** depth``: of the part that holds the parameter, and of how far
    from the top it lies (timm's ``--layer-decay``; Clark et al. 2020, arXiv:2003.10555). A part is a
    module or a parameter by its name, with all below it; where one lies inside of another, the inner
    one's multiplier holds. What no part holds has 1.

    A multiplier of 0 freezes: the optimizer does not touch parameters or their state (no decay, no
    momentum), no gradient is computed for them, and batch-norm normalises with its running
    statistics, which stand still, as in torchvision's and timm's ``FrozenBatchNorm2d``. Dropout goes on.

    Args:
        network: whose ``requires_grad`` and training mode are set from here on.
        multipliers: by the name of the part.
        layer_decay: of the rate, from each layer to the one below it.
        depths: of each parameter by name, 0 for the top; see
            :func:`ffcv_r50.optim.layers.depths`. Not needed where ``layer_decay`` stays 1.
        epochs: of the run.

    Raises:
        InvalidSetting: the network has no such part, or all of it is frozen at some time.
    """

    def __init__(
        self,
        network: nn.Module,
        multipliers: Mapping[str, Varying] | None = None,
        layer_decay: Varying | None = None,
        depths: Mapping[str, int] | None = None,
        epochs: int = 0,
    ) -> None:
        self._network = network
        self._multipliers = {"": Varying(1), **(multipliers or {})}
        self._layer_decay = layer_decay or Varying(1)
        self._trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._check_names()
        if self._layer_decay == Varying(1):  # the groups of a run without it
            depths = None
        self._places = {
            name: (self._holder(name), depths[name] if depths else 0) for name in self._trained
        }
        self._parts = list(dict.fromkeys(self._places.values()))
        self.frozen: frozenset[str] = frozenset()
        """The parts that :meth:`train` left frozen last."""
        self._check_times(epochs)

    def number(self, name: str) -> int:
        """The part that a parameter is in, counted from 0 in the order of the network."""
        return self._parts.index(self._places[name])

    def at(self, epoch: float) -> list[float]:
        """What the learning rate of each part is multiplied by, see
        :func:`ffcv_r50.optim.set_hyperparameters`.

        Args:
            epoch: counted from 0, a step of it as a fraction.
        """
        decay = self._layer_decay.at(epoch)
        return [self._multipliers[holder].at(epoch) * decay**depth for holder, depth in self._parts]

    def train(self, epoch: float) -> None:
        """Set the network to training, but for what is frozen at this time."""
        frozen = frozenset(n for n, row in self._multipliers.items() if row.at(epoch) == 0)
        if frozen != self.frozen:
            self.frozen = frozen
            for name, parameter in self._trained.items():
                parameter.requires_grad_(self._holder(name) not in frozen)
        self._network.train()
        for name, module in self._network.named_modules() if frozen else ():
            if isinstance(module, _BatchNorm) and self._holder(name) in frozen:
                module.eval()

    def _holder(self, name: str) -> str:
        """The innermost part that holds a parameter or module; the empty name is the whole network."""
        return max((part for part in self._multipliers if _holds(part, name)), key=len)

    def _check_names(self) -> None:
        known = dict.fromkeys(
            outer
            for name in self._trained
            for outer in itertools.accumulate(name.split("."), "{}.{}".format)
        )
        for part in self._multipliers:
            if part and part not in known:
                alike = [name for name in known if name.count(".") == part.count(".")]
                near = difflib.get_close_matches(part, alike, 1)
                outermost = dict.fromkeys(name.partition(".")[0] for name in known)
                hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(outermost)}"
                raise InvalidSetting(SETTING, f"the network has no part '{part}' to train; {hint}")

    def _check_times(self, epochs: int) -> None:
        """See that something is trained at all times: zeros lie at keyframes or between two of them."""
        times = {point.epoch for row in self._multipliers.values() for point in row.points}
        times |= {(a + b) / 2 for a, b in itertools.pairwise(sorted({*times, epochs}))}
        for time in sorted(time for time in times if time < epochs):
            if not any(self.at(time)):
                raise InvalidSetting(
                    SETTING, f"all parts are frozen at epoch {time:g}; nothing would be trained"
                )


def _holds(part: str, name: str) -> bool:
    return not part or name == part or name.startswith(f"{part}.")
