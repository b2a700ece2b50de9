"""The paper's pair stage. Start with pair.py, which applies equations 2-7 to a single pair.

stage.py        pair stage: parameters, losses, retrieval and figures
alignment.py    alignment strategies, i.e. which positions are neighbours (equations 2-4, table 2)
head.py         Theta and the conditional head
batch_grid.py   training: all pairs of a batch
memory_plan.py  block sizes of the training grid for a given memory budget
stored.py       retrieval: one image against many, from stored terms
clues.py        clue distance (table 1, second row)
"""
