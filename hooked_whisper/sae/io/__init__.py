"""Files of sparse autoencoders: SAELens's, and what others have written."""
