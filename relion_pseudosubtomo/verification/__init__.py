"""The command `verify`: whether an output directory is what refinement will take it for."""
