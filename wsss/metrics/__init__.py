"""Measures of masks: VOC mean IoU (`segmentation`, from `confusion`) and its oracle threshold (`sweep`)."""
