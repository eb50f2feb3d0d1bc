"""Declared sizes are not trusted, and pipes and devices are not opened."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from bundles import write_bundle
from PIL import Image

from edgeres.bundle import PROBES, Bundle
from edgeres.data.decode import decode
from edgeres.data.files import read_image
from edgeres.data.sources import open_source
from edgeres.data.text import read_class_names
from edgeres.errors import BundleError, EdgeresError, InputError, SourceError, UsageError
from edgeres.inert import DamagedPickle, read_pickle
from edgeres.quantize.exchange import read_foreign
from edgeres.records import AS_RGB
from edgeres.reports import read_baseline
from edgeres.runtime import Classifier, Frame
from edgeres.runtime.probes import read_probes
from edgeres.verify.known import read_known


def read(content):
    return read_pickle(io.BytesIO(content), {}, lambda identifier: None)


def test_a_pickle_that_copies_a_dictionary_again_and_again_ends():
    entries = b"".join(b"J" + struct.pack("<i", key) + b"N" for key in range(20_000))
    made = b"ccollections\nOrderedDict\nq\x01" + b"}(" + entries + b"uq\x00"
    with pytest.raises(DamagedPickle, match="more than 4,000,000 steps"):
        read(b"\x80\x02" + made + b"h\x01h\x00\x85R0" * 10_000 + b"N.")


@pytest.mark.parametrize("content", [b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00ab", b"\x80\x02\x8b\xff\xff\xff\x7fab"])
def test_a_pickle_that_states_lengths_it_does_not_have_is_damaged(content):
    with pytest.raises(DamagedPickle):
        read(content)


def test_a_cifar_batch_that_claims_more_images_than_it_holds_is_refused(tmp_path):
    planes = np.zeros((2, 3072), np.uint8)
    content = pickle.dumps({b"data": planes, b"labels": [0, 1]}, protocol=2)
    for file, data in (
        ("good", content),
        ("bad", content.replace(b"K\x02M\x00\x0c\x86", b"J\xff\xff\xff\x7fM\x00\x0c\x86")),
    ):
        (tmp_path / file).mkdir()
        (tmp_path / file / "test_batch").write_bytes(data)
    assert open_source(str(tmp_path / "good"), role="validation", px=32).image(1).shape == (32, 32, 3)
    with pytest.raises(SourceError, match="6,144 bytes, and claims to be"):
        open_source(str(tmp_path / "bad"), role="validation", px=32)


def test_an_npz_whose_header_claims_more_than_its_member_is_refused(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (1 << 30, 64, 64, 3)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", stream.getvalue())
    with pytest.raises(SourceError, match=r"images\.npy claims to be uint8"):
        open_source(str(tmp_path / "a.npz"), role="calibration", px=32)


def test_an_npz_that_expands_to_a_gigabyte_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("images.npy", bytes(1 << 20))
    patched = path.read_bytes().replace(struct.pack("<L", 1 << 20), struct.pack("<L", 1 << 30))
    path.write_bytes(patched)
    with pytest.raises(SourceError, match="expand to 1,074 MB"):
        open_source(str(path), role="calibration", px=32)


def bomb(path):
    """An .npz of 1 MB with a member of 1 GB of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("scores.npy", bytes(1 << 20))
    path.write_bytes(path.read_bytes().replace(struct.pack("<L", 1 << 20), struct.pack("<L", 1 << 30)))
    return path


def test_probes_and_answers_of_a_bundle_do_not_expand_to_a_gigabyte(tmp_path):
    with pytest.raises(BundleError, match="expand to 1,074 MB"):
        read_known(bomb(tmp_path / "answers.fp32.npz"))
    content = bomb(tmp_path / "probes.npz").read_bytes()
    bundle = Bundle(write_bundle(tmp_path / "b.edgeres", files={PROBES: content}))
    with pytest.raises(BundleError, match=r"probes\.npz cannot be read \(its arrays expand to 1,074 MB"):
        read_probes(bundle)


def test_a_tiff_whose_tags_name_the_same_bytes_many_times_is_refused(tmp_path):
    body = bytes(100_000)
    tags = b"".join(struct.pack("<HHLL", 40_000 + tag, 1, len(body), 8) for tag in range(200))
    content = b"II*\0" + struct.pack("<L", 8 + len(body)) + body + struct.pack("<H", 200) + tags + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(SourceError, match="tags claim 20,000,000 bytes"):
        read_image(tmp_path / "a.tif")


def test_a_jpeg_with_hundreds_of_scans_is_refused():
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 9, 9)).save(stream, "JPEG", progressive=True)
    assert read_image(io.BytesIO(stream.getvalue()), "a.jpg").shape == (32, 32, 3)
    with pytest.raises(SourceError, match="scans, a progressive JPEG has about ten"):
        read_image(io.BytesIO(stream.getvalue() + b"\xff\xda\0\0" * 100), "a.jpg")


def test_an_image_of_more_pixels_than_any_camera_is_refused_by_its_header():
    with pytest.raises(SourceError, match="more than 100 million pixels"):
        read_image(io.BytesIO(b"P5 11000 11000 255\n"), "a.pgm")


def test_large_images_are_converted_in_strips_to_the_same_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (10, 1_700_000, 1), np.uint8)
    for image in (Image.fromarray(noise[..., 0]), Image.fromarray(noise[..., 0]).convert("P")):
        assert np.array_equal(decode(image, AS_RGB), np.asarray(image.convert("RGB")))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("reader", [read_baseline, read_foreign, read_image, read_class_names])
def test_a_pipe_is_refused_before_it_is_opened(tmp_path, reader):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(EdgeresError, match="is a named pipe, not a file"):
        reader(tmp_path / "a.json")


@pytest.mark.parametrize("view", [lambda array: array, lambda array: Frame(array, "rgb8")])
def test_an_array_that_repeats_one_byte_ten_billion_times_is_not_copied(tmp_path, view):
    array = np.broadcast_to(np.uint8(7), (60_000, 60_000, 3))
    with Classifier(write_bundle(tmp_path / "b.edgeres")) as classify:
        with pytest.raises(InputError, match="more than 100 million pixels"):
            classify(view(array))
        assert classify(view(np.ascontiguousarray(array[:9, :9]))).label


@pytest.mark.parametrize("count", [0, -1, "a", 1.5, None])
def test_a_warm_up_of_no_whole_number_is_refused(tmp_path, count):
    with Classifier(write_bundle(tmp_path / "b.edgeres")) as classify, pytest.raises(UsageError, match="whole numbers"):
        classify.warm_up(count)


@pytest.mark.parametrize("threads", [-1, 10**6, "a", None])
def test_a_number_of_threads_that_no_machine_has_is_refused(tmp_path, threads):
    with pytest.raises(UsageError, match="threads are a number from 0 to 1,024"):
        Classifier(write_bundle(tmp_path / "b.edgeres"), threads=threads)


@pytest.mark.parametrize("path", [None, 5, b"b.edgeres", "a\0b"])
def test_what_is_no_path_is_no_bundle(path):
    with pytest.raises(UsageError, match="a bundle is the path of a directory"):
        Classifier(path)
