"""Has none of the functions."""
