"""One door for models: recognised, built by a factory, carried by a file, or handed over."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import segmentation

from fcn_deploy.errors import (
    ArtifactMissingError,
    NonFiniteWeightsError,
    UnsupportedModelError,
    UntrustedArtifactError,
)
from fcn_export.load.torch_model import (
    LoadedModel,
    check_finite_weights,
    load_model,
    parse_arch_args,
    probe,
    select_output,
)

ROOT = Path(__file__).resolve().parents[3]

NETWORK_CODE = '''
"""A user's own network."""
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, num_classes=2, width=4):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.head = nn.Conv2d(width, num_classes, 1)
        self.register_buffer("grid", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.head(self.model(x))

    def train(self, mode=True):
        super().train(mode)  # forgets to return the module, as many do


def build(num_classes=2, width=4):
    return Network(num_classes, width)


def only_model(width=4):
    return nn.ModuleDict({"model": nn.Conv2d(3, width, 1)})


def gives_a_number():
    return 3


def fails():
    raise RuntimeError("the width must be even")


def leaves():
    raise SystemExit(2)


lazily = lambda: __import__("deep_helper").build()
not_callable = 3
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a user's code in it, forgotten afterwards."""
    package = tmp_path / "our_nets"
    package.mkdir()
    (package / "network.py").write_text(NETWORK_CODE)
    (package / "needs_more.py").write_text("import a_package_that_nobody_has\n")
    (package / "trains.py").write_text("raise ValueError('no data set')\n")
    (tmp_path / "deep_helper.py").write_text("from our_nets.network import build\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [x for x in sys.modules if x.partition(".")[0] in ("our_nets", "deep_helper")]:
        del sys.modules[name]


def _user_weights(project: Path, **arguments: Any) -> tuple[Path, nn.Module]:
    namespace: dict[str, Any] = {}
    exec(compile(NETWORK_CODE, "network", "exec"), namespace)  # noqa: S102 # the code above
    torch.manual_seed(0)
    network: nn.Module = namespace["Network"](**arguments)
    torch.save(network.state_dict(), project / "ours.pt")
    network.eval()
    return project / "ours.pt", network


# ---- recognised networks


def test_lraspp_in_half_precision_and_wrapped_gives_the_scores_of_the_original(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    original = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    )
    original = original.half().float().eval()  # what fp16 can hold
    half = {f"module._orig_mod.{k}": v.half() for k, v in original.state_dict().items()}
    half = {k: v.long() if k.endswith("num_batches_tracked") else v for k, v in half.items()}
    torch.save({"epoch": 3, "state_dict": half}, tmp_path / "model.pt")
    image = torch.randn(1, 3, 32, 64)

    loaded = load_model(tmp_path / "model.pt")

    assert (loaded.arch, loaded.num_classes, loaded.output_key) == (
        "lraspp_mobilenet_v3_large",
        5,
        "out",
    )
    assert loaded.kind == "state_dict"
    assert not loaded.module.training
    assert {x.dtype for x in loaded.module.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(loaded.scores(image), original(image)["out"])


def test_a_reference_checkpoint_of_fcn_resnet50_with_aux_head_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=7, aux_loss=True
    ).eval()
    torch.save(
        {"model": original.state_dict(), "epoch": 1, "args": argparse.Namespace(lr=0.01)},
        tmp_path / "checkpoint.pth",
    )
    image = torch.randn(1, 3, 32, 40)

    loaded = load_model(tmp_path / "checkpoint.pth", arch_args={"num_classes": 7})

    assert (loaded.arch, loaded.num_classes) == ("fcn_resnet50", 7)
    assert loaded.path == tmp_path / "checkpoint.pth"
    assert loaded.sha256 is not None
    assert len(loaded.sha256) == 64
    check_finite_weights(loaded.module)
    with torch.no_grad():
        output = loaded.module(image)
        expected = original(image)
    assert torch.equal(output["out"], expected["out"])
    assert torch.equal(output["aux"], expected["aux"])


def test_weights_without_batch_counters_load(tmp_path: Path) -> None:
    # as PyTorch before 0.4.1 saved them
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    state = {k: v for k, v in network.state_dict().items() if "num_batches_tracked" not in k}
    torch.save(state, tmp_path / "old.pt")

    loaded = load_model(tmp_path / "old.pt")

    assert int(loaded.module.get_buffer("backbone.0.1.num_batches_tracked")) == 0


def test_missing_and_left_over_weights_are_listed(tmp_path: Path) -> None:
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    state = dict(network.state_dict())
    del state["backbone.3.block.0.0.weight"]
    state["extra.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "odd.pt")

    with pytest.raises(
        UnsupportedModelError,
        match=r"1 missing: backbone\.3\.block\.0\.0\.weight; 1 left over: extra\.weight",
    ):
        load_model(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    ("arch", "arguments", "message"),
    [
        ("fcn_resnet50", {}, "arch 'fcn_resnet50' was given, but .* lraspp_mobilenet_v3_large"),
        (None, {"num_classes": 7}, "num_classes 7 was given, but .* with 21 classes and no aux"),
        (None, {"aux_loss": True}, "aux_loss True was given"),
        (None, {"width": 3}, "'width' needs a factory"),
        ("resnet18", {}, "neither one of fcn_resnet50.* nor of the form package.module:factory"),
        ("nets/model.py:build", {}, "neither one of .* dotted name"),
    ],
)
def test_what_the_user_says_must_fit_the_weights(
    tmp_path: Path, arch: str | None, arguments: dict[str, Any], message: str
) -> None:
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save(network.state_dict(), tmp_path / "model.pt")

    with pytest.raises(UnsupportedModelError, match=message):
        load_model(tmp_path / "model.pt", arch=arch, arch_args=arguments)


def test_a_missing_file_is_missing() -> None:
    with pytest.raises(ArtifactMissingError, match="does not exist"):
        load_model("nothing/here.pt")


def test_loading_touches_the_network_once_and_leaves_the_random_state(tmp_path: Path) -> None:
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    before = torch.get_rng_state()

    loaded = load_model(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"")  # a mapped file cut short would kill the process

    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.module(torch.zeros(1, 3, 64, 64))["out"].isfinite().all()
    assert not any(x.requires_grad for x in loaded.module.parameters())


# ---- a user's factory


def test_a_factory_of_the_working_directory_builds_the_network(project: Path) -> None:
    path, original = _user_weights(project, num_classes=3, width=6)
    image = torch.randn(2, 3, 9, 7)
    import_path = list(sys.path)

    loaded = load_model(
        path, arch="our_nets.network:build", arch_args={"num_classes": 3, "width": 6}
    )

    assert sys.path == import_path
    assert loaded.arch == "our_nets.network:build"
    assert dict(loaded.arch_args) == {"num_classes": 3, "width": 6}
    assert (loaded.num_classes, loaded.output_key) == (None, None)
    assert not loaded.module.training
    assert torch.equal(loaded.scores(image), original(image))


def test_a_class_and_a_late_import_are_factories_too(project: Path) -> None:
    path, _ = _user_weights(project)

    by_class = load_model(path, arch="our_nets.network:Network")
    late = load_model(path, arch="our_nets.network:lazily")

    assert type(by_class.module).__name__ == type(late.module).__name__ == "Network"


def test_a_prefix_that_the_users_network_really_has_is_kept(project: Path) -> None:
    conv = nn.Conv2d(3, 4, 1)
    for prefix in ("model.", "module.model."):
        state = {prefix + name: value for name, value in conv.state_dict().items()}
        torch.save(state, project / "prefixed.pt")

        loaded = load_model(project / "prefixed.pt", arch="our_nets.network:only_model")

        assert torch.equal(loaded.module.get_parameter("model.weight"), conv.weight)


@pytest.mark.parametrize("prefix", ["model.", "net.", "task.segmentor.", ""])
@pytest.mark.parametrize(
    "beside", ["criterion.weight", "val_iou.confmat", "loss.weight", "train_metrics.dice.total"]
)
def test_what_lies_beside_the_network_is_left_out_and_named(
    project: Path, prefix: str, beside: str
) -> None:
    path, original = _user_weights(project)
    state = {prefix + name: value for name, value in original.state_dict().items()}
    content = {"state_dict": {**state, beside: torch.ones(4)}, "epoch": 3}
    torch.save(content, path)

    loaded = load_model(path, arch="our_nets.network:Network")

    image = torch.randn(1, 3, 9, 7)
    assert torch.equal(loaded.scores(image), original(image))
    assert len(loaded.notes) == 1
    assert beside in loaded.notes[0]


def test_the_plain_network_is_taken_beside_its_averaged_copy(project: Path) -> None:
    path, original = _user_weights(project)
    state = original.state_dict()
    ema = {f"ema_net.{name}": torch.zeros_like(value) for name, value in state.items()}
    torch.save({**ema, **{f"our_net.{name}": value for name, value in state.items()}}, path)

    loaded = load_model(path, arch="our_nets.network:Network")

    image = torch.randn(1, 3, 9, 7)
    assert torch.equal(loaded.scores(image), original(image))
    assert "ema_net." in loaded.notes[0]


def test_two_networks_that_both_fit_are_not_guessed(project: Path) -> None:
    path, original = _user_weights(project)
    state = original.state_dict()
    torch.save(
        {f"{side}.{name}": v for side in ("left", "right") for name, v in state.items()}, path
    )

    with pytest.raises(UnsupportedModelError, match=r"such a network 2 times: left\., right\."):
        load_model(path, arch="our_nets.network:Network")


def test_a_known_network_is_recognised_beside_its_loss(tmp_path: Path) -> None:
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(21)}}, tmp_path / "l.ckpt")

    loaded = load_model(tmp_path / "l.ckpt")

    assert loaded.arch == "lraspp_mobilenet_v3_large"
    assert "criterion.weight" in loaded.notes[0]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nowhere:build", "module 'nowhere' was not found: there is no 'nowhere' in .*working"),
        ("our_nets.absent:build", "there is no 'our_nets.absent'"),
        ("our_nets.needs_more:x", "needs 'a_package_that_nobody_has', which is not installed"),
        ("our_nets.trains:x", "importing .* raised ValueError: no data set.*__main__"),
        ("our_nets.network:bild", "has no 'bild'; it has Network, build, fails"),
        ("our_nets.network:not_callable", "is a int, which cannot be called"),
        ("our_nets.network:gives_a_number", "gave a int; expected a torch.nn.Module"),
        ("our_nets.network:fails", "raised RuntimeError: the width must be even"),
        ("our_nets.network:leaves", "raised SystemExit: 2"),
    ],
)
def test_a_wrong_factory_says_what_is_wrong(project: Path, factory: str, message: str) -> None:
    path, _ = _user_weights(project)
    import_path = list(sys.path)

    with pytest.raises(UnsupportedModelError, match=message):
        load_model(path, arch=factory)

    assert sys.path == import_path


