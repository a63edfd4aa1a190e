"""Things by name: one of them as a section with its options, several as a list, registered here."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import model_validator

from ffcv_r50.config import command_line, declaration, reader, reference
from ffcv_r50.errors import InvalidSetting, UserError
from ffcv_r50.registry import Options, Range, Registry


class Glaze(Options):
    """What every glaze has."""


class Topping(Options):
    """What every topping has."""


GLAZES: Registry[Glaze] = Registry("glaze")
TOPPINGS: Registry[Topping] = Registry("topping")


@GLAZES.register("sugar")
class Sugar(Glaze):
    """Sugar."""

    vanilla: bool = False
    """With vanilla."""
    layers: int = 1
    """Laid over each other."""


@GLAZES.register("chocolate")
class Chocolate(Glaze):
    """Chocolate."""

    cocoa: Annotated[float, Range(above=0, at_most=1)] = 0.7
    """Share of cocoa."""
    layers: int = 1
    """Laid over each other."""

    @model_validator(mode="after")
    def _hold(self) -> "Chocolate":
        if self.layers > 9:
            raise ValueError("no cake carries so many")
        return self


@TOPPINGS.register("nuts")
class Nuts(Topping):
    """Nuts."""

    grams: Annotated[int, Range(at_least=1)]
    """How many."""
    kind: str = "hazel"
    """Which."""

    @model_validator(mode="after")
    def _exist(self) -> "Nuts":
        if self.kind == "dough":
            raise ValueError("those are none")
        return self


@TOPPINGS.register("cherry")
class Cherry(Topping):
    """A cherry."""


class Cake(Options):
    eggs: int = 3
    """Of hens."""
    dry: bool = False
    """Without milk."""


class Bakery(Options):
    cake: Cake = Cake()
    glaze: Annotated[Glaze, GLAZES] = Sugar()
    """What covers it."""
    toppings: tuple[Annotated[Topping, TOPPINGS], ...] = ()
    """What goes on it, from the bottom up."""
    guests: tuple[str, ...] = ()
    """Who comes; may be given several times."""
    open: bool = False
    """Whether anybody may."""

    MOVED: ClassVar = {"cake.vanilla": "glaze.vanilla", "cake.old_eggs": "cake.eggs"}

    def model_post_init(self, _context: Any) -> None:
        if isinstance(self.glaze, Sugar) and self.glaze.vanilla and self.cake.dry:
            raise InvalidSetting("glaze.vanilla", "needs milk")


def read(tmp_path: Path, text: str, *argv: str) -> Bakery:
    """As the trainer reads: a file, and the command line on top."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    given = reader.from_file(Bakery, str(path))
    above = reader.from_arguments(Bakery, command_line.split(argv), given)
    return declaration.build(Bakery, declaration.merge(Bakery, given, above))


def error_of(tmp_path: Path, text: str, *argv: str) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, *argv)
    return str(caught.value).replace(f"{tmp_path}/", "")


# ------------------------------------------------------------------------------------ one of them


