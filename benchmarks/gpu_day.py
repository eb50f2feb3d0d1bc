"""What a GPU says about edgeres, in under eight minutes: ``python benchmarks/gpu_day.py [--out gpu_day.json]``.

Parts, each in a process of its own with a deadline, in this order; what a machine lacks is skipped with a word:

    memory   the memory contract of edgeres.runtime on real CUDA: copies, streams, events, capture and replay,
             four threads, contexts that are pushed and popped; for every library that is installed
    convs    the crux by proxy: every convolution of ResNet-18 and -50 at batch 1 and 8, in FP16, in INT8 with its
             padding inside, and in INT8 behind a Pad of its own (one Triton kernel for all; cuDNN's FP16 beside them)
    matmul   1x1 layers and the classifier as ``torch._int_mm`` beside FP16 products
    resize   a camera frame to the network's input as two matrix products
    engines  ``benchmarks/gpu.py``: engines of TensorRT and TensorRT-RTX, where one of them takes this GPU

It needs Python with torch; nothing is fetched. Times are medians by CUDA events around recorded CUDA graphs, the
variants of one convolution in turns. The JSON holds all figures; ``--page`` writes docs/gpu.md from it.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Json = dict[str, Any]
Say = Callable[[str, Json], None]

# Seconds that each part may take; their sum stays below eight minutes.
DEADLINES = {"memory": 40, "convs": 230, "matmul": 40, "resize": 40, "engines": 120}
_TURNS, _CALLS = 7, 10


# ---- networks --------------------------------------------------------------------------------------------------------


def layers(network: str) -> list[tuple[int, int, int, int, int, int]]:
    """Every convolution of a network at 224 px: (side, stride, depth, filters, height, how often)."""
    bottleneck = network == "resnet50"
    # The image has a fourth channel; Triton's products want 16 of them, which the masks fill.
    found = [(7, 2, 4, 64, 224)]
    depth, height = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3) if bottleneck else (2, 2, 2, 2)):
        width = 64 << stage
        out = 4 * width if bottleneck else width
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            if bottleneck:
                found += [(1, 1, depth, width, height), (3, stride, width, width, height)]
                found.append((1, 1, width, out, height // stride))
            else:
                found += [(3, stride, depth, width, height), (3, 1, width, width, height // stride)]
            if stride > 1 or depth != out:
                found.append((1, stride, depth, out, height))
            depth, height = out, height // stride
    return [(*layer, found.count(layer)) for layer in dict.fromkeys(found)]


# ---- parts -----------------------------------------------------------------------------------------------------------


def memory(say: Say) -> None:
    """Try the contract of :mod:`edgeres.runtime.memory` through every library that is there."""
    from edgeres.errors import EdgeresError

    for module in ("libcuda", "cuda_python", "pycuda"):
        found: Json = {}
        try:
            library = __import__(f"edgeres.runtime.memory.{module}", fromlist=[module])
            device = library.PyCuda(0) if module == "pycuda" else library.device(0)
            found = {"name": device.name, "gpu": device.gpu, "sm": device.sm, "integrated": device.integrated}
        except (EdgeresError, ImportError) as error:
            say(module, {"skipped": str(error)})
            continue
        for name, check in MEMORY_CHECKS.items():
            try:
                check(device)
                found[name] = "passed"
            except Exception as error:  # pycuda's, torch's and edgeres' errors share no other base; each is a finding
                found[name] = f"failed: {type(error).__name__}: {error}"
        say(module, found)


def _copies(device: Any) -> None:
    """Bytes go to the GPU and come back; the host's copy is overwritten in between."""
    with device.active():
        stream, buffer = device.stream(), device.buffer(1 << 20)
        buffer.host[:] = 7
        buffer.upload(1 << 20, stream)
        stream.synchronize()
        if not device.integrated:
            buffer.host[:] = 0
        buffer.download(1 << 20, stream)
        stream.synchronize()
        assert (buffer.host == 7).all(), "what came back is not what went"
        buffer.close()
        stream.close()