def test_a_wrong_argument_shows_what_the_factory_takes(project: Path) -> None:
    path, _ = _user_weights(project)

    with pytest.raises(
        UnsupportedModelError,
        match=r"build\(depth=3\) raised TypeError.*It takes build\(num_classes=2, width=4\)",
    ) as failure:
        load_model(path, arch="our_nets.network:build", arch_args={"depth": 3})

    assert isinstance(failure.value.__cause__, TypeError)


def test_weights_of_another_shape_are_listed_with_both_shapes(project: Path) -> None:
    path, _ = _user_weights(project, num_classes=3)

    with pytest.raises(
        UnsupportedModelError,
        match=r"do not fit our_nets\.network:build: 2 of another shape: "
        r"head\.weight is \[3, 4, 1, 1\], expected \[2, 4, 1, 1\], head\.bias is \[3\]",
    ):
        load_model(path, arch="our_nets.network:build")


def test_arguments_are_literals_or_else_text() -> None:
    parsed = parse_arch_args(
        ["num_classes=7", "aux = True", "name=resnet50", "sizes=(1, 2)", "x=None", "s='7'", "e="]
    )

    assert parsed == {
        "num_classes": 7,
        "aux": True,
        "name": "resnet50",
        "sizes": (1, 2),
        "x": None,
        "s": "7",
        "e": "",
    }


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["num_classes"], "not of the form key=value"),
        (["a-b=3"], "not of the form key=value"),
        (["a=1", "a=2"], "given twice"),
    ],
)
def test_malformed_arguments_are_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse_arch_args(pairs)


