"""Forms of files in image folders: those that are read, and what to do about others."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeres.files import LFS_POINTER, PULL, is_lfs_pointer

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
READ_FORMS = "give a JPEG, a PNG or another image that Pillow reads"
_CONVERT = "convert them to JPEG or PNG"
_CLUTTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found")


@dataclass(frozen=True)
class Form:
    """A form of file that holds pictures, and is not read.

    Attributes:
        name: for counts: ``3 HEIC photos (cat/1.heic, ...)``.
        advice: the next step.
    """

    name: str
    advice: str


_HEIC = Form("HEIC photos", f"{_CONVERT}, e.g. heif-convert 1.heic 1.jpg")
_AVIF = Form("AVIF images", f"{_CONVERT}, e.g. avifdec 1.avif 1.png")
_JXL = Form("JPEG XL images", f"{_CONVERT}, e.g. djxl 1.jxl 1.png")
_JP2 = Form("JPEG 2000 images", _CONVERT)
_GIF = Form("GIF images", f"{_CONVERT}; of an animation the frames that count")
_RAW = Form("camera RAW files", "develop them to JPEG or PNG, as the network's training images were")
_VIDEO = Form("videos", "extract frames: ffmpeg -i VIDEO -r 2 frame%05d.png")
_NPY = Form(
    "NumPy arrays", "put them into one file: np.savez('set.npz', images=..., labels=...), uint8 (N, H, W, 3) RGB"
)
_VECTOR = Form("drawings", "render them to PNG at the size that the camera gives")
_HDR = Form("floating-point images", "tone-map them to 8 bits, as the camera does")
_RECORDS = Form("data set files", "export their images as files, one folder per class")
_PACKED = Form("archives", "unpack them")

_BY_SUFFIX = {
    **dict.fromkeys((".heic", ".heif", ".hif"), _HEIC),
    **dict.fromkeys((".avif", ".avifs"), _AVIF),
    **dict.fromkeys((".jxl",), _JXL),
    **dict.fromkeys((".jp2", ".j2k", ".jpx", ".jpf"), _JP2),
    **dict.fromkeys((".gif",), _GIF),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"), _RAW),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".h264", ".bag"), _VIDEO),
    **dict.fromkeys((".npy", ".npz"), _NPY),
    **dict.fromkeys((".svg", ".pdf", ".eps", ".ai"), _VECTOR),
    **dict.fromkeys((".exr", ".hdr", ".pfm"), _HDR),
    **dict.fromkeys(
        (".tfrecord", ".tfrecords", ".lmdb", ".mdb", ".h5", ".hdf5", ".parquet", ".rec", ".arrow"), _RECORDS
    ),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".xz", ".zst", ".7z", ".rar"), _PACKED),
}
_BY_HEAD = {
    b"\xff\x0a": _JXL,
    b"\0\0\0\x0cJXL ": _JXL,
    b"\0\0\0\x0cjP  ": _JP2,
    b"\xff\x4f\xff\x51": _JP2,
    b"\x93NUMPY": _NPY,
    b"%PDF": _VECTOR,
    b"<svg": _VECTOR,
    b"v/1\x01": _HDR,
    b"#?RADIANCE": _HDR,
    b"\x89HDF": _RECORDS,
    b"PAR1": _RECORDS,
    b"PK\x03\x04": _PACKED,
    b"\x1f\x8b": _PACKED,
    b"7z\xbc\xaf": _PACKED,
    b"\x1aE\xdf\xa3": _VIDEO,
    b"\0\0\x01\xba": _VIDEO,
}
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), _HEIC),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
}


def is_hidden(part: str) -> bool:
    """Whether a file or folder of that name is ignored: ``.git``, ``._1.jpg``, ``__MACOSX``, ``Thumbs.db``."""
    return part.startswith(".") or part.lower() in _CLUTTER


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    return name.lower().endswith(SUFFIXES)


def form_of(name: str) -> Form | None:
    """The form of a file that is not read, by its name; None: it is no picture that edgeres knows."""
    return _BY_SUFFIX.get(name[name.rfind(".") :].lower()) if "." in name else None


def why_no_image(head: bytes) -> tuple[str, str]:
    """The reason why a file that Pillow does not recognize is no image, by its first bytes; and the next step."""
    if not head:
        return "empty, 0 bytes", "copy it again"
    if is_lfs_pointer(head):
        return LFS_POINTER, PULL
    if not head.strip(b"\0"):
        return "it begins with zeros only", "copy it again: the copy was broken off, or the disk lost it"
    if re.match(rb"\s*<(!doctype html|html)", head, re.IGNORECASE):
        return "a web page, not an image", "fetch the image itself"
    if head.startswith(b"\0\x05\x16\x07"):
        return "what macOS keeps beside a file (AppleDouble), not an image", "remove it"
    form = next((form for start, form in _BY_HEAD.items() if head.startswith(start)), None)
    if head[4:8] == b"ftyp":
        form = _BRANDS.get(head[8:12], _VIDEO)
    elif head[:4] == b"RIFF" and head[8:11] == b"AVI":
        form = _VIDEO
    if form is not None:
        return f"not an image that is read: its content is of the form of {form.name}", form.advice
    return "not an image", READ_FORMS