@pytest.mark.parametrize(
    ("text", "argv", "glaze"),
    [
        ("", [], Sugar()),
        ("glaze: {vanilla: true}", [], Sugar(vanilla=True)),
        ("glaze: {cocoa: 0.5, name: chocolate}", [], Chocolate(cocoa=0.5)),
        ("glaze:\n  name: chocolate\n", [], Chocolate()),
        ("glaze:\n", [], Sugar()),
        ("", ["--glaze.name=chocolate", "--glaze.cocoa=1"], Chocolate(cocoa=1)),
        ("", ["--glaze.cocoa=1", "--glaze.name", "chocolate"], Chocolate(cocoa=1)),
        # One option of the file's choice: the others stay.
        ("glaze: {name: chocolate, cocoa: 0.5}", ["--glaze.layers=2"], Chocolate(cocoa=0.5, layers=2)),
        ("glaze: {name: chocolate, cocoa: 0.5}", ["--glaze.name=chocolate", "--glaze.layers=2"], Chocolate(cocoa=0.5, layers=2)),
        ("glaze: {vanilla: true}", ["--glaze.name=sugar"], Sugar(vanilla=True)),
        # Another choice: the options of the old one go.
        ("glaze: {name: chocolate, cocoa: 0.5}", ["--glaze.name=sugar"], Sugar()),
        ("glaze: {name: chocolate, layers: 3}", ["--glaze.name=sugar"], Sugar()),
        ("glaze: {layers: 3}", ["--glaze.name=chocolate"], Chocolate()),
        ("glaze: {vanilla: true}", ["--glaze.name=chocolate"], Chocolate()),
        ("glaze: {vanilla: true}", ["--glaze.name=chocolate", "--glaze.layers=2"], Chocolate(layers=2)),
    ],
)  # fmt: skip
def test_one_by_name(tmp_path: Path, text: str, argv: list[str], glaze: Glaze) -> None:
    bakery = read(tmp_path, text, *argv)
    assert bakery == Bakery(glaze=glaze)
    assert type(bakery.glaze) is type(glaze)


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("glaze:\n  name: chocolat\n", [], "x.yaml:2: glaze.name: there is no glaze 'chocolat'; did you mean chocolate?"),
        ("glaze:\n  cocoa: 1\n  name: x\n", [], "x.yaml:3: glaze.name: there is no glaze 'x'; choose sugar or chocolate"),
        ("glaze:\n  name: [sugar]\n", [], "x.yaml:2: glaze.name: expected sugar or chocolate, got a list"),
        ("glaze:\n  cocoa: 1\n", [], "x.yaml:2: glaze.cocoa is not an option of sugar, which has vanilla, layers"),
        ("glaze:\n  vanilla: 1\n  name: chocolate\n", [], "x.yaml:2: glaze.vanilla is not an option of chocolate, which has cocoa, layers"),
        ("glaze:\n  name: chocolate\n  cacao: 1\n", [], "x.yaml:3: glaze.cacao is not an option of chocolate, which has cocoa, layers"),
        ("glaze:\n  name: chocolate\n  cocoa: 2\n", [], "x.yaml:3: glaze.cocoa: expected a number above 0 and at most 1, got 2"),
        ("glaze: {name: chocolate}", ["--glaze.vanilla=1"], "command line: --glaze.vanilla is not an option of chocolate, which has cocoa, layers"),
        ("", ["--glaze.cocoa=1"], "command line: --glaze.cocoa is not an option of sugar, which has vanilla, layers"),
        ("", ["--glaze.name=suger"], "command line: --glaze.name: there is no glaze 'suger'; did you mean sugar?"),
        ("glaze: chocolate", [], "x.yaml:1: expected a table of settings"),
        ("glaze: {name: chocolate, layers: 10}", [], "glaze: no cake carries so many"),
        ("cake: {dry: true}\nglaze:\n  vanilla: 1\n", [], "x.yaml:3: glaze.vanilla: needs milk"),
    ],
)  # fmt: skip
def test_errors_of_one(tmp_path: Path, text: str, argv: list[str], message: str) -> None:
    assert error_of(tmp_path, text, *argv) == message


# --------------------------------------------------------------------------------- a list of them


