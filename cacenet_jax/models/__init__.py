"""Network modules: backbones, correspondence attention, graph convolution, pair stage, heads."""
