"""The table of graph forms: its rows, and what is derived from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
import pytest
from engine_graphs import resnet

from edgeres.device.targets import TARGETS, Runtime
from edgeres.graph import forms
from edgeres.graph.forms import FLOAT, FORMS, INTEGER, PLANNED, best_on_cpu, form_for, forms_for, forms_in, lineage
from edgeres.graph.rtx import rtx_form


def test_rows_agree_with_each_other_and_with_the_targets() -> None:
    assert len({form.file for form in FORMS.values()}) == len(FORMS)
    for form in FORMS.values():
        assert (form.made_from is None) == (form.rewrite is None)
        assert lineage(form)[-1].style == form.style
    assert len({form.style for form in PLANNED}) == len(PLANNED)
    for target in TARGETS.values():
        assert form_for(target.runtime).style == target.style


@pytest.mark.parametrize(
    ("runtimes", "names"),
    [
        ([], []),
        (["onnxruntime"], ["cpu"]),
        (["tensorrt"], ["tensorrt"]),
        (["rtx"], ["tensorrt", "rtx"]),
        (["onnxruntime", "rtx", "tensorrt", "rtx"], ["tensorrt", "rtx", "cpu"]),
    ],
)
def test_each_runtime_gets_its_form_and_what_that_is_made_from(runtimes: list[Runtime], names: list[str]) -> None:
    assert [form.name for form in forms_for(runtimes)] == names
    quantized = resnet(quantized=True)
    for name in names:
        assert forms.rewritten(FORMS[name], quantized) == (rtx_form(quantized) if name == "rtx" else quantized)


def test_a_form_may_be_made_from_one_that_is_made_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new form needs one row and its function."""

    def named(model: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.name += " again"
        return copy

    new = replace(FORMS["rtx"], name="new", file="new.onnx", made_from="rtx", rewrite=named, runtime="later")  # type: ignore[arg-type]
    monkeypatch.setitem(FORMS, "new", new)
    assert [form.name for form in forms_for(["later"])] == ["tensorrt", "rtx", "new"]  # type: ignore[list-item]
    assert forms.rewritten(new, resnet(quantized=True)) == named(rtx_form(resnet(quantized=True)))


@pytest.mark.parametrize(
    ("names", "best"),
    [(["tensorrt", "rtx", "cpu"], "cpu"), (["tensorrt", "rtx"], "tensorrt"), (["rtx"], "rtx"), (["cpu"], "cpu")],
)
def test_the_cpu_runs_integer_kernels_where_a_form_has_them(names: Sequence[str], best: str) -> None:
    assert best_on_cpu(names).name == best
    assert (INTEGER.name, FLOAT.name) == ("cpu", "tensorrt")


def test_the_forms_of_a_bundle_are_those_whose_files_are_there() -> None:
    assert list(forms_in({"model.int8.cpu.onnx", "model.int8.onnx", "model.fp32.onnx"}.__contains__)) == [
        "tensorrt",
        "cpu",
    ]
    assert forms_in(lambda name: False) == {}
