"""What `make lint` asks of public docstrings, rule by rule."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from scripts.check_docstrings import faults_in, main

ENLARGE = """
    def enlarge(scores: Array, size: tuple[int, int]) -> Array:
        '''Enlarge {what}.'''
        return scores
"""

OPEN = """
    def open_file(path: str) -> None:
        '''Open a file.{raises}'''
        {body}
"""

READ = """
    class FileReader:
        def read(self) -> Array:
            {docstring}
            return self.array
"""

PROTOCOL = """
    class Reader(Protocol):
        def read(self) -> Array:
            {docstring}
"""


def check(*sources: str, name: str = "module.py") -> list[str]:
    """Check modules, the first of which is called `name`."""
    names = [name, *(f"other{index}.py" for index in range(1, len(sources)))]
    return faults_in(
        {Path(name): dedent(source) for name, source in zip(names, sources, strict=True)}
    )


@pytest.mark.parametrize(
    ("what", "missing"),
    [
        ("float32 scores", ["shape"]),
        ("scores [N, C, h, w]", ["dtype"]),
        ("the scores", ["shape", "dtype"]),
        ("float32 scores [N, C, h, w]", []),
        ("a scalar of any dtype", []),
        ("arrays of one shape and dtype", []),
    ],
)
def test_a_function_with_arrays_says_their_shape_and_dtype(what: str, missing: list[str]) -> None:
    faults = check(ENLARGE.format(what=what))

    assert faults == [
        f"module.py:2: enlarge takes or gives arrays, but no {word} is said" for word in missing
    ]


@pytest.mark.parametrize("kind", ["np.ndarray", "torch.Tensor", "Mapping[str, Array] | None"])
def test_arrays_are_found_in_every_kind_of_annotation(kind: str) -> None:
    faults = check(f"def run(*, feeds: {kind}) -> None:\n    'Run the network.'\n    pass\n")

    assert [fault.rpartition(" no ")[2] for fault in faults] == ["shape is said", "dtype is said"]


def test_a_function_without_arrays_needs_no_shape() -> None:
    assert check("def count(text: str) -> int:\n    'Count the lines.'\n    return 1\n") == []


def test_an_error_that_is_raised_is_named() -> None:
    body = "raise SourceError(path)"
    named = "\n\n        Raises:\n            SourceError: it cannot be read.\n        "

    assert check(OPEN.format(raises="", body=body)) == [
        "module.py:2: open_file raises SourceError, which its docstring does not name"
    ]
    assert check(OPEN.format(raises=named, body=body)) == []


@pytest.mark.parametrize(
    "body",
    [
        "raise",
        "raise error_of(path)",
        "raise self.error",
        "def refuse(): raise SourceError(path)",
        "refuse = lambda: (_ for _ in ()).throw(SourceError(path))",
    ],
)
def test_errors_that_others_make_or_raise_need_no_name(body: str) -> None:
    assert check(OPEN.format(raises="", body=body)) == []


@pytest.mark.parametrize("name", ["_private", "__repr__"])
def test_private_functions_may_say_less(name: str) -> None:
    assert check(f"def {name}(scores: Array) -> Array:\n    return scores\n") == []


def test_private_modules_and_methods_of_private_classes_may_say_less() -> None:
    method = READ.format(docstring="pass")

    assert check(method, name="_module.py") == []
    assert check(method.replace("FileReader", "_FileReader")) == []
    assert len(check(method, name="__init__.py")) == 2


def test_a_method_without_docstring_takes_that_of_a_protocol() -> None:
    documented = PROTOCOL.format(docstring="'Give float32 [N].'")

    assert check(READ.format(docstring="pass"), documented) == []


def test_a_protocol_that_says_nothing_excuses_no_method() -> None:
    faults = check(READ.format(docstring="pass"), PROTOCOL.format(docstring="..."))

    assert [fault.partition(" takes")[0] for fault in faults] == ["module.py:3: read"] * 2


def test_a_docstring_of_its_own_is_checked_even_where_a_protocol_has_one() -> None:
    documented = PROTOCOL.format(docstring="'Give float32 [N].'")

    faults = check(READ.format(docstring="'Give what was read.'"), documented)

    assert len(faults) == 2


def test_a_declaration_of_a_foreign_method_needs_no_docstring() -> None:
    assert check(PROTOCOL.format(docstring="...")) == []


def test_the_whole_tree_passes(capsys: pytest.CaptureFixture[str]) -> None:
    status = main()

    assert (status, capsys.readouterr().out) == (
        0,
        "Every public docstring says shapes, dtypes and errors.\n",
    )


def test_a_place_that_says_too_little_is_printed_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fcn_deploy").mkdir()
    (tmp_path / "fcn_deploy" / "run.py").write_text(dedent(ENLARGE.format(what="uint8 labels")))
    monkeypatch.setattr("scripts.check_docstrings.ROOT", tmp_path)

    status = main()

    assert status == 1
    assert capsys.readouterr().out.startswith("fcn_deploy/run.py:2: enlarge takes or gives arrays")
