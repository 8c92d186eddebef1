"""The detector: architecture graph, NAS-FPN pyramid, Cascade R-CNN, data, training and evaluation."""
