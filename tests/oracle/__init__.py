"""An independent, slow and plain statement of the extraction, used as the tests' oracle."""
