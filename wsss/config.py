"""The whole configuration as one tree of frozen dataclasses.

The string below an attribute is its help text on the command line. Every command takes
``--config FILE`` (YAML of this tree) and dotted overrides such as ``--classifier.epochs 5``.
Paths are plain strings, so that a checkpoint with a configuration in it loads with ``weights_only=True``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from wsss.errors import UserError
from wsss.refine.parameters import RefineParameters


def _check_least(section: str, values: Any, **least: float) -> None:
    """Raises UserError where a value of a section (not None) is below its least one, or not a number."""
    for name, low in least.items():
        value = getattr(values, name)
        if value is not None and not value >= low:
            raise UserError(f"{section}.{name} is {value}, but must be at least {low}")


def _check_scales(name: str, scales: tuple[float, ...]) -> None:
    if not scales:
        raise UserError(f"{name} is empty; give at least one scale, for example [1.0]")
    if not min(scales) > 0:
        raise UserError(f"{name} is {list(scales)}, but every scale must be above 0")


def _check_range(name: str, least: float, most: float) -> None:
    if not 0 < least <= most:
        raise UserError(f"{name} is [{least:g}, {most:g}], but must be [low, high] with 0 < low <= high")


@dataclass(frozen=True)
class ShapesConfig:
    """The procedural data set. It is made on first use when ``data.kind`` is ``shapes``."""

    train: int = 2000
    """Number of training images."""
    val: int = 200
    """Number of validation images."""
    size: int = 96
    """Height and width of an image in pixels."""
    seed: int = 0
    """Seed of the generator. The training has its own seed."""


@dataclass(frozen=True)
class DataConfig:
    """Which photos, which labels."""

    kind: str = "shapes"
    """auto: by what is in root, also the export of a labelling tool (docs/formats.md); shapes: procedural, made on
    first use; voc: PASCAL VOC devkit layout; folder: photos and a CSV of tags; coco: COCO 2014 instances; imagenet:
    validation images in class folders, only for evaluating saliency."""
    root: str = "data/shapes"
    """Folder of the data set."""
    labels: str = "xml"
    """Image labels: `xml` (the data set's own annotations) or the path of a CSV image,labels with `;` between labels,
    which may be relative to root (imagenet: a list of lines `name index`)."""
    classes: str | None = None
    """Text file with one class per line, index 1 first; the path may be relative to root. null: VOC's 20 or COCO's 80
    (folder: its classes.txt, or the sorted labels of its CSV)."""
    train: str | None = None
    """Training images: a split name or a list file; null: every labelled image that is not in val (voc with labels xml:
    only those in its trainval lists; coco: train2014)."""
    val: str | None = None
    """Validation images: a split name or a list file; null: the split val, if there is one (folder: a fixed tenth of
    the images, or all that train does not list; coco: val2014; imagenet: all)."""
    limit: int | None = None
    """Dry run: use only this many photos of each split, evenly spaced. Metrics, summary and report then say so."""
    long_side: int | None = None
    """Shrink photos to this longer side in pixels if they are larger. The copies are made once, in RUN/resized; masks
    and scores of the run then have their size. `wsss predict` shrinks photos the same way but writes masks of full
    size; `wsss compare` reads the originals."""
    shapes: ShapesConfig = field(default_factory=ShapesConfig)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"data.limit is {self.limit}, but must be at least 1, or null for all photos")
        if self.long_side is not None and self.long_side < 32:
            raise UserError(
                f"data.long_side is {self.long_side}, but must be at least 32 pixels, or null for no copies"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and schedule: linear warm-up, then the poly schedule (1 - step/steps)^power."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""
    lr: float = 0.01
    """Learning rate of the backbone. With momentum 0.9, 0.01 corresponds to the papers' 0.1 without momentum."""
    head_factor: float = 10.0
    """The head's learning rate is this many times the backbone's."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay."""
    power: float = 0.9
    """Exponent of the poly schedule."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate grows linearly."""

    def __post_init__(self) -> None:
        _check_least("optimizer", self, momentum=0, weight_decay=0, power=0)
        for name, value in (("lr", self.lr), ("head_factor", self.head_factor)):
            if not value > 0:
                raise UserError(f"optimizer.{name} is {value}, but must be above 0")
        if not 0 <= self.warmup < 1:
            raise UserError(f"optimizer.warmup is {self.warmup}, but must be in [0, 1)")


POOLINGS = ("own", "mean", "max", "lse", "topk")
"""Names of `ClassifierConfig.pooling`."""


@dataclass(frozen=True)
class ClassifierConfig:
    """The multi-label classifier."""

    architecture: str = "resnet50"
    """Backbone: resnet18, resnet34, resnet50, resnet101 (global average pooling and a bias-free linear head), vgg16 or
    vgg16_bn (fully convolutional, global max pooling), or timm:NAME, a network of timm with its own head
    (`wsss networks WORD` lists them). Vision transformers score the mean of their patches."""
    weights: str = "imagenet"
    """Initial weights: `imagenet` (of torchvision or timm, downloads), `none`, or the path of a state dict."""
    output_stride: Literal[8, 16, 32] = 16
    """Input pixels per cell of the last feature map (ResNets). Smaller is finer and slower."""
    pooling: str = "own"
    """How places become a score. own: the network's own pooling and head. Otherwise a linear layer scores every cell of
    the last feature map, and the logit is their mean, max, lse(R) (log-sum-exp, log(mean of exp(R s)) / R of the scores
    s; R is 5 in `lse`), or topk(SHARE) (mean of the highest share of the cells; 0.1 in `topk`)."""
    small_images: bool = False
    """Drop the stem's max pooling, which halves every stride (for ResNets on images of about 128 pixels)."""
    freeze_batchnorm: bool | None = None
    """Keep BatchNorm's pre-trained statistics and weights. null: yes, unless weights is `none`."""
    frozen_stages: int | None = None
    """Number of first stages that are not trained (1: stem, 2: stem and layer1, ...). null: 2, or 0 when weights is
    `none`."""
    epochs: int = 5
    """Passes over the training images."""
    batch_size: int = 16
    """Images per optimiser step, over all devices together."""
    long_side: tuple[int, int] = (320, 640)
    """Training images are resized to a longer side drawn uniformly from this range (pixels)."""
    crop: int = 512
    """Side of the random training crop (pixels); smaller images are padded with the mean colour."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation changes."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        _check_least("classifier", self, frozen_stages=0, epochs=1, batch_size=1, crop=32, color_jitter=0)
        _check_range("classifier.long_side", *self.long_side)
        name, value = self.pooling_parts
        most = {"lse": float("inf"), "topk": 1.0}.get(name)
        fits = value is None if most is None else value is not None and 0 < value <= most
        if name not in POOLINGS or not fits:
            raise UserError(
                f"classifier.pooling is {self.pooling}, but must be one of {', '.join(POOLINGS)}; lse(R) with R above "
                "0, topk(SHARE) with a share above 0 and at most 1"
            )

    @property
    def pooling_parts(self) -> tuple[str, float | None]:
        """Name and value: ("lse", 5.0), ("mean", None)."""
        found = re.fullmatch(r"(\w+)(?:\(([\d.e-]+)\))?", self.pooling)
        if found is None:
            return self.pooling, None
        try:
            given = float(found[2]) if found[2] else None
        except ValueError:
            return self.pooling, None
        value = given if given is not None else {"lse": 5.0, "topk": 0.1}.get(found[1])
        return found[1], value


@dataclass(frozen=True)
class SaliencyConfig:
    """Class-discriminative saliency of the training photos, for the classes in their labels."""

    method: str = "gradcam"
    """A method from docs/zoo.md, with parameters as in Python: gradcam, global_guidance@layer3, groupcam(groups=16)."""
    output_stride: Literal[8, 16, 32] | None = None
    """Output stride of the classifier when it makes the maps (ResNets). A finer one than in training only costs
    time."""
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Input scales whose maps are summed. Methods with scales of their own (dcsm, cameras, sess(...)) ignore this."""
    flip: bool = True
    """Also use the mirror image at every scale. Not applied to sess(...) and multiscale(...)."""
    balance: Literal["auto", "none", "area", "max"] = "auto"
    """Weight of each scale's map in the sum. area: its number of cells (sum of CAMs); max: 1 / its maximum; none: 1;
    auto: area for methods whose values are means over positions (gradcam and most others), max for the rest."""
    checkpoint: Literal["last", "best"] = "last"
    """Classifier checkpoint. best: by validation mAP (image labels only), or by training loss if there is no
    validation."""
    batch_size: int = 4
    """Images of equal size per forward pass; limits the memory."""

    def __post_init__(self) -> None:
        _check_least("saliency", self, batch_size=1)
        _check_scales("saliency.scales", self.scales)


@dataclass(frozen=True)
class FeatureConfig:
    """A frozen network whose inner layers the extension compares."""

    architecture: str = "classifier"
    """`classifier`: this run's; or a backbone: resnet50, vgg16, timm:NAME, ..."""
    weights: str = "imagenet"
    """Of a backbone: `imagenet` (what torchvision or timm offers, downloads; of DINO names, self-supervised weights) or
    the path of a state dict. Never trained on masks."""
    layers: tuple[str, ...] = ()
    """Names of layers, fine to coarse. Empty: the last three stages. The walk compares all but the last one; the
    classifier of cells sees all."""


@dataclass(frozen=True)
class ExtendConfig:
    """Extends seeds to whole objects by what looks alike to the classifier's inner layers; no mask is used."""

    method: Literal["auto", "none", "walk", "pixels"] = "auto"
    """walk: a random walk spreads the saliency over cells that look alike; pixels: a linear classifier of cells is
    trained on the seeds of many photos, in rounds, and a walk follows; none: the CRF starts from the saliency; auto:
    pixels, or none if classifier.weights is `none` (pixels needs features from pre-training)."""
    backbone: tuple[FeatureConfig, ...] = ()
    """The networks that say what looks alike; empty: this run's classifier. Several are joined, each layer counting the
    same: [{architecture: classifier}, {architecture: resnet50, weights: PATH, layers: [layer2, layer3]}]."""
    photos: int = 500
    """pixels: number of photos to learn from, evenly spaced; fewer where their features would take more than 8 GB. Each
    takes 3 to 9 MB of memory with one network."""
    rounds: int = 4
    """pixels: how many times the classifier of cells is trained, each time on what the previous one was sure of."""
    low: float = 0.2
    """pixels: cells with less saliency than this (after the walk) are background in the first round."""
    high: float = 0.35
    """pixels: cells with more saliency than this belong to the class in the first round. Cells between low and high are
    left out."""
    balance: float = 0.65
    """pixels: each class is weighted by (number of cells)^-balance. Larger values give larger masks, above all of rare
    classes; smaller values give more precise ones (docs/segmentation.md)."""
    radius: int = 12
    """How far one step of the walk reaches, in cells of 8 pixels (pixels: in the last walk)."""
    power: float | None = None
    """Exponent of the cosine similarity of two cells. With larger values the walk stays on what looks the same. null:
    chosen on some photos so that a step reaches as many cells as with 15 on a ResNet-50; no mask is read."""
    steps: int = 16
    """Steps of the walk on saliency. Probabilities of cells take half as many."""

    @property
    def networks(self) -> tuple[FeatureConfig, ...]:
        """The networks, the classifier where none is named."""
        return self.backbone or (FeatureConfig(),)

    def __post_init__(self) -> None:
        _check_least("extend", self, photos=1, rounds=1, balance=0, radius=1, steps=0)
        if self.power is not None and not self.power > 0:
            raise UserError(f"extend.power is {self.power}, but must be above 0, or null to choose it")
        if not 0 <= self.low <= self.high:
            raise UserError(
                f"extend.low is {self.low} and extend.high is {self.high}, but 0 <= low <= high is needed"
            )


SEGMENTERS = (
    "deeplabv2_resnet50",
    "deeplabv2_resnet101",
    "deeplabv3_resnet18",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101",
    "lraspp_mobilenet_v3_large",
    "light",
)
"""Segmentation networks that need no extra; others are HEAD_BACKBONE (`wsss.models.segmenter.split_architecture`)."""


MOST_SEED = 10**9
"""An augmentation's seed combines it with the epoch and the image, and must stay below torch's 2^63."""

NOT_WEAK = "not weakly supervised: the segmenter's backbone may have seen masks"
"""Printed next to every result of a segmenter that was allowed such weights (`SegmenterConfig.mask_pretraining`)."""


@dataclass(frozen=True)
class SegmenterConfig:
    """The segmentation network."""

    architecture: str = "deeplabv3_resnet50"
    """HEAD_BACKBONE: deeplabv2_resnet50|101 (the papers'), deeplabv3_resnet18|50|101, deeplabv3_mobilenet_v3_large,
    deeplabv3plus_resnet50|101, lraspp_mobilenet_v3_large; HEAD_timm:NAME with the heads deeplabv2, deeplabv3, linear,
    fpn, pup (for plain transformers), and deeplabv3plus or lraspp where the network has fine maps; `light` (ResNet-18
    and a small decoder, for small images); or smp:NAME or smp:NAME/resnet101 of segmentation-models-pytorch
    (`pip install "wsss[smp]"`)."""
    weights: str = "imagenet"
    """Backbone weights: `imagenet` (classification, never masks), `none`, `classifier` (this run's), or a path."""
    allow_mask_pretraining: bool = False
    """Accept a `weights` file that was trained on masks. Every result then says that it is not weakly supervised."""
    output_stride: Literal[8, 16] | None = None
    """Input pixels per cell of the backbone's feature map (DeepLab on ResNets). null: 8 for DeepLabV2, else 16."""
    freeze_batchnorm: bool | None = None
    """Keep the pre-trained statistics of the backbone's BatchNorm. null: yes for `imagenet` and a path."""
    loss: Literal["cross_entropy", "bootstrap"] = "cross_entropy"
    """bootstrap: the label is mixed with the network's own prediction (Reed et al.)."""
    bootstrap: Literal["hard", "soft"] = "hard"
    """hard: 0.8 label and 0.2 predicted class; soft: 0.95 label and 0.05 predicted probabilities."""
    label_smoothing: float = 0.0
    """Share of each pixel's label that is spread evenly over all classes."""
    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 8
    """Images per optimiser step, over all devices together."""
    scale: tuple[float, float] = (0.5, 1.5)
    """Training images are resized by a factor drawn uniformly from this range."""
    crop: int = 321
    """Side of the random training crop (pixels)."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation changes."""
    val_every: int = 1
    """Epochs between validations, if there are validation masks. They never choose the published checkpoint."""
    supervised: bool = False
    """Also train the same network on the true masks (an oracle), for supervised.miou and retention."""
    masks: str | None = None
    """Train on these masks instead of the run's pseudo-masks: a folder with <id>.png for every training photo (palette
    or grey, 0..C, 255 = not trained on). `wsss run` then skips the stages whose output nothing reads."""
    true_masks: str | None = None
    """Masks that people drew or corrected: a folder with <id>.png for some training photos (`wsss data import-masks`
    makes one), trained on in place of those photos' pseudo-masks. Every result then says how many. Masks of validation
    photos are refused."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=5e-4))

    def __post_init__(self) -> None:
        _check_least("segmenter", self, epochs=1, batch_size=1, crop=32, color_jitter=0, val_every=1)
        _check_range("segmenter.scale", *self.scale)
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"segmenter.label_smoothing is {self.label_smoothing}, but must be in [0, 1)")

    @property
    def mask_pretraining(self) -> bool:
        """Whether the backbone may have seen masks. If so, no result is weakly supervised, and each one says so."""
        return self.allow_mask_pretraining and self.weights not in ("imagenet", "none", "classifier")


@dataclass(frozen=True)
class EvaluateConfig:
    """Predicting and scoring the validation photos."""

    ms_flip: bool = True
    """Also predict at several scales and mirrored."""
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Scales of the multi-scale prediction."""
    crf: bool = True
    """Also refine the multi-scale prediction (or the plain one, if there is no other) with a CRF
    (`refine.soft_crf`)."""
    oracle_images: int = 50
    """Number of training images on which the oracle threshold of the CRF masks is searched, evenly spaced; 0: all."""

    def __post_init__(self) -> None:
        _check_least("evaluate", self, oracle_images=0)
        _check_scales("evaluate.scales", self.scales)


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how to compute. None of this changes a stage's fingerprint."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """Device to compute on. mps: an Apple GPU, for all but the trainings; nobody has tried it yet, so auto does not."""
    devices: int = 1
    """GPUs, or processes on a CPU, that share every stage: trainings by DistributedDataParallel, the others photo by
    photo. torchrun and srun start as many as they are told, whatever this says."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """auto: bf16 autocast if the hardware computes bf16 (Ampere or newer, AVX512-BF16, AMX); fp16 with scaled losses on
    GPUs before Ampere that have tensor cores, but float32 for saliency, whose gradients fp16 would round away; else
    float32."""
    workers: int | None = None
    """Processes for loading and for the CRF; null: one per core."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        _check_least("runtime", self, devices=1, workers=0)


@dataclass(frozen=True)
class CompareConfig:
    """The leaderboard of saliency methods (`wsss compare`)."""

    methods: tuple[str, ...] = (
        "gradient",
        "gradcam",
        "gradcam++",
        "multiscale(gradcam, balance=area)",
        "subtraction(gradcam)",
    )
    """Methods from docs/zoo.md, with parameters as in Python: [gradcam, "sess(gradcam@layer3, prefilter=0.5)"]."""
    classifier: str = "run"
    """run: this run's classifier; imagenet: torchvision's with 1000 classes, and classifier.weights; or the path of a
    run or a checkpoint."""
    split: Literal["val", "train"] = "val"
    """Images to compare on; those without a label are left out."""
    images: int = 0
    """How many of them, evenly spaced; 0: all."""
    size: int = 224
    """Shorter side of the images that the classifier sees, in pixels; 0: original size."""
    threshold: float | None = None
    """Pixels of a normalised map above this are the salient zone. null: mean + one standard deviation of each map."""
    insertion_steps: int = 50
    """Steps of insertion and deletion (RISE takes 224). 0 leaves both out."""
    insertion_images: int = 100
    """How many of the images, evenly spaced, get insertion and deletion (4 x steps forward passes each); 0: all."""
    batch_size: int = 16
    """Images per forward pass while scoring; limits the memory."""
    page_images: int = 8
    """How many images, evenly spaced, have their maps shown on the page."""
    sanity: bool = False
    """Also randomise the classifier stage by stage from the head down, and correlate the new maps with the
    originals."""
    sanity_images: int = 16
    """How many images, evenly spaced, the sanity check uses; 0: all."""
    seed: int = 0
    """Seed of the randomised weights."""

    def __post_init__(self) -> None:
        counts = ("images", "size", "insertion_steps", "insertion_images", "page_images", "sanity_images")
        _check_least("compare", self, **dict.fromkeys(counts, 0), batch_size=1)
        if not self.methods:
            raise UserError("compare.methods is empty; name at least one method, for example [gradcam]")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise UserError(f"compare.threshold is {self.threshold}, but must be in [0, 1), or null")


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    data: DataConfig = field(default_factory=DataConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)
    extend: ExtendConfig = field(default_factory=ExtendConfig)
    refine: RefineParameters = field(default_factory=RefineParameters)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    plugins: tuple[str, ...] = ()
    """Python files that add methods, refiners, networks or kinds of data under names of their own (docs/plugins.md), as
    --plugin FILE does. Their code is run."""
    output: str = "runs/default"
    """Run directory; an unfinished run in it is continued."""
    seed: int = 0
    """Seed of initialisation, shuffling and augmentation."""

    @property
    def extension(self) -> Literal["none", "walk", "pixels"]:
        """The method of the extension stage, with `auto` resolved."""
        if self.extend.method == "auto":
            return "none" if self.classifier.weights == "none" else "pixels"
        return self.extend.method

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MOST_SEED:
            raise UserError(f"seed is {self.seed}, but must be in 0..{MOST_SEED}")
        if not self.output:
            raise UserError("output is empty; give the run directory, for example --output runs/first")
        for name, batch in (
            ("classifier", self.classifier.batch_size),
            ("segmenter", self.segmenter.batch_size),
        ):
            if batch % self.runtime.devices:
                raise UserError(
                    f"{name}.batch_size is {batch}, which cannot be split over {self.runtime.devices} devices "
                    "(runtime.devices); use a multiple"
                )


@dataclass(frozen=True)
class ComparisonConfig(Config):
    """What `wsss compare` depends on: a run, and what to compare."""

    compare: CompareConfig = field(default_factory=CompareConfig)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration (or a part of it) as nested plain dictionaries with lists instead of tuples."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    result: dict[str, Any] = plain(asdict(config))
    return result


def leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names and values of the leaves of a nested dictionary."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
