"""Reports of a run: one declaration of panels, which W&B, Grafana and an HTML file show.

``panels``     which keys share a chart, and the question that each section answers
``workspace``  the panels as a saved workspace of a W&B project
``run_file``   reads rows from metrics.jsonl and from W&B's files;  ``runs``  finds the file of the run that a user names
``page``       the panels as one HTML file; ``chart`` fills them with numbers, ``drawing`` draws them as SVG
``waterfall``  draws the parts of the mean step
``facts``      the headline of the page;  ``scale`` chooses ticks and units, ``thin`` drops points, ``colours`` holds the palette
"""
