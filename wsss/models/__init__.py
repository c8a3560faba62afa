"""Networks: backbones, the multi-label classifier and the segmenter."""
