"""The report: one HTML page on a run's selections.

`gather` reads the run and returns JSON (`selection`: a target's selection by a method, `texts`: its
rows, `contributions`: which target examples contribute to their scores, `made`: recipe, times and
versions); `page` puts JSON, style and script into one HTML file. Rejected: site generators and
chart libraries (a page must open in ten years, and from an email), and images (not searchable).
"""
