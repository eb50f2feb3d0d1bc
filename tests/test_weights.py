"""The weights registry, downloads from a local server, and reading and matching checkpoints."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from edgeres.data.labels import imagenet_classes
from edgeres.data.signs import CLASSES
from edgeres.errors import EnvironmentError_, UsageError, WeightsError
from edgeres.files import sha256 as file_sha256
from edgeres.progress import Silent
from edgeres.records import Preprocess
from edgeres.zoo import transfer
from edgeres.zoo.architectures import ARCHITECTURES
from edgeres.zoo.checkpoint import WeightsChoice, load_model
from edgeres.zoo.download import cache_dir, fetch
from edgeres.zoo.registry import find_model, find_weights, list_models
from edgeres.zoo.resnet import create
from edgeres.zoo.state_dict import load_checkpoint

SHARED = Path(__file__).parents[2] / "shared"
CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """The server's file and behaviour; ``requests`` are the Range headers that it received."""

    content: bytes = CONTENT
    etag: str | None = '"v1"'
    ranges: bool = True
    status: int = 200
    content_type: str = "application/octet-stream"
    cut_at: int | None = None
    url: str = ""
    requests: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, wanted = self.site, self.headers.get("Range")
        site.requests.append(wanted)
        start = 0
        if wanted and site.ranges and self.headers.get("If-Range") == site.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if site.status != 200 or start >= len(site.content):
            self.send_error(416 if site.status == 200 else site.status)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
        if site.etag:
            self.send_header("ETag", site.etag)
        self.send_header("Content-Type", site.content_type)
        self.send_header("Content-Length", str(len(site.content) - start))
        self.end_headers()
        self.wfile.write(site.content[start : site.cut_at])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}/weights/net.pth"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EDGERES_CACHE", str(folder / "own"))
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    return folder


