"""Who does which task: executors that take tasks and give back results. No tomograms, no files."""
