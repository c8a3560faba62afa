"""Methods as text: what the command line takes, and the way back."""

import pytest

from wsss.errors import UserError
from wsss.saliency import (
    METHODS,
    SESS,
    ClassSubtraction,
    GlobalGuidanceCAM,
    GradCAM,
    GradCAMPlusPlus,
    MultiScale,
)
from wsss.saliency.parse import parse_method, to_expression


@pytest.mark.parametrize("name", METHODS)
def test_every_name_of_the_zoo_is_an_expression(name):
    method = parse_method(name, layer="layer4")
    assert type(method) is METHODS[name]
    assert getattr(method, "layer", "layer4") == "layer4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gradcam", GradCAM("layer4")),
        (" gradcam@layer3 ", GradCAM("layer3")),
        ("gradcam++@layer3", GradCAMPlusPlus("layer3")),
        ("sess(gradcam++@layer3(eps=1.0), window=9)", SESS(GradCAMPlusPlus("layer3", eps=1.0), window=9)),
        ("gradcam@features.29", GradCAM("features.29")),
        ("gradcam(layer3)", GradCAM("layer3")),
        ("gradcam('layer3.1')", GradCAM("layer3.1")),
        ("global_guidance@layer3(smooth=1.5)", GlobalGuidanceCAM("layer3", smooth=1.5)),
        ("sess(gradcam, scales=[224, 288], pool=max)", SESS(GradCAM("layer4"), scales=(224, 288), pool="max")),
        ("subtraction(multiscale(gradcam@layer3, scales=(1, 2), flip=False), reduce=min)",
         ClassSubtraction(MultiScale(GradCAM("layer3"), scales=(1, 2), flip=False), reduce="min")),
    ],
)  # fmt: skip
def test_expressions_build_what_they_say(text, expected):
    assert parse_method(text, layer="layer4") == expected


def test_an_expression_leaves_defaults_out():
    assert to_expression(SESS(GradCAM("layer4"), window=112)) == "sess(gradcam@layer4, window=112)"


def test_the_score_is_filled_in_where_a_method_has_one():
    assert parse_method("sess(gradcam)", "layer4", "softmax") == SESS(GradCAM("layer4"), score="softmax")
    assert parse_method("sess(gradcam, score=sigmoid)", "layer4", "softmax").score == "sigmoid"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gradcm", "no saliency method 'gradcm'; did you mean gradcam"),
        ("xyz", "no saliency method 'xyz'; the methods are .*gradcam"),
        ("sess(gradcam", "is not a saliency method; write for example"),
        ("", "is not a saliency method"),
        ("sess(gradcam, windows=3)", "no parameter 'windows'; did you mean window"),
        ("sess", "'sess' in 'sess' needs its base"),
        ("sess(gradcam, base=gradcam)", "gives 'base' twice"),
        ("gradcam(1, 2, 3)", "too many values"),
        ("sess(3)", "'3' in .* is not a saliency method"),
        ("__import__('os').system('x')", "is not a saliency method"),
        ("sess(gradcam, window=print(1))", "must be a number, a word or a tuple"),
        ("sess(gradcam, window='a')", "gives 'window' the value 'a'; it takes a whole number"),
        ("gradcam(layer=5)", "gives 'layer' the value 5; it takes a word"),
        ("sess(gradcam, scales=224)", "it takes values in brackets, .* each a whole number"),
        ("sess(gradcam, scales=(224, 1.5))", r"gives 'scales' the value \(224, 1.5\)"),
        ("sess(gradcam, pool=median)", "it takes mean or max"),
        ("sess(gradcam, smooth=1)", "it takes True or False"),
        ("scorecam(batch_size=True)", "it takes a whole number"),
        ("gradcam++(eps=big)", "it takes a number or None"),
        ("gradcam++(epz=1)", r"'gradcam\+\+' in .* has no parameter 'epz'; did you mean eps"),
        ("sess(gradcam, scales={{}})", "must be a number, a word or a tuple"),
        ("sess(gradcam, window=0)", "at least 1"),
        ("sess(gradcam, **{'window': 1})", "no parameter 'None'"),
    ],
)
def test_a_wrong_expression_is_explained(text, message):
    with pytest.raises(UserError, match=message):
        parse_method(text, layer="layer4")


def test_without_a_layer_the_method_finds_the_last_one():
    assert parse_method("gradcam") == GradCAM() == GradCAM(None)
    assert to_expression(GradCAM()) == "gradcam"


def test_a_method_that_is_added_later_is_an_expression(monkeypatch):
    class Mine(GradCAM):
        """Another name for the same."""

    monkeypatch.setitem(METHODS, "mine", Mine)
    assert type(parse_method("mine@layer3")) is Mine
    with pytest.raises(UserError, match="no saliency method 'mien'; did you mean mine"):
        parse_method("mien")
