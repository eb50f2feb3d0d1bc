"""Checkpoints as training scripts leave them: read as data only, and matched to a network or refused in one line."""

from __future__ import annotations

import argparse
import builtins
import collections
import copy
import enum
import io
import json
import os
import pathlib
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeres.errors import UsageError, WeightsError
from edgeres.inert import DamagedPickle, Inert, read_pickle
from edgeres.zoo.checkpoint import Loaded, WeightsChoice, load_model
from edgeres.zoo.resnet import create
from edgeres.zoo.state_dict import load_checkpoint

FEATURES, CLASSES = 64, 3
State = dict[str, Tensor]


@lru_cache
def state(seed: int = 0, name: str = "resnet20", classes: int = CLASSES) -> State:
    """Random tensors of a network; every value differs from every other seed's."""
    generator = torch.Generator().manual_seed(seed)
    need = create(name, classes).state_dict().items()
    return {k: torch.rand(v.shape, generator=generator) + 0.5 for k, v in need if not k.endswith("tracked")}


BODY = {k: v for k, v in state().items() if not k.startswith("linear.")}
WEIGHT, BIAS = state()["linear.weight"], state()["linear.bias"]
HEAD = {"linear.weight": WEIGHT, "linear.bias": BIAS}


def under(prefix: str, tensors: State) -> State:
    return {prefix + key: value for key, value in tensors.items()}


def load(file: Path, **choice: Any) -> Loaded:
    return load_model("resnet20", WeightsChoice(str(file), **choice))


def saved(data: object, folder: Path) -> Path:
    torch.save(data, folder / "a.pth")
    return folder / "a.pth"


def values(network: nn.Module) -> State:
    return {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}


def assert_takes(file: Path, want: State, **choice: Any) -> tuple[str, ...]:
    """The file gives a resnet20 with exactly these values."""
    network, _, notes = load(file, **choice)
    got = values(network)
    assert got.keys() == want.keys()
    for key, tensor in want.items():
        assert torch.equal(got[key], tensor), key
    return notes


def assert_refused(file: Path, *words: str, **choice: Any) -> None:
    with pytest.raises(WeightsError) as caught:
        load(file, **choice)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 900
    for word in words:
        assert word in line


# Nothing in the file runs


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class WithState:
    """Pickles as an object with a state, which a reader would give to ``__setstate__``."""

    def __setstate__(self, given: Any) -> None:
        raise AssertionError("ran")

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


FORMS = ("zip", "legacy", "pickle 0", "pickle 2", "pickle 4", "pickle 5")


def written(data: object, form: str, file: Path) -> Path:
    if form.startswith("pickle"):
        file.write_bytes(pickle.dumps(data, protocol=int(form[-1])))
    else:
        torch.save(data, file, _use_new_zipfile_serialization=form == "zip")
    return file


@pytest.mark.parametrize("form", FORMS)
def test_calls_in_a_file_are_data_while_its_tensors_load(tmp_path: Path, form: str) -> None:
    calls = {
        "mkdir": Call(os.mkdir, str(tmp_path / "ran")),
        "eval": Call(eval, "1/0"),
        "exec": Call(exec, "raise SystemExit"),
        "getattr": Call(getattr, Call(getattr, os, "path") if form == "none" else os.path.join, "__globals__"),
        "torch": Call(torch.save, 1, str(tmp_path / "ran.pth")),
        "hub": Call(torch.hub.load, "a/b", "c"),
        "objects": np.array([WithState(), Call(os.mkdir, str(tmp_path / "ran"))], dtype=object),
        "state": WithState(),
        "call of a call": Call(copy.copy, Call(os.mkdir, str(tmp_path / "ran"))),
    }
    file = written({**calls, "state_dict": state(), "more": calls}, form, tmp_path / "a.pth")
    assert_takes(file, state())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]


def test_no_module_that_a_file_names_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    load_checkpoint(saved({"a.weight": torch.ones(1)}, tmp_path))  # imports what reading itself needs
    wanted: list[str] = []
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *args: wanted.append(name) or real(name, *args))
    programs = [
        b"ctrap\nClass\n.",
        b"\x80\x04\x8c\x04trap\x8c\x05Class\x93.",
        b"(itrap\nClass\n.",
        b"(ctrap\nClass\no.",
        b"\x80\x02ctrap\nClass\n)\x81}b.",
        b"ctrap\nClass\n(tR(dS'a'\nI1\nsb.",
    ]
    for program in programs:
        found = read_pickle(io.BytesIO(program), {}, lambda identifier: identifier)
        assert isinstance(found, Inert) and found.path == "trap.Class"
    assert "trap" not in wanted and "trap" not in sys.modules