@pytest.mark.parametrize(
    ("text", "toppings"),
    [
        ("[]", ()),
        ("[{cherry: {}}]", (Cherry(),)),
        ("[{nuts: {grams: 3}}, {cherry:}, {nuts: {kind: pea, grams: 1}}]", (Nuts(grams=3), Cherry(), Nuts(grams=1, kind="pea"))),
    ],
)  # fmt: skip
def test_several_by_name_in_their_order(
    tmp_path: Path, text: str, toppings: tuple[Topping, ...]
) -> None:
    assert read(tmp_path, f"toppings: {text}") == Bakery(toppings=toppings)
    assert read(tmp_path, "", f"--toppings={text}") == Bakery(toppings=toppings)
    assert read(tmp_path, "toppings: [{cherry: {}}]", f"--toppings={text}").toppings == toppings


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{nut: {grams: 1}}", "toppings: there is no topping 'nut'; did you mean nuts?"),
        ("{nuts: {gram: 1}}", "toppings: nuts.gram is not an option of nuts, which has grams, kind"),
        ("{nuts: {grams: 0}}", "toppings: nuts.grams: expected an integer at least 1, got 0"),
        ("{nuts: {grams: '1'}}", "toppings: nuts.grams: expected an integer at least 1, got the quoted text \"1\""),
        ("{nuts: {grams: 1, grams: 1}}", "toppings: nuts.grams: is given twice, first in line {line}"),
        ("{nuts: {}}", "toppings: nuts.grams is missing"),
        ("{nuts: {grams: 1, kind: dough}}", "toppings: nuts: those are none"),
        ("{nuts: 3}", "toppings: nuts: expected a table of settings"),
        ("{nuts: {grams: 1}, cherry: {}}", "toppings: expected one {name: {option: value}} a row"),
        ("cherry", "toppings: expected one {name: {option: value}} a row"),
    ],
)  # fmt: skip
def test_errors_of_several_name_their_row(tmp_path: Path, rows: str, message: str) -> None:
    text = f"cake: {{eggs: 1}}\ntoppings:\n- {{cherry: {{}}}}\n- {rows}\n"
    assert error_of(tmp_path, text) == "x.yaml:4: " + message.replace("{line}", "4")
    argument = f"--toppings=[{rows}]"
    assert error_of(tmp_path, "", argument) == "command line: --" + message.replace("{line}", "1")


def test_a_list_is_a_list(tmp_path: Path) -> None:
    assert error_of(tmp_path, "toppings: {cherry: {}}") == (
        "x.yaml:1: toppings: expected a list of {nuts or cherry: {option: value}}, got a table"
    )


# ------------------------------------------------------------------------------- all of it at once


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    for bakery in (
        Bakery(),
        Bakery(
            glaze=Chocolate(cocoa=1e-05),
            toppings=(Nuts(grams=2), Cherry(), Nuts(grams=1, kind="1e-4")),
            guests=("null", "[x"),
        ),
    ):
        text = declaration.to_yaml(bakery)
        assert read(tmp_path, text) == bakery
        assert declaration.to_yaml(read(tmp_path, text)) == text
    assert declaration.to_yaml(Bakery(toppings=(Cherry(),))).endswith(
        "glaze: {name: sugar, vanilla: false, layers: 1}\ntoppings:\n- cherry: {}\nguests: []\nopen: false\n"
    )


def test_keys_of_before_are_read_as_those_of_today(tmp_path: Path) -> None:
    assert read(tmp_path, "cake: {vanilla: 1, old_eggs: 2}") == Bakery(
        cake=Cake(eggs=2), glaze=Sugar(vanilla=True)
    )
    assert read(tmp_path, "", "--cake.old_eggs=2") == Bakery(cake=Cake(eggs=2))
    assert read(tmp_path, "cake: {old_eggs: 2}", "--cake.eggs=1") == Bakery(cake=Cake(eggs=1))
    # Another glaze has no vanilla, whatever it was called.
    assert read(tmp_path, "cake: {vanilla: 1}", "--glaze.name=chocolate").glaze == Chocolate()


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("cake:\n  vanilla: si\n", [], "x.yaml:2: cake.vanilla: expected true or false, got 'si'"),
        ("cake:\n  eggs: 1\n  old_eggs: 1\n", [], "x.yaml:3: cake.old_eggs: is given twice, first in line 2"),
        ("", ["--cake.eggs=1", "--cake.old_eggs=1"], "command line: --cake.old_eggs: is given twice"),
        ("cake:\n  dry: 1\n  vanilla: 1\n", [], "x.yaml:3: cake.vanilla: needs milk"),
        ("cake:\n  vanilla: 1\nglaze: {name: chocolate}", [], "x.yaml:2: cake.vanilla is not an option of chocolate, which has cocoa, layers"),
    ],
)  # fmt: skip
def test_errors_name_the_key_that_was_written(
    tmp_path: Path, text: str, argv: list[str], message: str
) -> None:
    assert error_of(tmp_path, text, *argv) == message


