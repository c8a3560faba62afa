"""LightningModules: the training of the classifier and of the segmenter."""
