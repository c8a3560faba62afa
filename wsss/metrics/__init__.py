"""Measures: VOC mean IoU of masks (`segmentation`) and its best threshold for saliency (`sweep`)."""