def _events(device: Any) -> None:
    """Two events around a copy of 64 MB are a positive time apart, below a second."""
    with device.active():
        stream, buffer = device.stream(), device.buffer(64 << 20)
        first, second = device.event(), device.event()
        first.record(stream)
        buffer.upload(64 << 20, stream)
        second.record(stream)
        stream.synchronize()
        seconds = second.seconds_since(first)
        assert device.integrated or 0 < seconds < 1, f"{seconds} s between the events"
        for each in (first, second, buffer, stream):
            each.close()


def _graphs(device: Any) -> None:
    """A recorded upload and download take the bytes that the host holds at the launch, each time."""
    with device.active():
        stream, buffer = device.stream(), device.buffer(4096)

        def work() -> bool:
            buffer.upload(4096, stream)
            buffer.download(4096, stream)
            return True

        work()
        stream.synchronize()
        graph = stream.capture(work)
        if device.integrated or device.name.startswith("pycuda"):
            return  # nothing is copied on a Jetson, so nothing is recorded; pycuda has no graphs
        assert graph is not None, "nothing was recorded"
        for value in (3, 200):
            buffer.host[:] = value
            graph.launch()
            stream.synchronize()
            assert (buffer.host == value).all(), "the replay moved other bytes"
        graph.close()
        buffer.close()
        stream.close()


def _threads(device: Any) -> None:
    """Four threads with a stream and a buffer each; every one gets its own bytes back, 50 times."""

    def turn(value: int) -> None:
        with device.active():
            stream, buffer = device.stream(), device.buffer(1 << 16)
            for _ in range(50):
                buffer.host[:] = value
                buffer.upload(1 << 16, stream)
                stream.synchronize()
                buffer.download(1 << 16, stream)
                stream.synchronize()
                assert (buffer.host == value).all(), "bytes of another thread"
            buffer.close()
            stream.close()

    pool = ThreadPoolExecutor(4)
    turns = [pool.submit(turn, value) for value in range(1, 5)]
    pool.shutdown(wait=False)
    assert not wait(turns, 20).not_done, "a thread did not end"
    for done in turns:
        done.result()


def _contexts(device: Any) -> None:
    """Nested blocks, and torch's own work between them, leave the thread's context as it was."""
    import torch

    before = torch.ones(8, device="cuda").sum().item() if torch.cuda.is_available() else 8.0
    with device.active():
        with device.active():
            device.buffer(64).close()
        device.buffer(64).close()
    after = torch.ones(8, device="cuda").sum().item() if torch.cuda.is_available() else 8.0
    assert before == after == 8.0


MEMORY_CHECKS: Mapping[str, Callable[[Any], None]] = {
    "copies": _copies,
    "events": _events,
    "graphs": _graphs,
    "threads": _threads,
    "contexts": _contexts,
}


def convs(say: Say) -> None:
    """FP16, INT8, and INT8 behind a Pad, for every convolution; the fastest tile of each."""
    from gpu_day_conv import Conv

    # torch collects garbage at every recording: what is loaded by now need not be looked at each time.
    gc.collect()
    gc.freeze()
    for batch in (1, 8):
        for network in ("resnet18", "resnet50"):
            for shape in layers(network):
                conv = Conv(*shape)
                what = f"{conv.side}x{conv.side}/{conv.stride} {conv.depth}->{conv.filters} at {conv.height}"
                try:
                    found = _convolution(conv, batch)
                except Exception as error:  # see _fastest; one convolution must not end the others
                    found = {"failed": _first_line(error)}
                say(f"{network} batch {batch}: {what}", {"count": conv.count, **found})


