"""An artifact is what was written, or an error; writing leaves the old, the new, or nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fcn_deploy.artifact.folder import Artifact, ArtifactWriter
from fcn_deploy.artifact.plain_files import read_plain_file
from fcn_deploy.errors import (
    ArtifactBusyError,
    ArtifactError,
    ArtifactMissingError,
    DigestMismatchError,
    DiskFullError,
    ManifestError,
    OutputExistsError,
    UntrustedArtifactError,
)
from fcn_deploy.names import Precision
from tests.deploy.manifests import MANIFEST


def write(path: Path, content: bytes = b"graph", *, force: bool = False) -> Artifact:
    with ArtifactWriter(path, force=force) as writer:
        writer.add("model.onnx", content)
        return writer.commit(MANIFEST)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "a.fcn", b"graph")

    artifact = Artifact.open(tmp_path / "a.fcn")

    assert artifact.read("model.onnx") == b"graph"
    assert sorted(os.listdir(tmp_path)) == ["a.fcn"]


def test_bf16_runs_the_fp32_graph_and_a_missing_precision_says_how_to_get_it(
    tmp_path: Path,
) -> None:
    artifact = write(tmp_path / "a.fcn")

    assert artifact.variant(Precision.BF16).file == "model.onnx"
    with pytest.raises(ArtifactMissingError, match=r"no int8 graph; it has fp32.*--precision int8"):
        artifact.variant(Precision.INT8)


@pytest.mark.parametrize("kept", [0, 1, 50, 99])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    artifact = write(tmp_path / "a.fcn", b"x" * 100)
    os.truncate(tmp_path / "a.fcn" / "model.onnx", kept)

    with pytest.raises(DigestMismatchError, match=f"{kept} bytes; the manifest says 100"):
        artifact.read("model.onnx")


def test_any_flipped_bit_is_refused(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(64)
    artifact = write(tmp_path / "a.fcn", content)

    for place in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        (tmp_path / "a.fcn" / "model.onnx").write_bytes(damaged)

        with pytest.raises(DigestMismatchError, match="export or copy the artifact again"):
            artifact.read("model.onnx")


def test_a_missing_file_lists_what_is_there(tmp_path: Path) -> None:
    artifact = write(tmp_path / "a.fcn")
    (tmp_path / "a.fcn" / "model.onnx").unlink()

    with pytest.raises(ArtifactMissingError, match=r"'model.onnx' is missing.*manifest.json"):
        artifact.read("model.onnx")


def test_an_unlisted_file_is_not_read(tmp_path: Path) -> None:
    artifact = write(tmp_path / "a.fcn")
    (tmp_path / "a.fcn" / "extra.onnx").write_bytes(b"x")

    with pytest.raises(ArtifactMissingError, match=r"does not list 'extra.onnx'"):
        artifact.read("extra.onnx")


def test_a_folder_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match=r"'manifest.json' is missing"):
        Artifact.open(tmp_path)
    with pytest.raises(ArtifactMissingError, match="fcn-export MODEL makes one"):
        Artifact.open(tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "pipe", "folder"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    artifact = write(tmp_path / "a.fcn")
    path = tmp_path / "a.fcn" / "model.onnx"
    path.rename(tmp_path / "moved")
    if kind == "symbolic link":
        path.symlink_to(tmp_path / "moved")
    elif kind == "hard link":
        path.hardlink_to(tmp_path / "moved")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()

    with pytest.raises(UntrustedArtifactError, match=r"link|not a plain file"):
        artifact.read("model.onnx")


def test_a_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 11)

    with pytest.raises(ArtifactError, match="11 bytes; at most 10"):
        read_plain_file(tmp_path / "big", max_bytes=10)


def test_an_existing_artifact_is_kept_unless_forced(tmp_path: Path) -> None:
    write(tmp_path / "a.fcn", b"old")

    with pytest.raises(OutputExistsError, match="--force"):
        write(tmp_path / "a.fcn", b"new")
    assert Artifact.open(tmp_path / "a.fcn").read("model.onnx") == b"old"

    write(tmp_path / "a.fcn", b"new", force=True)
    assert Artifact.open(tmp_path / "a.fcn").read("model.onnx") == b"new"
    assert os.listdir(tmp_path) == ["a.fcn"]


def test_force_does_not_replace_what_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "only.jpg").write_bytes(b"x")

    with pytest.raises(OutputExistsError, match="is not an artifact"):
        write(tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "only.jpg").exists()


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.fcn").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OutputExistsError, match="is a link to"):
        write(tmp_path / "a.fcn", force=True)


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with ArtifactWriter(tmp_path / "a.fcn") as writer:
            writer.add("model.onnx", b"x")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()

    assert os.listdir(tmp_path) == []


def test_a_variant_without_its_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    def commit_without_graph() -> None:
        with ArtifactWriter(tmp_path / "a.fcn") as writer:
            writer.add("other.onnx", b"x")
            writer.commit(MANIFEST)

    with pytest.raises(ManifestError, match=r"'model.onnx' is not among"):
        commit_without_graph()
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(ArtifactError, match="cannot write into"):
        write(tmp_path / "file" / "a.fcn")


def test_a_second_writer_is_told_who_is_writing(tmp_path: Path) -> None:
    with (
        ArtifactWriter(tmp_path / "a.fcn"),
        pytest.raises(ArtifactBusyError, match=f"process {os.getpid()} is writing"),
    ):
        write(tmp_path / "a.fcn")


def test_a_killed_writers_leftovers_are_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".a.fcn.tmp-dead").mkdir()
    (tmp_path / ".a.fcn.tmp-dead" / "model.onnx").write_bytes(b"half")
    (tmp_path / ".a.fcn.lock").write_text("99999")

    write(tmp_path / "a.fcn")

    assert os.listdir(tmp_path) == ["a.fcn"]


def test_writers_in_many_threads_never_mix(tmp_path: Path) -> None:
    def work(mark: bytes) -> None:
        for _ in range(15):
            try:
                write(tmp_path / "a.fcn", mark * 5000, force=True)
            except ArtifactBusyError:
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    reads = 0
    while any(thread.is_alive() for thread in threads):
        try:
            content = Artifact.open(tmp_path / "a.fcn").read("model.onnx")
        except (ArtifactMissingError, DigestMismatchError):
            continue  # not there yet, or replaced between the manifest's read and this one
        assert len(set(content)) == 1
        reads += 1

    assert reads > 0
    assert len(set(Artifact.open(tmp_path / "a.fcn").read("model.onnx"))) == 1


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.deploy.artifact.test_folder import write
print("ready", flush=True)
while True:
    for mark in (b"a", b"b"):
        write(Path(sys.argv[1]), mark * 20_000, force=True)
"""


def test_kill_at_any_moment_leaves_a_whole_artifact_or_nothing(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    path = tmp_path / "a.fcn"
    chance = random.Random(0)

    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(root)], stdout=subprocess.PIPE, cwd=root
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()

        if path.exists():
            content = Artifact.open(path).read("model.onnx")
            assert len(content) == 20_000
            assert len(set(content)) == 1

    write(path, b"last", force=True)
    assert os.listdir(tmp_path) == ["a.fcn"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fcn_deploy.errors import DiskFullError
from tests.deploy.artifact.test_folder import write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write(Path(sys.argv[1]), b"x" * 200_000, force=True)
except DiskFullError as error:
    print(error)
"""


def test_a_full_disk_keeps_the_old_artifact_and_says_how_much_is_needed(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    write(tmp_path / "a.fcn", b"old")

    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.fcn"), str(root)],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    )

    assert "no room for 'model.onnx' (200000 bytes)" in child.stdout
    assert issubclass(DiskFullError, OSError)
    assert Artifact.open(tmp_path / "a.fcn").read("model.onnx") == b"old"
    assert os.listdir(tmp_path) == ["a.fcn"]
