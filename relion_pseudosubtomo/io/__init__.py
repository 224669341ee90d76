"""Reading and writing files; each third-party format library is imported in one module only."""