def test_every_key_and_its_default() -> None:
    assert {key: s.default for key, s in declaration.declared(Bakery).items()} == {
        "cake.eggs": 3,
        "cake.dry": False,
        "glaze.name": "sugar",
        "glaze.vanilla": False,
        "glaze.layers": 1,
        "toppings": (),
        "guests": (),
        "open": False,
    }
    assert "glaze.cocoa" in declaration.declared(Bakery, {"glaze.name": "chocolate"})
    assert declaration.keys(Bakery) >= {"glaze.vanilla", "glaze.cocoa", "glaze.layers"}


def test_the_reference_has_the_options_of_all() -> None:
    rows = reference.table(Bakery).splitlines()
    assert "| `glaze.name` | sugar or chocolate | sugar | What covers it. |" in rows
    assert "| `glaze.cocoa` | number above 0 and at most 1 | 0.7 | `chocolate`: Share of cocoa. |" in rows  # fmt: skip
    assert "| `toppings` | list of {nuts or cherry: {option: value}} | [] | What goes on it, from the bottom up. |" in rows  # fmt: skip
    assert "| `toppings: nuts.grams` | integer at least 1 | required | `nuts`: How many. |" in rows
    assert "| `guests` | list of strings | [] | Who comes; may be given several times. |" in rows


def test_a_class_that_is_registered_later_works_by_name(tmp_path: Path) -> None:
    @GLAZES.register("honey")
    class Honey(Glaze):
        """Honey."""

        spoons: int = 2
        """Of it."""

    try:
        bakery = read(tmp_path, "glaze: {name: honey, spoons: 5}")
        assert bakery.glaze == Honey(spoons=5)
        assert read(tmp_path, declaration.to_yaml(bakery)) == bakery
        assert "| `glaze.spoons` | integer | 2 | `honey`: Of it. |" in reference.table(Bakery)
    finally:
        del GLAZES._classes["honey"]


def test_two_classes_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="the glaze sugar is registered twice"):
        GLAZES.register("sugar")(Chocolate)


# ------------------------------------------------------------------------- options of a program


def test_options_of_a_program_may_be_switches_and_repeat() -> None:
    words = ["--guests=a b", "--guests", "[c]", "--open", "--cake.eggs=1"]
    assert command_line.read(Bakery, words) == Bakery(
        guests=("a b", "[c]"), open=True, cake=Cake(eggs=1)
    )
    assert command_line.read(Bakery, ["--open=0"]) == Bakery()


def test_a_program_takes_its_own_options_and_leaves_the_others() -> None:
    class Program(Options):
        dry_run: bool = False
        """Only look."""
        world_size: Annotated[int, Range(at_least=1)] = 1
        """Processes."""

    words = command_line.split(["--dry-run", "--world_size=3", "--cake.eggs", "1"], Program)
    assert command_line.take(Program, words) == Program(dry_run=True, world_size=3)
    assert words == {"cake.eggs": ["1"]}
    assert "  --dry-run  (true or false; false)\n      Only look." in reference.help_text(Program)
    with pytest.raises(UserError, match=r"^command line: 'x' is not a setting; write --section"):
        command_line.split(["--dry-run", "x"], Program)
    with pytest.raises(UserError, match=r"^command line: --world_size: is given twice$"):
        command_line.read(Program, ["--world-size=1", "--world_size=1"])


def test_a_switch_is_only_an_option_outside_of_sections() -> None:
    with pytest.raises(UserError, match=r"^command line: --cake.dry: has no value; write"):
        command_line.read(Bakery, ["--cake.dry"])