class Recorder(Silent):
    """A Progress that records tasks as (task, total, steps), and lines."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int | None, list[int]]] = []
        self.lines: list[str] = []

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Any]:
        steps: list[int] = []
        self.tasks.append((name, total, steps))
        yield steps.append

    def say(self, line: str) -> None:
        self.lines.append(line)


# Download


def test_fetch_downloads_once_and_shows_bytes(site: Site) -> None:
    progress = Recorder()
    path = fetch(site.url, SHA256, progress)
    assert path.read_bytes() == CONTENT
    assert path.parent == cache_dir()
    [(name, total, steps)] = progress.tasks
    assert name.startswith("downloading ") and name.endswith("net.pth")
    assert total == sum(steps) == len(CONTENT)
    assert fetch(site.url, SHA256) == path
    assert site.requests == [None]
    assert {p.suffix for p in cache_dir().iterdir()} == {".pth", ".lock"}


def test_a_cut_download_goes_on_within_the_call(site: Site) -> None:
    cuts = iter([300_000, 600_000, None])
    send = Handler.do_GET

    class Flaky(Handler):
        def do_GET(self) -> None:
            site.cut_at = next(cuts)
            send(self)

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("FlakyHandler", (Flaky,), {"site": site}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        assert fetch(f"http://127.0.0.1:{server.server_port}/net.pth", SHA256).read_bytes() == CONTENT
    finally:
        server.shutdown()
        server.server_close()
    assert site.requests == [None, "bytes=300000-", "bytes=600000-"]


def test_the_next_call_resumes_what_an_earlier_one_left(site: Site) -> None:
    site.cut_at = 400_000
    with pytest.raises(WeightsError, match="cut after 400,000 of 1,000,000 bytes"):
        fetch(site.url, SHA256)
    site.cut_at = None
    progress = Recorder()
    assert fetch(site.url, SHA256, progress).read_bytes() == CONTENT
    assert site.requests[-1] == "bytes=400000-"
    [(_, total, steps)] = progress.tasks
    assert steps[0] == 400_000 and sum(steps) == total == len(CONTENT)


@pytest.mark.parametrize("change", ["no ranges", "no etag", "other etag"])
def test_what_cannot_be_resumed_starts_afresh(site: Site, change: str) -> None:
    if change == "no etag":
        site.etag = None
    site.content, site.cut_at = bytes(1_000_000), 400_000
    with pytest.raises(WeightsError, match="cut"):
        fetch(site.url, SHA256)
    site.content, site.cut_at = CONTENT, None
    if change == "no ranges":
        site.ranges = False
    if change == "other etag":
        site.etag = '"v2"'
    assert fetch(site.url, SHA256).read_bytes() == CONTENT


def test_a_complete_part_that_was_never_renamed_is_fetched_again(site: Site) -> None:
    path = fetch(site.url, SHA256)
    part = path.replace(path.with_name(path.name + ".part"))
    part.with_name(part.name + ".tag").write_text('"v1"')
    assert fetch(site.url, SHA256).read_bytes() == CONTENT
    assert site.requests == [None, f"bytes={len(CONTENT)}-", None]


@pytest.mark.parametrize("digits", [64, 8])
def test_a_wrong_digest_leaves_nothing_behind(site: Site, digits: int) -> None:
    with pytest.raises(WeightsError, match=rf"SHA-256 is {SHA256} where 0+ is expected"):
        fetch(site.url, "0" * digits)
    assert [p.suffix for p in cache_dir().iterdir() if p.suffix in (".pth", ".part")] == []


def test_a_damaged_copy_in_the_cache_is_replaced(site: Site) -> None:
    fetch(site.url, SHA256).write_bytes(CONTENT[:-1])
    assert fetch(site.url, SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "words"), [(404, "404 Not Found"), (403, "403 Forbidden"), (503, "503 Service")])
def test_a_refusal_is_named(site: Site, status: int, words: str) -> None:
    site.status = status
    with pytest.raises(WeightsError, match=words):
        fetch(site.url, SHA256)


def test_a_web_page_is_no_file(site: Site) -> None:
    site.content, site.content_type = b"<html>", "text/html; charset=utf-8"
    with pytest.raises(WeightsError, match="web page"):
        fetch(site.url)


def closed_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        return server.server_port


def test_offline_says_the_three_ways_on_in_one_line() -> None:
    url, digest = f"http://127.0.0.1:{closed_port()}/resnet18-f37072fd.pth", f"f37072fd{0:056}"
    with pytest.raises(WeightsError) as caught:
        fetch(url, digest)
    line = str(caught.value)
    assert line.startswith(f"{url}: cannot be fetched: Connection refused")
    for way in (f"put it at {cache_dir() / 'resnet18-f37072fd.pth'}", "--weights FILE", "--weights signs", "random"):
        assert way in line
    assert "\n" not in line
    (cache_dir() / "resnet18-f37072fd.pth").write_bytes(b"not it")
    with pytest.raises(WeightsError, match="which has another SHA-256"):
        fetch(url, digest)


def test_a_file_put_where_the_message_says_is_taken() -> None:
    url, name = f"http://127.0.0.1:{closed_port()}/net-{SHA256[:8]}.pth", f"net-{SHA256[:8]}.pth"
    cache_dir().mkdir(parents=True)
    (cache_dir() / name).write_bytes(CONTENT)
    assert fetch(url, SHA256) == cache_dir() / name


def test_torch_hubs_copy_is_taken_by_its_whole_digest(cache: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}/net-{SHA256[:8]}.pth"
    copy = cache / "torch" / "hub" / "checkpoints" / f"net-{SHA256[:8]}.pth"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    assert fetch(url, SHA256) == copy
    with pytest.raises(WeightsError, match=f"; {copy} has its name"):
        fetch(url, SHA256[:8])
    copy.write_bytes(CONTENT[1:])
    with pytest.raises(WeightsError, match="cannot be fetched"):
        fetch(url, SHA256)


def test_addresses_of_equal_names_do_not_share_a_file(site: Site) -> None:
    first = fetch(site.url)
    site.content = b"other"
    second = fetch(site.url.replace("/weights/", "/others/"))
    assert first.read_bytes() == CONTENT and second.read_bytes() == b"other"


def test_an_unknown_digest_is_said_and_one_in_the_address_is_checked(site: Site) -> None:
    progress = Recorder()
    fetch(site.url, progress=progress)
    assert SHA256 in progress.lines[0]
    fetch(f"{site.url}#sha256={SHA256.upper()}")
    with pytest.raises(WeightsError, match="is expected"):
        fetch(f"{site.url}#sha256={'0' * 64}")


@pytest.mark.parametrize("url", ["ftp://host/a.pth", "file:///etc/passwd", "http://[/a", "http://host/a#sha256=xyz"])
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(WeightsError):
        fetch(url)


def test_concurrent_processes_share_one_download(site: Site) -> None:
    code = "import sys; from edgeres.zoo.download import fetch; print(fetch(sys.argv[1], sys.argv[2]))"
    command = [sys.executable, "-c", code, site.url, SHA256]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    [path] = paths
    assert Path(path).read_bytes() == CONTENT
    assert site.requests == [None]


def test_concurrent_threads_share_one_download(site: Site) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: fetch(site.url, SHA256), range(4)))
    assert len(paths) == 1 and site.requests == [None]


def test_a_cache_that_cannot_be_written(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("EDGERES_CACHE", str(cache / "file" / "below"))
    with pytest.raises(EnvironmentError_, match="EDGERES_CACHE"):
        fetch(site.url, SHA256)


def test_a_full_disk_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(transfer, "_write_tag", full)
    with pytest.raises(EnvironmentError_, match="No space left on device; free some space"):
        fetch(site.url, SHA256)


def test_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGERES_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/edgeres")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_dir() == Path("/home/me/.cache/edgeres")


# Registry and labels


def test_registry_holds_what_torchvision_publishes() -> None:
    published = {(m.architecture.name, t): w for m in list_models() for t, w in m.weights.items() if t != "signs"}
    assert len(published) == 17
    assert {name for name, _ in published} == {a.name for a in ARCHITECTURES.values() if a.size.source == "torchvision"}
    for (name, tag), weights in published.items():
        assert weights.tag == tag
        assert weights.url == f"https://download.pytorch.org/models/{name}-{weights.sha256[:8]}.pth"
        assert len(weights.sha256) in (8, 64) and int(weights.sha256, 16)
        assert weights.preprocess.crop_px == (224, 224) and weights.preprocess.interpolation == "bilinear"
    # torchvision's documentation, "Table of all available classification weights".
    top1 = {"resnet18": (69.758,), "resnet50": (76.13, 80.858), "resnext101_64x4d": (83.246,)}
    resize = {"resnet18": (256,), "resnet50": (256, 232), "resnext101_64x4d": (232,)}
    for name in top1:
        weights = [w for tag, w in find_model(name).weights.items() if tag != "signs"]
        assert tuple(w.published_top1 for w in weights) == top1[name]
        assert tuple(w.preprocess.resize_px for w in weights) == resize[name]


def test_weights_are_found_by_tag_or_the_tags_are_named() -> None:
    assert find_weights("resnet50", "imagenet:v1") == find_weights("resnet50", "imagenet")
    assert find_weights("resnet50", "imagenet:v2").published_top1 == 80.858
    with pytest.raises(WeightsError, match=r"resnet18: no weights 'imagenet:v2'; there are .*imagenet, random"):
        find_weights("resnet18", "imagenet:v2")
    with pytest.raises(UsageError, match="resnet19: no such architecture; did you mean resnet18 or "):
        find_model("resnet19")


def test_listing_is_plain_json_and_needs_no_torch() -> None:
    code = (
        "import sys, json; from edgeres.zoo.registry import list_models;"
        "print(json.dumps([m.to_dict() for m in list_models()])); assert 'torch' not in sys.modules"
    )
    listed = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert [m["name"] for m in listed] == list(ARCHITECTURES)
    resnet50 = next(m for m in listed if m["name"] == "resnet50")
    assert [w["tag"] for w in resnet50["weights"]] == ["imagenet", "imagenet:v2"]
    assert {w["license"] for w in resnet50["weights"]} == {"BSD-3-Clause"}
    assert resnet50["default"] == "imagenet" and not resnet50["bundled"]


def test_imagenet_classes() -> None:
    classes = imagenet_classes()
    ids, names = zip(*classes, strict=True)
    assert len(classes) == len(set(names)) == 1000
    assert list(ids) == sorted(set(ids)) and (ids[0], ids[-1]) == ("n01440764", "n15075141")
    assert (names[0], names[281], names[517], names[-1]) == ("tench", "tabby", "crane", "toilet tissue")


def test_imagenet_classes_against_named_photographs() -> None:
    folder = SHARED / "data" / "imagenet_samples"
    if not folder.is_dir():
        pytest.skip("shared/data/imagenet_samples is not here")
    names = dict(imagenet_classes())
    for file in folder.iterdir():
        wnid, _, name = file.stem.partition("_")
        assert names[wnid] == name.replace("_", " ")


# Reading checkpoints


def tiny_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A resnet20 with 3 classes, every tensor random."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {k: v for k, v in create("resnet20", 3).state_dict().items() if not k.endswith("num_batches_tracked")}
    return {k: torch.rand(v.shape, generator=generator) + 0.5 for k, v in shapes.items()}


STATE = tiny_state()


def save(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def assert_equal(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for key, tensor in want.items():
        assert got[key].dtype is torch.float32
        assert torch.equal(got[key], tensor), key


PREFIXES = st.lists(st.sampled_from(["module", "model", "_orig_mod", "backbone", "net"]), max_size=3)
NESTS = st.lists(st.sampled_from(["state_dict", "model", "model_state_dict", "net", "ema", "whatever"]), max_size=3)


def loaded(file: Path, **choice: Any) -> dict[str, torch.Tensor]:
    """The values of a resnet20 that a checkpoint gives."""
    state = load_model("resnet20", WeightsChoice(str(file), **choice)).network.state_dict()
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prefixes=PREFIXES, nests=NESTS, beside=st.booleans(), legacy=st.booleans(), counters=st.booleans())
def test_wrapping_is_taken_off(
    tmp_path: Path, prefixes: list[str], nests: list[str], beside: bool, legacy: bool, counters: bool
) -> None:
    data: Any = OrderedDict((".".join([*prefixes, k]), v) for k, v in STATE.items())
    if counters:
        data[".".join([*prefixes, "bn1.num_batches_tracked"])] = torch.tensor(7)
        data["n_averaged"] = torch.tensor(7)
    for nest in nests:
        data = {nest: data}
        if beside:
            momentum = {"state": {0: {"momentum_buffer": torch.rand(4, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}
            data |= {"epoch": 3, "best_acc1": torch.tensor(91.0), "arch": "resnet20", "optimizer": momentum}
    torch.save(data, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert_equal(loaded(tmp_path / "a.pth"), STATE)


def test_the_trained_network_is_preferred_to_its_average(tmp_path: Path) -> None:
    checkpoint = {"model_ema": tiny_state(1), "model": STATE, "args": {"epochs": 3}}
    assert_equal(loaded(save(checkpoint, tmp_path / "a.pth")), STATE)


def test_compiled_submodules_lose_their_mark(tmp_path: Path) -> None:
    state = {"layer1._orig_mod.0.conv1.weight": torch.ones(1)}
    assert list(load_checkpoint(save(state, tmp_path / "a.pt")).tensors) == ["layer1.0.conv1.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({k: v.to(dtype) for k, v in STATE.items()}, tmp_path / "a.safetensors")
    assert_equal(loaded(tmp_path / "a.safetensors"), {k: v.to(dtype).float() for k, v in STATE.items()})


def archive(kind: str) -> bytes:
    """Files that are mistaken for checkpoints, by a word of the message."""
    out = io.BytesIO()
    torch.save(STATE, out)
    if kind == "cut short":
        return out.getvalue()[:5000]
    if kind == "program of torch.export":
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), out := io.BytesIO())
    if kind == "zip archive":
        with zipfile.ZipFile(out := io.BytesIO(), "w") as file:
            file.writestr("readme.txt", "hello")
    if kind == "tar archive":
        tarfile.open(fileobj=(out := io.BytesIO()), mode="w").close()
    return out.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "is damaged or no checkpoint"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "is damaged or no checkpoint"),
        (os.urandom(100), "is damaged or no checkpoint"),
        *((kind, kind) for kind in ("cut short", "program of torch.export", "zip archive", "tar archive")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path: Path, content: bytes | str, words: str) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(archive(content) if isinstance(content, str) else content)
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(file)
    assert str(caught.value).startswith(f"{file}: ") and words in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"epoch": 3, "arch": "resnet20"}, "holds no state dict among epoch, arch"),
        ([3, "resnet20"], "holds no state dict, but a list"),
        ({"student": STATE, "teacher": tiny_state(1)}, "holds several networks that fit: student and teacher; save"),
        (
            {**STATE, "bn1.bias": torch.tensor([1.0, np.nan, np.inf] * 6)[:16]},
            "10 of 16 values of bn1.bias are not fin",
        ),
        ({**STATE, "bn1.bias": torch.ones(16, dtype=torch.int8)}, "bn1.bias is not a dense floating-point tensor"),
        ({**STATE, "linear.weight": torch.ones(3, 64).to_sparse()}, "a sparse tensor"),
        ({**STATE, "bn1.bias": torch.ones(1).expand(16)}, "a tensor of 16 values where 1 are stored"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_tensors_that_cannot_be_taken(tmp_path: Path, data: object, words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load_model("resnet20", str(save(data, tmp_path / "a.pth")))
    assert words in str(caught.value)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pth: no such file"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"none\.pth: no such file; or name one of .*random"):
        load_model("resnet20", str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match="is a directory"):
        load_model("resnet20", str(tmp_path))
    with pytest.raises(WeightsError, match="no weights 'imagnet'"):
        load_model("resnet20", "imagnet")


# Matching


def test_a_checkpoint_becomes_a_network(tmp_path: Path) -> None:
    file = save({"state_dict": {f"module.{k}": v.half() for k, v in STATE.items()}}, tmp_path / "mine.pth")
    network, spec, _ = load_model("resnet20", str(file))
    assert not network.training
    loaded = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert_equal(loaded, {k: v.half().float() for k, v in STATE.items()})
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert spec.labels == ("class 0", "class 1", "class 2")
    assert (spec.name, spec.weights, spec.weights_sha256) == ("resnet20", "mine.pth", file_sha256(file))
    assert spec.preprocess == ARCHITECTURES["resnet20"].preprocess


def test_classes_given_must_be_those_of_the_checkpoint(tmp_path: Path) -> None:
    file = save(STATE, tmp_path / "a.pth")
    assert load_model("resnet20", WeightsChoice(str(file), 3))[1].num_classes == 3
    with pytest.raises(WeightsError, match="has 3 classes, not 10"):
        load_model("resnet20", WeightsChoice(str(file), 10))


@pytest.mark.parametrize("head", ["fc", "fc.1", "classifier"])
def test_the_classifier_may_have_another_name(tmp_path: Path, head: str) -> None:
    state = {k.replace("linear.", f"{head}."): v for k, v in STATE.items()}
    network, _, _ = load_model("resnet20", str(save(state, tmp_path / "a.pth")))
    assert torch.equal(network.state_dict()["linear.weight"], STATE["linear.weight"])


def test_a_mismatch_names_the_tensors(tmp_path: Path) -> None:
    state = {k: v for k, v in STATE.items() if not k.startswith("layer3.2")}
    state |= {"conv1.weight": torch.ones(16, 1, 3, 3), "head.extra": torch.ones(1)}
    with pytest.raises(WeightsError) as caught:
        load_model("resnet20", str(save(state, tmp_path / "a.pth")))
    line = str(caught.value)
    assert "does not fit resnet20: 10 missing (layer3.2.conv1.weight, layer3.2.bn1.weight, layer3.2.bn1.bias" in line
    assert " and 7 more)" in line
    assert "1 unexpected (head.extra)" in line
    assert "1 with another shape (conv1.weight 16x1x3x3 for 16x3x3x3)" in line


def test_a_mismatch_names_the_architecture_that_fits(tmp_path: Path) -> None:
    file = save(create("resnet32", 7).state_dict(), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"does not fit resnet20: .*; it fits resnet32: give that as the model"):
        load_model("resnet20", str(file))


def test_option_b_shortcuts_are_explained(tmp_path: Path) -> None:
    state = STATE | {"layer2.0.shortcut.0.weight": torch.ones(32, 16, 1, 1)}
    with pytest.raises(WeightsError, match=r"1 unexpected \(layer2.0.shortcut.0.weight\); .*option B.*option A"):
        load_model("resnet20", str(save(state, tmp_path / "a.pth")))


@pytest.mark.parametrize("name", ["resnet56", "resnet20v2"])
def test_random_weights_are_the_same_every_time_and_tame(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, spec, _ = load_model(name, WeightsChoice("random", 4))
    second, _, _ = load_model(name, WeightsChoice("random", 4))
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert (spec.weights, spec.weights_sha256, spec.num_classes) == ("random", None, 4)
    px = spec.preprocess.crop_px[0]
    with torch.no_grad():
        logits = first(torch.randn(4, 3, px, px))
    assert logits.std() > 0.01 and logits.abs().max() < 100


def test_metadata_of_a_safetensors_file_is_heard(tmp_path: Path) -> None:
    preprocess = Preprocess(crop_px=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    metadata = {"labels": json.dumps(["stop", "go", "turn"]), "preprocess": json.dumps(preprocess.to_dict())}
    save_file(STATE, tmp_path / "a.safetensors", metadata)
    _, spec, _ = load_model("resnet20", str(tmp_path / "a.safetensors"))
    assert spec.labels == ("stop", "go", "turn") and spec.preprocess == preprocess
    misspelt = {**preprocess.to_dict(), "maen": 0.5}
    del misspelt["mean"]
    wrong = [
        ({"labels": "stop, go, turn"}, r"is not metadata: Expecting value.*; write it as JSON"),
        ({"labels": "[1, 2, 3]"}, r"\$\.labels\[0\]: expected str, got int; write it as JSON"),
        ({"preprocess": json.dumps(misspelt)}, r"\$\.preprocess\.mean: is missing; write it as JSON"),
        ({"preprocess": json.dumps({**preprocess.to_dict(), "std": [0.5, 0, 0.5]})}, r"\$\.preprocess: std and pixel"),
    ]
    for metadata, words in wrong:
        save_file(STATE, tmp_path / "b.safetensors", metadata)
        with pytest.raises(WeightsError, match=rf"b\.safetensors, metadata: {words}"):
            load_model("resnet20", str(tmp_path / "b.safetensors"))


def test_published_weights_bring_their_labels_and_preprocessing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A small network of 1,000 classes replaces the file of 98 MB; its digest is entered in the table."""
    file = save(create("resnet20", 1000).state_dict(), tmp_path / "mine.pth")
    table = (("resnet20", "00000000", 76.13, 256), ("resnet20", file_sha256(file), 80.858, 232))
    monkeypatch.setattr("edgeres.zoo.registry._TORCHVISION", table)
    cached = cache_dir() / f"resnet20-{file_sha256(file)[:8]}.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(file.read_bytes())
    _, spec, _ = load_model("resnet20", "imagenet:v2")
    assert spec.labels == tuple(name for _, name in imagenet_classes())
    assert (spec.weights, spec.preprocess.resize_px) == ("imagenet:v2", 232)
    assert load_model("resnet20", str(file))[1] == spec  # a file that was fetched by hand is recognized by its digest


