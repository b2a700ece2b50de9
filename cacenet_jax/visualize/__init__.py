"""Why two images match: the paper's figures 4, 5 and 6 of a trained network, and one page that shows them.

The figures are functions from arrays to a matplotlib Figure, without global state, for notebooks too; `report.visualize`
is the mode of the command line.
"""
