"""Fields to values: text, numbers, arrays, images."""