def test_bundled_weights_are_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edgeres.zoo.registry.BUNDLED", tmp_path)
    labels = ["stop", "go", "turn"]
    half = {k: v.half() for k, v in STATE.items()}
    save_file(half, tmp_path / "resnet20-signs.safetensors", {"labels": json.dumps(labels)})
    log = {"model": "resnet20", "generator": 1, "top1": 95.5, "validation_images": 20, "train_seconds": 2}
    (tmp_path / "resnet20-signs.json").write_text(json.dumps({**log, "recipe": {}, "epochs": []}))
    network, spec, _ = load_model("resnet20")
    assert torch.equal(network.state_dict()["conv1.weight"], half["conv1.weight"].float())
    assert (spec.weights, spec.labels, spec.preprocess.resize_px) == ("signs", tuple(labels), None)
    listed = find_model("resnet20").to_dict()
    assert listed["bundled"] and listed["default"] == "signs"
    assert [(w["tag"], w["published_top1"], w["sha256"]) for w in listed["weights"]] == [
        ("signs", 95.5, spec.weights_sha256)
    ]
    with pytest.raises(WeightsError, match="resnet50: no weights 'signs'; there are imagenet, imagenet:v2, random"):
        load_model("resnet50", "signs")


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_the_bundled_files_fit_and_know_their_labels(name: str) -> None:
    if find_model(name).bundled is None:
        pytest.skip(f"no weights are bundled for {name}")
    _, spec, _ = load_model(name)
    assert (spec.weights, spec.labels, spec.preprocess.resize_px) == ("signs", CLASSES, None)


