"""A page to try a trained network on photos: its classes, and where in the photo it sees them."""
