"""Extract subtomograms for RELION: 2D particle stacks and 3D pseudo-subtomograms."""

__version__ = "0.1.0"