def _convolution(conv: Any, batch: int) -> Json:
    import torch
    from gpu_day_conv import TILES, Layer

    half, whole = (Layer.random(conv, batch, kind, "cuda") for kind in (torch.float16, torch.int8))
    found: Json = {"macs": conv.macs(batch)}
    variants: dict[str, Callable[[], object]] = {"cudnn fp16": _cudnn(half)}
    failed: dict[str, str] = {}
    for name, run in (("fp16", half.run), ("int8", whole.run), ("int8 behind Pad", whole.run_padded)):
        try:
            variants[name] = _fastest([partial(run, tile) for tile in TILES])
        except Exception as error:  # see _fastest; one variant must not end the others
            failed[name] = _first_line(error)
    if batch == 1 and "int8" in variants:
        variants["int8"]()
        found["largest_difference"] = (whole.y.cpu().double() - whole.expected()).abs().max().item()
    return {**found, **({"failed": failed} if failed else {}), "us": _timed(variants)}


def _cudnn(layer: Any) -> Callable[[], object]:
    import torch

    x, w = (values.permute(0, 3, 1, 2) for values in (layer.x, layer.w))  # channels_last, as it lies in memory
    bias, conv = layer.bias.half(), layer.conv
    return lambda: torch.conv2d(x, w, bias, conv.stride, conv.pad).relu_()


def matmul(say: Say) -> None:
    """Products of 1x1 layers and of the classifier; ``_int_mm`` takes no fewer than 17 rows."""
    import torch

    for name, rows, depth, width in (
        ("classifier, one image (32 rows)", 32, 2048, 1000),
        ("64 -> 256 at 56", 3136, 64, 256),
        ("512 -> 128 at 28", 784, 512, 128),
        ("1024 -> 256 at 14", 196, 1024, 256),
        ("512 -> 2048 at 7", 49, 512, 2048),
    ):
        a8 = torch.randint(-127, 128, (rows, depth), dtype=torch.int8, device="cuda")
        b8 = torch.randint(-127, 128, (width, depth), dtype=torch.int8, device="cuda").t()
        a16, b16 = a8.half() / 64, b8.half() / 64
        exact = (a8.cpu().long() @ b8.cpu().long()).int()
        try:
            wrong = int((torch._int_mm(a8, b8).cpu() - exact).abs().max())
            variants: dict[str, Callable[[], object]] = {
                "fp16": lambda a=a16, b=b16: a @ b,
                "int8": lambda a=a8, b=b8: torch._int_mm(a, b),
            }
            say(name, {"largest_difference": wrong, "us": _timed(variants)})
        except RuntimeError as error:  # a shape that the library refuses is a finding
            say(name, {"failed": _first_line(error)})


def resize(say: Say) -> None:
    """1280x720 and 1920x1080 to 224x224: columns, rounding to bytes, rows, rounding; dense weights."""
    import torch

    for width, height in ((1280, 720), (1920, 1080)):
        short = 256
        across = round(width * short / height)
        frame = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, device="cuda")
        left, top = (across - 224) // 2, (short - 224) // 2
        columns, rows = _weights(width, across)[left : left + 224], _weights(height, short)[top : top + 224]
        exact = _resized(frame.cpu(), columns, rows)
        kinds = {"float16": torch.float16, "float32": torch.float32}
        variants: dict[str, Callable[[], Any]] = {
            name: partial(_resized, frame, columns.to("cuda", kind), rows.to("cuda", kind))
            for name, kind in kinds.items()
        }
        equal = {name: float((call().cpu().double() == exact).double().mean()) for name, call in variants.items()}
        macs = 3 * 224 * (height * width + 224 * height)
        say(f"{width}x{height}", {"us": _timed(variants), "equal_bytes": equal, "dense_macs": macs})


def _resized(frame: Any, columns: Any, rows: Any) -> Any:
    """(3, out, out) bytes as numbers of the weights' type, from (H, W, 3) uint8."""
    planes = frame.permute(2, 0, 1).to(columns.dtype)
    crossed = (planes @ columns.t()).add(0.5).floor().clamp(0, 255)
    return (rows @ crossed).add(0.5).floor().clamp(0, 255)


