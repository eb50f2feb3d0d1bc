"""edgeres profile"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import (
    BACKENDS,
    UserPath,
    as_json,
    choice,
    file_option,
    trust_options,
    trusted,
    whole_number,
    written_file,
)
from edgeres.cli.progress import progress
from edgeres.cli.show import echo, print_json
from edgeres.words import escaped

Json = dict[str, Any]
_WIDTH = 80
_KIND, _PRECISION, _MS, _SHARE = 12, 16, 9, 7
_NAME = _WIDTH - (_KIND + _PRECISION + _MS + _SHARE) - 4  # a space between columns
_LIVE = ("backend", "batch", "threads", "runs", "trust", "host_code")
_MOST_KINDS = 4


@click.command("profile")
@click.argument("path", type=UserPath(), metavar="BUNDLE|JSON")
@choice("--backend", BACKENDS, "auto: what edgeres.load takes on this machine.", "auto")
@whole_number("--batch", "Images per inference.", 1)
@whole_number("--threads", "Threads on the CPU; 0: every core.", 1, least=0)
@click.option("--runs", type=click.IntRange(1, 1000), default=50, show_default=True, help="Inferences to profile.")
@whole_number("--top", "Layers to show; 0: all.", 15, least=0)
@file_option("--layers", "With a JSON of trtexec: its --exportLayerInfo, for the layers' types.")
@written_file("--trace", "Write trace events, which ui.perfetto.dev and chrome://tracing open.")
@trust_options
@as_json
def command(path: Path, top: int, layers: Path | None, trace: Path | None, as_json: bool, **given: Any) -> None:
    """Show in which layers an inference spends its time, and what is outside of them.

    \b
    edgeres profile resnet18.edgeres
    edgeres profile resnet18.edgeres --backend cpu --trace trace.json
    edgeres profile profile.json --layers layers.json

    Of a bundle, the engine or graph that edgeres.load takes is run on random images under TensorRT's or ONNX Runtime's
    profiler. A JSON is what trtexec --exportProfile or ONNX Runtime's profiler wrote, on any machine.
    """
    from edgeres.files import write_file
    from edgeres.profiling.trace import chrome_trace

    told, profile = _of_file(path, layers) if path.is_file() else _of_bundle(path, layers, given, quiet=as_json)
    if trace is not None:
        write_file(trace, json.dumps(chrome_trace(profile, f"{told['model']} on {told['backend']}")).encode())
    if as_json:
        print_json(told)
        return
    _show(told, top)
    if trace is not None:
        echo(f"trace: {trace}")


def _of_file(path: Path, layers: Path | None) -> tuple[Json, Any]:
    from edgeres.errors import UsageError
    from edgeres.profiling.files import read_profile

    source = click.get_current_context().get_parameter_source
    said = [name for name in _LIVE if source(name) is click.core.ParameterSource.COMMANDLINE]
    if said:
        what = "is a file with times that were measured already"
        raise UsageError(what, where=path, hint=f"leave out --{said[0].replace('_', '-')}, or give a bundle")
    profile = read_profile(path, layers)
    where: Json = {"model": path.name, "backend": profile.source, "device": None, "batch": None, "passed_over": []}
    return {**where, **profile.to_dict()}, profile


def _of_bundle(path: Path, layers: Path | None, given: Json, *, quiet: bool) -> tuple[Json, Any]:
    from edgeres.errors import UsageError
    from edgeres.profiling.measure import ProfileOptions, profile_bundle

    if layers is not None:
        raise UsageError("a bundle's engine lists its layers itself", where="--layers", hint="leave it out")
    trust = trusted(given)
    options = ProfileOptions(**given, trust=trust)
    found = profile_bundle(path, options, progress(quiet=quiet))
    where = {"model": found.model, "backend": found.backend, "device": found.device, "batch": options.batch}
    return {**where, "passed_over": list(found.passed_over), **found.profile.to_dict()}, found.profile


def _show(told: Json, top: int) -> None:
    on = "".join(f", {words}" for words in (told["device"], told["batch"] and f"batch {told['batch']}") if words)
    _wrapped(f"{told['model']} on {told['backend']}{on}")
    echo(f"{told['statistic']} of {told['runs']} runs; shares are of the layers' time", "")
    timed = sorted((row for row in told["layers"] if row["ms"] is not None), key=lambda row: -row["ms"])
    shown = timed if top == 0 else timed[:top]
    echo(_line("layer", "kind", "precision", "ms", "share"))
    for row in shown:
        echo(_row(re.sub(r"_token_\d+$", "", row["name"]), row))  # which ONNX Runtime appends to what it fused
    if rest := timed[len(shown) :]:
        ms, share = (sum(row[key] or 0.0 for row in rest) for key in ("ms", "share"))
        echo(_line(f"{len(rest)} more (--top 0 shows all)", "", "", f"{ms:.3f}", f"{100 * share:.1f} %"))
    echo(_line(f"all {len(timed)} layers", "", "", f"{told['layers_ms']:.3f}", "100.0 %"))
    _show_outside(told)
    echo()
    for key, title in (("kinds", "kind"), ("precisions", "precision")):
        sums = [f"{one[title] or 'not known'} {100 * (one['share'] or 0):.1f} %" for one in told[key]]
        more = f", {len(sums) - _MOST_KINDS} more" if len(sums) > _MOST_KINDS else ""
        _wrapped(f"by {title}: {', '.join(sums[:_MOST_KINDS])}{more}")
    silent = len(told["layers"]) - len(timed)
    if silent:
        _wrapped(f"{silent} listed layers take no time that the profiler reports")
    for line in (*told["notes"], *(f"not used: {line}" for line in told["passed_over"])):
        _wrapped(f"note: {line}")


def _show_outside(told: Json) -> None:
    """Print what of an inference is outside any layer, or that it is not known."""
    outside = told["outside"] or ({} if told["outside_ms"] is None else {"rest of the run": told["outside_ms"]})
    for what, ms in outside.items():
        echo(_line(f"outside any layer: {what}", "", "", f"{ms:.3f}", ""))
    if not outside:
        echo("outside any layer: not known")
    if told["run_ms"] is not None:
        echo(_line("a run under the profiler", "", "", f"{told['run_ms']:.3f}", ""))
    if told["without_profiler_ms"] is not None:
        echo(_line("a run without it", "", "", f"{told['without_profiler_ms']:.3f}", ""))


def _row(name: str, row: Json) -> str:
    return _line(
        name, row["kind"] or "", row["precision"] or "", f"{row['ms']:.3f}", f"{100 * (row['share'] or 0):.1f} %"
    )


def _line(name: str, kind: str, precision: str, ms: str, share: str) -> str:
    """A row of the table, at most 80 columns; a name without kind and type may be longer."""
    room = _NAME if kind or precision else _NAME + _KIND + _PRECISION + 2
    left = f"{_short(name, room):{room}} "
    left += f"{_short(kind, _KIND):{_KIND}} {_short(precision, _PRECISION):{_PRECISION}} " if room == _NAME else ""
    return f"{left}{ms:>{_MS}} {share:>{_SHARE}}".rstrip()


def _short(text: str, room: int) -> str:
    """A text with its middle left out where it is longer than ``room``: both ends of a layer's name tell it apart."""
    text = escaped(text)
    if len(text) <= room:
        return text
    head = (room - 3) // 2
    return f"{text[:head]}...{text[len(text) - (room - 3 - head) :]}"


def _wrapped(line: str) -> None:
    echo(*textwrap.wrap(escaped(line), _WIDTH, subsequent_indent="  "))
