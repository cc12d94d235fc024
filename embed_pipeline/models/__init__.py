"""Models: images and texts to vectors of one space."""
