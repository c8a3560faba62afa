"""What leaves the package: segmenters for other programs, and masks for the VOC test server."""
