"""The report: what a run's folder tells, gathered as JSON, and the page that shows it.

`gather` reads the run (`selections` a target's selection by a method, `examples` its rows' texts,
`attribution` what pulls them in, `provenance` recipe, times and versions); `page` puts JSON, style
and script into one HTML file. Rejected: a static-site tool or chart library (a page of a run must
open in ten years, and from a mail), and images drawn here (they can't be searched or resized).
"""
