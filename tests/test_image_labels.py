"""Labels of images from tables in the forms that people and data sets have."""

from __future__ import annotations

import numpy as np
import pytest
from test_data import IMAGENET_NAMES, PNG, archive, directory, generic
from test_folders import Heard, spec, tarred

from edgeres.data.arrays import Arrays
from edgeres.data.choose import DataChoice, choose_validation
from edgeres.data.image_labels import label_images
from edgeres.errors import EdgeresError, SourceError, UsageError

LABELS = ("keep left", "stop", "yield")
IMAGES = {"day 1/a.png": PNG, "day 1/b.PNG": PNG, "c.png": PNG}
RIGHT = {"day 1/a.png": "stop", "day 1/b.PNG": "yield", "c.png": "keep left"}


def labelled(path, table: str | bytes, *labels: str) -> tuple[dict[str, str], str]:
    """The class of each image by its name, and what was said."""
    file = path.with_name("table.csv")
    file.write_bytes(table if isinstance(table, bytes) else table.encode())
    heard = Heard()
    choice = DataChoice(validation=str(path), validation_labels=str(file))
    source, _ = choose_validation(choice, spec(*(labels or LABELS)), heard)
    return {source.name(i): source.classes[source.labels[i]] for i in range(len(source))}, "\n".join(heard.lines)


def description_of(folder) -> str:
    choice = DataChoice(validation=str(folder / "set"), validation_labels=str(folder / "table.csv"))
    return choose_validation(choice, spec(*LABELS))[0].description


@pytest.mark.parametrize(
    "table",
    [
        "day 1/a.png,stop\nday 1/b.PNG,yield\nc.png,keep left\n",
        "\ufeffimage,label\r\na.png,stop\r\nb.PNG,yield\r\nc.png,keep left\r\n\r\n",
        "Filename;Width;Height;ClassId\na.png;8;8;1\nb.PNG;8;8;2\nc.png;8;8;0\n",
        "a.png\tstop\nb.PNG\tyield\nc.png\tkeep_left",
        "a.png 1\nb.PNG 2\nc.png 0",
        "label,path\nSTOP,./day 1\\a.png\nyield,./day 1\\b.PNG\nkeep-left,c.png",
        ',id,species,class\n0,a,x,stop\n1,b,y,yield\n2,c,z,"keep left"\n',
        "c.png,0.0\na.png,1.0\nb.PNG,2.0\nc.png,0.0\n",
        "keep left\nstop\nyield\n",  # of c.png, day 1/a.png, day 1/b.PNG
        "0\n1\n2\n",
        "1\n2\n3\n",
        "label\nkeep left\nstop\nyield\n",
    ],
)
@pytest.mark.parametrize("make", [directory, archive, tarred])
def test_tables_of_every_form_say_the_same(tmp_path, make, table):
    assert labelled(make(tmp_path / "set" if make is directory else tmp_path, IMAGES), table)[0] == RIGHT


def test_what_has_no_partner_is_told_on_both_sides(tmp_path):
    found, said = labelled(directory(tmp_path / "set", IMAGES), "image,label\na.png,stop\nb.PNG,\nx.png,stop\n")
    assert found == {"day 1/a.png": "stop"}
    assert "1 of its lines name no image here: x.png" in said
    assert "set: 3 images, 1 labelled by table.csv, 1 classes" in description_of(tmp_path)
    assert "2 of 3 images without a label in table.csv: c.png, day 1/b.PNG" in said


def test_labels_of_an_array_without_any(tmp_path):
    np.savez(tmp_path / "set.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    found, said = labelled(tmp_path / "set.npz", "stop\nyield\nstop\n")
    assert list(found.values()) == ["stop", "yield", "stop"] and "in the order of names" in said


def test_numbers_from_one_are_told(tmp_path):
    assert "count from one" in labelled(directory(tmp_path / "set", IMAGES), "1\n2\n3\n")[1]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("image,label\nx.png,stop\ny.png,yield\n", ["names none of the images", "x.png, y.png", "c.png"]),
        ("a.png,stop\na.png,yield\n", ["day 1/a.png is stop in line 1 and yield in line 2"]),
        ("a.png,8,stop\nb.PNG,8,yield\n", ["3 columns, a.png, 8, stop", "image,label"]),
        ("image,label\na.png,stop,1\nb.PNG,stop\n", ["line 2 has 3 columns, others have 2"]),
        ("stop\nyield\n", ["2 lines of one label for 3 images"]),
        ("a.png,7\nb.PNG,1\n", ["numbered up to 7, and the network has 3 outputs"]),
        ("a.png,halt\nb.PNG,stop\n", ["1 of 2 classes are none of the network's: halt"]),
        (b"PK\x03\x04\0\0", ["it is no text"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["run git lfs pull"]),
    ],
)
def test_tables_with_mistakes_are_refused_in_one_line(tmp_path, table, words):
    with pytest.raises(EdgeresError) as caught:
        labelled(directory(tmp_path / "set", IMAGES), table)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_order_that_is_not_clear_is_not_guessed(tmp_path):
    path = directory(tmp_path / "set", {"1.png": PNG, "2.png": PNG, "10.png": PNG})
    with pytest.raises(SourceError, match=r"10\.png or 2\.png comes first; write image,label"):
        labelled(path, "stop\nyield\nstop\n")


def test_ids_of_the_ilsvrc_development_kit_are_not_taken_for_outputs(tmp_path):
    source = Arrays(np.zeros((2, 8, 8, 3), np.uint8), np.full(2, -1), (), "set")
    for name, table in (("labels.txt", "1\n1000\n"), ("ILSVRC2012_validation_ground_truth.txt", "490\n361\n")):
        path = tmp_path / name
        path.write_text(table)
        for labels in (IMAGENET_NAMES, generic(1000)):
            with pytest.raises(SourceError, match="ILSVRC ids"):
                label_images(source, path, labels)


def test_kaggles_table_of_imagenet(tmp_path):
    path = directory(tmp_path / "set", {"ILSVRC2012_val_00000001.JPEG": PNG, "ILSVRC2012_val_00000002.JPEG": PNG})
    table = (
        "ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 1 2 3 4 \n"
        "ILSVRC2012_val_00000001,n01443537 1 2 3 4 n01443537 5 6 7 8 \n"
    )
    assert list(labelled(path, table, *IMAGENET_NAMES)[0].values()) == ["goldfish", "tench"]


def test_labels_without_images_are_wrong_usage():
    with pytest.raises(UsageError, match="labels need images; add --validation"):
        choose_validation(DataChoice(validation_labels="labels.csv"), spec(*LABELS))
