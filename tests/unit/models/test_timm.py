"""Networks of timm as classifiers: what the record says is what the network does."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from wsss.config import ClassifierConfig
from wsss.data.transforms import MEAN, STD
from wsss.errors import UserError
from wsss.models.backbone import layout_of
from wsss.models.classifier import build_classifier, classifier_backbone
from wsss.models.imagenet_classifier import load_imagenet_classifier
from wsss.models.lookup import find_backbone
from wsss.models.timm_networks import networks
from wsss.saliency import DCSM, GradCAM
from wsss.tasks.classification import new_task

FAMILIES = {
    "resnet10t": "layer4",
    "resnext26ts": "final_conv",
    "convnext_atto": "stages.3",
    "tf_efficientnet_lite0": "bn2",
    "efficientnet_b0": "bn2",
    "mobilenetv3_small_050": "blocks.5",
    "mobilenetv4_conv_small_035": "blocks.4",
    "densenet121": "features.norm5",
    "regnetx_002": "s4",
    "regnety_002": "s4",
}
"""A small network of each -> its last layer with maps."""

LITE = "timm:tf_efficientnet_lite0"


def bare(name: str, seed: int = 0, **options: int) -> nn.Module:
    """timm's own network with random weights, in float64."""
    torch.manual_seed(seed)
    return timm.create_model(name, pretrained=False, **options).double().eval()


def outputs(network: nn.Module, layers: tuple[str, ...], images: Tensor) -> dict[str, Tensor]:
    """What the layers give."""
    found: dict[str, Tensor] = {}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: found.update({layer: output})
        )
    with torch.no_grad():
        network(images)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_have_the_recorded_channels_and_strides(name: str) -> None:
    backbone = find_backbone(f"timm:{name}", "classifier.architecture", lambda backbone: True)
    assert backbone.layout.last == FAMILIES[name]
    found = outputs(bare(name), backbone.layout.stages, torch.zeros(1, 3, 64, 96).double())
    for layer, channels, stride in zip(
        backbone.layout.stages, backbone.channels, backbone.strides, strict=True
    ):
        assert found[layer].shape == (1, channels, 64 // stride, 96 // stride), layer


@pytest.mark.parametrize("name", ["convnext_atto", "tf_efficientnet_lite0", "regnetx_002"])
def test_gradcam_of_the_last_layer_is_that_of_plain_autograd(name: str) -> None:
    torch.manual_seed(1)
    model = build_classifier(ClassifierConfig(f"timm:{name}", weights="none", output_stride=32), 3)
    model = model.double().eval()
    layout = layout_of(model)
    assert layout is not None
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2)).double()
    targets = torch.tensor([[0, 1], [1, 2]])
    kept: list[Tensor] = []
    handle = model.get_submodule(layout.last).register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    logits = model(images)
    handle.remove()
    for number, (image, cls) in enumerate(targets.tolist()):
        (gradient,) = torch.autograd.grad(logits[image, cls], kept[0], retain_graph=True)
        expected = (gradient[image].mean((1, 2), keepdim=True) * kept[0][image]).sum(0).clamp(min=0)
        found = GradCAM(layout.last)(model, images, targets)[number]
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-7)


def test_dcsm_is_refused_on_a_network_without_relus() -> None:
    model = build_classifier(
        ClassifierConfig("timm:convnext_atto", weights="none", output_stride=32), 3
    ).eval()
    with pytest.raises(UserError, match="DCSM found no ReLU above its layers, so that"):
        DCSM()(model, torch.rand(1, 3, 64, 64), torch.tensor([[0, 1]]))


