"""The graph forms of an INT8 network: each a way to write the same codes, in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass

from edgeres.records import Style


@dataclass(frozen=True)
class GraphForm:
    """One row of :data:`FORMS`.

    Attributes:
        name: in manifests, reports and messages.
        file: in a bundle.
        style: where its Q/DQ pairs are placed.
        runtime: of the targets that take it.
        made_from: the form that it is rewritten from; None: it is written from the plan.
        integer: whether ONNX Runtime runs it with integer kernels. Otherwise it runs with float arithmetic between
            Q/DQ pairs, as a stand-in for ``runtime``.
    """

    name: str
    file: str
    style: Style
    runtime: str
    made_from: str | None = None
    integer: bool = False


# In ascending order of preference on a CPU.
FORMS = {
    form.name: form
    for form in (
        GraphForm("tensorrt", "model.int8.onnx", "tensorrt", runtime="tensorrt"),
        GraphForm("rtx", "model.int8.rtx.onnx", "tensorrt", runtime="rtx", made_from="tensorrt"),
        GraphForm("cpu", "model.int8.cpu.onnx", "cpu", runtime="onnxruntime", integer=True),
    )
}
GRAPH_FILES = tuple(form.file for form in FORMS.values())
