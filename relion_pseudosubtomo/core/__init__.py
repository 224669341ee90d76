"""The numerics of extraction: arrays in, arrays out. No files, no tables, no ranks."""
