"""The Python interface; its stable names are those of the package itself (docs/api.md)."""
