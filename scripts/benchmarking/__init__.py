"""The parts of the benchmark: data, configurations, processes, the floor, sections, the report."""