def test_a_build_on_a_function_or_a_tensor_changes_nothing() -> None:
    """BUILD would set attributes: here of the function that makes tensors, and of an OrderedDict's class."""
    for target in ("torch._utils _rebuild_tensor_v2", "collections OrderedDict", "builtins dict"):
        module, name = target.split()
        program = f"c{module}\n{name}\n(N(dS'__code__'\nI1\nstb.".encode()
        found = read_pickle(io.BytesIO(program), {}, lambda identifier: identifier)
        assert isinstance(found, Inert) and found.state == (None, {"__code__": 1})
    assert not hasattr(collections.OrderedDict, "__code__")


def test_small_files_cannot_ask_for_much_time_or_memory(tmp_path: Path) -> None:
    doubled = b"\x80\x02N" + b"2\x86" * 300  # a tuple of itself twice, 300 times: 2**300 leaves
    as_key = b"\x80\x02}" + doubled[2:] + b"Ns."
    for program in (doubled + b".", as_key, b"\x80\x04\x8c\x01a" + doubled[2:] + b"\x93."):
        (tmp_path / "a.pth").write_bytes(program)
        with pytest.raises(WeightsError):
            load_checkpoint(tmp_path / "a.pth")
    itself: list[Any] = []
    itself.append(itself)
    assert_takes(written({"loop": itself, "model": state()}, "pickle 4", tmp_path / "b.pth"), state())
    deep: Any = state()
    for _ in range(400):
        deep = {"a": deep}
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_checkpoint(written(deep, "pickle 4", tmp_path / "c.pth"))


def test_a_view_outside_of_its_storage_is_refused(tmp_path: Path) -> None:
    file = saved({"fc.weight": torch.ones(2, 2)}, tmp_path)
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    pair = b"K\x02K\x02\x86"
    assert members[name].count(pair) == 1
    members[name] = members[name].replace(pair, b"K\x09K\x02\x86")
    with zipfile.ZipFile(file, "w") as new:
        for member, data in members.items():
            new.writestr(member, data)
    with pytest.raises(WeightsError, match="a tensor of 18 values where 4 are stored"):
        load_checkpoint(file)


