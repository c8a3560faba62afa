"""The method, stage after stage: image labels in, mIoU out.

    classify    fine-tune a multi-label classifier on photos and their image labels
    saliency    class-discriminative saliency of every training photo
    extend      from the parts that the saliency marks to whole objects
    refine      background score and dense CRF: pseudo-masks, uncertain pixels 255
    segment     train a segmentation network on the pseudo-masks
    supervise   only on request: the same network on the true masks, as a ceiling
    score_masks seeds and pseudo-masks against the true masks, where there are any
    evaluate    predict the validation photos, score them
    score_tags  the predictions against the tags of the validation photos
    report      one page with everything

Each stage is a file in ``stages/``: its work, and what it reads, follows and writes. A finished stage is skipped, one
whose input changed runs again, and an interrupted one continues (see ``runner`` and ``rundir``).
"""

from wsss.stages.base import Stage
from wsss.stages.classify import CLASSIFY, SCORE_CLASSIFIER
from wsss.stages.evaluate import EVALUATE, EVALUATE_SUPERVISED
from wsss.stages.extend import EXTEND
from wsss.stages.refine import REFINE
from wsss.stages.saliency import SALIENCY_STAGE
from wsss.stages.score import SCORE_MASKS, SCORE_TAGS
from wsss.stages.segment import SEGMENT, SUPERVISE

STAGES: dict[str, Stage] = {
    "classify": CLASSIFY,
    "score_classifier": SCORE_CLASSIFIER,
    "saliency": SALIENCY_STAGE,
    "extend": EXTEND,
    "refine": REFINE,
    "segment": SEGMENT,
    "supervise": SUPERVISE,
    "score_masks": SCORE_MASKS,
    "evaluate": EVALUATE,
    "score_tags": SCORE_TAGS,
    "evaluate_supervised": EVALUATE_SUPERVISED,
}
"""All stages except the report, in order."""
