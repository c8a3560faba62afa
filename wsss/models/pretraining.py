"""Weights that were trained on masks: recognised by the names in the file, and refused unless the user asks for them.

A backbone that has seen masks makes the segmenter's score worthless as a weakly supervised one. A file with the names
of a bare classifier cannot be told from one, wherever it comes from.
"""

from torch import Tensor

from wsss.errors import UserError

State = dict[str, Tensor]

# What public segmentation and detection code calls a backbone inside a larger network, and the parts around it.
_BACKBONES = ("backbone.body.", "backbone.", "encoder.")
_HEADS = (
    "aux_classifier.",
    "decoder.",
    "mask_decoder.",
    "prompt_encoder.",
    "image_encoder.",
    "sam_mask_decoder.",
    "segmentation_head.",
    "decode_head.",
    "auxiliary_head.",
    "sem_seg_head.",
    "seg_head.",
    "head.",
    "aspp.",
    "rpn.",
    "roi_heads.",
)
_WRAPPERS = ("module.", "model.")


def sign_of_masks(state: State) -> str | None:
    """The first name in ``state`` that only a network for masks or boxes has, None if there is none.

    torchvision's segmentation networks have ``backbone.``, ``classifier.4.weight`` (a convolution) and
    ``aux_classifier.``; its classifiers have ``classifier.0.weight`` too, but as a matrix.
    """
    for name, value in state.items():
        bare = _unwrapped(name)
        if bare.startswith((*_BACKBONES, *_HEADS)) and not (bare.startswith("head.") and value.ndim < 4):
            return name
        if bare.startswith("classifier.") and value.ndim == 4:
            return name
    return None


def backbone_state(state: State, source: str, allow: bool) -> State:
    """The part of ``state`` that belongs to a torchvision backbone, under its own names.

    Args:
        state: of a file.
        source: where it comes from, for the message.
        allow: take the backbone out of a network that was trained on masks.

    Raises:
        UserError: the file holds such a network and ``allow`` is false.
    """
    if not allow:
        refuse_masks(
            state,
            source,
            "give the weights of an ImageNet classifier, or set --segmenter.allow_mask_pretraining true, and every "
            "result will then say so",
        )
    return state if sign_of_masks(state) is None else _strip(state)


def refuse_masks(
    state: State, source: str, advice: str = "give weights that were trained without them"
) -> None:
    """Raises UserError, which ends with the advice, if the state of this source was trained on masks."""
    if (sign := sign_of_masks(state)) is not None:
        raise UserError(
            f"{source} holds a network that was trained on masks or boxes (it has {sign}), so the result would not be "
            f"weakly supervised; {advice}"
        )


def _strip(state: State) -> State:
    found: State = {}
    for name, value in state.items():
        bare = _unwrapped(name)
        prefix = next((prefix for prefix in _BACKBONES if bare.startswith(prefix)), "")
        if prefix:
            inner = bare.removeprefix(prefix)
            # MobileNet's backbone is its `features`, which torchvision's segmenters number without that word.
            found[f"features.{inner}" if inner[0].isdigit() else inner] = value
        elif not bare.startswith((*_HEADS, "classifier.", "fc.")):
            found[bare] = value
    return found


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
