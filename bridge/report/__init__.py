"""What a run measured, as people look at it: one declaration of panels, shown by W&B and by a file of HTML.

``panels``     which keys stand together, and what question they answer
``workspace``  the panels as a saved workspace of a W&B project
``run_file``   rows of metrics.jsonl and of W&B's files;  ``runs``  from what a user names to such a file
``page``       the panels as one HTML file; ``chart`` fills them with numbers, ``drawing`` makes SVG of them
``waterfall``  the parts of a mean step as a drawing
``facts``      the head of that file;  ``scale`` finds ticks and units, ``thin`` leaves points out, ``colours`` names colors
"""
