"""From a dense model to a sparse one without training: which weights go, and how the others make up for them."""
