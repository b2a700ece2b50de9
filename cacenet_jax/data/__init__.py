"""Data sets, the synthetic renderer, P x K sampling, the input pipeline and augmentation."""