def test_an_argument_is_never_evaluated(tmp_path: Path) -> None:
    text = f"open({str(tmp_path / 'marker')!r}, 'w')"

    assert parse_arch_args([f"x={text}"]) == {"x": text}
    assert not (tmp_path / "marker").exists()


# ---- files that carry their network


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_torchscript_loads_when_it_is_trusted(tmp_path: Path) -> None:
    network = _network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch is giving TorchScript up
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 8, 8)), tmp_path / "a.pt")

    loaded = load_model(tmp_path / "a.pt", trust_code=True)

    assert (loaded.kind, loaded.arch, loaded.num_classes) == ("torchscript", "torchscript", None)
    assert probe(loaded.module, size=(16, 24)) == (1, 2, 16, 24)
    with pytest.raises(UntrustedArtifactError, match="--trust-code"):
        load_model(tmp_path / "a.pt")
    with pytest.raises(UnsupportedModelError, match="carries its own network, so --arch"):
        load_model(tmp_path / "a.pt", trust_code=True, arch="fcn_resnet50")


def test_an_exported_program_loads_and_takes_eval_calmly(tmp_path: Path) -> None:
    network = _network().eval()
    image = torch.randn(2, 3, 8, 10)
    free = torch.export.Dim.AUTO
    program = torch.export.export(network, (image,), dynamic_shapes=({0: free, 2: free, 3: free},))
    torch.export.save(program, tmp_path / "a.pt2")

    loaded = load_model(tmp_path / "a.pt2", trust_code=True)

    assert loaded.module.eval() is loaded.module
    assert not loaded.module.training
    assert probe(loaded.module, size=(12, 20)) == (1, 2, 12, 20)
    # the same operators in the same order, perhaps fused differently
    torch.testing.assert_close(loaded.scores(image), network(image), rtol=1e-5, atol=1e-6)


