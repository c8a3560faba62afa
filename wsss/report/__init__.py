"""What a run shows: the VOC palette, overlays and the self-contained HTML report."""
