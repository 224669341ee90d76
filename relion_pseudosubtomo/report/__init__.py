"""The report: what a run did, with pictures, as one HTML file (`--report`).

Workers leave small files in the output directory while they extract (`collect`, `store`); rank 0
adds where all particles lie (`geometry`); the page is made from the directory alone (`contents`,
`figures`, `page`), so that it can be made again.
"""
