"""The stages of the pipeline, one file each: its work, what it reads, follows and writes."""
