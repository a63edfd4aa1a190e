"""Programs that turn images into `.beton` files, once."""
