"""What colours weigh, where TensorFlow and JAX do the same work."""

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma, the weights of greyscale
