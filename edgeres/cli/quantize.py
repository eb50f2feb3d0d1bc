"""edgeres quantize"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli import options
from edgeres.cli.progress import progress
from edgeres.cli.show import echo, print_json


@click.command("quantize", cls=options.ManyValues)
@click.argument("model", type=options.UserPath(), metavar="MODEL.onnx")
@options.input_options
@options.calibration_options
@options.calibration_file_option
@options.refine_options
@options.text_option("--target", default="tensorrt", metavar="NAME", text="Target from `edgeres targets`.")
@options.output_option("OUT.onnx", "INT8 graph to write.", required=True, dir_okay=False)
@options.as_json
def command(model: Path, output: Path, target: str, as_json: bool, **given: Any) -> None:
    """Quantize any ResNet-like FP32 ONNX file to INT8 with Q/DQ. A checkpoint is not needed.

    \b
    edgeres quantize my.onnx --calibration images \\
        --target jetson-orin-nx -o my.int8.onnx
    """
    from edgeres.data.choose import DataChoice
    from edgeres.errors import UsageError
    from edgeres.files import write_file
    from edgeres.pipeline.input_choice import InputChoice
    from edgeres.pipeline.options import RangeOptions
    from edgeres.pipeline.quantize import quantize_file
    from edgeres.pipeline.take import ModelChoice
    from edgeres.refine.choice import RefineChoice

    options.check_calibration_file(given)
    if model.suffix.lower() != ".onnx":
        raise UsageError("is not named .onnx", where=model, hint="edgeres export writes a model of the zoo as ONNX")
    if output.resolve() == model.resolve():
        raise UsageError("would overwrite the FP32 graph", where=output, hint="choose another -o")
    own = {name: given.pop(name) for name in ("labels", "input_px", "task")}
    choice = ModelChoice(model, **own, input=InputChoice.of(options.input_choice(given)))
    data = DataChoice(given.pop("calibration"), None, given.pop("calibration_size"), None, given.pop("seed"))
    refine = RefineChoice(given.pop("effort"), given.pop("residual"))
    done = quantize_file(choice, data, RangeOptions(**given), refine, target, progress(quiet=as_json))
    write_file(output, done.model)
    if as_json:
        print_json({"file": str(output), "bytes": len(done.model), **done.summary})
    else:
        s = done.summary
        images = f" from {s['images']} images" if s["images"] else ""
        echo(
            f"{output}: {len(done.model) / 1e6:.1f} MB for {target}, {s['activations']} activations and {s['weights']} "
            f"weights with {s['method']} ranges{images}; edgeres inspect {output} shows details"
        )