@lru_cache
def small_file(form: str) -> bytes:
    out = io.BytesIO()
    data = {"state_dict": {"fc.weight": torch.ones(2, 2)}, "args": argparse.Namespace(lr=0.1), "rng": np.ones(3)}
    if form == "pickle":
        pickle.dump(data, out)
    else:
        torch.save(data, out, _use_new_zipfile_serialization=form == "zip")
    return out.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(["zip", "legacy", "pickle"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.floats(0.5, 1),
)
def test_damaged_files_are_refused_in_one_line_or_read(
    tmp_path: Path, form: str, changes: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(small_file(form))
    for place, byte in changes:
        data[int(place * len(data))] = byte
    (tmp_path / "a.pth").write_bytes(data[: int(cut * len(data))] if cut < 0.9 else data)
    try:
        found = load_checkpoint(tmp_path / "a.pth")
        for name, tensor in found.tensors.items():
            tensor.read(name, found.path)
    except WeightsError as error:
        assert "\n" not in str(error)


def test_a_changed_value_is_found_by_its_checksum(tmp_path: Path) -> None:
    file = saved(state(), tmp_path)
    content = file.read_bytes()
    needle = BODY["layer1.0.conv1.weight"].numpy().tobytes()[:64]
    assert content.count(needle) == 1
    file.write_bytes(content.replace(needle, needle[:-1] + bytes([needle[-1] ^ 1])))
    assert_refused(file, "another checksum")


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        file = saved(state(), tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_takes(file, state())


# Objects beside the tensors


class Phase(enum.Enum):
    TRAIN = "train"


class Config(dict[str, Any]):
    """A dictionary with attributes, as configuration libraries have them."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclass
class TrainState:
    epoch: int
    model: Any


def beside() -> dict[str, Any]:
    """What scripts save beside the network."""
    network = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "args": argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath("/data"), device=torch.device("cpu")),
        "hyper_parameters": {"root": pathlib.Path("/x"), "phase": Phase.TRAIN, "config": Config(lr=Config(base=0.1))},
        "best_acc": np.float64(71.2),
        "history": np.arange(3.0),
        "rng": [torch.get_rng_state(), np.random.get_state()],
        "optimizer": optimizer.state_dict(),
        "scheduler": collections.defaultdict(list, {"milestones": collections.Counter({30: 1})}),
        "function": torch.relu,
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
    }


@pytest.mark.parametrize("form", FORMS[:2] + FORMS[3:])  # protocol 0 cannot write a path
def test_what_scripts_save_beside_the_network_does_not_matter(tmp_path: Path, form: str) -> None:
    file = written({**beside(), "state_dict": under("module.", state())}, form, tmp_path / "a.pth")
    assert assert_takes(file, state()) == ()


@pytest.mark.parametrize(
    "wrap",
    [
        TrainState,
        lambda epoch, model: Config(epoch=epoch, nested=Config(model=model)),
        lambda epoch, model: argparse.Namespace(epoch=epoch, model=model),
        lambda epoch, model: (epoch, model),
        lambda epoch, model: {"model": {k: v.numpy() for k, v in model.items()}},
        lambda epoch, model: {"model": {k: nn.Parameter(v) for k, v in model.items()}},
        lambda epoch, model: {"model": collections.OrderedDict(model)},
    ],
)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 5"])
def test_a_state_dict_within_an_object_is_found(tmp_path: Path, form: str, wrap: Callable[..., Any]) -> None:
    assert_takes(written(wrap(3, state()), form, tmp_path / "a.pth"), state())


def test_channels_last_and_shared_storages_keep_their_values(tmp_path: Path) -> None:
    flat = torch.cat([t.flatten() for t in state().values()])
    views, start = {}, 0
    for key, tensor in state().items():
        views[key] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    assert_takes(saved(views, tmp_path), state())
    last = {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in state().items()}
    assert_takes(saved(last, tmp_path), state())


# Prefixes


PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "self.resnet.", "backbone.", "1.", "module.model.encoder.0."]


@pytest.mark.parametrize("prefix", [*PREFIXES, "feature_extractor.trunk.", "a.b.c.d.e."])
def test_any_prefix_is_found(tmp_path: Path, prefix: str) -> None:
    assert_takes(saved({"state_dict": under(prefix, state())}, tmp_path), state())


@pytest.mark.parametrize("head", ["fc", "head.fc", "classifier", "cls_head.1", "model.logits"])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.encoder."])
def test_the_classifier_may_stand_beside_the_backbone(tmp_path: Path, prefix: str, head: str) -> None:
    data = {**under(prefix, BODY), f"{head}.weight": WEIGHT, f"{head}.bias": BIAS}
    assert_takes(saved(data, tmp_path), state())


def test_backbone_and_classifier_may_be_in_dictionaries_of_their_own(tmp_path: Path) -> None:
    data = {"backbone": BODY, "head": {"weight": WEIGHT, "bias": BIAS}, "optimizer": beside()["optimizer"]}
    assert_takes(saved(data, tmp_path), state())


def numbered(tensors: State, names: dict[str, int]) -> State:
    return {f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}": value for key, value in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "features.", "model.0."])
def test_children_of_a_sequential_are_told_by_their_order(tmp_path: Path, prefix: str) -> None:
    """``nn.Sequential(*list(resnet.children())[:-1])`` with ReLU as its third child; the classifier beside it."""
    places = {"conv1": 0, "bn1": 1, "layer1": 3, "layer2": 4, "layer3": 5}
    features = under(prefix or "f.", numbered(BODY, places))
    assert_takes(saved({**features, "classifier.weight": WEIGHT, "classifier.bias": BIAS}, tmp_path), state())
    whole = under(prefix, numbered(state(), {**places, "linear": 8}))
    assert_takes(saved(whole, tmp_path), state())


def test_parts_that_wrappers_insert_are_taken_out(tmp_path: Path) -> None:
    data = {k.replace("layer1.0.", "layer1._orig_mod.0._checkpoint_wrapped_module."): v for k, v in state().items()}
    assert_takes(saved(under("_fsdp_wrapped_module.", data), tmp_path), state())


# What stands beside


@pytest.mark.parametrize("beside", ["criterion.weight", "loss_fn.pos_weight", "ce_loss.weight", "train_acc_metric.tp"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_of_a_loss_are_left_out_with_a_note(tmp_path: Path, prefix: str, beside: str) -> None:
    notes = assert_takes(saved({**under(prefix, state()), beside: torch.ones(CLASSES)}, tmp_path), state())
    assert notes == (f"left out, as no part of the network: {beside}",)


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"head.extra": torch.ones(1)}, "1 unexpected (head.extra)"),
        ({"layer1.0.se.fc1.weight": torch.ones(4, 16, 1, 1)}, "SE-ResNet"),
        (
            {"classifier.weight": torch.ones(2, CLASSES)},
            "several matrices, and which is the classifier is open: linear 3",
        ),
        ({"color.weight": torch.ones(2, FEATURES)}, "linear 3x64, color 2x64"),
        ({"neck.bias": torch.ones(FEATURES)}, "1 unexpected (neck.bias)"),
    ],
)
def test_what_may_belong_to_the_computation_is_refused(tmp_path: Path, beside: State, words: str) -> None:
    assert_refused(saved({**state(), **beside}, tmp_path), words)


def test_a_layer_that_normalizes_images_becomes_preprocessing(tmp_path: Path) -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    _, spec, notes = load(saved({**under("1.", state()), "0.mean": mean, "0.std": std}, tmp_path))
    assert spec.preprocess.mean == pytest.approx((0.4, 0.5, 0.6)) and spec.preprocess.std == pytest.approx(
        (0.1, 0.2, 0.3)
    )
    assert spec.preprocess.pixel_scale == pytest.approx(1 / 255)
    assert "its mean and std are taken" in notes[0]
    _, spec, _ = load(saved({**state(), "pixel_mean": 255 * mean, "pixel_std": 255 * std}, tmp_path))
    assert spec.preprocess.pixel_scale == 1 and spec.preprocess.mean == pytest.approx((102, 127.5, 153))


# Several networks


AVERAGES: list[Callable[[State, State], dict[str, Any]]] = [
    lambda plain, mean: {"model": plain, "model_ema": {"n_averaged": torch.tensor(5), **under("module.", mean)}},
    lambda plain, mean: {"state_dict": plain, "state_dict_ema": mean},
    lambda plain, mean: {"state_dict": plain, "ema_state_dict": mean},
    lambda plain, mean: {"net": under("module.", plain), "ema": mean},
    lambda plain, mean: {"state_dict": {**under("net.", plain), **under("net_ema.module.", mean)}},
    lambda plain, mean: {**under("online_model.", plain), **under("ema_model.", mean), "step": torch.tensor(3)},
    lambda plain, mean: {"state_dict": mean, "current_model_state": plain, "averaging_state": {"n": torch.tensor(1)}},
    lambda plain, mean: {"state_dict": plain, "callbacks": {"EMA": {"shadow": mean}}},
    lambda plain, mean: {"model": plain, "swa_model": mean},
]


@pytest.mark.parametrize("arranged", AVERAGES)
def test_averaged_weights_are_taken_where_they_are_asked_for(
    tmp_path: Path, arranged: Callable[[State, State], dict[str, Any]]
) -> None:
    file = saved(arranged(state(), state(1)), tmp_path)
    notes = assert_takes(file, state())
    assert len(notes) == 1 and "--ema takes them" in notes[0]
    assert assert_takes(file, state(1), averaged=True) == ()


def test_averages_that_are_not_there_are_refused(tmp_path: Path) -> None:
    assert_refused(saved({"model": state()}, tmp_path), "no averaged weights", averaged=True)
    with pytest.raises(UsageError, match="random weights have no average"):
        load_model("resnet20", WeightsChoice("random", averaged=True))
    notes = assert_takes(saved({"model_ema": state()}, tmp_path), state())
    assert notes == ("averaged weights: model_ema",)


def test_of_several_networks_one_is_taken_by_its_name_or_none(tmp_path: Path) -> None:
    notes = assert_takes(saved({"state_dict": state(), "best_weights": state(1)}, tmp_path), state())
    assert notes == ("state_dict is taken; best_weights would fit, too",)
    both = {**under("student.", state()), **under("teacher.", state(1))}
    assert_refused(saved(both, tmp_path), "student and teacher; save the one you mean alone")
    assert_refused(saved([state(), state(1)], tmp_path), "0 and 1; save the one you mean alone")
    same = {"model": state(), "copy": state()}
    assert assert_takes(saved(same, tmp_path), state()) == ()


def test_a_teacher_of_another_size_is_left_out(tmp_path: Path) -> None:
    teacher = under("teacher.", state(1, "resnet32"))
    notes = assert_takes(saved({**under("student.", state()), **teacher}, tmp_path), state())
    assert "left out" in notes[0] and "teacher." in notes[0]


# Classifiers


def test_no_classifier_is_said_with_the_next_step(tmp_path: Path) -> None:
    projection = {"0.weight": torch.ones(64, 64), "0.bias": torch.ones(64), "2.weight": torch.ones(128, 64)}
    moco = {
        **under("module.encoder_q.", {**BODY, **under("fc.", projection)}),
        **under("module.encoder_k.", {**{k: v + 1 for k, v in BODY.items()}, **under("fc.", projection)}),
        "module.queue": torch.ones(128, 32),
    }
    first = under("module.encoder_q.", {**BODY, "fc.weight": torch.ones(128, 64), "fc.bias": torch.ones(128)})
    dino = {
        "student": under("module.backbone.", BODY),
        "teacher": under("backbone.", {k: v + 1 for k, v in BODY.items()}),
    }
    simclr = {**under("backbone.", BODY), **under("projector.", projection)}
    for data in (BODY, under("backbone.", BODY), {"state_dict": moco}, first, dino, simclr):
        assert_refused(saved(data, tmp_path), "has no classifier", "train a classifier on it")


def test_an_online_classifier_beside_a_projector_is_taken(tmp_path: Path) -> None:
    data = {**under("backbone.", BODY), "classifier.weight": WEIGHT, "classifier.bias": BIAS}
    data["projector.0.weight"] = torch.ones(128, 64)
    notes = assert_takes(saved(data, tmp_path), state())
    assert notes == ("left out, as no part of the network: projector.0.weight",)


def test_a_classifier_without_bias_and_one_of_a_1x1_convolution(tmp_path: Path) -> None:
    zeros = {**state(), "linear.bias": torch.zeros(CLASSES)}
    assert_takes(saved({**BODY, "fc.weight": WEIGHT}, tmp_path), zeros)
    assert_takes(saved({**BODY, "fc.weight": WEIGHT[..., None, None], "fc.bias": BIAS}, tmp_path), state())
    assert_refused(saved({**BODY, "fc.weight": WEIGHT[:1], "fc.bias": BIAS[:1]}, tmp_path), "gives one number")
    assert_refused(saved({**BODY, "fc.weight": torch.ones(3, 99)}, tmp_path), "takes 99 values where 64 arrive")


HEADS: dict[str, list[nn.Module]] = {
    "relu": [nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES)],
    "gelu": [nn.Dropout(), nn.Linear(FEATURES, 8), nn.GELU(), nn.Dropout(), nn.Linear(8, CLASSES, bias=False)],
    "tanh": [nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(), nn.Linear(8, CLASSES)],
    "none": [nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES)],
    "silu": [nn.Linear(FEATURES, 8), nn.SiLU(), nn.Linear(8, 9), nn.SiLU(), nn.Linear(9, CLASSES)],
}


def with_head(layers: list[nn.Module]) -> nn.Module:
    """A resnet20 with another classifier, in evaluation mode, with statistics that are not 0 and 1."""
    torch.manual_seed(0)
    network = create("resnet20", CLASSES)
    network.linear = nn.Sequential(*copy.deepcopy(layers))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


@pytest.mark.parametrize("activation", HEADS)
def test_classifiers_of_several_layers_compute_the_same(tmp_path: Path, activation: str) -> None:
    network, images = with_head(HEADS[activation]), torch.randn(4, 3, 32, 32)
    file = saved(network.state_dict(), tmp_path)
    got = load(file, head_activation=activation).network(images)
    torch.testing.assert_close(got, network(images))
    if activation != "none":
        assert_refused(file, "does not say which activation", "--head-activation relu|gelu")


def test_the_order_of_named_layers_is_not_guessed(tmp_path: Path) -> None:
    data = {**BODY, "fc.first.weight": torch.ones(8, 64), "fc.second.weight": torch.ones(3, 8)}
    assert_refused(saved(data, tmp_path), "several matrices", head_activation="relu")


# Modules


@pytest.mark.parametrize("activation", HEADS)
def test_a_pickled_module_gives_its_tensors_and_its_activations(tmp_path: Path, activation: str) -> None:
    network, images = with_head(HEADS[activation]), torch.randn(4, 3, 32, 32)
    found, _, notes = load(saved({"epoch": 3, "model": network}, tmp_path))
    torch.testing.assert_close(found(images), network(images))
    assert notes == ("the file holds a module (edgeres.zoo.resnet.ResNet): its tensors are taken, its code is not run",)


def test_a_pickled_module_with_other_layers_is_refused(tmp_path: Path) -> None:
    network = create("resnet20", CLASSES)
    network.layer2[0].conv1.stride = (1, 1)
    assert_refused(saved(network, tmp_path), "layer2.0.conv1 has stride (1, 1) where the network has (2, 2)", "ONNX")
    network = create("resnet20", CLASSES)
    network.bn1.eps = 1e-3
    assert_refused(saved(network, tmp_path), "bn1 has eps 0.001 where the network has 1e-05")
    network = create("resnet20", CLASSES)
    network.layer1[0].act = nn.SiLU()
    assert_refused(saved(network, tmp_path), "layer1.0.act is a SiLU where the network has a ReLU")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_gives_its_tensors(tmp_path: Path) -> None:
    class Plain(nn.Module):
        """With resnet20's names, in what TorchScript compiles."""

        def __init__(self) -> None:
            super().__init__()
            source = create("resnet20", CLASSES)
            self.conv1, self.bn1, self.linear = source.conv1, source.bn1, source.linear
            for name in ("layer1", "layer2", "layer3"):
                layer = nn.Sequential(*(nn.Module() for _ in range(3)))
                for block, other in zip(layer, getattr(source, name), strict=True):
                    for part in ("conv1", "bn1", "conv2", "bn2"):
                        block.add_module(part, getattr(other, part))
                setattr(self, name, layer)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv1(x).mean((2, 3)).repeat(1, 4))

    module = Plain().eval()
    torch.jit.trace(module, torch.zeros(1, 3, 32, 32)).save(str(tmp_path / "a.pt"))
    notes = assert_takes(tmp_path / "a.pt", values(module))
    assert "its code is not run" in notes[0]


# Other files and other architectures


def test_parts_of_a_sharded_checkpoint_are_put_together(tmp_path: Path) -> None:
    keys = list(state())
    parts = {"m-00001-of-00002.safetensors": keys[:30], "m-00002-of-00002.safetensors": keys[30:]}
    for name, own in parts.items():
        save_file({key: state()[key] for key in own}, tmp_path / name)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, own in parts.items() for key in own}}))
    assert_takes(index, state())
    assert_refused(tmp_path / "m-00001-of-00002.safetensors", "is part 1 of 2; give the .index.json beside it")
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    assert_refused(index, "m-00002-of-00002.safetensors is missing beside it")
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert_refused(index, "which is not beside it")
    index.write_text("[1]")
    assert_refused(index, "is no index of a sharded checkpoint")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            {
                "conv1.0.weight": (32, 3, 3, 3),
                "conv1.3.weight": (32, 32, 3, 3),
                "layer2.0.downsample.1.weight": (8, 4, 1, 1),
            },
            "timm's resnet18d",
        ),
        ({"conv1.weight": (64, 3, 3, 3)}, "ResNet-18 with a 3x3 convolution as its stem"),
        ({"conv1.weight": (64, 1, 7, 7)}, "ResNet-18 for images with 1 channel"),
        ({"layer1.0.se.fc1.weight": (4, 64, 1, 1)}, "SE-ResNet"),
        ({"resnet.embedder.embedder.convolution.weight": (64, 3, 7, 7)}, "transformers' ResNet: give its folder"),
        ({"patch_embed.proj.weight": (64, 3, 16, 16)}, "vision transformer"),
        ({"features.denseblock1.denselayer1.conv1.weight": (1, 1)}, "DenseNet"),
    ],
)
def test_another_architecture_is_named(tmp_path: Path, extra: dict[str, tuple[int, ...]], words: str) -> None:
    blocks = {f"layer{s}.{b}.conv{c}.weight": (1, 1, 3, 3) for s in (1, 2, 3, 4) for b in (0, 1) for c in (1, 2)}
    file = saved({key: torch.zeros(shape) for key, shape in {**blocks, **extra}.items()}, tmp_path)
    with pytest.raises(WeightsError) as caught:
        load_model("resnet18", str(file))
    assert words in str(caught.value) and "does not fit resnet18" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"\x89HDF\r\n\x1a\n" + bytes(99), b"\x1f\x8b" + bytes(99), struct.pack("<Q", 9) * 9]
)
def test_files_of_other_programs_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    assert_refused(tmp_path / "a.pth")


def test_a_pickle_that_ends_in_the_middle_is_damaged() -> None:
    for program in (
        b"",
        b"\x80\x02}",
        b"\x80\x02R.",
        b"\x80\x02t.",
        b"\x80\x02}K\x01K\x02K\x03u.",
        b"\x96" + b"\xff" * 8,
    ):
        with pytest.raises(DamagedPickle):
            read_pickle(io.BytesIO(program), {}, lambda identifier: identifier)
