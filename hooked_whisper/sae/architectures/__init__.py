"""The architectures of sparse autoencoders, one file each."""
