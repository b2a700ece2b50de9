"""The paper's pair stage. Read pair.py first: the exact pooled form of equations 2-7 for one pair.

stage.py       the stage itself: parameters, losses, what retrieval and figures get of it
alignment.py   which positions are neighbours (equations 2-4, table 2)
head.py        Theta and the conditional head
batch_grid.py  the form that training runs, of all pairs of a batch; memory_plan.py cuts it to a memory budget
stored.py      the form that retrieval runs, of one image and many
clues.py       the clue distance (table 1, second row)
"""
