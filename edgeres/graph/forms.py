"""The table of graph forms: the ways in which a bundle holds one INT8 network, each in a file of its own.

A new form takes one row here and the function that writes it. The name ``tensorrt`` stands for a form here; the same
word is the name of a style of placement, of a runtime and of a target elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgeres.device.targets import Runtime
from edgeres.records import Codes, FormRecord, Style

if TYPE_CHECKING:
    import onnx


def _for_rtx(model: onnx.ModelProto) -> onnx.ModelProto:
    from edgeres.graph.rtx import rtx_form

    return rtx_form(model)


@dataclass(frozen=True)
class GraphForm:
    """One row of :data:`FORMS`.

    Attributes:
        name: in manifests, reports and messages.
        file: in a bundle.
        style: where its Q/DQ pairs are placed.
        runtime: of the targets that run it, or engines made from it.
        integer: whether ONNX Runtime runs it with integer kernels. Otherwise ONNX Runtime computes in float between
            Q/DQ pairs, as a stand-in for ``runtime``.
        made_from: name of the form that ``rewrite`` takes; None: the quantizer writes it from the plan.
        rewrite: writes this form.
        between: type of what is not in codes.
        description: in words, for people who choose one.
    """

    name: str
    file: str
    style: Style
    runtime: Runtime
    integer: bool = False
    made_from: str | None = None
    rewrite: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    between: Literal["float32", "float16"] = "float32"
    description: str = ""

    def record(self, codes: Codes | None, sqnr_db: float | None = None) -> FormRecord:
        """The entry of a manifest; ``codes`` are those of activations behind a ReLU, in the style for TensorRT."""
        known = codes if self.style == "tensorrt" else None
        return FormRecord(self.name, self.file, (self.runtime,), "int8", known, self.between, self.description, sqnr_db)


FORMS = {
    form.name: form
    for form in (
        GraphForm(
            "tensorrt",
            "model.int8.onnx",
            style="tensorrt",
            runtime="tensorrt",
            description="INT8 convolutions and classifier, a scale per channel of the weights",
        ),
        GraphForm(
            "rtx",
            "model.int8.rtx.onnx",
            style="tensorrt",
            runtime="rtx",
            made_from="tensorrt",
            rewrite=_for_rtx,
            between="float16",
            description="the same codes; one scale of the weights, and a factor per channel behind the convolution",
        ),
        GraphForm(
            "cpu",
            "model.int8.cpu.onnx",
            style="cpu",
            runtime="onnxruntime",
            integer=True,
            description="codes from the image to the classifier, for integer kernels on a CPU",
        ),
    )
}
GRAPH_FILES = tuple(form.file for form in FORMS.values())
# The forms that the quantizer writes from a plan, one per style.
PLANNED = tuple(form for form in FORMS.values() if form.made_from is None)
# Of those: the one with integer kernels on ONNX Runtime, and the one that it computes in float between Q/DQ pairs. All
# forms that engines are built from are made from the latter.
INTEGER = next(form for form in PLANNED if form.integer)
FLOAT = next(form for form in PLANNED if not form.integer)


def form_for(runtime: Runtime) -> GraphForm:
    """The form that a runtime runs, or that its engines are built from."""
    return next(form for form in FORMS.values() if form.runtime == runtime)


def lineage(form: GraphForm) -> tuple[GraphForm, ...]:
    """The form, the one that it is made from, and so on; the last is written from a plan."""
    return (form,) if form.made_from is None else (form, *lineage(FORMS[form.made_from]))


def rewritten(form: GraphForm, model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in this form, from ``model``, as the quantizer wrote it for the form's style."""
    for step in reversed(lineage(form)):
        model = step.rewrite(model) if step.rewrite is not None else model
    return model


def forms_for(runtimes: Iterable[Runtime]) -> tuple[GraphForm, ...]:
    """Every form that these runtimes need, and those that they are made from; each follows the one it is made from."""
    wanted = {form.name for runtime in runtimes for form in lineage(form_for(runtime))}
    return tuple(form for form in FORMS.values() if form.name in wanted)


def forms_in(has: Callable[[str], bool]) -> dict[str, GraphForm]:
    """The forms, by name, of whose files ``has`` tells that they are in a bundle."""
    return {name: form for name, form in FORMS.items() if has(form.file)}


def best_on_cpu(names: Iterable[str]) -> GraphForm:
    """Of the named forms, of which there is one at least, the one that ONNX Runtime runs best: with integer kernels."""
    found = [FORMS[name] for name in names]
    return next((form for form in found if form.integer), found[0])