def _weights(size: int, out: int) -> Any:
    """Bilinear weights with antialias, (out, size), rows of sum 1: the triangle is as wide as the reduction."""
    import torch

    scale = max(size / out, 1.0)
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) * size / out
    distance = (torch.arange(size, dtype=torch.float64) + 0.5 - centre[:, None]).abs() / scale
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def engines(say: Say) -> None:
    """``benchmarks/gpu.py``, if a vendor's library runs engines here."""
    from edgeres.device.libraries import MODULES, available

    here = {flavour: available(flavour) for flavour in MODULES}
    if not any(library.can_run for library in here.values()):
        say("engines", {"skipped": "; ".join(f"{name}: {library.reason}" for name, library in here.items())})
        return
    import gpu

    out = Path("gpu_day_engines.json")
    code = gpu.main(["--models", "resnet18", "--seconds", "1", "--output", str(out)])
    say("engines", {"exit_code": code, "document": json.loads(out.read_text()) if out.is_file() else None})


PARTS: Mapping[str, Callable[[Say], None]] = {
    "memory": memory,
    "convs": convs,
    "matmul": matmul,
    "resize": resize,
    "engines": engines,
}
NEED_CUDA = {"convs", "matmul", "resize"}


# ---- timing ----------------------------------------------------------------------------------------------------------


def _recorded(call: Callable[[], object]) -> Any:
    """``_CALLS`` calls as one CUDA graph: the launch costs nothing then, as in an engine."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            call()
    return graph


def _once(graph: Any) -> float:
    """Microseconds of one call."""
    import torch

    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    graph.replay()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) * 1000 / _CALLS


def _fastest(calls: list[Callable[[], object]]) -> Callable[[], object]:
    """The fastest of several calls; one that cannot run, as a tile that needs too much shared memory, is passed over.

    Raises:
        Exception: none can run; it is what the first one raised.
    """
    times: dict[int, float] = {}
    errors: list[Exception] = []
    for index, call in enumerate(calls):
        try:
            graph = _recorded(call)
            times[index] = min(_once(graph) for _ in range(3))
        except Exception as error:  # those of Triton's compiler, of torch and of the driver share no other base
            errors.append(error)
    if not times:
        raise errors[0]
    return calls[min(times, key=lambda index: times[index])]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _timed(variants: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Medians over turns, microseconds; in each turn every variant runs once."""
    graphs = {name: _recorded(call) for name, call in variants.items()}
    for graph in graphs.values():
        _once(graph)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(_TURNS):
        for name, graph in graphs.items():
            times[name].append(_once(graph))
    return {name: statistics.median(found) for name, found in times.items()}


# ---- the day ---------------------------------------------------------------------------------------------------------


def why_not(part: str) -> str:
    """Why a part cannot run here; "" where it can be tried."""
    if part not in NEED_CUDA:
        return ""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    if part == "convs":
        try:
            import triton  # noqa: F401
        except ImportError:
            return "triton is not installed"
    return ""


def run_part(part: str) -> None:
    """One part in this process: a JSON line per finding, so that a deadline or a crash keeps what was found."""

    def say(name: str, found: Json) -> None:
        print(json.dumps({"name": name, "found": found}), flush=True)

    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    reason = why_not(part)
    if reason:
        say(part, {"skipped": reason})
        return
    PARTS[part](say)


