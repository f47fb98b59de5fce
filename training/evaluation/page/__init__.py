"""`report.html`: a report for the eye, in one file that asks nobody for anything.

Owns what is shown and how; every figure is the report's. Refuses arithmetic beyond counting.
Texts in it are strangers': the template escapes whatever it is given, and the page's own policy
forbids scripts and requests.

    write_page      the file, from a report and the adapters' training histories
    scoreboard      figures and changes as rows of a table
    examples        items lost, gained and retained, with both answers
    words           which words of two texts differ
    drawing         the one look of all pictures; pareto, changes, histograms, curves draw them
"""

from training.evaluation.page.page import PAGE_FILE, render, write_page

__all__ = ["PAGE_FILE", "render", "write_page"]
