"""One self-contained page about any run folders.

    python -m report RUN [RUN ...]      a RUN may also be a folder that holds runs

    runs.py      run folders -> what they hold
    charts.py    curves as inline SVG: seeds as bands, chance lines
    gallery.py   rollouts, pairs, one question from base to final, as data for page.js
    lecture.py   one update explained: a real group from rewards to the clipped loss
    verdicts.py  the experiments beside the paper's numbers
    images.py    images as data inside the page
    page.html, page.css, page.js     the template; it asks for nothing from outside

Everything is read from the folders: the page needs no model, and no run knows of the page.
"""