def test_a_url_is_loaded_and_named_after_its_file(site: Site) -> None:
    torch.save(STATE, out := io.BytesIO())
    site.content = out.getvalue()
    _, spec, _ = load_model("resnet20", f"{site.url}#sha256={hashlib.sha256(site.content).hexdigest()}")
    assert spec.weights == "net.pth"
    assert spec.weights_sha256 == hashlib.sha256(site.content).hexdigest()


def test_nothing_published_and_nothing_asked_for() -> None:
    with pytest.raises(WeightsError, match="resnet110: no weights are published for it; give --weights FILE"):
        load_model("resnet110")


@pytest.mark.parametrize(("name", "file"), [("resnet20", "resnet20-12fca82f.th"), ("resnet32", "resnet32-d509ac18.th")])
def test_third_party_checkpoints_reach_their_published_accuracy(name: str, file: str) -> None:
    data = SHARED / "data" / "cifar10_test1000.npz"
    if not data.is_file() or not (SHARED / "weights" / file).is_file():
        pytest.skip("shared/weights or shared/data is not here")
    network, spec, _ = load_model(name, str(SHARED / "weights" / file))
    with np.load(data) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    pixels = (images / 255 - spec.preprocess.mean) / spec.preprocess.std
    with torch.no_grad():
        logits = network(torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2)))
    top1 = 100 * float((logits.argmax(1).numpy() == labels).mean())
    assert top1 == pytest.approx({"resnet20": 91.5, "resnet32": 92.8}[name], abs=0.11)
