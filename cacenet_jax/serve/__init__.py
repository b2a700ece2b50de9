"""--mode=serve: a local page to search an index, to see why images match, and to mark matches as right or wrong.

Read app.py (the routes), guard.py (what is refused before that), views.py (the HTML) and run.py
(the command). Needs the extra [app].
"""
