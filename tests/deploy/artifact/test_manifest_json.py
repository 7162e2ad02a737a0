"""The manifest is read back as it was written, and nothing malformed gets through."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_deploy.artifact.manifest_json import manifest_from_json, manifest_to_json
from fcn_deploy.errors import ManifestError
from tests.deploy.manifests import example_manifest


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(manifest_to_json(example_manifest()))
    return loaded


def test_what_is_written_is_read_back() -> None:
    manifest = example_manifest()

    assert manifest_from_json(manifest_to_json(manifest)) == manifest


def test_equal_manifests_are_equal_bytes() -> None:
    first = replace(example_manifest(), provenance={"a": "1", "b": "2"})
    second = replace(example_manifest(), provenance={"b": "2", "a": "1"})

    assert manifest_to_json(first) == manifest_to_json(second)


def test_the_keys_are_those_of_the_format() -> None:
    assert set(document()) == {
        "format_version", "files", "inputs", "outputs", "shapes", "preprocess", "classes",
        "variants", "source", "provenance", "receptive_field", "output",
    }  # fmt: skip
    assert set(document()["shapes"]) == {"min", "opt", "max", "multiple_of"}


@pytest.mark.parametrize("said", [{}, {"receptive_field": None}])
def test_an_artifact_may_say_nothing_of_the_receptive_field(said: dict[str, None]) -> None:
    earlier = document()
    del earlier["receptive_field"]

    assert manifest_from_json(json.dumps({**earlier, **said}).encode()).receptive_field is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": [8]}, r"at 'receptive_field.stride': .*length 2; found \[8\]"),
        ({"alignment": [32, 0]}, "expected sizes above 0"),
        ({"before": [-1, 0]}, "expected sizes above 0"),
        (
            {"size": ["a", 1]},
            r"at 'receptive_field.size\[0\]': Expected `int`, got `str`; found \"a\"",
        ),
    ],
)
def test_a_malformed_receptive_field_is_refused(change: dict[str, Any], message: str) -> None:
    broken = document()
    broken["receptive_field"] |= change

    with pytest.raises(ManifestError, match=message):
        manifest_from_json(json.dumps(broken).encode())


def test_the_keys_of_an_output_are_those_of_the_format() -> None:
    output = document()["output"]

    assert set(output) >= {"activation", "threshold", "class_axis", "stop_at", "finish"}
    assert set(output["finish"]) == {"coordinates", "factors", "threshold", "lead", "surplus"}


@pytest.mark.parametrize("said", [{}, {"output": None}])
def test_an_artifact_may_say_nothing_of_its_output(said: dict[str, None]) -> None:
    earlier = document()
    del earlier["output"], earlier["variants"][0]["output"]

    manifest = manifest_from_json(json.dumps({**earlier, **said}).encode())

    assert (manifest.output, manifest.variants[0].output) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"activation": "tanh"},
            "Expected ids, logits, sigmoid, softmax; found .tanh",
        ),
        ({"class_axis": 2}, "output.class_axis': Expected 1, 3; found 2"),
        (
            {"class_axis": True},
            r"'output.class_axis': Expected `int \| null`, got `bool`; found true",
        ),
        ({"scores_class_axis": 0}, "output.scores_class_axis': Expected 1, 3; found 0"),
        (
            {"threshold": "half"},
            r"threshold': Expected `float \| null`, got `str`",
        ),
        ({"stop_at": 3}, r"'output.stop_at': Expected `str \| null`, got `int`; found 3"),
        ({"stop_at": None}, "are not given both, or neither"),
        ({"finish": None}, "are not given both, or neither"),
        (
            {"finish": "labels"},
            r"finish': Expected `object \| null`, got `str`",
        ),
        ({"bytes_per_px": 0}, "output.bytes_per_px is 0.0; expected above 0"),
        ({"bytes_per_px": 1e300}, "at most 536870912"),
    ],
)
def test_a_malformed_output_is_refused(change: dict[str, Any], message: str) -> None:
    broken = document()
    broken["output"] |= change

    with pytest.raises(ManifestError, match=message):
        manifest_from_json(json.dumps(broken).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"coordinates": "cubic"},
            "align_corners, half_pixel, pytorch_half_pixel; found .cubic",
        ),
        ({"factors": [8]}, r"'output.finish.factors': Expected `array` of length 2; found \[8\]"),
        ({"factors": [8, 0]}, "expected 1 or more"),
        ({"factors": [8, 1 << 40]}, "expected at most 65536 px"),
        ({"factors": [8, 0.5]}, r"finish.factors\[1\]': Expected `int`, got `float`; found 0.5"),
        ({"threshold": None}, "finish.threshold': Expected `float`, got `null`"),
        ({"lead": [0.0, 1e9]}, "expected at most 65536 px"),
        ({"surplus": [0, 0, 0]}, "Expected `array` of length 2"),
    ],
)
def test_a_malformed_finish_is_refused(change: dict[str, Any], message: str) -> None:
    broken = document()
    broken["output"]["finish"] |= change

    with pytest.raises(ManifestError, match=message):
        manifest_from_json(json.dumps(broken).encode())


def test_plans_of_an_earlier_release_say_nothing_of_their_origin() -> None:
    earlier = document()
    for variant in earlier["variants"]:
        for key in ("library_version", "version_compatible", "graph", "graph_sha256"):
            del variant[key]

    plan = manifest_from_json(json.dumps(earlier).encode()).variants[1]

    assert (plan.library_version, plan.graph, plan.graph_sha256) == (None, None, None)
    assert not plan.version_compatible


def test_an_unknown_key_is_ignored() -> None:
    extended = {**document(), "later": 1}

    assert manifest_from_json(json.dumps(extended).encode()) == example_manifest()


def test_a_newer_format_says_so() -> None:
    newer = {**document(), "format_version": 2}

    with pytest.raises(ManifestError, match=r"format version 2; this release reads 1.*Install"):
        manifest_from_json(json.dumps(newer).encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"format_version": 1, "format_version": 1}', "a key twice"),
        (b'{"format_version": NaN}', "holds NaN"),
        (b'{"format_version": 1.0}', "Expected `int`, got `float`"),
        (b'{"format_version": 1, "files": 1e999}', "Number out of range"),
        (b"{}", "missing required field `format_version`"),
        (b"[" * 100_000, "not JSON"),
        (b" " * (2 << 20), "at most"),
    ],
)
def test_what_is_no_json_object_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        manifest_from_json(content)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("files", 0, "name"), "../model.onnx", "not a plain file name"),
        (("files", 0, "size"), -1, "size -1"),
        (("files", 0, "sha256"), "abc", "SHA-256"),
        (("files", 0, "name"), "other.onnx", "not among the listed files"),
        (("shapes", "min"), [1, 64], r"`array` of length 3; found \[1, 64\]"),
        (("shapes", "min"), [1, 640, 64], "must not decrease"),
        (("shapes", "multiple_of"), 0, "must be 1 or more"),
        (("shapes", "multiple_of"), True, "Expected `int`, got `bool`; found true"),
        (("preprocess", "std"), [0.0, 1.0, 1.0], "above 0"),
        (("preprocess", "mean"), [0.0], "takes 3"),
        (("preprocess", "color"), "hsv", 'Expected bgr, gray, rgb; found "hsv"'),
        (("classes", 0, "color"), [0, 0, 256], "0..255"),
        (
            ("variants", 0, "precision"),
            "fp8",
            r"variants\[0\].precision': Expected fp32, bf16, fp16, int8",
        ),
        (("variants", 0, "fidelity", 0, "miou"), "high", "Expected `float . null`, got `str`"),
        (("inputs", 0, "layout"), "NCH", "layout"),
        (("inputs", 0, "shape"), ["N", 1, 1, 3], "Expected `int . null`, got `str`"),
        (("inputs", 0, "shape"), [-1, 1, 1, 3], "expected sizes or null"),
        (("source",), None, "Expected `object`, got `null`"),
        (("provenance",), {"torch": 2}, "Expected `str`, got `int`"),
    ],
)
def test_a_malformed_entry_is_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    changed = document()
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value

    with pytest.raises(ManifestError, match=message):
        manifest_from_json(json.dumps(changed).encode())


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_manifest_or_our_error(content: bytes) -> None:
    try:
        manifest_from_json(content)
    except ManifestError as error:
        assert str(error)  # noqa: PT017 - the other outcome is as good


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=4),
    st.binary(min_size=1, max_size=4),
)
@settings(max_examples=500, deadline=None)
def test_a_damaged_manifest_gives_a_manifest_or_our_error(
    places: list[int], replacement: bytes
) -> None:
    content = bytearray(manifest_to_json(example_manifest()))
    for place in places:
        content[place % len(content)] = replacement[place % len(replacement)]

    try:
        manifest_from_json(bytes(content))
    except ManifestError as error:
        assert str(error)  # noqa: PT017 - the other outcome is as good
