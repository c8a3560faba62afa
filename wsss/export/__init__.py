"""Exports: segmenters for other programs, and masks for the VOC test server."""