def test_photos_are_normalised_as_the_network_was_trained(tmp_path: Path) -> None:
    """EfficientNet-Lite: mean and deviation 0.5. Zero padding must be the network's own, so nothing can be folded."""
    reference = bare("tf_efficientnet_lite0")
    torch.save(reference.float().state_dict(), tmp_path / "lite.pth")
    model, names = load_imagenet_classifier(LITE, str(tmp_path / "lite.pth"))
    photo = torch.rand(1, 3, 50, 70, generator=torch.Generator().manual_seed(3)).double()
    mean, deviation = (torch.tensor(values).double()[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        found = model.double()((photo - mean) / deviation)
        expected = reference.double()((photo - 0.5) / 0.5)
    assert len(names) == 1000
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file_start_the_classifier_but_for_its_head(tmp_path: Path, suffix: str) -> None:
    reference = bare("tf_efficientnet_lite0").float()
    path = tmp_path / f"lite{suffix}"
    if suffix == ".pth":
        torch.save(reference.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(reference.state_dict(), path)
    model = build_classifier(ClassifierConfig(LITE, weights=str(path)), 3)
    state = model.state_dict()
    for key, value in reference.state_dict().items():
        if not key.startswith("classifier."):
            assert torch.equal(state[key], value), key
    assert state["classifier.weight"].shape == (3, 1280)


def test_original_names_are_understood(tmp_path: Path) -> None:
    """ConvNeXt's authors named the layers otherwise; timm's filter knows."""
    state = bare("convnext_atto").float().state_dict()
    original = {
        re.sub(r"stages\.(\d)\.blocks\.(\d)", r"stages.\1.\2", key)
        .replace("stem.", "downsample_layers.0.")
        .replace("conv_dw", "dwconv")
        .replace("head.norm.", "norm.")
        .replace("head.fc.", "head."): value
        for key, value in state.items()
    }
    original = {
        re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key): value
        for key, value in original.items()
    }
    original = {
        key.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2"): value
        for key, value in original.items()
    }
    torch.save(original, tmp_path / "convnext.pth")
    model = build_classifier(
        ClassifierConfig("timm:convnext_atto", weights=str(tmp_path / "convnext.pth")), 3
    )
    found = model.state_dict()
    assert all(
        torch.equal(found[key], value) for key, value in state.items() if not key.startswith("head.fc")
    )


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(bare("resnet10t").float().state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="belongs to another architecture"):
        build_classifier(ClassifierConfig(LITE, weights=str(tmp_path / "other.pth")), 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:tf_efficientnet_lite9", "timm has no such network; did you mean timm:tf_efficientnet_lite"),
        ("timm:coat_mini", "which gives no feature maps of photos; choose another network of timm"),
    ],
)
def test_networks_that_do_not_fit_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        classifier_backbone(name)


def test_the_stride_is_asked_of_families_that_can_be_dilated() -> None:
    strides = {}
    for name in ("resnet10t", "densenet121"):
        model = build_classifier(ClassifierConfig(f"timm:{name}", weights="none", output_stride=16), 3).eval()
        layer = FAMILIES[name]
        strides[name] = 64 // outputs(model, (layer,), torch.zeros(1, 3, 64, 64))[layer].shape[-1]
    assert strides == {"resnet10t": 16, "densenet121": 32}


def test_the_first_stages_are_frozen_in_the_order_of_the_network() -> None:
    settings = ClassifierConfig("timm:convnext_atto", weights="none", frozen_stages=2)
    task = new_task(settings, ("cat", "dog"))
    frozen = {name for name, value in task.model.named_parameters() if not value.requires_grad}
    expected = {name for name, _ in task.model.named_parameters() if re.match(r"stem|stages\.[01]", name)}
    assert frozen == expected
    head = {id(value) for value in task.groups().head}
    assert {name for name, value in task.model.named_parameters() if id(value) in head} == {
        "head.fc.weight",
        "head.fc.bias",
    }


def test_weights_that_saw_masks_are_refused(tmp_path: Path) -> None:
    state = bare("tf_efficientnet_lite0").float().state_dict()
    torch.save({f"image_encoder.{name}": value for name, value in state.items()}, tmp_path / "sam.pth")
    with pytest.raises(UserError, match="was trained on masks or boxes"):
        build_classifier(ClassifierConfig(LITE, weights=str(tmp_path / "sam.pth")), 3)
    with pytest.raises(UserError, match=r"timm:samvit_base_patch16 were trained on masks"):
        build_classifier(ClassifierConfig("timm:samvit_base_patch16"), 3)
    with pytest.raises(UserError, match="timm has no such weights"):
        classifier_backbone("timm:resnet50.wrong_tag")


def test_networks_are_listed_with_what_is_known_of_them() -> None:
    (line,) = networks("tf_efficientnet_lite0")[1:]
    assert line.split()[:3] == ["timm:tf_efficientnet_lite0", "4.7", "224"]
    assert "apache-2.0" in line
    assert [line.split()[0] for line in networks("net_lite0")[1:]] == [
        "timm:efficientnet_lite0",
        "timm:tf_efficientnet_lite0",
    ]
    with pytest.raises(UserError, match="no network of timm has efishent in its name"):
        networks("efishent")
