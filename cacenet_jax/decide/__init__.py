"""Decisions about two images: the modes compare and calibrate.

Read compare.py (--mode=compare) with why.py and page.py, which draw the comparison, then calibrate.py (--mode=calibrate)
with labelled.py (where labelled images come from), pairs.py (distances of labelled pairs) and open_set.py (queries of
absent people). The mathematics is in retrieval/calibration.py and calibration_fit.py.
"""