def test_a_module_that_is_handed_over_is_only_wrapped() -> None:
    network = _network().half().train()
    before = {name: (x.data_ptr(), x.dtype) for name, x in network.named_parameters()}

    loaded = LoadedModel.from_module(network, output_key=None)

    assert loaded.module is network
    assert network.training
    assert {n: (x.data_ptr(), x.dtype) for n, x in network.named_parameters()} == before
    assert all(x.requires_grad for x in network.parameters())
    assert (loaded.kind, loaded.path, loaded.sha256) == ("module", None, None)
    assert loaded.arch == "torch.nn.modules.container.Sequential"
    assert "Conv2d" not in repr(loaded)


# ---- outputs

Pair = namedtuple("Pair", ["logits", "features"])


@dataclass
class Result:
    masks: Tensor
    loss: Tensor


SCORES = torch.zeros(1, 2, 4, 4)
FLAT = torch.zeros(1, 5)


@pytest.mark.parametrize(
    ("output", "key"),
    [
        (SCORES, None),
        (OrderedDict(out=SCORES, aux=torch.ones(1, 2, 4, 4)), None),
        ({"logits": SCORES, "vector": FLAT}, None),
        ({"a": SCORES, "b": torch.ones(1, 2, 4, 4)}, "a"),
        ((SCORES, FLAT), None),
        ([torch.ones(1, 2, 4, 4), SCORES], "1"),
        ((SCORES, [torch.ones(1, 2, 4, 4)]), None),
        (Pair(SCORES, torch.ones(1, 2, 4, 4)), "logits"),
        (Result(SCORES, torch.zeros(())), None),
    ],
)
def test_the_scores_are_found(output: Any, key: str | None) -> None:
    assert select_output(output, key) is SCORES


@pytest.mark.parametrize(
    ("output", "key", "message"),
    [
        (FLAT, None, r"output \[1, 5\]\): it must be \[N, classes"),
        (SCORES, "out", "gives one tensor .*, none named 'out'"),
        ({"a": SCORES, "b": SCORES}, None, r"a \[1, 2, 4, 4\], b .*2 of them .*--output-key"),
        ({"a": FLAT}, None, "0 of them"),
        ({"a": SCORES}, "b", "none is named 'b'"),
        ({"a": FLAT, "b": [1]}, "b", r"b \(list\)\): 'b' is not \[N"),
        ("text", None, "gives a str; expected a tensor"),
        ((), None, "nothing"),
    ],
)
def test_outputs_without_clear_scores_are_listed(
    output: Any, key: str | None, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        select_output(output, key)


def test_a_failing_network_is_reported_with_its_own_error() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"float32 image \[1, 1, 64, 64\]: RuntimeError.*--color gray"
    ) as failure:
        probe(_network().eval(), channels=1)

    assert isinstance(failure.value.__cause__, RuntimeError)


# ---- weights that are no numbers


def test_the_first_weight_that_is_not_finite_is_named() -> None:
    network = _network()
    with torch.no_grad():
        network.get_parameter("0.weight")[1, 2, 0, 1] = float("nan")
        network.get_parameter("0.weight")[3, 0, 0, 0] = float("inf")
        network.get_buffer("1.running_var")[0] = float("-inf")

    with pytest.raises(
        NonFiniteWeightsError,
        match=r"weight '0\.weight' \[4, 3, 3, 3\] holds 2 values that are not finite, the first at "
        r"\[1, 2, 0, 1\] \(nan\); so do 1 more tensors",
    ):
        check_finite_weights(network)


def test_a_scalar_buffer_that_is_not_finite_is_named() -> None:
    network = nn.Module()
    network.register_buffer("scale", torch.tensor(float("inf")))

    with pytest.raises(NonFiniteWeightsError, match=r"'scale' \[\] holds 1 .* at \[\] \(inf\)"):
        check_finite_weights(network)


def test_finite_weights_of_any_dtype_pass() -> None:
    network = _network().bfloat16()
    network.register_buffer("counts", torch.arange(3))

    check_finite_weights(network)


# ---- what importing and loading cost


def test_importing_the_package_and_its_door_loads_no_torch() -> None:
    code = (
        "import sys, fcn_export, fcn_export.load.torch_model; "
        "print(sorted({'torch', 'torchvision', 'onnx', 'safetensors'} & set(sys.modules)))"
    )

    path = os.pathsep.join(str(ROOT / folder) for folder in ("", "export"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )

    assert done.stdout.strip() == "[]"


def test_names_are_re_exported_when_asked_for() -> None:
    import fcn_export

    assert fcn_export.load_model is load_model
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fcn_export.nothing
