"""What a run shows: overlays and the self-contained HTML report."""
