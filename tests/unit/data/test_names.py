"""Class lists as the usual tools write them, and names that two sources spell differently."""

import json
from pathlib import Path

import pytest

from wsss.data.labels import VOC_CLASSES
from wsss.data.names import check_recorded, classes_of, listed, nearest, plain, read_classes
from wsss.errors import UserError

LISTS = {
    "plain": "cat\n\n dog\t\nhot dog\n",
    "comments": "# my classes\ncat\ndog\nhot dog\n",
    "background first": "background\ncat\ndog\nhot dog\n",
    "LabelMe": "__ignore__\n_background_\ncat\ndog\nhot dog\n",
    "CVAT": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,1,0:head,tail:sit\nhot dog:::\n",
    "VOC": "cat:128,0,0::\ndog:0,128,0::\nhot dog:1,1,1::\nbackground:0,0,0::\nignored:224,224,192::\n",
    "numbered": "0: cat\n1: dog\n2: hot dog\n",
    "numbered from background": "2,dog\n0,background\n1,cat\n3,hot dog\n",
    "numbers after names": "cat,0\ndog,1\nhot dog,2\n",
    "YOLO": "path: ../data\nnc: 3\nnames: ['cat', dog,\n  hot dog]\n",
    "YOLO by number": "train: images\nnames:\n  0: cat\n  1: dog\n  2: hot dog\n",
    "YAML list": "- cat\n- dog\n- hot dog\n",
    "TensorFlow": 'item {\n  id: 1\n  name: \'cat\'\n}\nitem {\n name: "/m/1"\n display_name: "dog"\n id: 2\n}\n'
    "item { id: 3 name: 'hot dog' }\n",
    "COCO": json.dumps(
        {
            "images": [{"id": 1}],
            "categories": [
                {"id": 90, "name": "hot dog"},
                {"id": 1, "name": "cat"},
                {"id": 17, "name": "dog"},
            ],
        }
    ),
    "Detectron2": json.dumps({"thing_classes": ["cat", "dog", "hot dog"]}),
    "Hugging Face": json.dumps({"id2label": {"0": "cat", "1": "dog", "2": "hot dog"}}),
    "name to number": json.dumps({"hot dog": 2, "cat": 0, "dog": 1}),
    "JSON list": json.dumps(["cat", "dog", "hot dog"]),
    "Label Studio": '<View><Image name="i" value="$image"/><Choices name="c" toName="i">'
    '<Choice value="cat"/><Choice alias="d" value="dog"/><Choice value="hot&#32;dog"/></Choices></View>',
}

REFUSED = {
    "one line": ("cat, dog, hot dog\n", 'the line "cat, dog, hot dog" is not a name'),
    "a line of another form": ("cat:1,2,3::\ndog\n", 'the line "dog" is not a name'),
    "a table": ("Idx\tRatio\tName\n1\t0.5\tcat\n", r"is not a name"),
    "a part of YAML": ("cat: domestic\ndog: domestic\n", 'the line "cat: domestic" is not a name'),
    "numbers with a gap": ("1: cat\n3: dog\n", "numbers do not run from 0 or 1 without a gap"),
    "a number twice": ("0: cat\n1: dog\n1: cow\n", "numbers do not run from 0 or 1"),
    "numbers from 5": ("5: cat\n6: dog\n", "numbers do not run from 0 or 1"),
    "a number without name": ("item { id: 1 }\n", "a number has no name"),
    "YAML without names": ("names: 3\n", "it has no list of names"),
    "YAML's yes and no": ("names: [yes, no]\n", "a name like yes or 1 needs quotes"),
    "broken YAML": ("names: [cat\n", "it is not valid YAML"),
    "YAML that makes objects": ("names: !!python/object/apply:os.system [ls]\n", "it is not valid YAML"),
    "broken JSON": ('{"names": ', "Expecting value"),
    "JSON of another kind": ('{"shapes": []}', "it has no list of names"),
    "deep JSON": ("[" * 100_000, "is not a class list that wsss understands"),
    "XML of another kind": ("<annotation><object/></annotation>", "names no classes"),
    "background later": ("cat\nbackground\n", r'lists "background": remove it'),
    "a control character": ("cat\x07\n", r'"cat\\x07" cannot be a class name'),
}


@pytest.mark.parametrize("kind", LISTS)
def test_class_lists_of_the_usual_tools_are_understood(tmp_path: Path, kind: str) -> None:
    (tmp_path / "list").write_text(LISTS[kind])
    assert read_classes(tmp_path / "list") == ("cat", "dog", "hot dog")


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_class_list_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    text, reason = REFUSED[kind]
    (tmp_path / "list").write_text(text)
    with pytest.raises(UserError, match=rf"list.*{reason}"):
        read_classes(tmp_path / "list")


def test_spellings_of_one_name() -> None:
    assert (
        plain("Traffic_Light") == plain("traffic-light") == plain("TRAFFICＬIGHT") != plain("traffic lights")
    )
    assert nearest("Traffic_Light", VOC_CLASSES) is None
    assert nearest("TV monitor", VOC_CLASSES) == "tvmonitor"
    assert nearest("aeroplanes", VOC_CLASSES) == "aeroplane"


def test_unknown_names_are_listed_with_counts_and_near_names() -> None:
    counts = {"leaf": 1, "Dog": 7, **{f"x{index}": 2 for index in range(9)}}
    text = listed(counts, ("cat", "dog"))
    assert text.startswith('"Dog" (7 photos, near "dog"), "x0" (2 photos), ')
    assert text.endswith('"x6" (2 photos), …')
    assert listed({"leaf": 1}, ("cat",), "object") == '"leaf" (1 object)'


def test_masks_know_their_classes(tmp_path: Path) -> None:
    run, made, bare = (tmp_path / name for name in ("run/predictions", "made", "bare"))
    for folder in (run, made, bare):
        folder.mkdir(parents=True)
    (tmp_path / "run/manifest.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    (made / "predictions.json").write_text(json.dumps({"classes": ["background", "dog", "cat"]}))
    (bare / "predictions.json").write_text("[]")
    names = ("background", "cat", "dog")
    check_recorded(run, names, "data.classes")
    check_recorded(bare, names, "data.classes")
    with pytest.raises(UserError, match=r'data.classes has 2: index 1 is "dog" there and "cat" here'):
        check_recorded(made, names, "data.classes")
    with pytest.raises(UserError, match=r'has 1: index 2 is "dog" there and nothing here'):
        check_recorded(run, names[:2], "data.classes")
    assert classes_of((bare, run), None) == names
    assert classes_of((bare,), None) == ("background", *VOC_CLASSES)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert classes_of((run,), tmp_path / "classes.txt") == names
    with pytest.raises(UserError, match=r"made was made with 2 classes .*class list of the other masks"):
        classes_of((run, made), None)
    with pytest.raises(UserError, match=r"made was made with .* --classes .*classes\.txt has 2"):
        classes_of((made,), tmp_path / "classes.txt")
