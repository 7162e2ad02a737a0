"""Weights beside a model come from plain files in its own folder, and from nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from fcn_deploy.errors import (
    ArtifactMissingError,
    UntrustedArtifactError,
)
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.graph.scan.wire import (
    encode_delimited,
)
from tests.deploy.onnx_models import (
    RELU,
    external_tensor,
    one_node,
    with_external_weight,
    with_weight,
)

PLACE = [("location", "weights.bin"), ("offset", "4"), ("length", "32")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a file of weights in it, and a secret outside."""
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "weights.bin").write_bytes(bytes(64))
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    return inside


@pytest.mark.parametrize("constant_node", [False, True])
def test_weights_in_a_plain_file_beside_the_model_are_taken(
    folder: Path, constant_node: bool
) -> None:
    graph = scan_onnx(with_external_weight(PLACE, constant_node=constant_node), folder=folder)

    assert graph.external_files == {"weights.bin"}


def test_weights_elsewhere_need_a_folder() -> None:
    with pytest.raises(UntrustedArtifactError, match=r"'weight'.*'weights\.bin'.*without a folder"):
        scan_onnx(with_external_weight(PLACE))


@pytest.mark.parametrize("constant_node", [False, True])
@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "/etc/passwd",
        "./weights.bin",
        "sub/weights.bin",
        "..",
        ".",
        "",
        ".hidden",
        "*/_ORT_MEM_ADDR_/*",
        "C:\\weights.bin",
        "weights.bin\x00.txt",
        "weights.bin\n",
        "wеights.bin",  # noqa: RUF001  # the second letter is Cyrillic
        "w" * 129,
    ],
)
def test_a_location_that_is_no_bare_file_name_is_refused(
    folder: Path, location: str, constant_node: bool
) -> None:
    data = with_external_weight([("location", location)], constant_node=constant_node)
    who = "attribute 'value' of node 'holder'" if constant_node else "initializer 'weight'"

    with pytest.raises(UntrustedArtifactError, match=f"{who}.*bare name of a plain file"):
        scan_onnx(data, folder=folder)


@pytest.mark.parametrize("kind", ["symbolic link", "dangling link", "hard link", "pipe", "folder"])
def test_a_location_that_is_no_plain_file_is_refused(folder: Path, kind: str) -> None:
    path, secret = folder / "link.bin", folder.parent / "secret.bin"
    if kind == "symbolic link":
        path.symlink_to(secret)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "hard link":
        os.link(secret, path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()

    with pytest.raises(UntrustedArtifactError, match=r"'link\.bin', (a symb|a hard|not a pl)"):
        scan_onnx(with_external_weight([("location", "link.bin")]), folder=folder)


def test_missing_weights_are_named(folder: Path) -> None:
    data = with_external_weight([("location", "gone.bin")])

    with pytest.raises(ArtifactMissingError, match=r"'weight'.*'gone\.bin', which is missing"):
        scan_onnx(data, folder=folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("offset", "-1")], "offset '-1'"),
        ([("offset", "33")], "bytes 33 to 65; the file has 64"),
        ([("offset", "9223372036854775807")], "offset '9223372036854775807'"),
        ([("offset", "0x10")], "offset '0x10'"),
        ([("offset", " 1")], "offset ' 1'"),
        ([("offset", "٣")], "offset"),
        ([("length", "-32")], "length '-32'"),
        ([("length", "64")], "has 64 bytes; its shape needs 32"),
        ([("length", "0")], "has 0 bytes"),
        ([("__class__", "x")], "__class__"),
        ([("location", "weights.bin")], "at most once"),
    ],
)
def test_an_offset_length_or_key_that_does_not_fit_is_refused(
    folder: Path, entries: list[tuple[str, str]], message: str
) -> None:
    data = with_external_weight([("location", "weights.bin"), *entries])

    with pytest.raises(UntrustedArtifactError, match=message):
        scan_onnx(data, folder=folder)


def test_a_huge_external_tensor_is_refused(folder: Path) -> None:
    data = with_external_weight([("location", "weights.bin")], dims=[2**31 - 1] * 8)

    with pytest.raises(UntrustedArtifactError, match="the file has 64"):
        scan_onnx(data, folder=folder)


def test_the_same_bytes_for_many_tensors_are_refused(folder: Path) -> None:
    tensors = [external_tensor(f"w{i}", [16], [("location", "weights.bin")]) for i in range(2)]
    data = one_node(RELU, *tensors)

    with pytest.raises(UntrustedArtifactError, match=r"has 64 bytes.*need 128"):
        scan_onnx(data, folder=folder)


def test_a_tensor_that_is_both_inside_and_outside_is_refused(folder: Path) -> None:
    both = external_tensor("weight", [8], PLACE)
    both.raw_data = bytes(32)
    neither = external_tensor("weight", [8], PLACE)
    neither.data_location = TensorProto.DEFAULT

    for tensor, message in ((both, "also names the file"), (neither, "although they are in")):
        with pytest.raises(UntrustedArtifactError, match=message):
            scan_onnx(with_weight(tensor), folder=folder)


def test_a_location_hidden_in_a_second_piece_of_the_tensor_is_found(folder: Path) -> None:
    plain = with_external_weight(PLACE, constant_node=True)
    model = onnx.load_from_string(plain)
    attribute = model.graph.node[0].attribute[0]
    piece = TensorProto()
    piece.external_data.add(key="location", value="../secret.bin")
    split = attribute.SerializeToString() + encode_delimited(5, piece.SerializeToString())
    node = model.graph.node[0]
    node.ClearField("attribute")
    bytes_of_node = node.SerializeToString() + encode_delimited(5, split)
    del model.graph.node[0]
    graph = encode_delimited(1, bytes_of_node) + model.graph.SerializeToString()
    model.ClearField("graph")
    data = model.SerializeToString() + encode_delimited(7, graph)

    with pytest.raises(UntrustedArtifactError, match=r"secret\.bin.*at most once"):
        scan_onnx(data, folder=folder)