def day(parts: list[str]) -> Iterator[Json]:
    """Run the parts one after the other; yields the document so far."""
    document: Json = {"machine": machine(), "parts": {}}
    for part in parts:
        command, start = [sys.executable, str(Path(__file__).resolve()), "--part", part], time.monotonic()
        said = ""
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINES[part])
            out, err = ran.stdout, ran.stderr
            if ran.returncode:
                said = (err.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
        except subprocess.TimeoutExpired as late:
            out, err = (_text(stream) for stream in (late.stdout, late.stderr))
            said = f"not finished in {DEADLINES[part]} s"
        seconds = round(time.monotonic() - start, 1)
        document["parts"][part] = {"found": findings(out), "said": said, "seconds": seconds}
        if said:  # a day with a GPU is rare: what explains the end is kept
            document["parts"][part]["stderr"] = err[-4000:]
        yield document


def _text(stream: str | bytes | None) -> str:
    return stream.decode(errors="replace") if isinstance(stream, bytes) else stream or ""


def findings(out: str) -> Json:
    """The JSON lines of a part; a last line that was cut off, and what libraries print, are passed over."""
    found: Json = {}
    for line in out.splitlines():
        try:
            said = json.loads(line)
            found[said["name"]] = said["found"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def machine() -> Json:
    """GPU, driver and versions, as far as they are there."""
    found: Json = {"python": sys.version.split()[0]}
    command = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap,clocks.sm", "--format=csv,noheader"]
    try:
        found["gpu"] = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        found["gpu"] = None
    for name in ("torch", "triton", "cuda.bindings", "tensorrt", "tensorrt_rtx"):
        try:
            found[name] = __import__(name, fromlist=["x"]).__version__
        except (ImportError, OSError, RuntimeError, AttributeError):  # missing, without its libraries, or a stub
            found[name] = None
    return found


# ---- the page --------------------------------------------------------------------------------------------------------

HEAD = """# On a GPU

Made by `python benchmarks/gpu_day.py --page`: do not edit it by hand. The script's first lines say what each part does.
"""


def page(document: Json) -> str:
    """docs/gpu.md."""
    about = document["machine"]
    if not about.get("gpu"):
        return f"{HEAD}\nNo GPU has been at hand yet, so no figure is measured. On one it takes eight minutes.\n"
    lines = [HEAD, f"{about['gpu']}; torch {about['torch']}, triton {about['triton']}.", ""]
    for part, ran in document["parts"].items():
        lines += [f"## {part}", ""]
        if ran["said"]:
            lines += [f"Ended early: {ran['said']}", ""]
        lines += _sums(ran["found"]) if part == "convs" else []
        lines += [f"- {name}: {_words(found)}" for name, found in ran["found"].items()]
        lines.append("")
    return "\n".join(lines)


def _words(found: Json) -> str:
    if "us" in found:
        times = ", ".join(f"{name} {us:.1f} us" for name, us in found["us"].items())
        return times + (f", equal bytes {found['equal_bytes']}" if "equal_bytes" in found else "")
    return ", ".join(f"{name} {value}" for name, value in found.items() if name != "document")


def _sums(found: Json) -> list[str]:
    """Convolutions of a network together, each as often as the network has it; those with all variants alone."""
    timed = {name: each for name, each in found.items() if "us" in each}
    variants = list(dict.fromkeys(variant for each in timed.values() for variant in each["us"]))
    sums: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for name, each in timed.items():
        network = name.partition(":")[0]
        if each["us"].keys() >= set(variants):
            total = sums.setdefault(network, dict.fromkeys(variants, 0.0))
            for variant in variants:
                total[variant] += each["us"][variant] * each["count"]
            counts[network] = counts.get(network, 0) + each["count"]
    if not sums:
        return []
    lines = [f"| together, us | convolutions | {' | '.join(variants)} |", f"|---|---|{'---|' * len(variants)}"]
    for network, total in sums.items():
        of = sum(layer[-1] for layer in layers(network.partition(" ")[0]))
        lines.append(f"| {network} | {counts[network]} of {of} | {' | '.join(f'{total[v]:.0f}' for v in variants)} |")
    return [*lines, ""]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_day.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--page", action="store_true", help="write docs/gpu.md from the figures")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.part:
        run_part(asked.part)
        return 0
    document: Json = {}
    for document in day(asked.parts):
        asked.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        part, ran = list(document["parts"].items())[-1]
        skipped = [found["skipped"] for found in ran["found"].values() if "skipped" in found]
        words = ran["said"] or (f"skipped: {skipped[0]}" if skipped else f"{len(ran['found'])} findings")
        print(f"{part:8} {ran['seconds']:6.1f} s  {words}", flush=True)
    if asked.page:
        (ROOT / "docs" / "gpu.md").write_text(page(document), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
