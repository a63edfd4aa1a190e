"""Things that a recipe calls by name: one file each, and one line that registers it.

A file declares the options of its thing as a class and says under which name recipes know it::

    @OPTIMIZERS.register("adamw")
    class AdamW(Optimizer):
        \"\"\"Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).\"\"\"

        eps: Annotated[float, Range(above=0)] = 1e-8
        \"\"\"Added to the denominator.\"\"\"

        def build(self, ...) -> torch.optim.Optimizer: ...

A setting that takes one of them is declared with the registry, one that takes several in their order
as a tuple of such::

    optimizer: Annotated[Optimizer, OPTIMIZERS] = SGD()
    augment: tuple[Annotated[Transform, TRANSFORMS], ...] = ()

A recipe then says ``optimizer: {name: adamw, eps: 1.0e-6}`` and
``augment: [{erasing: {probability: 0.1}}, {mixup: {}}]``. The reader of recipes knows the options from
the class, checks them as strictly as every other setting, and gives an instance, whose ``build``
makes the thing itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import annotated_types
from pydantic import BaseModel, ConfigDict

from ffcv_r50.errors import InvalidSetting, nearest


@dataclass(frozen=True, kw_only=True)
class Range(annotated_types.GroupedMetadata):
    """The values a number may take: ``Annotated[float, Range(above=0, at_most=1)]``."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __iter__(self) -> Iterator[object]:
        """As pydantic knows it."""
        return iter(
            annotated_types.Interval(
                ge=self.at_least, gt=self.above, le=self.at_most, lt=self.below
            )
        )

    def __str__(self) -> str:
        """``at least 0 and below 1``."""
        bounds = [(name.replace("_", " "), bound) for name, bound in vars(self).items()]
        return " and ".join(f"{name} {bound:.15g}" for name, bound in bounds if bound is not None)


class Options(BaseModel):
    """Settings that belong together: typed fields, each with a docstring below it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def check_ordered(options: Options, *names: str, section: str = "") -> None:
    """See that options of two numbers are the lowest and the highest of something.

    Raises:
        InvalidSetting: one is not; its key begins with ``section``.
    """
    for name in names:
        low, high = getattr(options, name)
        if low > high:
            raise InvalidSetting(
                f"{section}{name}", f"[{low:g}, {high:g}] is not [lowest, highest]"
            )


O = TypeVar("O", bound=Options)  # noqa: E741  # of options
Registered = TypeVar("Registered", bound=Options)


class Registry(Generic[O]):
    """The things of one kind.

    Args:
        kind: what an error calls one of them, such as ``optimizer``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[O]] = {}

    def register(self, name: str) -> Callable[[type[Registered]], type[Registered]]:
        """A class decorator: recipes know the class as ``name`` from now on.

        Raises:
            ValueError: another class has the name.
        """

        def add(options: type[Registered]) -> type[Registered]:
            known = self._classes.setdefault(name, options)  # type: ignore[arg-type]
            if known is not options:
                raise ValueError(f"the {self.kind} {name} is registered twice")
            return options

        return add

    @property
    def names(self) -> list[str]:
        """In the order of registration."""
        return list(self._classes)

    def __getitem__(self, name: str) -> type[O]:
        """The options of the thing that is called ``name``.

        Raises:
            KeyError: nothing is; says what is, or what was probably meant.
        """
        if name not in self._classes:
            near = nearest(name, self._classes)
            hint = f"choose {' or '.join(self._classes)}" if self._classes else "none is registered"
            hint = f"did you mean {near}?" if near else hint
            raise KeyError(f"there is no {self.kind} '{name}'; {hint}")
        return self._classes[name]

    def name_of(self, options: O) -> str:
        """What recipes call the thing that has these options."""
        return next(name for name, known in self._classes.items() if known is type(options))
